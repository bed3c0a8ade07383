"""What installed packages bring for us under an entry point group."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from valetkey.errors import ValetkeyError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Group"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """An entry point group, such as `valetkey.agents`; `what` is what its entries are: `agent`.

    `broken` is the error of one that cannot be loaded.
    """

    name: str
    what: str
    broken: type[ValetkeyError]

    def entries(self, name: str | None = None) -> list[EntryPoint]:
        """Give those that packages bring, or those of this name, in the order of their names. None is loaded."""
        if not _any_bring(self.name):
            return []
        # Loading it takes longer than all the rest here.
        from importlib.metadata import entry_points

        found = entry_points(group=self.name) if name is None else entry_points(group=self.name, name=name)
        return sorted(found, key=lambda entry: (entry.name, _package(entry)))

    def installed(self) -> list[tuple[str, str]]:
        """Give the name of each, and the package that brings it."""
        return [(entry.name, _package(entry)) for entry in self.entries()]

    def taken(self, built_in: Iterable[str]) -> list[tuple[str, ValetkeyError]]:
        """Give what is wrong with those that bear the name of one that is built in: (its name, error)."""
        return [
            (
                name,
                self.broken(
                    f"{package} ships the {self.what} {name}, which is built in and stays so",
                    hint=f"uninstall {package}, or ask its author for another name",
                ),
            )
            for name, package in self.installed()
            if name in built_in
        ]

    def load(self, name: str, *, provider: str | None = None) -> Callable[..., Any] | None:
        """Give what makes the one of this name, None where no package brings it.

        Raises: `broken`, also where several packages bring it.
        """
        entries = self.entries(name)
        if len(entries) > 1:
            # Which of them would get the credentials is nothing to guess.
            raise self.broken(
                f"the {self.what} {name} is shipped by several packages: {', '.join(map(_package, entries))}",
                hint="uninstall all but one of them",
                provider=provider,
            )
        for entry in entries:
            try:
                found = entry.load()
                if not callable(found):
                    raise TypeError("it makes nothing")
            except Exception as error:  # a package is anybody's code: whatever it raises disables only itself
                raise self.failure(entry, error, provider=provider) from error
            made: Callable[..., Any] = found
            return made
        return None

    def made(self, name: str, built_in: Mapping[str, str]) -> Any | None:
        """Make the one of this name, None where there is none. A built-in one goes first: `module:Class`.

        Raises: `broken`.
        """
        if name in built_in:
            module, _, called = built_in[name].partition(":")
            return getattr(importlib.import_module(module), called)()
        make = self.load(name)
        if make is None:
            return None
        try:
            return make()
        except Exception as error:  # as above
            raise self.failure(self.entries(name)[0], error) from error

    def failure(self, entry: EntryPoint, error: Exception, *, provider: str | None = None) -> ValetkeyError:
        """Give the error of one that could not be loaded. What was raised is told by its type: its text is theirs."""
        return self.broken(
            f"the {self.what} {entry.name} could not be loaded: {type(error).__name__}",
            hint=f"update or uninstall {_package(entry)}",
            provider=provider,
        )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _any_bring(group: str) -> bool:
    """Look for an entry point group in the packages' entry_points.txt, in a tenth of importlib.metadata's time."""
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")) and _names_group(os.path.join(folder, name), group):
                return True
    return False


def _names_group(package: str, group: str) -> bool:
    try:
        with open(os.path.join(package, "entry_points.txt"), "rb") as file:
            return f"[{group}]".encode() in file.read()
    except OSError:
        return False
