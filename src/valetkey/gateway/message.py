"""HTTP/1.1 heads: what is refused beyond what the parser refuses, what goes on, and how a head is written anew.

Pure. The parser is llhttp in its strict mode; it takes some things that two servers could read differently, and those
are refused here. No byte of a client's head is passed on as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from valetkey.gateway import decide

__all__ = [
    "CREDENTIALS",
    "DISGUISES",
    "MAX_HEADERS",
    "MAX_HEAD_BYTES",
    "Header",
    "Problem",
    "ReadHead",
    "ReadResponse",
    "chunk",
    "head_size",
    "read_length",
    "read_request",
    "read_response",
    "status_line",
    "trailer_lines",
    "version_of",
    "write_headers",
]

Header = tuple[bytes, bytes]

# More than any client sends; nginx and Envoy stop at 32 and 60 kB.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200

# The methods that APIs have. CONNECT is the proxy's own.
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE"))
_VERSIONS = {b"HTTP/1.1\r\n": "1.1", b"HTTP/1.0\r\n": "1.0"}
_LENGTH = re.compile(rb"(?:0|[1-9][0-9]{0,17})\Z")
# RFC 9110 section 7.2: a host and perhaps a port. Which one it is counts only for a proxy.
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^`|~_-]+\Z")

# RFC 9110 section 7.6.1, and what belongs to a proxy.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
# What tells who asks, or what we are: nobody's business upstream.
_IDENTITY = frozenset(
    (
        b"client-ip",
        b"forwarded",
        b"via",
        b"x-forwarded",
        b"x-real-ip",
        b"x-client-ip",
        b"x-original-forwarded-for",
        b"x-cluster-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"cf-ipcountry",
        b"fastly-client-ip",
        b"x-azure-clientip",
        b"x-originating-ip",
        b"x-proxyuser-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"x-vercel-forwarded-for",
    )
)
_CONNECTION_WORDS = frozenset((b"close", b"keep-alive", b"upgrade", b"te", b""))
# Where clients put what they take for a credential. None of it goes on.
CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"cookie"))
DISGUISES = frozenset(name.encode() for name in decide.DISGUISES)
# RFC 9110 section 6.5.1: what a trailer must not change after the fact.
_NO_TRAILERS = (
    _HOP_BY_HOP
    | _IDENTITY
    | CREDENTIALS
    | DISGUISES
    | frozenset(
        (
            b"host",
            b"content-length",
            b"content-encoding",
            b"content-type",
            b"content-range",
            b"set-cookie",
            b"proxy-authorization",
            b"proxy-authenticate",
            b"expect",
            b"location",
            b"cache-control",
        )
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The request cannot be taken. `reason` goes on after "the request"."""

    status: int
    reason: str


class ReadHead:
    """What a request's headers say, but for its length. `lines` are those that may go on, names in lower case."""

    __slots__ = (
        "chunked",
        "credentials",
        "disguised",
        "expect",
        "host",
        "lines",
        "proxy_authorization",
        "websocket",
    )

    def __init__(self) -> None:
        self.host: bytes | None = None
        self.chunked = False
        self.expect = False
        self.websocket = False
        self.disguised = False
        self.proxy_authorization: bytes | None = None
        self.credentials: list[Header] = []
        self.lines: list[Header] = []


def version_of(line: bytes) -> str:
    """Give the version of a request line (RFC 9112 section 3), its end with it; nothing where it is none.

    llhttp also takes HTTP/0.9, RTSP, and two spaces between its parts.
    """
    parts = line.split(b" ")
    return _VERSIONS.get(parts[2], "") if len(parts) == 3 and parts[0].isalpha() and parts[1] else ""


def read_length(lengths: list[bytes]) -> int | Problem:
    """Read the Content-Length headers of a request: none is 0."""
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.match(lengths[0]):
        return Problem(status=400, reason="has a Content-Length that is no plain number")
    return int(lengths[0])


