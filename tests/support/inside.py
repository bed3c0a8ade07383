"""A search of a sandbox for credentials, done where whoever is in it would do it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SEARCH", "Found", "canary", "found", "let_search"]

_PROGRAM = Path(__file__).parent / "programs" / "search.py"
# Of whoever is inside, in its workspace.
SEARCH = "python3 /workspace/search.py"


def canary(form: str = "sk-") -> str:
    """Make a credential that the search knows by its word; `form` is how it begins."""
    return f"{form}{'can'}{'ary'}{os.urandom(20).hex()}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The places where canaries and placeholders were, such as `environ of 2` or a path, and what could not be read."""

    canaries: list[str]
    placeholders: list[str]
    unread: list[str]

    @property
    def kinds(self) -> set[str]:
        """Give the kinds of places where placeholders were: so it has looked there."""
        return {place.partition(" ")[0] for place in self.placeholders}


def let_search(workspace: Path) -> None:
    """Put the program there."""
    (workspace / "search.py").write_bytes(_PROGRAM.read_bytes())


def found(workspace: Path) -> Found:
    """Give what it wrote."""
    return Found(**json.loads((workspace / "found").read_text()))
