"""docker's config.json: credHelpers for the registries that a login is for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from valetkey.errors import UsageError
from valetkey.helpers.docker import hosts
from valetkey.setup import json_text
from valetkey.setup.json_text import facts
from valetkey.setup.plan import Plan, Wish, chosen, home_of, no_gateway, no_profile

__all__ = ["NEEDS_GATEWAY", "facts", "plan"]

NEEDS_GATEWAY = False
# docker puts "docker-credential-" before what credHelpers says.
_HELPER = "valetkey"


async def plan(wish: Wish, read: Callable[[Path], bytes | None]) -> Plan:
    """Name our helper for each registry."""
    no_gateway(wish, "docker")
    no_profile(wish, "docker")
    registries = hosts(chosen(wish, "docker"))
    if not registries:
        raise UsageError(
            "no login is for a registry",
            hint='declare the registry with `tools = ["docker"]`, see docs/helpers.md, or name a login',
        )
    folder = wish.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else home_of(wish.environ) / ".docker") / "config.json"
    before = read(path)
    members: dict[tuple[str, ...], str | None] = {("credHelpers", host): _HELPER for host in reversed(registries)}
    notes = []
    if shutil.which(f"docker-credential-{_HELPER}", path=wish.environ.get("PATH")) is None:
        notes.append(
            f"docker-credential-{_HELPER} is not on PATH, where docker looks for it: link it to a folder there"
        )
    after = json_text.with_members(before, path, members)
    return Plan(path=path, before=before, after=after, notes=tuple(notes))