def read_request(method: bytes, version: str, headers: list[Header], *, has_body: bool) -> ReadHead | Problem:
    """Read the headers of a request, names in lower case, without its Content-Length. `has_body`: that is not 0."""
    if method not in _METHODS:
        return Problem(status=501, reason="has a method that no API here has")
    if version not in ("1.1", "1.0"):
        return Problem(status=505, reason="is in another version of HTTP than 1.0 and 1.1")
    if len(headers) > MAX_HEADERS:
        return Problem(status=431, reason=f"has more than {MAX_HEADERS} headers")
    head = ReadHead()
    lines = head.lines
    special: list[Header] = []
    for header in headers:
        if header[0] in _PLAIN:
            lines.append(header)
        else:
            special.append(header)
    problem = _read_special(head, special, version, has_body=has_body)
    if problem is not None:
        return problem
    if head.websocket and (method != b"GET" or version != "1.1"):
        return Problem(status=400, reason="asks for a WebSocket in another way than with GET and HTTP/1.1")
    if head.host is None and version == "1.1":
        return Problem(status=400, reason="has no Host header")
    return head


# Those that nearly every request has and that mean nothing here. Any other passes through _read_special.
_PLAIN = frozenset(
    (
        b"accept",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"content-type",
        b"user-agent",
        b"x-stainless-arch",
        b"x-stainless-async",
        b"x-stainless-lang",
        b"x-stainless-os",
        b"x-stainless-package-version",
        b"x-stainless-raw-response",
        b"x-stainless-read-timeout",
        b"x-stainless-retry-count",
        b"x-stainless-runtime",
        b"x-stainless-runtime-version",
        b"x-stainless-timeout",
    )
)


def _read_special(head: ReadHead, headers: list[Header], version: str, *, has_body: bool) -> Problem | None:
    encoding: bytes | None = None
    connection: list[bytes] = []
    upgrade: bytes | None = None
    for header in headers:
        name, value = header
        match name:
            case b"host":
                if head.host is not None:
                    return Problem(status=400, reason="has two Host headers")
                if not _HOST.match(value):
                    return Problem(status=400, reason="has a Host header that names no host")
                head.host = value
            case b"transfer-encoding":
                if encoding is not None:
                    return Problem(status=400, reason="has two Transfer-Encoding headers")
                encoding = value
            case b"connection":
                connection += [token.strip().lower() for token in value.split(b",")]
            case b"upgrade":
                upgrade = value.strip().lower() if upgrade is None else b"several"
            case b"expect":
                if value.lower() != b"100-continue":
                    return Problem(status=417, reason="expects something else than 100-continue")
                head.expect = version == "1.1"
            case b"proxy-authorization":
                if head.proxy_authorization is not None:
                    return Problem(status=400, reason="has two Proxy-Authorization headers")
                head.proxy_authorization = value
            case b"accept-encoding":
                pass  # always identity: what comes back is looked into
            case _ if name in CREDENTIALS:
                head.credentials.append(header)
            case _ if name in _HOP_BY_HOP or name in _IDENTITY or name.startswith(b"x-forwarded-"):
                pass
            case _:
                problem = _other(head, header)
                if problem is not None:
                    return problem
    # RFC 9110 section 7.6.1: what Connection names ends here.
    gone = set(connection) - _CONNECTION_WORDS
    if gone:
        head.lines[:] = [line for line in head.lines if line[0] not in gone]
    return _framing(head, encoding, version) or _upgrade(head, connection, upgrade, has_body=has_body)


def _other(head: ReadHead, header: Header) -> Problem | None:
    name, _ = header
    if name in DISGUISES:
        head.disguised = True
    elif b"_" in name:
        # A server behind CGI reads content_length as content-length.
        meant = name.replace(b"_", b"-")
        if meant in _NO_TRAILERS or meant.startswith(b"x-forwarded-"):
            return Problem(
                status=400, reason=f"has a header {name.decode('ascii', 'replace')}, which disguises another"
            )
    elif not _TOKEN.match(name):
        return Problem(status=400, reason="has a header whose name is none")
    head.lines.append(header)
    return None


