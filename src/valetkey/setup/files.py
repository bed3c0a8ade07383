"""Another tool's file, read and replaced whole: behind a link, with its mode, and never half written."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from valetkey.errors import SetupRefused

__all__ = ["read", "remove", "replace"]

# Settings are small; what is larger is something else.
_MOST_BYTES = 8 * 1024 * 1024


def read(path: Path) -> bytes | None:
    """Give the file's bytes, None where there is none. Raises: SetupRefused."""
    try:
        with open(path, "rb", opener=_opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SetupRefused(f"{path} is not a file", hint="see what is there")
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(path, "read", error) from error
    if len(content) > _MOST_BYTES:
        raise SetupRefused(f"{path} is larger than any file of settings", hint="see what is there")
    return content


def replace(path: Path, content: bytes, *, expected: bytes | None) -> None:
    """Put the new content in place at once, if the old is still `expected`; folders are made where they miss.

    Mode, owner and links stay; a new file is 0600. Raises: SetupRefused.
    """
    real = Path(os.path.realpath(path))
    _make_folders(real.parent)
    fresh = real.with_name(f".{real.name}.{secrets.token_hex(8)}")
    try:
        before = os.stat(real) if expected is not None else None
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            if before is not None:
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if read(path) != expected:
            raise SetupRefused(f"{path} was changed just now by something else", hint="try again")
        os.replace(fresh, real)
        _sync(real.parent)
    except OSError as error:
        raise _failed(path, "written", error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(fresh)


def remove(path: Path, *, expected: bytes, folders: tuple[Path, ...] = ()) -> None:
    """Remove the file if it still is `expected`, and those of the folders that are empty then. Raises: SetupRefused."""
    if read(path) != expected:
        raise SetupRefused(f"{path} was changed just now by something else", hint="try again")
    try:
        real = os.path.realpath(path)
        os.unlink(real)
        _sync(Path(real).parent)
    except OSError as error:
        raise _failed(path, "removed", error) from error
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # somebody uses it
            folder.rmdir()


def _opener(path: str, flags: int) -> int:
    # A pipe in the file's place must not be waited for.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _make_folders(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode=0o700)
    except OSError as error:
        raise _failed(folder, "made", error) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, what: str, error: OSError) -> SetupRefused:
    return SetupRefused(
        f"{path} cannot be {what}: {(error.strerror or type(error).__name__).lower()}",
        hint="check the path, its owner and its mode",
    )
