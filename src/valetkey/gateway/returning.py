"""The way back of an exchange: the provider's answer, passed on; a second try where the first was refused or lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from valetkey.credential import secrets_of
from valetkey.errors import NeedsLogin, NotLoggedIn, UnclearAnswer, ValetkeyError
from valetkey.gateway import answers, incoming, sending
from valetkey.gateway.answers import Answer
from valetkey.gateway.message import Header, ReadResponse, read_response, status_line, write_headers

if TYPE_CHECKING:
    from valetkey.gateway.credentials import Ready
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.mcp_stream import Inspected
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.upstream import UpstreamConnection

__all__ = [
    "flush_down",
    "interim",
    "response_body",
    "response_done",
    "response_head",
    "upstream_failed",
    "upstream_lost",
]

log = logging.getLogger(__name__)

# A 401 is kept back while the login is renewed; a longer one is passed on.
_MAX_KEPT_ANSWER = 64 * 1024
# RFC 9110 section 9.2.2: what may be sent again when a kept connection turns out to be dead.
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


def interim(exchange: Exchange, status: int, headers: list[Header]) -> None:
    """Pass on a 1xx (RFC 9110 section 15.2)."""
    read = read_response(headers)
    if exchange.version == "1.1" and exchange.down is None and not exchange.renewed and read is not None:
        exchange.client.write(exchange.clean(b"%b%b\r\n" % (status_line(status), write_headers(read.lines))))


def response_head(exchange: Exchange, status: int, headers: list[Header]) -> None:
    """Take the head of the answer."""
    read = read_response(headers)
    if read is None:
        if exchange.upstream is not None:
            exchange.upstream.broken = "the length of its answer is unclear"
        return
    if exchange.upstream is not None:
        exchange.upstream.unframed = read.length is None and not read.chunked
    if status == 401 and _may_renew(exchange, read):
        exchange.kept = status, read
        return
    if exchange.plan is not None and exchange.plan.rewrites:
        exchange.replaced = _rewritten(exchange, status, exchange.plan)
        if exchange.replaced is not None:
            return
    _answer_with(exchange, status, read)


def _answer_with(exchange: Exchange, status: int, read: ReadResponse) -> None:
    """Begin the answer to the client."""
    exchange.up.drop()
    bodyless = exchange.is_head or status in (204, 304)
    if not exchange.up.complete or exchange.gateway.draining:
        # An answer before the end of the request is mostly a refusal: nobody knows whether the rest comes.
        exchange.keep_alive = False
    if exchange.plan is not None and status == 200 and not bodyless:
        exchange.reader = exchange.plan.reader(read.content_type)
    try:
        inspected = _inspected(exchange, status, read)
    except UnclearAnswer as unclear:
        _refuse_answer(exchange, unclear.message)
        return
    exchange.down = incoming.begun(
        status,
        read,
        bodyless=bodyless,
        chunks=exchange.version == "1.1",
        close=not exchange.keep_alive,
        needles=None if exchange.ready is None else exchange.ready.scrubs,
        reader=exchange.reader,
        keep=exchange.gateway.settings.keep_bodies,
        inspected=inspected,
    )
    if exchange.down is None:
        _refuse_answer(exchange, "its answer is compressed in a way that cannot be looked into")
        return
    exchange.status = status
    exchange.first_byte = exchange.gateway.now() - exchange.begun


def _inspected(exchange: Exchange, status: int, read: ReadResponse) -> Inspected | None:
    """Give what looks into the answer of an MCP server, None for any other. Raises: UnclearAnswer."""
    if exchange.plan is None or exchange.plan.server is None:
        return None
    # A client would log in where this says, by requests that the run's other accounts may serve.
    read.lines = [line for line in read.lines if line[0] != b"www-authenticate"]
    return exchange.gateway.mcp.looks_into(exchange, exchange.plan.server, status, read.content_type)


def response_body(exchange: Exchange, data: bytes) -> None:
    """Take a piece of the answer's body."""
    if exchange.finished:
        return
    if exchange.kept is not None:
        if exchange.kept_body is None:
            exchange.kept_body = bytearray()
        exchange.kept_body += data
        if len(exchange.kept_body) > _MAX_KEPT_ANSWER:
            _pass_on_kept(exchange)
        return
    if exchange.down is not None:
        try:
            exchange.down.feed(data)
        except UnclearAnswer as unclear:
            _refuse_answer(exchange, unclear.message)


def flush_down(exchange: Exchange) -> None:
    """Send on what has come of the answer."""
    if exchange.down is not None and not exchange.finished:
        data = exchange.down.take()
        if data:
            exchange.client.write(data)
            exchange.alive()