def _framing(head: ReadHead, encoding: bytes | None, version: str) -> Problem | None:
    if encoding is None:
        return None
    if version == "1.0":
        return Problem(status=400, reason="is HTTP/1.0 with a Transfer-Encoding")
    if encoding.lower() != b"chunked":
        return Problem(status=501, reason="has another Transfer-Encoding than chunked")
    head.chunked = True
    return None


def _upgrade(head: ReadHead, connection: list[bytes], upgrade: bytes | None, *, has_body: bool) -> Problem | None:
    if b"upgrade" not in connection or upgrade is None:
        return None
    # The parser takes what follows for another protocol and leaves the body unread: only a WebSocket has none.
    if upgrade != b"websocket" or head.chunked or has_body:
        return Problem(status=400, reason="asks for an upgrade to something else than a WebSocket, or has a body")
    head.websocket = True
    # Compressed frames could not be looked into.
    head.lines[:] = [line for line in head.lines if line[0] != b"sec-websocket-extensions"]
    return None


# --- responses -------------------------------------------------------------------------------

_RESPONSE_DROPPED = (
    _HOP_BY_HOP
    | frozenset((b"proxy-authenticate", b"proxy-authentication-info", b"alt-svc"))
    # What a provider keeps about its own account in a browser is not the client's.
    | frozenset((b"set-cookie", b"set-cookie2"))
)
# Any other header goes on as it is.
_RESPONSE_READ = _RESPONSE_DROPPED | frozenset(
    (b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"connection")
)


class ReadResponse:
    """What a response's headers say. `length` is None where it is not told."""

    __slots__ = ("chunked", "content_type", "encoding", "length", "lines")

    def __init__(self) -> None:
        self.length: int | None = None
        self.chunked = False
        self.content_type = b""
        self.encoding = b""
        self.lines: list[Header] = []


def read_response(headers: list[Header]) -> ReadResponse | None:
    """Read the headers of a response, names in lower case; None where its framing is unclear."""
    read = ReadResponse()
    connection: bytes | None = None
    lines = read.lines
    for header in headers:
        name, value = header
        if name not in _RESPONSE_READ:
            lines.append(header)
        elif name == b"content-type":
            # Two of them are none that two readers agree on.
            read.content_type = b", ".join([read.content_type, value]) if read.content_type else value
            lines.append(header)
        elif name == b"content-length":
            if read.length is not None or not _LENGTH.match(value):
                return None
            read.length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or read.chunked:
                return None
            read.chunked = True
        elif name == b"content-encoding":
            # Two of them are one list (RFC 9110 section 5.3).
            read.encoding = b", ".join([read.encoding, value.lower()]) if read.encoding else value.lower()
            lines.append(header)
        elif name == b"connection":
            connection = value if connection is None else connection + b"," + value
    if read.chunked and read.length is not None:
        return None
    if connection is not None and connection not in (b"keep-alive", b"close", b"Keep-Alive"):
        gone = {token.strip().lower() for token in connection.split(b",")}
        read.lines = [line for line in lines if line[0] not in gone]
    return read


# --- writing ---------------------------------------------------------------------------------

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """Give the first line of a response. The upstream's own phrase is dropped: it may hold anything."""
    return _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status


def write_headers(lines: Iterable[Header]) -> bytes:
    """Write headers, each with its line end."""
    written = b"\r\n".join([b": ".join(line) for line in lines])
    return written + b"\r\n" if written else b""


def chunk(data: bytes) -> bytes:
    """Give one chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def trailer_lines(trailers: list[Header]) -> bytes:
    """Write the trailers that may go on."""
    return write_headers(line for line in trailers if _may_trail(*line))


def _may_trail(name: bytes, value: bytes) -> bool:
    meant = name.replace(b"_", b"-")
    return (
        meant not in _NO_TRAILERS
        and not meant.startswith(b"x-forwarded-")
        and _TOKEN.match(name) is not None
        # A valet key is for nobody but us.
        and b"vk_" not in value
    )


def head_size(headers: list[Header]) -> int:
    """Give the bytes that headers take on the wire, each with its line end."""
    return sum([len(name) + len(value) + 4 for name, value in headers])
