"""Finds the declarations that Python packages ship under the entry point group `valetkey.providers`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from valetkey.errors import InvalidProvider
from valetkey.packages import any_bring

__all__ = ["GROUP", "declared"]

GROUP = "valetkey.providers"


def declared() -> tuple[list[Path], list[tuple[str, InvalidProvider]]]:
    """Give the TOML files of all plugins, and the plugins that failed: (name, error).

    An entry point names a package whose folder has TOML files, a folder, a file, a list of these, or a function that
    gives one of them.
    """
    if not any_bring(GROUP):
        return [], []
    # Loading importlib.metadata takes longer than reading a declaration.
    from importlib.metadata import entry_points

    found: list[Path] = []
    failed: list[tuple[str, InvalidProvider]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            found.extend(_paths(entry.load()))
        except Exception as error:  # a plugin is anybody's code: whatever it raises disables only itself
            failed.append((entry.value, _failure(entry.name, error)))
    return found, failed


def _failure(name: str, error: Exception) -> InvalidProvider:
    return InvalidProvider(
        f"the plugin {name} could not be loaded: {type(error).__name__}",
        hint="update or uninstall the package that ships it",
    )


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
