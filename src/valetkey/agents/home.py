"""Reads and writes an agent's home from outside. What ran there may have left links, pipes or folders in any place."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from valetkey.agent import Session
from valetkey.errors import HomeUnusable

__all__ = ["read", "sessions", "write"]

_LARGEST_BYTES = 64 << 20
# Below the folder of sessions: year, month, day. Whoever was in there may have made a thousand.
_DEEPEST = 3


def read(home: Path, name: str) -> bytes | None:
    """Give a file that lies in the home itself, None where there is none. Raises: HomeUnusable for a link or pipe."""
    try:
        # O_NONBLOCK: nobody may ever write to a pipe.
        descriptor = os.open(home / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(home / name) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_BYTES:
        os.close(descriptor)
        raise _unusable(home / name)
    with open(descriptor, "rb") as file:
        return file.read(_LARGEST_BYTES)


def write(home: Path, name: str, content: bytes) -> None:
    """Put a file into the home itself, 0600, in place of whatever has the name. Raises: HomeUnusable for a folder."""
    descriptor, fresh = tempfile.mkstemp(dir=home)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(fresh, home / name)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        if isinstance(error, IsADirectoryError):
            raise _unusable(home / name) from error
        raise


def sessions(home: Path, folder: str, pattern: re.Pattern[str]) -> list[Session]:
    """Give those whose files lie below this folder, the last used first; `pattern` has the id in its first group.

    No link is followed and no file opened.
    """
    parts = Path(folder).parts
    found: dict[str, Session] = {}
    # Only a walk from the home itself goes through no link.
    for at, folders, files, descriptor in os.fwalk(home, follow_symlinks=False):
        depth = Path(at).relative_to(home).parts
        if len(depth) < len(parts):
            folders[:] = [name for name in folders if name == parts[len(depth)]]
            continue
        if len(depth) >= len(parts) + _DEEPEST:
            folders.clear()
        for name in files:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    used = datetime.fromtimestamp(status.st_mtime, UTC)
                    found[match[1]] = Session(id=match[1], used_at=used)
    return sorted(found.values(), key=lambda session: session.used_at, reverse=True)


def _unusable(path: Path) -> HomeUnusable:
    return HomeUnusable(f"{path} is not what an agent keeps there", hint="begin a new run, without --resume")
