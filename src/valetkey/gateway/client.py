"""Connections of clients: requests are parsed, queued in their order, and answered in it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from valetkey.gateway import starting
from valetkey.gateway.answers import failed
from valetkey.gateway.exchange import MAX_WAITING_BYTES, Exchange
from valetkey.gateway.message import MAX_HEAD_BYTES, MAX_HEADERS, Header, head_size, version_of
from valetkey.gateway.relay import relay_up

if TYPE_CHECKING:
    from valetkey.gateway.plan import Tunnel
    from valetkey.gateway.repeat import Repeat
    from valetkey.gateway.server import Gateway

__all__ = ["ClientConnection"]

log = logging.getLogger(__name__)

# Nobody sends so many requests before the first is answered; they are memory that costs the sender nothing.
_MOST_WAITING = 500
_TOO_LONG = "has a head, trailers or chunk extensions longer than 64 KiB"


class ClientConnection(asyncio.Protocol):
    """One connection of a client. `queue[0]` is being answered; later requests wait."""

    __slots__ = (
        "_full",
        "_headers",
        "_lengths",
        "_line",
        "_parser",
        "_paused_by",
        "_receiving",
        "_seen",
        "_stopped",
        "_url",
        "_version",
        "closing",
        "deadline",
        "gateway",
        "half_closed",
        "known",
        "last",
        "queue",
        "relaying",
        "run",
        "transport",
        "tunnel",
    )

    def __init__(self, gateway: Gateway, tunnel: Tunnel | None = None, *, run: str | None = None) -> None:
        self.gateway = gateway
        self.tunnel = tunnel
        # The run by whose socket it came in: that is who asks, whatever it shows.
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.queue: deque[Exchange] = deque()
        self.deadline = 0.0
        self.closing = False
        self.half_closed = False
        # Whether it has shown a key that counts.
        self.known = False
        self.relaying = False
        # The last request that was sent on: most clients send nearly the same head again.
        self.last: Repeat | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._receiving: Exchange | None = None
        self._url = b""
        self._headers: list[Header] = []
        self._lengths: list[bytes] = []
        # Bytes of a request line that is not whole yet; None while inside a message.
        self._line: bytes | None = b""
        self._seen = 0
        # As the first line has it; empty where it was not looked at, behind another request in one piece.
        self._version = ""
        self._stopped = False
        # The client takes its answers slower than they come.
        self._full = False
        self._paused_by: set[str] = set()

    # --- the transport -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self.transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self.gateway.connections.add(self)
        self.known = self.tunnel is not None
        self.deadline = self.gateway.tick + self.gateway.settings.head_seconds
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.gateway.make_room(self)
        if self._line:
            early, self._line = self._line, b""
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        """Parse all of it, then go on with the request in front."""
        if self.relaying:
            relay_up(self.queue[0], data)
            return
        if self._stopped or self._parser is None:
            self._keep_early(data)
            return
        if self.last is not None and self._line == b"" and not self.queue and self._repeated(self.last, data):
            return
        beginning = False
        before = self.queue[0] if self.queue else None
        if self._line is not None:
            whole = self._request_line(data)
            if whole is None:
                return
            data = whole
            beginning = data[:2] != b"\r\n"
        self._seen += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._stopped:
                self._stop()
                self.queue[-1].upgrades(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._stopped:
                self._unparsable(error)
        if self._seen > MAX_HEAD_BYTES and not self._stopped:
            self._refuse(431, _TOO_LONG)
        if self._line == b"" and data[-2:] == b"\n\r" and self._receiving and not self._receiving.up.received:
            # The parser has taken half of an empty line; the other half comes in the next piece.
            self._line = b"\r"
        queue = self.queue
        if queue:
            front = queue[0]
            if beginning and len(queue) == 1 and front is not before and front.body_complete:
                # All of this request, and nothing else, came in this piece.
                front.raw_head = data[: data.find(b"\r\n\r\n") + 4]
            if not front.started:
                self._advance()
            elif front.waiting_up:
                front.flush_up()
            if len(queue) > 1 or (not front.attached and front.waiting_bytes > front.room_bytes):
                self.pause("queue")

    def _repeated(self, last: Repeat, data: bytes) -> bool:
        """Serve a request whose head is that of the last one; False where it is another and has to be parsed."""
        gateway = self.gateway
        gateway.look()
        if last.epoch != gateway.epoch or last.live.ended:
            self.last = None
            return False
        body = None if self._full else last.body_in(data)
        limit = gateway.settings.max_body_bytes
        if body is None or (limit and len(body) > limit):
            return False
        exchange = Exchange(self, last.method, last.url, last.version, last.keep_alive, last.headers, [])
        if body:
            exchange.body(body)
        exchange.body_end()
        self.queue.append(exchange)
        starting.start_again(exchange, last, len(body))
        return True

    def _keep_early(self, data: bytes) -> None:
        """Keep what comes before it can be used: before the handshake of TLS is told, or before an upgrade."""
        if self.transport is None and self._line is not None:
            self._line += data
        elif not self.closing and self.queue and self.queue[-1].upgrading:
            waiting = self.queue[-1]
            waiting.leftover += data
            if len(waiting.leftover) > MAX_WAITING_BYTES:
                self.pause("upgrade")

    def _request_line(self, data: bytes) -> bytes | None:
        """Look at the first line before the parser does: it takes what is no HTTP/1.x as well."""
        if self._line:
            data = self._line + data
        elif not self.queue:
            self.deadline = self.gateway.tick + self.gateway.settings.head_seconds
        # RFC 9112 section 2.2: one empty line before it is left over from a sloppy client.
        start = 2 if data.startswith(b"\r\n") else 0
        end = data.find(b"\n", start)
        if end < 0 and len(data) <= MAX_HEAD_BYTES:
            self._line = data
            return None
        version = version_of(data[start : end + 1])
        if version:
            self._line = None
            self._version = version
            return data
        if end < 0:
            self._refuse(431, _TOO_LONG)
        else:
            self._refuse(400, "does not begin with a line of HTTP/1.1")
        self._advance()
        return None

    def _unparsable(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        if cause is not None:
            log.error("a request could not be taken", exc_info=cause)
            self._refuse(500, "met a fault in the gateway")
        else:
            self._refuse(400, "is not HTTP/1.1 as the gateway reads it")

    def _refuse(self, status: int, reason: str) -> None:
        """Queue an answer to what cannot be parsed; after it the connection ends."""
        self._stop()
        told = failed(status, "malformed", f"the request {reason}", "send it in plain HTTP/1.1")
        receiving = self._receiving
        if receiving is not None and not receiving.body_complete:
            # Its body broke off inside: what was begun upstream must not end well. Its turn may be yet to come.
            if receiving.started:
                receiving.cut_off(told)
            else:
                receiving.problem = receiving.problem or told
            return
        exchange = Exchange(self, b"", b"", "1.1", True, [], [])
        exchange.problem = told
        exchange.body_complete = True
        self.queue.append(exchange)

    def _stop(self) -> None:
        self._stopped = True
        self._line = None

    def _advance(self) -> None:
        # Who does not take his answers gets no more of them: they would have to be kept here.
        if self.queue and not self.queue[0].started and not self._full:
            starting.start(self.queue[0])

    def eof_received(self) -> bool:
        """Let a client that has said all it wanted wait for its answer (half-close); else it is gone."""
        front = self.queue[0] if self.queue else None
        if front is None or self.relaying or not self.queue[-1].body_complete or self.tunnel is not None:
            return False
        if not front.half_closed():
            return False
        self.half_closed = True
        self._stop()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """End what was under way for it, and break the circle of parser and protocol."""
        self.gateway.connections.discard(self)
        self._parser = None
        self.transport = None
        self._receiving = None
        queue, self.queue = self.queue, deque()
        for exchange in queue:
            exchange.client_gone()

    def pause_writing(self) -> None:
        """Stop reading from the provider: the client takes the answer slower than it comes."""
        self._full = True
        if self.queue:
            self.queue[0].pause_upstream()

    def resume_writing(self) -> None:
        """Go on reading from the provider."""
        self._full = False
        if self.queue:
            self.queue[0].resume_upstream()
            self._advance()

    def pause(self, reason: str) -> None:
        """Stop reading, for a reason that `resume` takes back."""
        if not self._paused_by and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused_by.add(reason)

    def resume(self, reason: str) -> None:
        """Read again where no other reason is left."""
        if reason in self._paused_by:
            self._paused_by.discard(reason)
            if not self._paused_by and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send to the client."""
        if self.transport is not None:
            self.transport.write(data)

    def abort(self) -> None:
        """End it now, so that the client sees an answer that is not whole."""
        if self.transport is not None:
            self.transport.abort()

    def hand_over(self) -> None:
        """Take it that TLS has the transport now, and the requests inside another protocol."""
        self.gateway.connections.discard(self)
        self._parser = None
        self._receiving = None
        self._stopped = True
        self.queue.clear()
        self.transport = None

    def too_long(self, now: float) -> bool:
        """Say whether the request in front has taken too long in all, though something always came."""
        front = self.queue[0] if self.queue and not self.relaying else None
        return front is not None and front.started and now - front.begun > self.gateway.settings.total_seconds

    def timed_out(self) -> None:
        """End what has waited too long."""
        if self.queue and self.queue[0].started and not self.closing:
            self.queue[0].timed_out()
        else:
            self.abort() if self.closing or self._seen else self.close()

    def close(self) -> None:
        """End it in order."""
        self.closing = True
        if self.transport is not None:
            self.transport.close()

    # --- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._url = b""
        self._headers = []
        self._lengths = []
        self._receiving = None
        self._line = None

    def on_url(self, url: bytes) -> None:
        """Keep a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, or a trailer where the head is over."""
        name = name.lower()
        if self._receiving is not None:
            self._receiving.up.trailers.append((name, value))
            if len(self._receiving.up.trailers) > MAX_HEADERS and not self._stopped:
                self._refuse(431, _TOO_LONG)
        elif name == b"content-length":
            self._lengths.append(value)
        else:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Queue the request; it is begun when it stands in front and what came with it is parsed."""
        parser = self._parser
        if parser is None or self._stopped:
            return
        seen, self._seen = self._seen, 0
        if len(self.queue) >= _MOST_WAITING:
            self._stop()
            return
        self._receiving = exchange = Exchange(
            self,
            parser.get_method(),
            self._url,
            self._version or parser.get_http_version(),
            parser.should_keep_alive(),
            self._headers,
            self._lengths,
        )
        if seen > MAX_HEAD_BYTES and len(self._url) + head_size(self._headers) > MAX_HEAD_BYTES:
            exchange.problem = failed(431, "malformed", f"the request {_TOO_LONG}", "send less")
        self.queue.append(exchange)

    def on_body(self, data: bytes) -> None:
        """Hand on a piece of the body."""
        self._seen = 0
        if self._receiving is not None:
            self._receiving.body(data)

    def on_message_complete(self) -> None:
        """Tell the request's end."""
        self._line = b""
        self._version = ""
        if self._receiving is not None:
            self._receiving.body_end()

    # --- the queue -------------------------------------------------------------------------------

    def answered(self, exchange: Exchange, *, keep_alive: bool) -> None:
        """Go on with the next request, or close."""
        if self.queue and self.queue[0] is exchange:
            self.queue.popleft()
        if not keep_alive or self.gateway.draining:
            self._end(exchange)
            return
        if self._stopped and not self.queue:
            self._end(exchange)
            return
        self.deadline = self.gateway.tick + self.gateway.settings.idle_seconds
        if self._paused_by:
            if len(self.queue) < 2:
                self.resume("queue")
            self.resume("upstream")
        if self.queue:
            # Not from within: a thousand pipelined refusals are no reason for a thousand frames.
            self.gateway.loop.call_soon(self._advance)

    def _end(self, exchange: Exchange) -> None:
        self._stop()
        self.relaying = False
        for waiting in self.queue:
            waiting.client_gone()
        self.queue.clear()
        if (exchange.body_complete and not exchange.keep_alive and not exchange.upgrading) or self.half_closed:
            self.close()
            return
        # What the client may still be sending is read and dropped for a moment: a reset would take the answer with it.
        self.closing = True
        self.deadline = self.gateway.tick + 2.0
        self._paused_by.clear()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
