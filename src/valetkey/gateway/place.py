"""What a running gateway keeps in the file system: its lock, what it says of itself, its sockets."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from valetkey import serving
from valetkey.config import Paths
from valetkey.errors import GatewayFailed, StoreUnwritable
from valetkey.stores import modes
from valetkey.stores.locks import FileLock, try_lock_file

__all__ = ["LONGEST", "LONGEST_RUN", "Place", "run_folder"]

# Bytes of a Unix socket's path: macOS has room for 104 with the NUL, Linux for 108 (unix(7)).
LONGEST = 103
# Characters of a run's id; a place is looked for that has room for any.
LONGEST_RUN = 32
_RUNS = "runs"
# Whoever asks whether we live holds the lock for some microseconds.
_LOCK_SECONDS = 1.0


class Place:
    """`run/` of one home, while this process is its gateway."""

    def __init__(self, paths: Paths, environ: Mapping[str, str]) -> None:
        self._run = paths.run
        self._home = str(paths.home)
        self._environ = environ
        self._lock: FileLock | None = None
        self._lock_file: tuple[int, int] | None = None

    @property
    def sockets(self) -> Path:
        """The folder of the sockets: `run/`, or a short one where its path is too long for a socket."""
        return _with_room(self._run, self._home, self._environ, serving.CONTROL)

    @property
    def control(self) -> Path:
        """The socket of the control API."""
        return self.sockets / serving.CONTROL

    @property
    def gateway(self) -> Path:
        """The socket of the gateway itself."""
        return self.sockets / serving.GATEWAY

    def claim(self) -> None:
        """Become the gateway of this home, and clear away what a killed one left. Raises: GatewayFailed, WrongMode."""
        for folder in (self._home, str(self._run), str(self.sockets)):
            modes.own_folder(folder)
        path = self._run / serving.LOCK
        end = time.monotonic() + _LOCK_SECONDS
        while (lock := try_lock_file(path)) is None:
            if time.monotonic() > end:
                found = serving.about(self._home)
                which = f" (process {found['pid']})" if found is not None else ""
                raise GatewayFailed(
                    f"a gateway of {self._home} runs already{which}",
                    hint="use that one, or end it with `valetkey down`",
                )
            time.sleep(0.01)
        self._lock, self._lock_file = lock, modes.file_at(path)
        self._clear()

    def is_ours(self) -> bool:
        """Say whether the home is still there with our lock in it: it may have been removed, or put aside."""
        return self._lock_file is not None and modes.file_at(self._run / serving.LOCK) == self._lock_file

    def publish(self, about: Mapping[str, object]) -> None:
        """Say what we are to whoever looks, at once and whole. Raises: StoreUnwritable."""
        path, fresh = str(self._run / serving.ABOUT), str(self._run / f"{serving.ABOUT}.new")
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        modes.create_file(fresh, json.dumps(about, indent=1).encode() + b"\n")
        os.replace(fresh, path)

    def listen(self, path: Path) -> socket.socket:
        """Give a socket of mode 0600 that is bound there, for a server to listen at. Raises: StoreUnwritable."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            # Nobody else gets as far as here: the folder is ours alone.
            os.chmod(path, 0o600)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            raise StoreUnwritable(
                f"the socket {path} cannot be made: {(error.strerror or '').lower()}",
                hint="make the folder writable, or free some space",
            ) from error
        return listening

    def leave(self) -> None:
        """Take everything away and let the lock go."""
        if self._lock is None:
            return
        if self.is_ours():
            self._clear()
        if self.sockets != self._run:
            with suppress(OSError):
                os.rmdir(self.sockets)
        self._lock.release()
        self._lock = self._lock_file = None

    def _clear(self) -> None:
        for path in (self._run / serving.ABOUT, self.control, self.gateway):
            with suppress(FileNotFoundError):
                os.unlink(path)


def run_folder(paths: Paths, environ: Mapping[str, str], run: str) -> Path:
    """Give the folder of a run's own socket, `gateway.sock`: below `run/`, or where a socket's path is short enough.

    It holds nothing else, and is what a sandbox mounts. A run keeps the one that it began with.
    """
    longest = os.path.join(_RUNS, "x" * LONGEST_RUN, serving.GATEWAY)
    return _with_room(paths.run, str(paths.home), environ, longest) / _RUNS / run


def _with_room(run: Path, home: str, environ: Mapping[str, str], longest: str) -> Path:
    """Give the folder below which a socket of this name can be made."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:16]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    folders = [run]
    if os.path.isabs(runtime) and len(os.fsencode(runtime)) <= 60 and _is_ours(runtime):
        folders.append(Path(runtime, f"valetkey-{name}"))
    for folder in folders:
        if len(os.fsencode(folder / longest)) <= LONGEST:
            return folder
    return Path("/tmp", f"valetkey-{os.geteuid()}-{name}")  # noqa: S108 - 0700, and its owner is checked


def _is_ours(folder: str) -> bool:
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
