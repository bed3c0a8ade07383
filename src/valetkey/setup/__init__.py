"""Other tools' own settings, changed so that they ask Valetkey: `tool(name)` gives what knows one of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import cast

from valetkey.errors import UsageError
from valetkey.setup.plan import Tool

__all__ = ["tool", "tools"]

# A module is imported when its tool is named.
_TOOLS = {name: f"valetkey.setup.{name}" for name in ("git", "claude", "aws", "codex", "docker")}


def tools() -> Sequence[str]:
    """Give the tools that can be set up."""
    return tuple(_TOOLS)


def tool(name: str) -> Tool:
    """Give what knows this tool's settings. Raises: UsageError."""
    if name not in _TOOLS:
        raise UsageError(f"there is no setup for {name[:40]!r}", hint=f"name one of: {', '.join(_TOOLS)}")
    return cast("Tool", importlib.import_module(_TOOLS[name]))
