"""Passes bytes both ways once a connection is no HTTP any more: a tunnel, a WebSocket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from valetkey.gateway.message import Header, read_response, status_line, write_headers
from valetkey.gateway.scrub import Needles, Scrubber

if TYPE_CHECKING:
    from valetkey.gateway.client import ClientConnection
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.upstream import UpstreamConnection

__all__ = ["Relay", "begin_relay", "relay_down", "relay_up", "upgrade_accepted"]

# A frame that ends as a secret begins is not kept back for longer: the rest would have come by now.
_HELD_SECONDS = 0.05


class Relay:
    """One relay. `sent` counts what went to the client. With `needles` that is looked through."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: ClientConnection,
        upstream: UpstreamConnection | None,
        needles: Needles | None,
    ) -> None:
        self.sent = 0
        self._loop = loop
        self._client = client
        self._upstream = upstream
        self._scrubber = None if needles is None else Scrubber(needles)
        self._letting_go: asyncio.TimerHandle | None = None
        self._ended = False

    def up(self, data: bytes) -> None:
        """Pass bytes on to the provider."""
        if self._upstream is not None:
            self._upstream.write(data)

    def down(self, data: bytes) -> None:
        """Pass bytes on to the client."""
        if self._scrubber is not None:
            data = self._scrubber.feed(data)
            if self._scrubber.holds and self._letting_go is None:
                self._letting_go = self._loop.call_later(_HELD_SECONDS, self._let_go)
        self._write(data)

    def finish(self) -> None:
        """Pass on what was kept back: nothing comes after it."""
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
        if self._scrubber is not None and not self._ended:
            self._write(self._scrubber.finish())
        self._ended = True

    def _let_go(self) -> None:
        self._letting_go = None
        if self._scrubber is not None and not self._ended:
            self._write(self._scrubber.let_go())

    def _write(self, data: bytes) -> None:
        self.sent += len(data)
        self._client.write(data)


def upgrade_accepted(exchange: Exchange, headers: list[Header]) -> bool:
    """Pass on a 101 and become a relay; False where the client asked for no WebSocket."""
    read = read_response(headers)
    if exchange.head is None or not exchange.head.websocket or read is None:
        return False
    exchange.client.write(
        exchange.clean(
            b"%b%bconnection: Upgrade\r\nupgrade: websocket\r\n\r\n" % (status_line(101), write_headers(read.lines))
        )
    )
    exchange.status = 101
    exchange.first_byte = exchange.gateway.now() - exchange.begun
    begin_relay(exchange, None if exchange.ready is None else exchange.ready.needles)
    return True


def begin_relay(exchange: Exchange, needles: Needles | None = None) -> None:
    """Pass bytes on from here on, and those first that came too early."""
    exchange.relay = Relay(exchange.gateway.loop, exchange.client, exchange.upstream, needles)
    exchange.client.relaying = True
    rest, exchange.leftover = exchange.leftover, b""
    if rest:
        relay_up(exchange, rest)
    exchange.client.resume("upgrade")


def relay_up(exchange: Exchange, data: bytes) -> None:
    """Pass bytes on to the provider."""
    exchange.up.received += len(data)
    if exchange.relay is not None:
        exchange.relay.up(data)
        exchange.alive()


def relay_down(exchange: Exchange, data: bytes) -> None:
    """Pass bytes on to the client."""
    if exchange.relay is not None:
        exchange.relay.down(data)
        exchange.alive()
