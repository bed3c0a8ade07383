"""Listens at one Unix socket for each run: whatever comes in there is that run's."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from valetkey import serving
from valetkey.errors import StoreError
from valetkey.gateway.runs import forget_socket
from valetkey.stores import modes

__all__ = ["RunSockets"]

log = logging.getLogger(__name__)

_BACKLOG = 512


class _Door:
    """One listening socket, and the server behind it once that is there."""

    def __init__(self, folder: Path, listening: socket.socket) -> None:
        self.folder = folder
        self.file = modes.file_at(folder / serving.GATEWAY)
        self._listening: socket.socket | None = listening
        self._server: asyncio.Server | None = None
        self._closed = False

    def is_there(self) -> bool:
        """Say whether it is still found by its path."""
        return self.file is not None and modes.file_at(self.folder / serving.GATEWAY) == self.file

    async def open(self, accepted: Callable[[], asyncio.Protocol]) -> None:
        """Take what has connected so far, and what does from now on."""
        if self._listening is not None:
            listening, self._listening = self._listening, None
            self._server = await asyncio.get_running_loop().create_unix_server(
                accepted, sock=listening, backlog=_BACKLOG
            )
            if self._closed:  # meanwhile
                self._server.close()

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self.is_there():  # else another gateway's, or of a run that took the place
            with suppress(OSError):
                os.unlink(self.folder / serving.GATEWAY)


class RunSockets:
    """The sockets of the runs that have not ended. `accepted` gives the protocol of a connection, by the run's id."""

    def __init__(self, accepted: Callable[[str], asyncio.Protocol]) -> None:
        self._accepted = accepted
        self._doors: dict[str, _Door] = {}
        self._opening: set[asyncio.Task[None]] = set()
        # A folder that cannot be used is told once.
        self._told: set[str] = set()

    def follow(self, folders: Mapping[str, Path | None]) -> None:
        """Listen for these runs and for no others. One whose folder is not known stays as it is.

        A socket is bound on return, so that whoever has asked the gateway to look may connect at once.
        """
        for run in [run for run in self._doors if run not in folders]:
            door = self._doors.pop(run)
            door.close()
            forget_socket(door.folder)
        self._told &= folders.keys()
        for run, folder in folders.items():
            door_there = self._doors.get(run)
            if folder is None or (door_there is not None and door_there.folder == folder and door_there.is_there()):
                continue
            if door_there is not None:
                self._doors.pop(run).close()
            self._open(run, folder)

    def close(self) -> None:
        """Take no more connections. The folders stay: they are mounted in sandboxes, and the next gateway goes on."""
        for door in self._doors.values():
            door.close()
        self._doors.clear()

    def _open(self, run: str, folder: Path) -> None:
        try:
            door = _Door(folder, _bound(folder))
        except (OSError, StoreError) as error:
            if run not in self._told:
                self._told.add(run)
                log.error("run %s has no socket, its folder %s cannot be used: %s", run, folder, error)
            return
        self._doors[run] = door
        opening = asyncio.get_running_loop().create_task(door.open(lambda: self._accepted(run)))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)


def _bound(folder: Path) -> socket.socket:
    """Give a socket that listens in the folder, in place of what a killed gateway left."""
    for above in (folder.parent.parent, folder.parent, folder):
        modes.own_folder(str(above))
    path = folder / serving.GATEWAY
    with suppress(FileNotFoundError):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        # Nobody else gets as far as here: the folder is ours alone.
        os.chmod(path, 0o600)
        listening.setblocking(False)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
