"""Begins the answer to a client out of the head of the provider's: framed anew, with what looks into its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valetkey.gateway.body import Down
from valetkey.gateway.message import ReadResponse, status_line, write_headers
from valetkey.gateway.scrub import Decoder, Needles, decoder

if TYPE_CHECKING:
    from valetkey.gateway.mcp_stream import Inspected
    from valetkey.gateway.usage import UsageReader

__all__ = ["begun"]


def begun(
    status: int,
    read: ReadResponse,
    *,
    bodyless: bool,
    chunks: bool,
    close: bool,
    needles: Needles | None,
    reader: UsageReader | None,
    keep: bool,
    inspected: Inspected | None = None,
) -> Down | None:
    """Give the answer, with its head written; None where its body is compressed in a way that cannot be looked into.

    `chunks`: the client takes them, else what has no length ends with the connection. `close`: it is told that nothing
    follows. Without `needles`, and without what inspects it, the body goes on as it is.
    """
    lines, length = read.lines, read.length
    undone: Decoder | None = None
    if (needles is not None or inspected is not None) and not bodyless and read.encoding not in (b"", b"identity"):
        undone = decoder(read.encoding.decode("latin-1"))
        if undone is None:
            return None
        lines = [line for line in lines if line[0] != b"content-encoding"]
        length = None
    if inspected is not None and not bodyless:
        length = None
        lines = [line for line in lines if line[0] != b"content-type"]
        if inspected.content_type:
            lines.append((b"content-type", inspected.content_type))
    chunked = False
    if length is not None and status != 204 and not read.chunked:
        framing = b"content-length: %d\r\n" % length
    elif bodyless or not chunks:
        framing = b""
    else:
        chunked, framing = True, b"transfer-encoding: chunked\r\n"
    if close:
        framing += b"connection: close\r\n"
    head = b"%b%b%b\r\n" % (status_line(status), write_headers(lines), framing)
    return Down(head, chunked=chunked, needles=needles, decoder=undone, inspected=inspected, reader=reader, keep=keep)
