"""What each MCP server said of its tools when they were first seen, so that a change does not go unnoticed.

A description is read by a model as an instruction. A server that changes it later ("rug pull") would be believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from valetkey.clock import Clock
from valetkey.errors import RecordDamaged, StoreUnwritable
from valetkey.mcp import Tool
from valetkey.store import Document, Store

__all__ = ["Pin", "Pins", "Seen", "fingerprint"]

_KIND = "mcp-pins"
_FORMAT = 1
# All of a tool that a client may show to a model; not its icons and `_meta`.
_PINNED = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
_SPELT = frozenset(member.casefold() for member in _PINNED)
# So much of a description is kept for whoever is to approve a change; the hash is of the whole.
_KEPT_CHARACTERS = 8192
# A server that makes up ever new tools must not fill the store.
_MOST_TOOLS = 2000
# It is held for one reading and one writing; the gateway answers nobody else while it waits.
_LOCK_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A tool as a server told it: the SHA-256 of its JSON, and its description for a person to read."""

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

        Raises: RecordDamaged, StoreError; ValueError for what is no JSON, one tool in two ways, or too many.
        """
        told, now = dict[str, Seen](), self._clock.now()
        for tool in tools:
            seen = Seen(hash=fingerprint(tool), description=_description(tool), at=now)
            if told.setdefault(tool["name"], seen) != seen:
                # What is let through is so by its name.
                raise ValueError("the server says two things of one tool")
        pins = self.of(server, url)
        made, found = _compared(pins, told)
        if made == pins:
            return found
        with self._alone(server):
            # What was read before the lock may have been approved or written by another process since.
            pins = self.of(server, url)
            made, found = _compared(pins, told)
            if made != pins:
                self._keep(server, url, made)
        return found

    def approve(self, server: str, url: str, tools: Sequence[str] = ()) -> list[str]:
        """Take changed tools (all, or these) as they are told now, and name them. Raises: StoreError."""
        with self._alone(server):
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
        with self._alone(server):
            self._store.delete_document(_KIND, server)

    @contextmanager
    def _alone(self, server: str) -> Iterator[None]:
        """Keep every other process from writing those of a server. Raises: StoreUnwritable."""
        end = self._clock.monotonic() + _LOCK_SECONDS
        while (lock := self._store.try_lock(f"{_KIND} {server}")) is None:
            if self._clock.monotonic() >= end:
                raise StoreUnwritable(
                    f"another process is writing what is known of the MCP server {server}", hint="try again"
                )
            self._clock.pause(0.005)
        try:
            yield
        finally:
            lock.release()

    def _keep(self, server: str, url: str, pins: dict[str, Pin]) -> None:
        body = json.dumps(
            {"format": _FORMAT, "url": url, "tools": {name: _pin_written(pin) for name, pin in pins.items()}}
        )
        now = self._clock.now()
        self._store.put_document(Document(kind=_KIND, id=server, title=server, body=body, updated_at=now))


def _compared(pins: dict[str, Pin], told: dict[str, Seen]) -> tuple[dict[str, Pin], _Told]:
    """Give the pins as they are after a list of tools. Raises: ValueError, where there are too many."""
    made, new, changed = dict(pins), [], []
    for name, seen in told.items():
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
    withheld = frozenset(name for name, pin in made.items() if pin.changed is not None)
    return made, _Told(new=tuple(new), changed=tuple(changed), withheld=withheld)


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


def fingerprint(tool: Tool) -> str:
    """Give the SHA-256 of a tool, in hex, whatever the order of its members.

    Raises: ValueError for what is no JSON, and for a `Description`: readers that do not mind how it is spelt would show
    what was not pinned.
    """
    if any(key not in _PINNED and key.casefold() in _SPELT for key in tool):
        raise ValueError("it has a member of a tool in another spelling")
    pinned = {key: tool[key] for key in _PINNED if key in tool}
    try:
        text = json.dumps(pinned, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return hashlib.sha256(text.encode()).hexdigest()
