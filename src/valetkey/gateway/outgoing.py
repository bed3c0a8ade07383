"""Writes a request anew, as it goes to the provider: the decided line, the client's headers, the credential.

Pure. No byte of the client's head goes on as it came, and its valet key nowhere at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from valetkey.gateway.message import ReadHead, write_headers
from valetkey.inject import with_parameter

if TYPE_CHECKING:
    from valetkey.gateway.credentials import Placement
    from valetkey.gateway.plan import Plan

__all__ = ["framing", "head_for", "with_key"]


def head_for(method: bytes, plan: Plan, head: ReadHead, placement: Placement | None, token: bytes) -> bytes:
    """Write the head, up to what frames the body. Without a placement the client's own credentials go on.

    `token` is the client's valet key or placeholder, which may stand in the path where the declaration says so.
    """
    target, lines = plan.target, head.lines
    if placement is None:
        return b"".join((method, b" ", target, plan.rest, write_headers([*lines, *head.credentials])))
    if placement.in_path is not None:
        path, mark, query = target.partition(b"?")
        target = path.replace(token, placement.in_path, 1) + mark + query
    for key, text in placement.query:
        target = with_parameter(target.decode("ascii"), key, text).encode("ascii")
    if placement.dropped:
        lines = [line for line in lines if line[0] not in placement.dropped]
    for name, value, added in placement.conditional:
        present = next((v for n, v in lines if n == name), None)
        if present is None:
            lines = [*lines, (name, value)]
        elif added and value not in [part.strip() for part in present.split(b",")]:
            lines = [line for line in lines if line[0] != name] + [(name, present + b", " + value)]
    return b"".join((method, b" ", target, plan.rest, write_headers(lines), placement.fixed))


def framing(head: ReadHead, method: bytes, *, length: int, chunked: bool) -> bytes:
    """Write what ends the head: how the body is framed, or that there is to be a WebSocket."""
    if head.websocket:
        return b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    expect = b"expect: 100-continue\r\n" if head.expect and (chunked or length) else b""
    if chunked:
        return b"%btransfer-encoding: chunked\r\n\r\n" % expect
    # RFC 9110 section 8.6: these say it even where it is 0.
    if length or method in (b"POST", b"PUT", b"PATCH"):
        return b"%bcontent-length: %d\r\n\r\n" % (expect, length)
    return b"\r\n"


def with_key(body: list[bytes], token: bytes, value: bytes) -> bytes | None:
    """Give the body with the credential where the client wrote its valet key; None where it did so twice.

    One of the two may be an address that the provider is to call.
    """
    placed = b"".join(body).replace(token, value, 1)
    return None if token in placed else placed
