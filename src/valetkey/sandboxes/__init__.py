"""The sandboxes there are: `sandbox_for` gives one by its id."""

from __future__ import annotations

from valetkey.errors import UsageError
from valetkey.sandbox import Sandbox
from valetkey.sandboxes.bubblewrap import Bubblewrap
from valetkey.sandboxes.engines import DOCKER, PODMAN

__all__ = ["SANDBOXES", "sandbox_for"]

_ENGINES = {engine.id: engine for engine in (DOCKER, PODMAN)}
SANDBOXES = (Bubblewrap.id, *_ENGINES)


def sandbox_for(name: str, *, image: str = "", run: str = "") -> Sandbox:
    """Give the sandbox of this id, with the image that it is to be made of, for the run of this id.

    Raises: UsageError where there is none, or where it takes no image.
    """
    if name in _ENGINES:
        from valetkey.sandboxes.container import Container

        return Container(_ENGINES[name], image=image, run=run)
    if name != Bubblewrap.id:
        raise UsageError(f"there is no sandbox called {name}", hint=f"use one of: {', '.join(SANDBOXES)}")
    if image:
        raise UsageError(f"{name} takes no image", hint=f"add `--sandbox {PODMAN.id}`")
    return Bubblewrap()
