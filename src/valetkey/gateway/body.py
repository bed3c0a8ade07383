"""The bodies of one exchange: the request's, held back for a second try, and the answer's, looked into on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valetkey.gateway.message import Header, chunk, trailer_lines
from valetkey.gateway.row import BODY_LIMIT_BYTES
from valetkey.gateway.scrub import Decoder, Needles, Scrubber

if TYPE_CHECKING:
    from valetkey.gateway.mcp_stream import Inspected
    from valetkey.gateway.usage import UsageReader

__all__ = ["Down", "Up", "sampled"]

# A request is sent a second time after a 401 if its body was at most this: each one under way may hold so much.
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

    def replace(self, body: bytes) -> int:
        """Take this for the whole body in place of what came, to be sent again if need be, and give its length."""
        self.waiting, self.waiting_bytes = [body], len(body)
        self.chunked = False
        return len(body)

    def drop(self) -> None:
        """Keep nothing for a second try: the answer is on its way."""
        self._held = None


def sampled(kept: bytearray | None, data: bytes) -> bytearray:
    """Give what is kept of a body for the trace, with the next piece: its beginning."""
    kept = bytearray() if kept is None else kept
    room = BODY_LIMIT_BYTES - len(kept)
    if room > 0:
        kept += data[:room]
    return kept


class Down:
    """An answer on its way to the client: decoded where it must be, scrubbed, counted, framed."""

    __slots__ = (
        "_decoder",
        "_done",
        "_head",
        "_inspected",
        "_needles",
        "_pieces",
        "_reader",
        "_sample",
        "_scrubber",
        "_trailers",
        "chunked",
        "sent",
    )

    def __init__(
        self,
        head: bytes,
        *,
        chunked: bool,
        needles: Needles | None = None,
        decoder: Decoder | None = None,
        inspected: Inspected | None = None,
        reader: UsageReader | None = None,
        keep: bool = False,
    ) -> None:
        self.chunked = chunked
        # Of the body, as the client gets it.
        self.sent = 0
        self._head = head
        self._pieces: list[bytes] = []
        self._needles = needles
        self._scrubber: Scrubber | None = None
        self._decoder = decoder
        self._inspected = inspected
        self._reader = reader
        self._trailers: list[Header] = []
        self._done = False
        # The beginning of the body, for the trace, where that is wanted.
        self._sample: bytearray | None = bytearray() if keep else None

    @property
    def sample(self) -> bytes | None:
        """The beginning of the body, where it was kept."""
        return None if self._sample is None else bytes(self._sample)

    def feed(self, data: bytes) -> None:
        """Take a piece from the provider. Raises: UnclearAnswer, from what decodes or inspects it."""
        if self._decoder is None and self._inspected is None:
            self._pieces.append(data)
            return
        for piece in [data] if self._decoder is None else self._decoder.feed(data):
            self._pieces.append(piece if self._inspected is None else self._inspected.feed(piece))

    def insert(self, data: bytes) -> None:
        """Put something of ours behind what has come: what is inspected comes in whole messages."""
        self._pieces.append(data)

    def finish(self, trailers: list[Header]) -> None:
        """Take the end. Raises: UnclearAnswer, from what decodes or inspects it."""
        if self._decoder is not None:
            self._decoder.finish()
        if self._inspected is not None:
            self._pieces.append(self._inspected.finish())
        self._trailers = trailers
        self._done = True

    def take(self) -> bytes:
        """Give what is to be sent to the client now."""
        head, self._head = self._head, b""
        pieces, self._pieces = self._pieces, []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if head and self._done and not self.chunked:
            return self._whole(head, body)
        out = [head if self._needles is None else self._needles.clean(head)] if head else []
        body = self._scrubbed(body)
        if body:
            self.sent += len(body)
            if self._sample is not None:
                self._sample = sampled(self._sample, body)
            if self._reader is not None:
                self._reader.feed(body)
            out.append(chunk(body) if self.chunked else body)
        if self._done:
            if self._reader is not None:
                self._reader.finish()
            if self.chunked:
                out.append(b"0\r\n%b\r\n" % self._ending())
        return out[0] if len(out) == 1 else b"".join(out)

    def _whole(self, head: bytes, body: bytes) -> bytes:
        """Give all of an answer that came at once: it is looked through once, and no end has to be held back."""
        self.sent = len(body)
        if self._sample is not None:
            self._sample = sampled(self._sample, body)
        if self._reader is not None:
            self._reader.feed(body)
            self._reader.finish()
        # No secret has the empty line in it that ends the head.
        return head + body if self._needles is None else self._needles.clean(head + body)

    def _scrubbed(self, body: bytes) -> bytes:
        if self._needles is None:
            return body
        if self._scrubber is None:
            self._scrubber = Scrubber(self._needles)
        body = self._scrubber.feed(body)
        return body + self._scrubber.finish() if self._done else body

    def _ending(self) -> bytes:
        if not self._trailers:
            return b""
        ending = trailer_lines(self._trailers)
        return ending if self._needles is None else self._needles.clean(ending)
