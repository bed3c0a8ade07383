"""What each MCP server said of its tools when they were first seen, so that a change does not go unnoticed.

A description is read by a model as an instruction. A server that changes it later ("rug pull") would be believed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from valetkey.clock import Clock
from valetkey.errors import RecordDamaged
from valetkey.mcp import Tool
from valetkey.store import Document, Store

__all__ = ["Pin", "Pins", "Seen", "canonical", "fingerprint"]

_KIND = "mcp-pins"
_FORMAT = 1
# All of a tool that a client may show to a model; not its icons and `_meta`.
_PINNED = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
# So much of a description is kept for whoever is to approve a change; the hash is of the whole.
_KEPT_CHARACTERS = 8192
# A server that makes up ever new tools must not fill the store.
_MOST_TOOLS = 2000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A tool as a server told it: the SHA-256 of its canonical JSON, and its description for a person to read."""

    hash: str
    description: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A tool as it was first seen or approved, and as it is told since, where that is something else."""

    first: Seen
    changed: Seen | None = None


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What came of a list: tools seen for the first time, and those that differ now and did not before."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    withheld: frozenset[str] = field(default=frozenset())


class Pins:
    """The pins of all servers, each server's in one sealed document of the store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def of(self, server: str, url: str) -> dict[str, Pin]:
        """Give those of a server, by tool; none where it was at another address then.

        Raises: RecordDamaged, StoreError: then nobody knows what was pinned.
        """
        document = self._store.document(_KIND, server)
        return {} if document is None else _read(document, url)

    def compare(self, server: str, url: str, tools: Sequence[Tool]) -> _Told:
        """Hold a list of tools against the pins, pin what is new, and keep what has changed.

        Raises: RecordDamaged, StoreError; ValueError for what has no canonical form, or too many tools.
        """
        pins, now = self.of(server, url), self._clock.now()
        made, new, changed = dict(pins), [], []
        for tool in tools:
            name = tool["name"]
            seen = Seen(hash=fingerprint(tool), description=_description(tool), at=now)
            pin = made.get(name)
            if pin is None:
                made[name] = Pin(first=seen)
                new.append(name)
            elif seen.hash == pin.first.hash:
                made[name] = replace(pin, changed=None)
            elif pin.changed is None or pin.changed.hash != seen.hash:
                made[name] = replace(pin, changed=seen)
                changed.append(name)
        if len(made) > _MOST_TOOLS:
            raise ValueError(f"the server has named more than {_MOST_TOOLS} tools")
        if made != pins:
            self._keep(server, url, made)
        return _Told(
            new=tuple(new),
            changed=tuple(changed),
            withheld=frozenset(name for name, pin in made.items() if pin.changed is not None),
        )

    def approve(self, server: str, url: str, tools: Sequence[str] = ()) -> list[str]:
        """Take changed tools (all, or these) as they are told now, and name them. Raises: StoreError."""
        pins = self.of(server, url)
        named = [name for name, pin in pins.items() if pin.changed is not None and (not tools or name in tools)]
        fresh = {
            name: pin if name not in named or pin.changed is None else Pin(first=pin.changed)
            for name, pin in pins.items()
        }
        if named:
            self._keep(server, url, fresh)
        return named

    def forget(self, server: str) -> None:
        """Forget those of a server. Raises: StoreError."""
        self._store.delete_document(_KIND, server)

    def _keep(self, server: str, url: str, pins: dict[str, Pin]) -> None:
        body = json.dumps(
            {"format": _FORMAT, "url": url, "tools": {name: _pin_written(pin) for name, pin in pins.items()}}
        )
        now = self._clock.now()
        self._store.put_document(Document(kind=_KIND, id=server, title=server, body=body, updated_at=now))


def _description(tool: Tool) -> str:
    text = tool.get("description")
    return text[:_KEPT_CHARACTERS].encode(errors="replace").decode() if isinstance(text, str) else ""


def _pin_written(pin: Pin) -> dict[str, Any]:
    return {"first": _seen_written(pin.first), "changed": None if pin.changed is None else _seen_written(pin.changed)}


def _seen_written(seen: Seen) -> dict[str, str]:
    return {"hash": seen.hash, "description": seen.description, "at": seen.at.isoformat()}


def _read(document: Document, url: str) -> dict[str, Pin]:
    try:
        value = json.loads(document.body)
        if value["format"] != _FORMAT:
            raise ValueError
        if value["url"] != url:
            return {}
        return {
            name: Pin(first=_seen(pin["first"]), changed=None if pin["changed"] is None else _seen(pin["changed"]))
            for name, pin in value["tools"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RecordDamaged(
            f"what is pinned of the MCP server {document.id} cannot be read",
            hint=f"update Valetkey, or pin it anew: `valetkey mcp approve {document.id} --again`",
        ) from None


def _seen(value: dict[str, str]) -> Seen:
    return Seen(hash=value["hash"], description=value["description"], at=datetime.fromisoformat(value["at"]))


# --- hashes ----------------------------------------------------------------------------------


def fingerprint(tool: Tool) -> str:
    """Give the SHA-256, in hex, of a tool's canonical JSON. Raises: ValueError for what has none."""
    return hashlib.sha256(canonical({key: tool[key] for key in _PINNED if key in tool})).hexdigest()


def canonical(value: Any) -> bytes:
    """Write JSON as RFC 8785 wants it, numbers and keys of any kind included. Raises: ValueError."""
    try:
        return _canonical(value).encode()
    except (RecursionError, OverflowError):
        raise ValueError("it is nested too deeply, or has a number that is too large") from None


def _canonical(value: Any) -> str:
    match value:
        case dict():
            # Section 3.2.3: by UTF-16 code units.
            keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
            return (
                "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_canonical(value[key])}" for key in keys) + "}"
            )
        case list():
            return "[" + ",".join(map(_canonical, value)) + "]"
        case bool() | None | str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float():
            return _number(float(value))
    raise ValueError("it is no JSON")


def _number(value: float) -> str:
    """Write a number as ECMAScript does (ECMA-262, Number::toString), which RFC 8785 section 3.2.2.3 wants."""
    if not math.isfinite(value):
        raise ValueError("it has a number that JSON has not")
    if value == 0:
        return "0"
    sign, digits, exponent = "-" if value < 0 else "", *_shortest(abs(value))
    # The value is 0.DIGITS times ten to the power of `point`.
    point = len(digits) + exponent
    if 0 < point <= 21:
        text = digits.ljust(point, "0")
        return sign + (text if len(digits) <= point else f"{digits[:point]}.{digits[point:]}")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    mantissa = digits[0] + (f".{digits[1:]}" if digits[1:] else "")
    return f"{sign}{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def _shortest(value: float) -> tuple[str, int]:
    """Give the fewest digits that mean this number, and the power of ten behind them."""
    mantissa, _, exponent = repr(value).partition("e")
    whole, _, part = mantissa.partition(".")
    part = "" if part == "0" else part
    digits = (whole + part).lstrip("0")
    stripped = digits.rstrip("0")
    return stripped, int(exponent or 0) - len(part) + len(digits) - len(stripped)
