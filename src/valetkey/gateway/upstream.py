"""Connections to providers: one response at a time is parsed, and what is left open is kept for the next request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from valetkey.gateway import returning
from valetkey.gateway.message import MAX_HEAD_BYTES, MAX_HEADERS, Header, head_size
from valetkey.gateway.relay import relay_down, upgrade_accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from valetkey.gateway.exchange import Exchange

__all__ = ["Pool", "UpstreamConnection"]

# Providers close idle connections after one to several minutes; ours go first, so that no request meets a dead one.
IDLE_SECONDS = 30.0
MAX_IDLE = 256
# What uvloop takes out of TLS at once.
READ_BYTES = 256 * 1024


class UpstreamConnection(asyncio.BufferedProtocol):
    """One connection to one origin for one account. `exchange` is what it serves now."""

    __slots__ = (
        "_complete",
        "_headers",
        "_in_head",
        "_parser",
        "_seen",
        "_trailers",
        "broken",
        "exchange",
        "idle_since",
        "keep_alive",
        "key",
        "pool",
        "relaying",
        "served",
        "status",
        "transport",
        "unframed",
    )

    def __init__(self, pool: Pool, key: Hashable) -> None:
        self.pool = pool
        self.key = key
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.served = 0
        self.idle_since = 0.0
        self.keep_alive = False
        self.relaying = False
        self.broken = ""
        self.status = 0
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: list[Header] = []
        self._trailers: list[Header] = []
        self._in_head = True
        self._seen = 0
        self._complete = False
        self.unframed = False

    # --- the transport -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over."""
        self.transport = cast("asyncio.Transport", transport)

    def begin(self, exchange: Exchange, data: bytes) -> None:
        """Send the beginning of a request, and parse what comes back."""
        self.exchange = exchange
        self.served += 1
        self._in_head = True
        self._complete = False
        self._seen = 0
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self.write(data)

    def write(self, data: bytes) -> None:
        """Send more of it."""
        if self.transport is not None:
            self.transport.write(data)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give the one buffer of all connections: what is read is dealt with before the next read.

        A buffer of its own for each read costs a tenth of a request in the kernel: it is mapped, shrunk and unmapped.
        """
        return self.pool.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse, and pass on in one piece what that gave."""
        data = self.pool.buffer[:nbytes]
        exchange = self.exchange
        if exchange is None:
            # Bytes that nobody asked for: whatever they are, the next request must not get them.
            self.abort()
            return
        if self.relaying:
            relay_down(exchange, bytes(data))
            return
        self._seen += nbytes
        try:
            if self._parser is not None:
                self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(exchange, bytes(data[upgrade.args[0] :]))
            return
        except httptools.HttpParserError as error:
            if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
                exchange.crashed(error.__context__)
            if self._complete:
                self.keep_alive = False  # the answer is whole; what follows it is nobody's
            else:
                self.broken = self.broken or "its answer is no HTTP/1.1"
        if self._seen > MAX_HEAD_BYTES and not self._complete:
            self.broken = f"the head or the trailers of its answer are longer than {MAX_HEAD_BYTES} bytes"
        if self.broken:
            if self.exchange is not None:
                self._fail(self.broken)
            return
        if self._complete:
            self._completed(exchange)
        elif self.exchange is exchange:
            returning.flush_down(exchange)

    def eof_received(self) -> bool:
        """Close: an answer that ends with the connection is told complete in connection_lost."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell who waits, and break the circle of parser and protocol, which only the collector would find."""
        exchange, self.exchange = self.exchange, None
        self._parser = None
        self.transport = None
        self.pool.left(self)
        if exchange is not None:
            returning.upstream_lost(exchange, self, clean=error is None)

    def pause_writing(self) -> None:
        """Stop reading from the client: the provider takes its body slower than it comes."""
        if self.exchange is not None:
            self.exchange.pause_client()

    def resume_writing(self) -> None:
        """Go on reading from the client."""
        if self.exchange is not None:
            self.exchange.resume_client()

    def abort(self) -> None:
        """End the connection now, without a word to anybody."""
        self.exchange = None
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, reason: str) -> None:
        exchange = self.exchange
        self.abort()
        if exchange is not None:
            returning.upstream_failed(exchange, reason)

    @property
    def answering(self) -> bool:
        """Whether a byte of this answer has come."""
        return self._seen > 0 or not self._in_head

    @property
    def ends_with_connection(self) -> bool:
        """Whether the answer has no length of its own (RFC 9112 section 6.3)."""
        return self.unframed and not self.broken

    # --- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a response. A second one on one request was asked for by nobody: it is dropped with the connection."""
        if self._complete:
            self.keep_alive = False
            return
        self._headers = []
        self._trailers = []
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, or a trailer where the head is over."""
        if self._in_head:
            self._headers.append((name.lower(), value))
        elif not self._complete:
            self._trailers.append((name.lower(), value))
            if len(self._trailers) > MAX_HEADERS:
                self.broken = "its answer has too many trailers"

    def on_headers_complete(self) -> None:
        """Tell the exchange the head, or pass on an interim one."""
        if self._complete:
            return
        self._in_head = False
        seen, self._seen = self._seen, 0
        if self.broken or self._parser is None or self.exchange is None:
            return
        self.status = status = self._parser.get_status_code()
        if len(self._headers) > MAX_HEADERS or not 100 <= status <= 599:
            self.broken = "its answer has a status that there is not, or too many headers"
            return
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            self.broken = "its answer is in another version of HTTP than 1.0 and 1.1"
            return
        if seen > MAX_HEAD_BYTES and head_size(self._headers) > MAX_HEAD_BYTES:
            self.broken = f"the head of its answer is longer than {MAX_HEAD_BYTES} bytes"
            return
        if status < 200:
            if status != 101:
                returning.interim(self.exchange, status, self._headers)
            return
        self.keep_alive = self._parser.should_keep_alive()
        returning.response_head(self.exchange, status, self._headers)
        if self.exchange is not None and self.exchange.is_head:
            # The parser waits for a body that HEAD never gets.
            self._parser = None
            self._complete = True

    def on_body(self, data: bytes) -> None:
        """Pass on a piece of the body."""
        self._seen = 0
        if self._complete:
            self.keep_alive = False  # HEAD has none: whoever sends one counts otherwise
        if self.exchange is not None and not self.broken and not self._complete:
            returning.response_body(self.exchange, data)

    def on_message_complete(self) -> None:
        """Remember the end; it is told once all that came is parsed."""
        if self._complete or (self.status >= 200 and not self._in_head):
            self._complete = True
        else:
            self._in_head = True

    def _completed(self, exchange: Exchange) -> None:
        self.exchange = None
        returning.response_done(exchange, self._trailers)
        if self.keep_alive and not self.broken and exchange.request_sent:
            self.pool.put(self)
        else:
            self.abort_softly()

    def abort_softly(self) -> None:
        """Close in order: what was written still goes out."""
        if self.transport is not None:
            self.transport.close()

    def _upgraded(self, exchange: Exchange, rest: bytes) -> None:
        if self.status != 101 or not upgrade_accepted(exchange, self._headers):
            self._fail("it changed the protocol unasked")
            return
        self.relaying = True
        self._parser = None
        if rest:
            relay_down(exchange, rest)


class Pool:
    """Open connections that serve nobody, by origin and account. Two accounts never share one."""

    def __init__(self, now: Callable[[], float]) -> None:
        # The time of the last sweep is near enough.
        self._now = now
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._idle: dict[Hashable, list[UpstreamConnection]] = {}
        self._all: set[UpstreamConnection] = set()

    def joined(self, connection: UpstreamConnection) -> None:
        """Count a new connection."""
        self._all.add(connection)

    def take(self, key: Hashable) -> UpstreamConnection | None:
        """Give the one that was used last: it is the likeliest to live."""
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    def put(self, connection: UpstreamConnection) -> None:
        """Keep it for the next request."""
        idle = self._idle.setdefault(connection.key, [])
        if len(idle) >= MAX_IDLE:
            connection.abort_softly()
            return
        connection.idle_since = self._now()
        idle.append(connection)

    def left(self, connection: UpstreamConnection) -> None:
        """Forget one that is closed."""
        self._all.discard(connection)
        idle = self._idle.get(connection.key)
        if idle is not None and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.key]

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest = self._now() - IDLE_SECONDS
        for idle in list(self._idle.values()):
            for connection in [c for c in idle if c.idle_since < oldest]:
                idle.remove(connection)
                connection.abort_softly()

    def close(self) -> None:
        """Close all of them."""
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()

    def __len__(self) -> int:
        return len(self._all)
