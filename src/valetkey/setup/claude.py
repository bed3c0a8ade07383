"""Claude Code's settings.json: apiKeyHelper, or the gateway with a valet key."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from valetkey import helpers
from valetkey.setup import json_text
from valetkey.setup.json_text import facts
from valetkey.setup.plan import Plan, Wish, home_of, no_profile, one_account

__all__ = ["NEEDS_GATEWAY", "facts", "plan"]

NEEDS_GATEWAY = False
# Each comes before apiKeyHelper (Claude Code's own order of credentials).
_BEFORE_HELPER = ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY")


async def plan(wish: Wish, read: Callable[[Path], bytes | None]) -> Plan:
    """Set apiKeyHelper; with a gateway, the address and the valet key as Claude Code takes them from `env`."""
    no_profile(wish, "claude")
    name = one_account(wish, helpers.usual(wish.broker, "claude"))
    ref = wish.broker.resolve(name)
    folder = wish.environ.get("CLAUDE_CONFIG_DIR")
    path = (Path(folder) if folder else home_of(wish.environ) / ".claude") / "settings.json"
    before = read(path)
    present = json_text.load(before, path).get("env")
    held = present if isinstance(present, dict) else {}
    members: dict[tuple[str, ...], str | None]
    if wish.gateway is not None:
        await wish.broker.access(name, use="gateway")
        members = {
            ("env", "ANTHROPIC_AUTH_TOKEN"): wish.key_text,
            ("env", "ANTHROPIC_BASE_URL"): f"{wish.gateway}/{ref.provider}",
            # Seen with 2.1: what these give is sent as well, as x-api-key.
            ("env", "ANTHROPIC_API_KEY"): None,
            ("apiKeyHelper",): None,
        }
        notes = []
        grants: tuple[str, ...] = (str(ref),)
    else:
        await wish.broker.access(name, use="helper")
        members = {("apiKeyHelper",): shlex.join([*wish.program, "helper", "claude", name])}
        notes = [f"env.{n} in that file comes before apiKeyHelper; take it out" for n in _BEFORE_HELPER if n in held]
        grants = ()
    notes += [f"{n} is set here and comes first; unset it" for n in _BEFORE_HELPER if wish.environ.get(n)]
    after = json_text.with_members(before, path, members)
    return Plan(path=path, before=before, after=after, grants=grants, notes=tuple(notes))
