"""Passes bytes both ways once a connection is no HTTP any more: a tunnel, a WebSocket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from valetkey.gateway.scrub import Needles, Scrubber

if TYPE_CHECKING:
    from valetkey.gateway.client import ClientConnection
    from valetkey.gateway.upstream import UpstreamConnection

__all__ = ["Relay"]

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
