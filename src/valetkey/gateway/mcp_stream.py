"""Looks into the body of an MCP server's answer, JSON or server-sent events, however it is cut into pieces.

Clients are not all as careful. What is given out has one reading for those too that take the charset's word, drop a
byte order mark wherever a stream begins, or end lines where Unicode does.
"""

from __future__ import annotations

from collections.abc import Callable

from valetkey.errors import UnclearAnswer
from valetkey.mcp import Tool, filtered

__all__ = ["MAX_MESSAGE_BYTES", "Inspected"]

# One message of a server: lists of tools take some hundred kB, pictures in results some MB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_JSON, _EVENTS = "application/json", "text/event-stream"
_LITTLE_BYTES = 1024 * 1024
# What a line that is kept takes beside its bytes: a million empty ones are not 6 MB.
_LINE_BYTES = 64
# HTML, section 9.2.6. Comments keep a connection awake; what has another name says nothing, and is left out.
_FIELDS = frozenset((b"", b"event", b"id", b"retry"))
# JSON lets these stand in a text as they are, and `str.splitlines` ends a line at each; escaped they say the same.
_ENDING = {mark.encode(): b"\\u%04x" % ord(mark) for mark in "\x85\u2028\u2029"}


class Inspected:
    """One body. All that `feed` and `finish` give is whole messages or whole events.

    `endpoint` gives the address inside of the run for one that an event `endpoint` names; None where there is none to
    come; it is asked once. `room` is asked before more than a little is held. All three may raise UnclearAnswer. What
    is neither JSON nor events has to be empty; with `drops` nothing of it goes on. A body in JSON, or one event, has at
    most `most_bytes`.
    """

    def __init__(
        self,
        content_type: str,
        let_through: Callable[[list[Tool]], list[Tool]],
        *,
        endpoint: Callable[[str], str] | None = None,
        drops: bool = False,
        most_bytes: int = MAX_MESSAGE_BYTES,
        room: Callable[[], None] = lambda: None,
    ) -> None:
        self._kind = content_type.partition(";")[0].strip().lower()
        self._let_through = let_through
        self._endpoint = endpoint
        self._drops = drops
        self._most_bytes = most_bytes
        self._room = room
        # Of JSON the whole; of events the line that has not ended.
        self._held = bytearray()
        self._lines: list[bytes] = []
        self._size = 0
        # The last line ended with CR: a LF that follows belongs to it.
        self._after_cr = False
        self._at_start = True

    @property
    def content_type(self) -> bytes:
        """Give what goes out as the body's type: what it was looked at as, with no word of another charset."""
        return self._kind.encode() if self._kind in (_JSON, _EVENTS) else b""

    @property
    def held_bytes(self) -> int:
        """Give how much of it is held back, about."""
        return max(self._size, len(self._held))

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and give what can go out. Raises: UnclearAnswer."""
        if not data:
            return b""
        if self._kind == _EVENTS:
            return self._events(data)
        if self._kind != _JSON:
            if self._drops:
                return b""
            raise _unclear("it is neither JSON nor a stream of events")
        self._held += data
        self._check_size("it is too long")
        return b""

    def finish(self) -> bytes:
        """Give the rest: nothing comes after it. Raises: UnclearAnswer."""
        if self._kind == _EVENTS:
            return b""  # an event that does not end is none (HTML, section 9.2.6)
        held, self._held = bytes(self._held), bytearray()
        return self._looked_at(held)

    def _events(self, data: bytes) -> bytes:
        """Cut into lines, each of which ends with LF, CR or CR LF, and give the events that end here."""
        out: list[bytes] = []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r") if data else False
        self._size += len(data)
        self._held += data
        if b"\n" not in data and b"\r" not in data:
            self._check_size("one of its events is too long")
            return b""
        *lines, rest = bytes(self._held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._held = bytearray(rest)
        for line in lines:
            if self._at_start:
                line, self._at_start = line.removeprefix(b"\xef\xbb\xbf"), False
            if line:
                self._lines.append(line)
                self._size += _LINE_BYTES
            elif self._lines:
                out.append(self._event(self._lines))
                self._lines = []
                self._size = 0
        self._size = max(self._size, len(rest))
        self._check_size("one of its events is too long")
        return b"".join(out)

    def _check_size(self, complaint: str) -> None:
        if self.held_bytes > self._most_bytes:
            raise _unclear(complaint)
        if self.held_bytes > _LITTLE_BYTES:
            self._room()

    def _event(self, lines: list[bytes]) -> bytes:
        """Give an event as it goes to the client. Raises: UnclearAnswer."""
        kind, data, others = b"message", [], []
        for line in lines:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name in _FIELDS and len(line.decode(errors="replace").splitlines()) == 1:
                others.append(line)
                if name == b"event":
                    kind = value
        if not data:
            return b"\n".join([*others, b"", b""]) if others else b""
        said = b"\n".join(data)
        made = self._named(said) if kind == b"endpoint" else self._looked_at(said)
        return b"\n".join([*others, *(b"data: " + line if line else b"data:" for line in made.split(b"\n")), b"", b""])

    def _named(self, said: bytes) -> bytes:
        if self._endpoint is None:
            raise _unclear("it names an endpoint where this transport has none, or a second one")
        endpoint, self._endpoint = self._endpoint, None
        try:
            return endpoint(said.decode()).encode()
        except UnicodeDecodeError:
            raise _unclear("the endpoint that it names is no address") from None

    def _looked_at(self, message: bytes) -> bytes:
        if not message.strip():
            return b""
        try:
            made = filtered(message, self._let_through)
        except ValueError as error:
            raise _unclear(str(error)) from error
        for mark, escape in _ENDING.items():
            made = made.replace(mark, escape)
        return made


def _unclear(what: str) -> UnclearAnswer:
    return UnclearAnswer(f"the answer of the MCP server cannot be relayed: {what}", hint="ask whoever runs the server")
