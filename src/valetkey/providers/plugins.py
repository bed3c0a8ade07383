"""Finds the declarations that Python packages ship under the entry point group `valetkey.providers`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from valetkey.errors import InvalidProvider, ValetkeyError
from valetkey.packages import Group

__all__ = ["declared"]

BROUGHT = Group(name="valetkey.providers", what="plugin", broken=InvalidProvider)


def declared() -> tuple[list[Path], list[tuple[str, ValetkeyError]]]:
    """Give the TOML files of all plugins, and the plugins that failed: (name, error).

    An entry point names a package whose folder has TOML files, a folder, a file, a list of these, or a function that
    gives one of them.
    """
    found: list[Path] = []
    failed: list[tuple[str, ValetkeyError]] = []
    for entry in BROUGHT.entries():
        try:
            found.extend(_paths(entry.load()))
        except Exception as error:  # a plugin is anybody's code: whatever it raises disables only itself
            failed.append((entry.value, BROUGHT.failure(entry, error)))
    return found, failed


def _paths(target: object) -> Iterable[Path]:
    if isinstance(target, ModuleType):
        for folder in target.__path__:
            yield from _paths(Path(folder))
    elif callable(target):
        yield from _paths(target())
    elif isinstance(target, str | os.PathLike):
        path = Path(target)
        yield from sorted(path.glob("*.toml")) if path.is_dir() else (path,)
    elif isinstance(target, Iterable):
        for item in target:
            yield from _paths(item)
    else:
        raise TypeError(f"{type(target).__name__} names no files")
