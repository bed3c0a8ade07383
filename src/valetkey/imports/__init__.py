"""Logins taken over from other tools: `source(tool)` gives what reads that tool's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from valetkey.credential import Credential
from valetkey.errors import UsageError
from valetkey.provider import Provider

__all__ = ["TOOLS", "Find", "Found", "Reading", "Source", "source"]

# Gives the provider of an id or an alias; raises UnknownProvider.
Find = Callable[[str], Provider]

# One module for each tool, imported when that tool is named.
TOOLS = ("code-mesh",)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One login in the file: a credential for `provider`, or why it cannot be taken over and what to do instead."""

    id: str
    provider: str | None = None
    credential: Credential | None = None
    restricted: bool = False
    problem: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a file holds. `warnings` are about the file itself: who else may read it, where a link led."""

    path: Path
    logins: tuple[Found, ...]
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """Reads another tool's logins. It opens the file for reading alone and leaves it as it is."""

    def default_path(self, environ: Mapping[str, str]) -> Path:
        """Give where the tool keeps them."""
        ...

    def read(self, path: Path, *, find: Find, now: datetime, home: Path, uid: int) -> Reading:
        """Read the file, which has to be the user's (`uid`); a link is followed only where it stays in `home`.

        Raises: ImportFailed when it cannot be read, is somebody else's or is not that tool's.
        """
        ...


def source(tool: str) -> Source:
    """Give what reads the logins of `tool`. Raises: UsageError."""
    match tool:
        case "code-mesh":
            from valetkey.imports.code_mesh import CodeMesh

            return CodeMesh()
        case _:
            raise UsageError(f"logins of {tool[:40]!r} cannot be imported", hint=f"known are: {', '.join(TOOLS)}")
