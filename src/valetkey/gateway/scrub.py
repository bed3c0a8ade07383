"""Takes an account's secrets out of what an upstream answers, so that no echo hands a client the real credential.

All of it works on bytes and gives out as many as came in: Content-Length stays right, and so do the frames of a
WebSocket. A secret may be split over any chunks; what is held back is only a chunk's end that may be the beginning
of one, so that an event which ends in a line end is never late.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Literal, Protocol

from valetkey.errors import UnclearAnswer
from valetkey.log import forms

__all__ = ["Decoder", "Needles", "Scrubber", "decoder"]

# What is shorter (a PIN, a user name) stands in ordinary answers, and taking it out would damage them.
_SHORTEST = 8
# Whatever is written over a secret is in no form: then what is left and right of it cannot become a form with it.
_COVERS = b"*#~^|!$@;,. _-+=/%&?xX0"
# An end this short is looked for among the beginnings; a longer one by its last bytes, in all forms at once.
_GRAM = 4


class Needles:
    """What to look for: the secrets of one account in every form that they take on a wire.

    Made once for a credential, used for all its answers, by any thread.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        found = {
            form.encode("utf-8", "surrogatepass")
            for secret in secrets
            if len(secret) >= _SHORTEST
            for form in forms(secret)
        }
        self._forms = sorted(found, key=len, reverse=True)
        # A form that holds another need not be looked for until the other is found.
        self._shortest = tuple(f for f in self._forms if not any(g in f for g in self._forms if g is not f))
        # Where one of these ends a chunk, a form may have begun. Every form is longer than _GRAM.
        self._ends = frozenset(byte for form in self._forms for byte in form[:-1])
        self._beginnings = tuple(tuple({form[:size] for form in self._forms}) for size in range(_GRAM - 1, 0, -1))
        # A match over a seam costs a second look and nothing else.
        self._all = b"\0".join(self._forms)
        self._cover = next((bytes([c]) for c in _COVERS if all(c not in form for form in self._forms)), b"*")

    def __bool__(self) -> bool:
        return bool(self._forms)

    def __repr__(self) -> str:
        return f"Needles({len(self._forms)} forms)"

    def clean(self, data: bytes) -> bytes:
        """Give the data with each secret in it overwritten, byte for byte: by `*`, where no form has one."""
        spans = self.spans(data)
        return self.covered(data, spans) if spans else data

    def spans(self, data: bytes) -> Sequence[tuple[int, int]]:
        """Give where forms stand, in order, as one where they overlap."""
        find = data.find
        for form in self._shortest:
            # Not `in`: on bytes that raises and drops an error inside, and takes three times as long.
            if find(form) >= 0:
                return self._spans(data)
        return ()

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        found = []
        for form in self._forms:
            at = data.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = data.find(form, at + 1)
        found.sort()
        merged = found[:1]
        for start, end in found[1:]:
            last = merged[-1]
            if start > last[1]:
                merged.append((start, end))
            elif end > last[1]:
                merged[-1] = last[0], end
        return merged

    def covered(self, data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
        """Give the data with these spans overwritten."""
        written = bytearray(data)
        for start, end in spans:
            written[start:end] = self._cover * (end - start)
        return bytes(written)

    def open_end(self, data: bytes) -> int:
        """Give the length of the longest end of the data that a form, not yet complete, may have begun with."""
        if not data or data[-1] not in self._ends:
            return 0
        gram = data[-_GRAM:]
        if gram in self._all and (longest := max(self._begun(form, data, gram) for form in self._forms)):
            return longest
        for beginnings in self._beginnings:
            if data.endswith(beginnings):
                return len(beginnings[0])
        return 0

    @staticmethod
    def _begun(form: bytes, data: bytes, gram: bytes) -> int:
        # A later place is a longer end, so the first that fits from behind is the longest.
        at = form.rfind(gram, 0, -1)
        while at >= 0:
            size = at + len(gram)
            if data.endswith(form[:size]):
                return size
            at = form.rfind(gram, 0, size - 1)
        return 0


# So many bytes of an end may be let go: of a secret they are nothing.
_SHORT = 7


class Scrubber:
    """Cleans one stream. All that `feed`, `let_go` and `finish` give is as long as all that came in."""

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        # The end that is held back, as it came, and how much of its beginning belongs to a form that ended in it.
        self._held = b""
        self._known = 0
        # How much of it has gone out all the same.
        self._sent = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and give those that can go out."""
        if self._held:
            data = self._held + data
        needles = self._needles
        spans = needles.spans(data)
        held = needles.open_end(data)
        if not held and not spans and not self._held:
            return data
        cut, sent = len(data) - held, self._sent
        if self._known:
            spans = [(0, self._known), *spans]
        self._held = data[cut:]
        self._known = max((end - cut for start, end in spans if start <= cut < end), default=0)
        self._sent = max(0, sent - cut)
        return needles.covered(data, spans)[sent:cut]

    @property
    def holds(self) -> bool:
        """Whether something is held back."""
        return len(self._held) > self._sent

    def let_go(self) -> bytes:
        """Give a short end that was held back, and remember it: where a secret goes on from it, the rest is covered.

        A long one stays: hardly anything but a secret begins so.
        """
        if len(self._held) > _SHORT or self._known:
            return b""
        sent, self._sent = self._sent, len(self._held)
        return self._held[sent:]

    def finish(self) -> bytes:
        """Give what was held back: nothing comes after it."""
        data, known, sent = self._held, self._known, self._sent
        self._held, self._known, self._sent = b"", 0, 0
        return self._needles.covered(data, [(0, known), *self._needles.spans(data)])[sent:] if data else b""


# --- compressed answers ----------------------------------------------------------------------

# What one step of decoding gives at most: a few kB of zeros become megabytes, and the client may read slowly.
_PIECE = 64 * 1024
# No answer of an API shrinks to a fiftieth as a whole; deflate ends at about a thousandth.
_FREE = 1024 * 1024
_RATIO = 50
_GZIP, _ZLIB, _RAW = 31, 15, -15
_MAGIC = b"\x1f\x8b"


class Decoder(Protocol):
    """Decodes one body, in pieces of 64 KiB at most, each made when it is asked for."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; go through all that it gives before the next call.

        Raises: UnclearAnswer, when they are not what was announced, or grow beyond measure.
        """
        ...

    def finish(self) -> None:
        """Say that there is no more. Raises: UnclearAnswer, when the end is missing."""
        ...


def decoder(content_encoding: str) -> Decoder | None:
    """Give what decodes a body of this Content-Encoding; None where nothing here can (br, zstd, two of them)."""
    match content_encoding.strip().lower():
        case "" | "identity":
            return _AsItIs()
        case "gzip" | "x-gzip":  # RFC 9110 section 8.4.1.3
            return _Inflating("gzip")
        case "deflate":
            return _Inflating("deflate")
        case _:
            return None


class _AsItIs:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        """Take it as it is: the framing tells where it ends."""


class _Inflating:
    def __init__(self, kind: Literal["gzip", "deflate"]) -> None:
        self._kind = kind
        self._inflate: zlib._Decompress | None = None
        self._begun = b""
        self._in = self._out = 0
        # Whether what was decoded so far is whole, and whether what follows does not belong to it.
        self._whole = self._over = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._in += len(data)
        data = self._begun + data
        self._begun = b""
        while data and not self._over:
            inflate = self._inflate or self._begin(data)
            if inflate is None:
                return
            data = yield from self._member(inflate, data)

    def finish(self) -> None:
        if not self._whole:
            raise self._broken("ends too early")

    def _begin(self, data: bytes) -> zlib._Decompress | None:
        if len(data) < 2:  # which kind it is takes two bytes to tell
            self._begun = data
            return None
        if self._whole and (self._kind == "deflate" or not data.startswith(_MAGIC)):
            # RFC 1952 section 2.2: another member may follow. Anything else is padding, as gunzip takes it.
            self._over = True
            return None
        self._inflate = zlib.decompressobj(_GZIP if self._kind == "gzip" else _window(data))
        self._whole = False
        return self._inflate

    def _member(self, inflate: zlib._Decompress, data: bytes) -> Generator[bytes, None, bytes]:
        """Decode up to the end of the input or of what was compressed as one; give what follows that."""
        while True:
            try:
                piece = inflate.decompress(data, _PIECE)
            except zlib.error:
                raise self._broken("cannot be decoded") from None
            self._out += len(piece)
            if self._out > _FREE + _RATIO * self._in:
                raise self._broken("grows beyond measure when it is decoded")
            if piece:
                yield piece
            if inflate.eof:
                self._inflate, self._whole = None, True
                return inflate.unused_data
            data = inflate.unconsumed_tail
            # Behind a full piece there may be more, even where all input is taken.
            if not data and len(piece) < _PIECE:
                return b""

    def _broken(self, what: str) -> UnclearAnswer:
        return UnclearAnswer(
            f"the {self._kind} body of the answer {what}",
            hint="ask again; the server or a proxy may be broken",
        )


def _window(data: bytes) -> int:
    # "deflate" is the zlib format (RFC 9110 section 8.4.1.2); some servers send it without zlib's two bytes.
    is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return _ZLIB if is_zlib else _RAW
