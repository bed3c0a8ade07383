"""The bodies of one exchange: the request's, held back for a second try, and the answer's, looked into on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valetkey.gateway.message import Header, chunk, trailer_lines
from valetkey.gateway.scrub import Decoder, Needles, Scrubber

if TYPE_CHECKING:
    from valetkey.gateway.usage import UsageReader

__all__ = ["Down", "Up"]

# Design section 7: a request is sent a second time after a 401 if its body was at most this.
MAX_HELD_BYTES = 1024 * 1024


class Up:
    """The request's body, framed anew as it came: by length or in chunks."""

    __slots__ = (
        "_held",
        "_held_bytes",
        "chunked",
        "complete",
        "received",
        "sent_end",
        "trailers",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self) -> None:
        self.chunked = False
        # All of it has come from the client; all of it has gone to the provider.
        self.complete = False
        self.sent_end = False
        self.received = 0
        self.waiting: list[bytes] = []
        self.waiting_bytes = 0
        self.trailers: list[Header] = []
        self._held: list[bytes] | None = []
        self._held_bytes = 0

    def take(self, data: bytes) -> None:
        """Take a piece from the client."""
        self.received += len(data)
        self.waiting.append(data)
        self.waiting_bytes += len(data)

    def drain(self) -> bytes:
        """Give what is to be sent now."""
        pieces = self.waiting
        if pieces:
            self.waiting = []
            self._hold(pieces, self.waiting_bytes)
            self.waiting_bytes = 0
            if self.chunked:
                pieces = [chunk(piece) for piece in pieces]
        if self.complete and not self.sent_end:
            self.sent_end = True
            if self.chunked:
                pieces = [*pieces, b"0\r\n%b\r\n" % trailer_lines(self.trailers)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _hold(self, pieces: list[bytes], size: int) -> None:
        if self._held is None:
            return
        self._held_bytes += size
        if self._held_bytes > MAX_HELD_BYTES:
            self._held = None
        else:
            self._held += pieces

    @property
    def can_repeat(self) -> bool:
        """Whether the whole of it is here and can be sent once more."""
        return self.complete and self._held is not None

    def rewind(self) -> None:
        """Put all of it back, to be sent again."""
        self.waiting = [*(self._held or []), *self.waiting]
        self.waiting_bytes = sum(map(len, self.waiting))
        self._held, self._held_bytes = [], 0
        self.sent_end = False

    def become(self, body: bytes) -> int:
        """Take this for the whole body, to be sent once and with its length, and give that."""
        self.waiting, self.waiting_bytes = ([body] if body else []), len(body)
        self.chunked = False
        self._held = None
        return len(body)

    def drop(self) -> None:
        """Keep nothing for a second try: the answer is on its way."""
        self._held = None


class Down:
    """The answer's body on its way to the client: decoded where it must be, scrubbed, counted, framed."""

    __slots__ = ("_decoder", "_needles", "_reader", "_scrubber", "chunked", "out", "sent")

    def __init__(
        self,
        head: bytes,
        *,
        chunked: bool,
        needles: Needles | None = None,
        decoder: Decoder | None = None,
        reader: UsageReader | None = None,
    ) -> None:
        self.chunked = chunked
        self.out: list[bytes] = [head]
        self.sent = 0
        self._needles = needles
        self._scrubber = None if needles is None else Scrubber(needles)
        self._decoder = decoder
        self._reader = reader

    def feed(self, data: bytes) -> None:
        """Take a piece from the provider. Raises: UnclearAnswer, from the decoder."""
        if self._decoder is None:
            self._put(data if self._scrubber is None else self._scrubber.feed(data))
            return
        for piece in self._decoder.feed(data):
            self._put(piece if self._scrubber is None else self._scrubber.feed(piece))

    def _put(self, data: bytes) -> None:
        if not data:
            return
        self.sent += len(data)
        if self._reader is not None:
            self._reader.feed(data)
        self.out.append(chunk(data) if self.chunked else data)

    def finish(self, trailers: list[Header]) -> None:
        """End it. Raises: UnclearAnswer, from the decoder."""
        if self._decoder is not None:
            self._decoder.finish()
        if self._scrubber is not None:
            self._put(self._scrubber.finish())
        if self._reader is not None:
            self._reader.finish()
        if self.chunked:
            ending = trailer_lines(trailers) if trailers else b""
            if self._needles is not None:
                ending = self._needles.clean(ending)
            self.out.append(b"0\r\n%b\r\n" % ending)

    def take(self) -> bytes:
        """Give what is to be sent to the client now."""
        out = self.out
        if not out:
            return b""
        self.out = []
        return out[0] if len(out) == 1 else b"".join(out)
