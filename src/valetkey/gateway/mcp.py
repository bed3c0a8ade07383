"""Relays MCP servers to runs: where one is found, what goes out to it, and what comes back, looked into both ways.

A server that a run was given is at `/mcp/NAME` of the run's socket. What is sent there is one JSON-RPC message or an
array of them, held back until it is whole. The older transport (HTTP with SSE) names in its stream a second address;
that becomes `/mcp/NAME/ADDRESS`, sealed by the run's own key, so that only what the server named is one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from valetkey.errors import AuditError, StoreError, UnclearAnswer
from valetkey.gateway import answers
from valetkey.gateway.answers import Answer
from valetkey.gateway.decide import Forward, Hold, Refuse, RequestHead
from valetkey.gateway.mcp_stream import Inspected
from valetkey.gateway.normal import Malformed, split_authority
from valetkey.gateway.returning import flush_down
from valetkey.gateway.runs import Run
from valetkey.mcp import Answered, Pass, Relayed, Rules, Tool, Unclear, look_at, refusal_of
from valetkey.mcp_pins import Pins

if TYPE_CHECKING:
    from valetkey.clock import Clock
    from valetkey.gateway.decide import Decision
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.message import ReadHead
    from valetkey.gateway.ring import LiveKey
    from valetkey.store import Store

__all__ = ["McpRelay", "aside", "is_relayed", "server_at"]

log = logging.getLogger(__name__)

_PREFIX = "/mcp/"
_METHODS = frozenset(("GET", "POST", "DELETE"))
# Of so many runs it is remembered which tools were withheld.
_MOST_RUNS = 1000
# A run has up to 1,024 connections, each of which may hold a message that never ends.
_MOST_HELD_BYTES = 64 * 1024 * 1024
# What is new or has changed is written to the store and the audit: so often for one server of a run.
_MOST_CHANGES = 50

# --- where a server is -----------------------------------------------------------------------


def is_relayed(live: LiveKey, url: str) -> bool:
    """Say whether a request is for an MCP server. A provider called mcp is at `/mcp@default` in a run."""
    return isinstance(live.key, Run) and (url.startswith(_PREFIX) or url == "/mcp")


def server_at(live: LiveKey, method: str, url: str) -> tuple[RequestHead, Relayed] | Refuse:
    """Find the server of a run that this address is for, and read the request that it stands for."""
    given = live.key.servers if isinstance(live.key, Run) else ()
    name, mark, rest = url.removeprefix("/mcp").removeprefix("/").partition("/")
    server = next((server for server in given if server.name == name), None)
    if server is None:
        there = ", ".join(server.name for server in given) or "none"
        reason = f"run {live.client.id} has no MCP server {name[:60]!r}; it has: {there}"
        return Refuse(code="unknown_server", status=404, reason=reason)
    if method not in _METHODS:
        return Refuse(
            code="method_refused", status=403, reason=f"an MCP server is asked by {', '.join(sorted(_METHODS))}"
        )
    parts = urlsplit(server.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if mark:
        opened = _opened(live.key, server, rest)
        if opened is None or method != "POST":
            reason = f"the MCP server {name} has not named this address in run {live.client.id}"
            return Refuse(code="unknown_server", status=404, reason=reason)
        target = opened
    authority = split_authority(parts.netloc)
    if isinstance(authority, Malformed):
        return Refuse(code="malformed", status=400, reason=f"the address of the MCP server {name} {authority.reason}")
    host, port = authority
    head = RequestHead(method=method, scheme=parts.scheme, host=host, port=port, path=target, grant=server.grant)
    return head, server


def aside(live: LiveKey, decision: Decision) -> Refuse | None:
    """Refuse what would go past the relay, where nobody holds it to the allow-list: to a server itself, or elsewhere
    with an account that a run has for its servers alone.
    """
    run = live.key
    if not isinstance(run, Run) or not run.servers or isinstance(decision, Refuse):
        return None
    forward = decision.then if isinstance(decision, Hold) else decision
    server = next((server for server in run.servers if _goes_past(run, server, forward)), None)
    if server is None:
        return None
    reason = f"{server.grant} is used for the MCP server {server.name} by its relay alone"
    return Refuse(
        code="relay_alone",
        status=403,
        reason=f"{reason}: http://127.0.0.1:3128/mcp/{server.name}",
        target=forward.target,
        grant=forward.grant,
    )


def _goes_past(run: Run, server: Relayed, forward: Forward) -> bool:
    if forward.grant != server.grant:
        return False
    if server.grant in run.relayed_alone:
        return True
    if forward.how != "inject":
        return False
    parts = urlsplit(server.url)
    path = (parts.path.rstrip("/") or "").casefold()
    asked = forward.target.path.rstrip("/").casefold()
    return forward.target.host.strip("[]") == parts.hostname and (asked + "/").startswith(path + "/")


def _seal(run: Run, server: Relayed, target: str) -> str:
    said = f"mcp endpoint\0{server.name}\0{server.url}\0{target}".encode()
    return hmac.new(run.authority_key.reveal().encode(), said, hashlib.sha256).hexdigest()[:32]


def _sealed(run: Run, server: Relayed, target: str) -> str:
    """Give the address inside of a run for an address that its server named."""
    text = base64.urlsafe_b64encode(target.encode()).decode().rstrip("=")
    return f"{_PREFIX}{server.name}/{_seal(run, server, target)}{text}"


def _opened(run: object, server: Relayed, text: str) -> str | None:
    if not isinstance(run, Run) or not text.isascii():
        return None
    try:
        target = base64.urlsafe_b64decode(text[32:] + "=" * (-len(text[32:]) % 4)).decode()
    except ValueError:
        return None
    return target if hmac.compare_digest(_seal(run, server, target), text[:32]) else None


# --- what goes through -----------------------------------------------------------------------


class McpRelay:
    """Looks into what runs and their MCP servers say to each other. For the gateway's own thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._pins = Pins(store, clock)
        # Streams of the older transport, by run and the address that each named: answers to what is posted there.
        self._streams: weakref.WeakValueDictionary[tuple[str, str], Exchange] = weakref.WeakValueDictionary()
        # By run, the tools that it was not shown because they have changed.
        self._withheld: OrderedDict[str, dict[tuple[str, str], None]] = OrderedDict()
        # By run and server, how often it has said something new of its tools.
        self._changes: OrderedDict[tuple[str, str], int] = OrderedDict()
        # Answers that are looked into, and the run that each is for.
        self._bodies: weakref.WeakKeyDictionary[Inspected, str] = weakref.WeakKeyDictionary()

    def withheld_from(self, run: str) -> list[tuple[str, str]]:
        """Name the tools, each behind its server, that a run did not get because they have changed."""
        return list(self._withheld.get(run, {}))

    def lets_out(self, exchange: Exchange, server: Relayed) -> bool:
        """Look into a request. False where it is not whole yet, or was answered.

        What goes out is written anew, so that the server reads what was decided on.
        """
        head = exchange.head
        if head is None:
            return False
        if head.websocket:
            exchange.answer(answers.failed(400, "not_json_rpc", "an MCP server is not asked by WebSocket", "use HTTP"))
            return False
        if exchange.method != b"POST":
            if not exchange.length and not head.chunked:
                return True
            exchange.answer(answers.failed(400, "not_json_rpc", "only a POST to an MCP server has a body", "use POST"))
            return False
        if not exchange.up.complete:
            return False
        try:
            found = look_at(b"".join(exchange.up.waiting), self._rules(server))
        except StoreError as error:
            exchange.answer(answers.of_error(error))
            return False
        if isinstance(found, Pass):
            reason = _said_otherwise(head, found)
            if reason is None:
                exchange.length = exchange.up.replace(found.body)
                return True
            found = Unclear(reason=reason)
        if isinstance(found, Unclear):
            made = Answer(400, "not_json_rpc", {})
            made.body = refusal_of(f"the request is no JSON-RPC message that can be relayed: {found.reason}")
            exchange.answer(made)
            return False
        self._refuse(exchange, found)
        return False

    def _refuse(self, exchange: Exchange, found: Answered) -> None:
        stream = None
        if exchange.client.run is not None:
            stream = self._streams.get((exchange.client.run, exchange.url.decode("latin-1")))
        if stream is not None and _pushed(stream, b"event: message\ndata: %b\n\n" % found.body):
            # The older transport answers there, and takes what is posted with 202.
            made = Answer(202, "tool_refused", {})
            made.body = b""
        else:
            made = Answer(200, "tool_refused", {})
            made.body = found.body
        exchange.answer(made)

    def looks_into(self, exchange: Exchange, server: Relayed, status: int, content_type: bytes) -> Inspected | None:
        """Give what looks into an answer; None for an error in words, which has no tools in it.

        Raises: UnclearAnswer for a redirection. A client would take it to another account of its run: all that the run
        has is at the same origin as the relay, and asks for no credential.
        """
        live = exchange.live
        if live is None or not isinstance(live.key, Run):
            return None
        if 300 <= status < 400:
            raise UnclearAnswer(f"it redirects with {status}, which is not relayed", hint="name the address it is at")
        if status >= 400 and not any(mark in content_type.lower() for mark in (b"json", b"event-stream")):
            return None
        run = live.key

        def endpoint(text: str) -> str:
            whole = urljoin(server.url, text)
            ours, theirs = urlsplit(server.url), urlsplit(whole)
            if (ours.scheme, ours.netloc.lower()) != (theirs.scheme, theirs.netloc.lower()):
                raise UnclearAnswer(
                    f"the MCP server {server.name} names an address on another host", hint="ask whoever runs the server"
                )
            inside = _sealed(run, server, (theirs.path or "/") + (f"?{theirs.query}" if theirs.query else ""))
            self._streams[run.id, inside] = exchange
            return inside

        def let_through(tools: list[Tool]) -> list[Tool]:
            return self._shown(exchange, run, server, tools)

        def room() -> None:
            held = sum(body.held_bytes for body, whose in self._bodies.items() if whose == run.id)
            if held > _MOST_HELD_BYTES:
                raise UnclearAnswer("too much is held back for this run", hint="use fewer servers at a time")

        inspected = Inspected(
            content_type.decode("latin-1"),
            let_through,
            endpoint=endpoint if server.transport == "sse" and exchange.method == b"GET" else None,
            # A message was taken: servers say "Accepted" in words, and no client reads them.
            drops=status == 202,
            room=room,
        )
        self._bodies[inspected] = run.id
        return inspected

    def _rules(self, server: Relayed) -> Rules:
        pins = self._pins.of(server.name, server.url)
        withheld = frozenset(name for name, pin in pins.items() if pin.changed is not None)
        return Rules(server=server.name, tools=server.tools, withheld=withheld)

    def _shown(self, exchange: Exchange, run: Run, server: Relayed, tools: list[Tool]) -> list[Tool]:
        """Give the tools that the client gets to see, and tell what is new or has changed."""
        rules = Rules(server=server.name, tools=server.tools)
        if self._changes.get((run.id, server.name), 0) >= _MOST_CHANGES:
            raise UnclearAnswer(
                f"the MCP server {server.name} says something else of its tools again and again",
                hint=f"read `valetkey mcp check {server.name}`",
            )
        # What the list keeps out is nobody's to approve.
        tools = [tool for tool in tools if rules.allows(tool["name"])]
        try:
            told = self._pins.compare(server.name, server.url, tools)
            self._tell(exchange, run, server, "mcp-tools-seen", told.new)
            self._tell(exchange, run, server, "mcp-tools-changed", told.changed)
        except (StoreError, AuditError) as error:
            raise UnclearAnswer(
                f"the tools of {server.name} cannot be compared: {error.message}", hint=error.hint
            ) from error
        if told.new or told.changed:
            self._count((run.id, server.name))
        kept = [tool for tool in tools if tool["name"] not in told.withheld]
        for tool in tools:
            if tool["name"] in told.withheld:
                exchange.outcome = "tools_changed"
                self._withheld.setdefault(run.id, {})[server.name, tool["name"]] = None
        while len(self._withheld) > _MOST_RUNS:
            self._withheld.popitem(last=False)
        return kept

    def _count(self, key: tuple[str, str]) -> None:
        self._changes[key] = self._changes.pop(key, 0) + 1
        while len(self._changes) > _MOST_RUNS:
            self._changes.popitem(last=False)

    def _tell(self, exchange: Exchange, run: Run, server: Relayed, kind: str, tools: tuple[str, ...]) -> None:
        audit = exchange.gateway.audit
        if audit is not None and tools:
            detail = {"server": server.name, "tools": [name[:100] for name in tools[:50]], "count": len(tools)}
            audit.append(kind, who=f"run:{run.id}", account=str(server.grant), detail=detail)


