"""The files that accounts want in a run: which one stands where two want the same, and how one gets into a home."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from valetkey.errors import HomeUnusable

__all__ = ["divided", "write_below"]

_IN_HOME = "~/"
_ADDED = "+"


def divided(wanted: Iterable[Mapping[str, str]]) -> tuple[dict[str, str], dict[str, bytes]]:
    """Give the files for the home, by their paths in it, and those for the sandbox, out of what each account declares.

    The first one counts, and behind it what is added (a path that ends in `+`).
    """
    texts: dict[str, str] = {}
    for files in wanted:
        for declared, text in files.items():
            path = declared.removesuffix(_ADDED)
            if path not in texts:
                texts[path] = text
            elif path != declared:
                texts[path] += f"\n{text}"
    in_home = {path.removeprefix(_IN_HOME): text for path, text in texts.items() if path.startswith(_IN_HOME)}
    return in_home, {path: text.encode() for path, text in texts.items() if not path.startswith(_IN_HOME)}


def write_below(home: Path, path: str, content: bytes) -> None:
    """Put a file into a home, 0600, in folders of 0700, in place of whatever has the name.

    An earlier run may have left links there: none is followed. Raises: HomeUnusable.
    """
    *folders, name = PurePosixPath(path).parts
    at = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700, dir_fd=at)
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        fresh = f".{name}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(fresh, flags, 0o600, dir_fd=at), "wb") as file:
            file.write(content)
        try:
            os.replace(fresh, name, src_dir_fd=at, dst_dir_fd=at)
        except OSError:
            os.unlink(fresh, dir_fd=at)
            raise
    except OSError as error:
        raise HomeUnusable(
            f"{home / path} cannot be written: {error.strerror}", hint="begin a new run, without --resume"
        ) from error
    finally:
        os.close(at)
