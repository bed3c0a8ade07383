"""Looks into the body of an MCP server's answer, JSON or server-sent events, however it is cut into pieces."""

from __future__ import annotations

from collections.abc import Callable

from valetkey.errors import UnclearAnswer
from valetkey.mcp import Tool, filtered

__all__ = ["MAX_MESSAGE_BYTES", "Inspected"]

# One message of a server: lists of tools take some hundred kB, pictures in results some MB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class Inspected:
    """One body. All that `feed` and `finish` give is whole messages or whole events.

    `endpoint` gives the address inside of the run for one that an event `endpoint` names; None where there is none to
    come. Both callables may raise UnclearAnswer. What is neither JSON nor events has to be empty; with `drops` nothing
    of it goes on. A body in JSON, or one event, has at most `most_bytes`.
    """

    def __init__(
        self,
        content_type: str,
        let_through: Callable[[list[Tool]], list[Tool]],
        *,
        endpoint: Callable[[str], str] | None = None,
        drops: bool = False,
        most_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._kind = content_type.partition(";")[0].strip().lower()
        self._let_through = let_through
        self._endpoint = endpoint
        self._drops = drops
        self._most_bytes = most_bytes
        # Of JSON the whole; of events the line that has not ended.
        self._held = bytearray()
        self._lines: list[bytes] = []
        self._size = 0
        # The last line ended with CR: a LF that follows belongs to it.
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and give what can go out. Raises: UnclearAnswer."""
        if not data:
            return b""
        if self._kind == "text/event-stream":
            return self._events(data)
        if self._kind != "application/json":
            if self._drops:
                return b""
            raise _unclear("it is neither JSON nor a stream of events")
        self._held += data
        if len(self._held) > self._most_bytes:
            raise _unclear("it is too long")
        return b""

    def finish(self) -> bytes:
        """Give the rest: nothing comes after it. Raises: UnclearAnswer."""
        if self._kind == "text/event-stream":
            return b""  # an event that does not end is none (HTML, section 9.2.6)
        held, self._held = bytes(self._held), bytearray()
        return self._looked_at(held) if held.strip() else held

    def _events(self, data: bytes) -> bytes:
        """Cut into lines, each of which ends with LF, CR or CR LF, and give the events that end here."""
        out: list[bytes] = []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r") if data else False
        self._size += len(data)
        self._held += data
        if b"\n" not in data and b"\r" not in data:
            self._check_size()
            return b""
        *lines, rest = bytes(self._held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._held = bytearray(rest)
        for line in lines:
            if self._at_start:
                line, self._at_start = line.removeprefix(b"\xef\xbb\xbf"), False
            if line:
                self._lines.append(line)
            elif self._lines:
                out.append(self._event(self._lines))
                self._lines = []
                self._size = 0
        self._size = max(self._size, len(rest))
        self._check_size()
        return b"".join(out)

    def _check_size(self) -> None:
        if self._size > self._most_bytes:
            raise _unclear("one of its events is too long")

    def _event(self, lines: list[bytes]) -> bytes:
        """Give an event as it goes to the client. Raises: UnclearAnswer."""
        kind, data, others = b"message", [], []
        for line in lines:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            else:
                others.append(line)
                if name == b"event":
                    kind = value
        if not data:
            return b"\n".join([*lines, b"", b""])
        said = b"\n".join(data)
        if kind == b"endpoint":
            if self._endpoint is None:
                raise _unclear("it names an endpoint where this transport has none")
            try:
                made = self._endpoint(said.decode()).encode()
            except UnicodeDecodeError:
                raise _unclear("the endpoint that it names is no address") from None
        else:
            made = self._looked_at(said) if said.strip() else said
        if made == said:
            return b"\n".join([*lines, b"", b""])
        return b"\n".join([*others, *(b"data: " + line for line in made.split(b"\n")), b"", b""])

    def _looked_at(self, message: bytes) -> bytes:
        try:
            return filtered(message, self._let_through)
        except ValueError as error:
            raise _unclear(str(error)) from error


def _unclear(what: str) -> UnclearAnswer:
    return UnclearAnswer(f"the answer of the MCP server cannot be relayed: {what}", hint="ask whoever runs the server")