def _pushed(exchange: Exchange, data: bytes) -> bool:
    """Put something of ours into an answer that goes on; False where none does."""
    if exchange.down is None or exchange.finished:
        return False
    exchange.down.insert(data)
    flush_down(exchange)
    return True


def _said_otherwise(head: ReadHead, found: Pass) -> str | None:
    """Say where a header would make another message of this one; None where none does."""
    for name, value in head.lines:
        if name == b"content-type":
            kind, *parameters = (part.strip().lower() for part in value.split(b";"))
            if kind != b"application/json" or any(
                p not in (b"charset=utf-8", b'charset="utf-8"', b"") for p in parameters
            ):
                return "its content-type is not application/json in UTF-8"
        elif name == b"content-encoding" and value.lower() != b"identity":
            return "it is compressed"
        elif name == b"mcp-method" and value.decode("latin-1") != (found.method or ""):
            return "its header mcp-method names another method than it has"
        elif name == b"mcp-name" and found.method == "tools/call" and _decoded(value) != found.name:
            return "its header mcp-name names another tool than it has"
    return None


def _decoded(value: bytes) -> str:
    # MCP 2025-11 and later: what is not plain ASCII is `=?base64?…?=`.
    if value.lower().startswith(b"=?base64?") and value.endswith(b"?="):
        try:
            return base64.b64decode(value[9:-2], validate=True).decode()
        except ValueError:
            return ""
    return value.decode("latin-1")
