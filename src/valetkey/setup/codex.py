"""Codex's config.toml: a model provider that is the gateway, with a valet key."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valetkey import helpers
from valetkey.errors import SetupRefused
from valetkey.setup.plan import Plan, Wish, home_of, no_profile, one_account
from valetkey.setup.sections import newline_of, with_section

if TYPE_CHECKING:
    from valetkey.setup.taking_back import Facts

__all__ = ["NEEDS_GATEWAY", "facts", "plan"]

# Codex reads a key from a file or from its environment, and asks nobody.
NEEDS_GATEWAY = True
_OURS = "valetkey"
_TABLE = f"[model_providers.{_OURS}]"


async def plan(wish: Wish, read: Callable[[Path], bytes | None]) -> Plan:
    """Add our model provider and choose it."""
    no_profile(wish, "codex")
    name = one_account(wish, helpers.usual(wish.broker, "codex"))
    ref = wish.broker.resolve(name)
    await wish.broker.access(name, use="gateway")
    folder = wish.environ.get("CODEX_HOME")
    path = (Path(folder) if folder else home_of(wish.environ) / ".codex") / "config.toml"
    before = read(path)
    text = _text(before or b"", path)
    ours = {
        "name": "Valetkey",
        "base_url": f"{wish.gateway}/{ref.provider}",
        "wire_api": "responses",
        "experimental_bearer_token": wish.key_text,
    }
    after = _with_table(_with_choice(text, path), ours).encode()
    expected = _load(text, path)
    expected["model_provider"] = _OURS
    others = expected.setdefault("model_providers", {})
    if isinstance(others, dict):
        others[_OURS] = ours
    try:
        written = tomllib.loads(after.decode())
    except tomllib.TOMLDecodeError:
        written = None
    if written != expected:
        raise SetupRefused(f"{path} is left as it is: it is written in an unusual way", hint="make the setting by hand")
    return Plan(path=path, before=before, after=after, grants=(str(ref),))


def facts(content: bytes) -> Facts:
    """Give each value that is no table, with its place. Raises: SetupRefused."""
    found: Facts = Counter()

    def walk(value: object, place: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, (*place, name))
        else:
            found[place, repr(value)] += 1

    walk(_load(_text(content, "the file"), "the file"), ())
    return found


def _text(content: bytes, path: Path | str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise SetupRefused(f"{path} is left as it is: it is not UTF-8", hint="save it as UTF-8") from None


def _load(text: str, path: Path | str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise SetupRefused(
            f"{path} is left as it is: it is not TOML", hint="mend it, or make the setting by hand"
        ) from None


def _with_choice(text: str, path: Path) -> str:
    """Set model_provider before the first table, where it is the file's own."""
    fresh = f'model_provider = "{_OURS}"{newline_of(text)}'
    if "model_provider" not in _load(text, path):
        return fresh + text
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if re.match(r"\s*model_provider\s*=", line):
            lines[i] = fresh
            break
    return "".join(lines)


def _with_table(text: str, ours: dict[str, str]) -> str:
    newline = newline_of(text)
    written = "".join(f"{line}{newline}" for line in [_TABLE, *(f"{k} = {_quoted(v)}" for k, v in ours.items())])
    lines = text.splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if line.split("#")[0].strip() == _TABLE), None)
    if at is None:
        return with_section(text, written)
    end = next((i for i in range(at + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    while end > at + 1 and not lines[end - 1].strip():
        end -= 1
    return "".join([*lines[:at], written, *lines[end:]])


def _quoted(value: str) -> str:
    # A JSON string is a basic string of TOML too, but for what stands beyond the first plane.
    return json.dumps(value, ensure_ascii=False)