def response_done(exchange: Exchange, trailers: list[Header]) -> None:
    """Take the end of the answer."""
    exchange.upstream = None
    if exchange.finished:
        return
    if exchange.kept is not None:
        exchange.spawn(_renew)
        return
    if exchange.replaced is not None:
        exchange.answer(exchange.replaced)
        return
    if exchange.down is not None:
        try:
            exchange.down.finish(trailers)
        except UnclearAnswer as unclear:
            _refuse_answer(exchange, unclear.message)
            return
        flush_down(exchange)
    # What is not told a length ends with the connection.
    ends = exchange.down is not None and exchange.version == "1.0"
    exchange.finish(keep_alive=exchange.keep_alive and exchange.up.complete and not ends)


def _refuse_answer(exchange: Exchange, reason: str) -> None:
    upstream, exchange.upstream = exchange.upstream, None
    if upstream is not None:
        upstream.abort()
    upstream_failed(exchange, reason)


def _may_renew(exchange: Exchange, read: ReadResponse) -> bool:
    """Say whether a 401 is worth a renewal: the credential was ours, and the request can be sent again."""
    ready = exchange.ready
    return (
        not exchange.renewed
        and ready is not None
        and ready.access.credential is not None
        and exchange.up.can_repeat
        and (exchange.is_head or read.length is None or read.length <= _MAX_KEPT_ANSWER)
    )


async def _renew(exchange: Exchange) -> None:
    """Renew what the provider has just refused, and send the request once more; else pass its answer on."""
    ready, plan, live = exchange.ready, exchange.plan, exchange.live
    if ready is None or plan is None or plan.forward is None or live is None:
        return
    exchange.renewed = True
    old = ready.access.credential
    try:
        fresh = await sending.fetched(exchange, plan.forward, live, rejected=old) or ready
    except (NeedsLogin, NotLoggedIn) as error:
        exchange.kept = None
        exchange.answer(answers.of_error(error))
        return
    except ValetkeyError as error:
        log.info("%s was refused by its provider, and %s", plan.ref, error.message)
        fresh = ready
    if exchange.finished or fresh is ready or _same_secrets(fresh, ready):
        _pass_on_kept(exchange)
        response_done(exchange, [])
        return
    exchange.kept, exchange.kept_body = None, None
    exchange.up.rewind()
    sending.send(exchange, fresh)


def _pass_on_kept(exchange: Exchange) -> None:
    if exchange.kept is None:
        return
    (status, read), exchange.kept = exchange.kept, None
    body, exchange.kept_body = exchange.kept_body, None
    _answer_with(exchange, status, read)
    if body:
        response_body(exchange, bytes(body))


def _rewritten(exchange: Exchange, status: int, plan: Plan) -> Answer | None:
    for rewrite in plan.rewrites:
        if rewrite.when_status == status and rewrite.path == plan.path:
            made = Answer(rewrite.status, "rewritten", {})
            made.body = rewrite.body.encode()
            return made
    return None


def upstream_failed(exchange: Exchange, reason: str) -> None:
    """End it: the provider's answer cannot be used."""
    provider = None if exchange.plan is None or exchange.plan.ref is None else exchange.plan.ref.provider
    told = answers.failed(
        502,
        "upstream_failed",
        f"{exchange.plan.host if exchange.plan else 'the provider'} failed: {reason}",
        "try again; the provider's status page may say more",
        provider=provider,
    )
    exchange.answer(told)


def upstream_lost(exchange: Exchange, upstream: UpstreamConnection, *, clean: bool) -> None:
    """Take the end of the provider's connection: of the answer, of a tunnel, or too early."""
    if exchange.finished or exchange.upstream is not upstream:
        return
    exchange.upstream = None
    if exchange.client.relaying:
        if exchange.relay is not None:
            exchange.relay.finish()
        exchange.finish(keep_alive=False)
        return
    if (exchange.down is not None or exchange.kept is not None or exchange.replaced is not None) and (
        clean and upstream.ends_with_connection
    ):
        response_done(exchange, [])
        return
    repeatable = exchange.method in _IDEMPOTENT or any(
        name == b"idempotency-key" for name, _ in (exchange.head.lines if exchange.head is not None else ())
    )
    stale = upstream.served > 1 and not upstream.answering
    if stale and repeatable and exchange.up.can_repeat and not exchange.retried and exchange.down is None:
        exchange.retried = True
        exchange.up.rewind()
        sending.send(exchange, exchange.ready, fresh_connection=True)
        return
    upstream_failed(exchange, "it closed the connection before its answer was whole")


def _same_secrets(one: Ready, other: Ready) -> bool:
    a, b = one.access.credential, other.access.credential
    return a is b or (a is not None and b is not None and secrets_of(a) == secrets_of(b))
