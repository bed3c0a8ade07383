"""The sandboxes there are: `sandbox_for` gives one by its id."""

from __future__ import annotations

from valetkey.errors import UsageError
from valetkey.sandbox import Sandbox
from valetkey.sandboxes.bubblewrap import Bubblewrap

__all__ = ["SANDBOXES", "sandbox_for"]

SANDBOXES = {"bubblewrap": Bubblewrap}


def sandbox_for(name: str) -> Sandbox:
    """Give the sandbox of this id. Raises: UsageError where there is none."""
    if name not in SANDBOXES:
        raise UsageError(f"there is no sandbox called {name}", hint=f"use one of: {', '.join(SANDBOXES)}")
    return SANDBOXES[name]()
