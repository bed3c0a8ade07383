"""Reads and writes a run's home from outside. What ran there may have left links, pipes or folders in any place."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from valetkey.agent import Session
from valetkey.errors import HomeUnusable

__all__ = ["UUID", "put_servers", "read", "sessions", "state", "table", "write"]

# What they call sessions by (RFC 9562 section 4), as part of a pattern.
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_LARGEST_BYTES = 64 << 20
_LONGEST_LINE_BYTES = 64 << 10
# Below the folder of sessions: year, month, day. Whoever was in there may have made a thousand.
_DEEPEST = 3
# Beside the settings, where agents keep what they do not know: in a server's own table some refuse it or leave it out.
_OURS = "valetkey"


def read(home: Path, name: str) -> bytes | None:
    """Give a file by its path below the home, None where there is none.

    Raises: HomeUnusable for a link or pipe, also on the way there.
    """
    with _folder(home, name, make=False) as at:
        if at is None:
            return None
        try:
            content = _content(at, PurePath(name).name, _LARGEST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(home / name, str(error.strerror)) from error
    if content is None:
        raise _unusable(home / name, "it is no file")
    if len(content) > _LARGEST_BYTES:
        raise _unusable(home / name, "it is too large")
    return content


def write(home: Path, name: str, content: bytes) -> None:
    """Put a file below the home, 0600, in place of whatever has the name; folders on the way are made, 0700.

    Raises: HomeUnusable, for a folder of that name, and for what is no folder on the way there.
    """
    fresh = f".{secrets.token_hex(8)}"
    with _folder(home, name, make=True) as at:
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=at)
            with open(descriptor, "wb") as file:
                file.write(content)
            os.replace(fresh, PurePath(name).name, src_dir_fd=at, dst_dir_fd=at)
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=at)
            raise _unusable(home / name, str(error.strerror)) from error


def state(home: Path, name: str) -> dict[str, Any]:
    """Read a JSON object, {} where there is no file; lines that begin with `//` are comments. Raises: HomeUnusable."""
    content = read(home, name)
    try:
        lines = (content or b"{}").decode().splitlines()
        found = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _unusable(home / name, "it is no JSON object")
    return found


def table(above: dict[str, Any], name: str) -> dict[str, Any]:
    """Give the table of this name, made where it is missing or no table."""
    if not isinstance(above.get(name), dict):
        above[name] = {}
    found: dict[str, Any] = above[name]
    return found


def put_servers(settings: dict[str, Any], servers: Mapping[str, Any]) -> None:
    """Put MCP servers, by name, into `mcpServers` of an agent's settings, in place of those that this put there before.

    What has another name stays: the agent put it there, in this run's home or an earlier one.
    """
    there = table(settings, "mcpServers")
    before = table(settings, _OURS).get("mcpServers")
    for name in before if isinstance(before, list) else ():
        if isinstance(name, str):
            there.pop(name, None)
    there |= servers
    settings[_OURS]["mcpServers"] = [*servers]


def sessions(
    home: Path, folder: str, pattern: re.Pattern[str], *, id_in: Callable[[bytes], str | None] | None = None
) -> list[Session]:
    """Give those whose files lie below this folder, the last used first.

    `pattern` is of a file's path below the folder, and has the id in its first group. Where a file's name does not
    tell all of it, `id_in` gives it for the file's first line: None for one that is no session. No link is followed.
    """
    parts = Path(folder).parts
    found: dict[str, Session] = {}
    # Only a walk from the home itself goes through no link.
    for at, folders, files, descriptor in os.fwalk(home, follow_symlinks=False):
        way = Path(at).relative_to(home).parts
        if len(way) < len(parts):
            folders[:] = [name for name in folders if name == parts[len(way)]]
            continue
        if len(way) >= len(parts) + _DEEPEST:
            folders.clear()
        for name in files:
            match = pattern.fullmatch("/".join((*way[len(parts) :], name)))
            if match is None:
                continue
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                session = match[1] if id_in is None else id_in(_first_line(descriptor, name))
                if stat.S_ISREG(status.st_mode) and session is not None:
                    used = datetime.fromtimestamp(status.st_mtime, UTC)
                    if session not in found or found[session].used_at < used:
                        found[session] = Session(id=session, used_at=used)
    return sorted(found.values(), key=lambda session: session.used_at, reverse=True)


@contextmanager
def _folder(home: Path, name: str, *, make: bool) -> Iterator[int | None]:
    """Give the folder that a file is in, as a descriptor, reached through no link; None where there is none."""
    with ExitStack() as stack:
        at: int | None = None
        for part in (str(home), *PurePath(name).parts[:-1]):
            try:
                if make and at is not None:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=at)
                at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not make:
                    at = None
                    break
                raise _unusable(home / name, str(error.strerror)) from error
            stack.callback(os.close, at)
        yield at


def _content(at: int, name: str, most_bytes: int) -> bytes | None:
    """Give the beginning of a file in this folder, None of what is no file; one byte more tells that it is longer.

    Raises: OSError, FileNotFoundError among them.
    """
    # O_NONBLOCK: nobody may ever write to a pipe.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with open(descriptor, "rb") as file:
        return file.read(most_bytes + 1)


def _first_line(at: int, name: str) -> bytes:
    with suppress(OSError):
        return (_content(at, name, _LONGEST_LINE_BYTES) or b"").partition(b"\n")[0]
    return b""


def _unusable(path: Path, why: str) -> HomeUnusable:
    return HomeUnusable(f"{path} cannot be used: {why}", hint="begin a new run, without --resume")
