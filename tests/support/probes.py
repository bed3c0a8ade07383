"""Requests that two servers could read differently, and what has to become of each: the table of the parsing tests.

In `raw`, `<T>` is the target up to the path, `<H>` the host, `<A>` the line with the valet key, `<K>` the key itself.
`statuses` are the answers in their order; `seen` is what reaches the provider: method, path and body. Where `open`, the
connection goes on; else it ends. 400 stands for 505 too: a bad version is seen
by the gateway or by the parser.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.rig import WAYS, Way

__all__ = ["PROBES", "Probe", "Sent"]

# Method, path with query, body.
Sent = tuple[str, str, bytes]

REFUSED = (400,)
GET = b"GET <T>/x HTTP/1.1\r\nHost: <H>\r\n<A>"
POST = b"POST <T>/x HTTP/1.1\r\nHost: <H>\r\n<A>"
GOT: tuple[Sent, ...] = (("GET", "/x", b""),)
POSTED: tuple[Sent, ...] = (("POST", "/x", b"abc"),)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
# What an attacker would have read as a request of its own.
SMUGGLED = b"GET <T>/smuggled HTTP/1.1\r\nHost: <H>\r\n<A>\r\n"
BASE: tuple[Way, ...] = ("base-url",)
PROXY: tuple[Way, ...] = ("proxy",)
INSIDE: tuple[Way, ...] = ("intercepted",)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe."""

    name: str
    raw: bytes
    statuses: tuple[int, ...]
    open: bool
    seen: tuple[Sent, ...]
    ways: tuple[Way, ...]


PROBES: list[Probe] = []


def bad(name: str, raw: bytes, status: int = 400, *, ways: tuple[Way, ...] = WAYS, open: bool = False) -> None:
    """Add one that is refused, and of which nothing goes on."""
    PROBES.append(Probe(name=name, raw=raw, statuses=(status,), open=open, seen=(), ways=ways))


def good(
    name: str,
    raw: bytes,
    *seen: Sent,
    statuses: tuple[int, ...] | None = None,
    ways: tuple[Way, ...] = WAYS,
    open: bool = True,
) -> None:
    """Add one that is taken."""
    statuses = statuses or (200,) * len(seen)
    PROBES.append(Probe(name=name, raw=raw, statuses=statuses, open=open, seen=seen, ways=ways))


# --- the request line ------------------------------------------------------------------------

REST = b"\r\nHost: <H>\r\n<A>\r\n"
for name, line in {
    "HTTP/0.9 named": b"GET <T>/x HTTP/0.9",
    "HTTP/1.2": b"GET <T>/x HTTP/1.2",
    "HTTP/2.0": b"GET <T>/x HTTP/2.0",
    "HTTP/1.10": b"GET <T>/x HTTP/1.10",
    "HTTP/1": b"GET <T>/x HTTP/1",
    "version in lower case": b"GET <T>/x http/1.1",
    "space behind the version": b"GET <T>/x HTTP/1.1 ",
    "RTSP": b"GET <T>/x RTSP/1.0",
    "RTSP that says OPTIONS": b"OPTIONS <T>/x RTSP/1.0",
    "ICE": b"SOURCE <T>/x ICE/1.0",
    "two spaces": b"GET  <T>/x HTTP/1.1",
    "two spaces behind": b"GET <T>/x  HTTP/1.1",
    "tab in the line": b"GET\t<T>/x HTTP/1.1",
    "space first": b" GET <T>/x HTTP/1.1",
    "line feed first": b"\nGET <T>/x HTTP/1.1",
    "no target": b"GET HTTP/1.1",
    "empty target": b"GET  HTTP/1.1",
    "method in lower case": b"get <T>/x HTTP/1.1",
    "unknown method": b"FROB <T>/x HTTP/1.1",
    "no method": b"<T>/x HTTP/1.1",
    "space in the path": b"GET <T>/x y HTTP/1.1",
    "NUL in the path": b"GET <T>/x\0y HTTP/1.1",
    "control character in the path": b"GET <T>/x\x01y HTTP/1.1",
    "DEL in the path": b"GET <T>/x\x7fy HTTP/1.1",
    "tab in the path": b"GET <T>/x\ty HTTP/1.1",
    "byte over 127 in the path": b"GET <T>/x\xe9 HTTP/1.1",
    "bare CR in the line": b"GET <T>/x\rHTTP/1.1",
}.items():
    bad(name, line + REST)
bad("HTTP/0.9", b"GET <T>/x\r\n")
bad("HTTP/0.9 with headers", b"GET <T>/x\r\nHost: <H>\r\n<A>\r\n")
bad("preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
bad("TLS where none is", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 3)
bad("a method that no API has", b"PROPFIND <T>/x HTTP/1.1" + REST, 501)
for name, path in {
    "fragment": b"/x#y",
    "backslash": b"/x\\y",
    "quote": b'/x"y',
    "angle brackets": b"/x<y>",
    "encoded slash": b"/x%2fy",
    "half an escape": b"/x%4",
    "encoded NUL": b"/x%00",
}.items():
    bad(name, b"GET <T>" + path + b" HTTP/1.1" + REST, open=True)
bad("asterisk", b"GET * HTTP/1.1" + REST, 407, ways=BASE, open=True)
bad("asterisk of OPTIONS", b"OPTIONS * HTTP/1.1" + REST, 400, ways=(*PROXY, *INSIDE), open=True)
bad("a line without an end", b"GET /" + b"x" * 70_000, 431)
bad("a target of 100 kB", b"GET <T>/" + b"x" * 100_000 + b" HTTP/1.1" + REST, 431)
bad("TRACE", b"TRACE <T>/x HTTP/1.1" + REST, 403, open=True)

# --- the length of the body ------------------------------------------------------------------

for name, value in {
    "a list": b"3, 3",
    "a plus": b"+3",
    "a minus": b"-3",
    "hexadecimal": b"0x3",
    "padded with a zero": b"03",
    "empty": b"",
    "letters": b"3a",
    "an underscore": b"3_0",
    "a space inside": b"3 3",
    "64 bits over": b"18446744073709551619",
    "63 bits over": b"9223372036854775811",
    "a thousand digits": b"1" * 1000,
    "semicolon": b"3;",
    "point": b"3.0",
}.items():
    bad(f"Content-Length: {name}", POST + b"Content-Length: " + value + b"\r\n\r\nabc")
for name, lines in {
    "Content-Length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunked and Content-Length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "a length and an empty one": b"Content-Length: 5\r\nContent-Length:\r\n",
    "chunked and identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "identity and chunked": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    "chunked in two headers": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "chunked and a comma": b"Transfer-Encoding: chunked,\r\n",
    "identity": b"Transfer-Encoding: identity\r\n",
    "chunked, gzip": b"Transfer-Encoding: chunked, gzip\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n",
    "chunked with a parameter": b"Transfer-Encoding: chunked;a=b\r\n",
    "chunked in quotes": b'Transfer-Encoding: "chunked"\r\n',
    "chunked behind a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "empty encoding": b"Transfer-Encoding:\r\n",
    "encoding folded": b"Transfer-Encoding:\r\n chunked\r\n",
    "space before the encoding's colon": b"Transfer-Encoding : chunked\r\n",
    "tab before the length's colon": b"Content-Length\t: 5\r\n",
    "encoding with an underscore": b"Transfer_Encoding: chunked\r\n",
    "length with an underscore": b"Content_Length: 5\r\n",
    "bare LF before the encoding": b"X: y\nTransfer-Encoding: chunked\r\n",
    "bare CR before the encoding": b"X: y\rTransfer-Encoding: chunked\r\n",
    "NUL before the encoding": b"X: y\0Transfer-Encoding: chunked\r\n",
}.items():
    bad(name, POST + lines + b"\r\n0\r\n\r\n" + SMUGGLED)
bad("gzip, chunked", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501)
bad("gzip and chunked in two headers", POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
good("a dot segment in disguise", b"GET <T>/a/%2e%2e/x HTTP/1.1" + REST, *GOT)
bad("chunked in HTTP/1.0", CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"3\r\nabc\r\n0\r\n\r\n")
good("chunked in capitals", POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n", *POSTED)
good("a length behind spaces", POST + b"Content-Length: \t 3\r\n\r\nabc", *POSTED)
bad("a length before a space", POST + b"Content-Length: 3 \r\n\r\nabc")
good("no body", POST + b"\r\n", ("POST", "/x", b""))
good("a length of none", POST + b"Content-Length: 0\r\n\r\n", ("POST", "/x", b""))
good("GET with a body", GET + b"Content-Length: 3\r\n\r\nabc", ("GET", "/x", b"abc"))
good("GET in chunks", GET + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", ("GET", "/x", b"abc"))
good("DELETE with a body", b"DELETE" + GET[3:] + b"Content-Length: 3\r\n\r\nabc", ("DELETE", "/x", b"abc"))
good(
    "a request as the body",
    POST + b"Content-Length: 31\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x",
    ("POST", "/x", b"GET /smuggled HTTP/1.1\r\nHost: x"),
)
good(
    "a request behind the length",
    POST + b"Content-Length: 3\r\n\r\nabc" + SMUGGLED,
    *POSTED,
    ("GET", "/smuggled", b""),
)

# --- chunks ----------------------------------------------------------------------------------

END = b"\r\n0\r\n\r\n"
for name, body in {
    "chunk size g": b"g\r\nabc" + END,
    "chunk size -3": b"-3\r\nabc" + END,
    "chunk size +3": b"+3\r\nabc" + END,
    "chunk size 0x3": b"0x3\r\nabc" + END,
    "empty chunk size": b"\r\nabc" + END,
    "space before the chunk size": b" 3\r\nabc" + END,
    "space behind the chunk size": b"3 \r\nabc" + END,
    "tab behind the chunk size": b"3\t\r\nabc" + END,
    "chunk size over 64 bits": b"10000000000000003\r\nabc" + END,
    "chunk size of a thousand digits": b"1" * 1000 + b"\r\nabc" + END,
    "chunk size that ends in LF": b"3\nabc" + END,
    "chunk size that ends in CR": b"3\rabc" + END,
    "chunk size folded": b"3\r\n \r\nabc" + END,
    "chunk that is too long": b"3\r\nabcd" + END,
    "chunk that is too short": b"3\r\nab" + END,
    "chunk that ends in LF": b"3\r\nabc\n0\r\n\r\n",
    "chunk without an end": b"3\r\nabc0\r\n\r\n",
    "NUL in an extension": b"3;a=\0\r\nabc" + END,
    "LF in an extension": b"3;a=b\nabc" + END,
    "CR in an extension": b"3;a=\rb\r\nabc" + END,
    "length in the trailers": b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    "encoding in the trailers": b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "folded trailer": b"3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n",
    "NUL in a trailer": b"3\r\nabc\r\n0\r\nX: \0\r\n\r\n",
    "space before a trailer's colon": b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
    "a trailer without a colon": b"3\r\nabc\r\n0\r\nX\r\n\r\n",
}.items():
    bad(name, CHUNKED + body)
for name, body in {
    "endless extension": b"3;" + b"a" * 800_000 + b"\r\nabc" + END,
    "500 trailers": b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    "a trailer of 800 kB": b"3\r\nabc\r\n0\r\nX: " + b"y" * 800_000 + b"\r\n\r\n",
}.items():
    bad(name, CHUNKED + body, 431)
for name, body in {
    "a short extension": b"3;a=b\r\nabc" + END,
    "an extension in quotes": b'3;a="b"\r\nabc' + END,
    "a padded chunk size": b"0003\r\nabc\r\n000\r\n\r\n",
    "an extension at the end": b"3\r\nabc\r\n0;x=y\r\n\r\n",
    "chunk by chunk": b"1\r\na\r\n1\r\nb\r\n1\r\nc" + END,
    "trailers": b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
    "trailers that must not be": b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\nHost: y\r\nCookie: z\r\nX-Api-Key: k\r\n"
    b"X-Forwarded-For: 1.2.3.4\r\nKeep-Alive: x\r\nX_Forwarded_For: 1\r\nExpect: 100-continue\r\n"
    b"Content-Type: a/b\r\n\r\n",
    "a valet key in the trailers": b"3\r\nabc\r\n0\r\nX-Note: <K>\r\n\r\n",
}.items():
    good(name, CHUNKED + body, *POSTED)

# --- headers ---------------------------------------------------------------------------------

for name, line in {
    "folded": b"X: y\r\n z",
    "folded by a tab": b"X: y\r\n\tz",
    "space before the colon": b"X : y",
    "tab before the colon": b"X\t: y",
    "no colon": b"X",
    "no name": b": y",
    "NUL in a name": b"X\0Y: z",
    "NUL in a value": b"X: y\0z",
    "control character in a name": b"X\x01: y",
    "control character in a value": b"X: y\x01z",
    "DEL in a value": b"X: y\x7f",
    "DEL in a name": b"X\x7f: y",
    "byte over 127 in a name": b"X\xe9: y",
    "bracket in a name": b"X(: y",
    "at in a name": b"X@: y",
    "quote in a name": b'X": y',
    "bare CR in a value": b"X: y\rz",
    "bare LF for a line's end": b"X: y\nY: z",
    "bare CR for a line's end": b"X: y\rY: z",
    "underscores in Host": b"_host: y\r\nX_Forwarded_For: 1.2.3.4",
    "Authorization with an underscore": b"Proxy_Authorization: y",
    "override with an underscore": b"X_HTTP_Method_Override: DELETE",
}.items():
    bad(f"header: {name}", GET + line + b"\r\n\r\n")
bad("space before the first header", b"GET <T>/x HTTP/1.1\r\n Host: <H>\r\nHost: <H>\r\n<A>\r\n")
bad("bare LF everywhere", GET.replace(b"\r\n", b"\n") + b"\n")
bad("bare LF at the head's end", GET + b"X: y\n\r\n")
bad("bare LF for the empty line", GET + b"X: y\r\n\n")
bad("a head of 70 kB", GET + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431)
bad("an endless head", GET + b"X: " + b"y" * 1_000_000, 431)
bad("201 headers", GET + b"X: y\r\n" * 201 + b"\r\n", 431)
bad("100,000 headers", GET + b"X: y\r\n" * 100_000 + b"\r\n", 431)
bad("a head that is never whole in many lines", GET + b"X: y\r\n" * 100_000, 431)
bad("unknown expectation", GET + b"Expect: the-unexpected\r\n\r\n", 417)
bad("override of the method", POST + b"X-HTTP-Method-Override: DELETE\r\n\r\n", 403, open=True)
bad("override of the address", GET + b"X-Original-URL: /admin\r\n\r\n", 403, open=True)
bad("the valet key in another header", GET + b"X-Note: <K>\r\n\r\n", 400, open=True)
for name, line in {
    "an underscore": b"x_custom: y",
    "a byte over 127 in a value": b"X: \xe9",
    "an empty value": b"X:",
    "tabs around a value": b"X:\ty\t",
    "who asks": b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nVia: 1.1 a\r\nX-Real-IP: 1.2.3.4\r\n"
    b"X-Forwarded-Server: me\r\nX-Forwarded-User: me\r\nClient-IP: 1.2.3.4",
    "hop by hop": b"Connection: keep-alive, X-Gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
    b"Proxy-Connection: keep-alive\r\nTrailer: X-Sum\r\nUpgrade: h2c",
    "Connection that names what counts": b"Connection: Host, Authorization, Content-Length, keep-alive",
    "other credentials": b"Cookie: a=b\r\nX-Goog-Api-Key: y\r\nApi-Key: z\r\nX-Api-Key: w",
    "an encoding that cannot be looked into": b"Accept-Encoding: br, zstd",
}.items():
    good(f"header: {name}", GET + line + b"\r\n\r\n", *GOT)

# --- hosts -----------------------------------------------------------------------------------

HOSTLESS = b"GET <T>/x HTTP/1.1\r\n<A>"
bad("no Host", HOSTLESS + b"\r\n")
bad("two Hosts", GET + b"Host: <H>\r\n\r\n")
bad("two different Hosts", GET + b"Host: other.example\r\n\r\n")
for name, value in {
    "a space inside": b"a b",
    "a user": b"me@<H>",
    "a path": b"<H>/x",
    "a scheme": b"http://<H>",
    "a list": b"<H>, <H>",
    "half an IPv6 address": b"[::1",
    "a port that is none": b"127.0.0.1:abc",
    "a query": b"<H>?",
    "a quote": b'"<H>"',
    "a backslash": b"a\\b",
    "a percent sign": b"a%00b",
}.items():
    bad(f"Host: {name}", HOSTLESS + b"Host: " + value + b"\r\n\r\n")
for name, value in {"another": b"other.example", "another port": b"127.0.0.1:1", "empty": b""}.items():
    bad(f"Host: {name}", HOSTLESS + b"Host: " + value + b"\r\n\r\n", open=True, ways=(*PROXY, *INSIDE))
bad("a user in the address", b"GET http://me@<H>/x HTTP/1.1\r\nHost: <H>\r\n<A>\r\n", open=True, ways=PROXY)
bad("another scheme", b"GET ftp://<H>/x HTTP/1.1\r\nHost: <H>\r\n<A>\r\n", open=True, ways=PROXY)
bad("no host in the address", b"GET http:///x HTTP/1.1\r\nHost: <H>\r\n<A>\r\n", open=True, ways=PROXY)
bad(
    "an address of another host inside",
    b"GET https://other.example/x HTTP/1.1\r\nHost: other.example\r\n<A>\r\n",
    open=True,
    ways=INSIDE,
)
bad("an address without TLS inside", b"GET http://<H>/x HTTP/1.1\r\nHost: <H>\r\n<A>\r\n", open=True, ways=INSIDE)
bad("a proxy inside", b"CONNECT <H> HTTP/1.1\r\nHost: <H>\r\n\r\n", 400, ways=INSIDE)
good("the whole address inside", b"GET https://<H>/x HTTP/1.1\r\nHost: <H>\r\n\r\n", *GOT, ways=INSIDE)
good("no Host in HTTP/1.0", HOSTLESS.replace(b"1.1", b"1.0") + b"\r\n", *GOT, open=False, ways=BASE)

# --- the connection --------------------------------------------------------------------------

good("HTTP/1.0", GET.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n", *GOT, open=False)
good(
    "HTTP/1.0 that would stay",
    GET.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n\r\n",
    *GOT,
    open=False,
)
good("Connection: close", GET + b"Connection: close\r\n\r\n", *GOT, open=False)
good("more behind Connection: close", GET + b"Connection: close\r\n\r\n" + SMUGGLED, *GOT, open=False)
good("three in a row", GET + b"\r\n" + POST + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n", *GOT, *POSTED, *GOT)
good("an empty line between two", GET + b"\r\n\r\n" + GET + b"\r\n", *GOT, *GOT)
good("an empty line first", b"\r\n" + GET + b"\r\n", *GOT)
good("garbage behind a request", GET + b"\r\ngarbage\r\n\r\n", *GOT, statuses=(200, 400), open=False)
good(
    "HTTP/0.9 behind a request",
    GET + b"\r\nGET <T>/smuggled\r\n\r\n",
    *GOT,
    statuses=(200, 400),
    open=False,
)
good(
    "another version behind a request",
    GET + b"\r\n" + SMUGGLED.replace(b"HTTP/1.1", b"HTTP/2.0"),
    *GOT,
    statuses=(200, 400),
    open=False,
)
good(
    "bad chunks behind a request",
    GET + b"\r\n" + CHUNKED + b"g\r\nabc\r\n0\r\n\r\n",
    *GOT,
    statuses=(200, 400),
    open=False,
)
good(
    "a refusal between two",
    GET + b"\r\n" + GET.replace(b"/x", b'/x"') + b"\r\n" + GET.replace(b"/x", b"/y") + b"\r\n",
    *GOT,
    ("GET", "/y", b""),
    statuses=(200, 400, 200),
)
good(
    "no key between two",
    GET + b"\r\nGET /acme/x HTTP/1.1\r\nHost: x\r\n\r\n" + GET + b"\r\n",
    *GOT,
    *GOT,
    statuses=(200, 401, 200),
    ways=BASE,
)

# --- upgrades --------------------------------------------------------------------------------

UPGRADE = b"Connection: Upgrade\r\nUpgrade: "
bad("upgrade to h2c", GET + UPGRADE + b"h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
bad("upgrade to h2c with a body", POST + UPGRADE + b"h2c\r\nContent-Length: 3\r\n\r\nabc")
bad("upgrade to TLS", GET + UPGRADE + b"TLS/1.0\r\n\r\n")
bad("WebSocket with a body", GET + UPGRADE + b"websocket\r\nContent-Length: 50\r\n\r\n" + SMUGGLED)
bad("WebSocket in chunks", GET + UPGRADE + b"websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED)
bad("WebSocket by POST", POST + UPGRADE + b"websocket\r\n\r\n")
bad("WebSocket in HTTP/1.0", GET.replace(b"HTTP/1.1", b"HTTP/1.0") + UPGRADE + b"websocket\r\n\r\n")
TRAILERS = b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 500 + b"\r\n"
bad("an upgrade behind 500 trailers", CHUNKED + TRAILERS + GET + UPGRADE + b"websocket\r\n\r\n", 431)
bad("garbage behind 500 trailers", CHUNKED + TRAILERS + b"garbage\r\n\r\n", 431)
bad("a request behind 500 trailers", CHUNKED + TRAILERS + SMUGGLED, 431)
bad("two protocols", GET + UPGRADE + b"websocket, h2c\r\n\r\n")
bad("two Upgrades", GET + UPGRADE + b"h2c\r\nUpgrade: websocket\r\n\r\n")
bad("an empty Upgrade", GET + UPGRADE + b"\r\n\r\n")
good("Connection without Upgrade", GET + b"Connection: Upgrade\r\n\r\n", *GOT)
good("Upgrade without Connection", GET + b"Upgrade: websocket\r\n\r\n", *GOT)
bad("CONNECT with a body", b"CONNECT <H> HTTP/1.1\r\nHost: <H>\r\n<A>Content-Length: 3\r\n\r\nabc", ways=PROXY)
bad("CONNECT in chunks", b"CONNECT <H> HTTP/1.1\r\nHost: <H>\r\n<A>Transfer-Encoding: chunked\r\n\r\n", ways=PROXY)
bad("CONNECT to another Host", b"CONNECT <H> HTTP/1.1\r\nHost: other.example\r\n<A>\r\n", ways=PROXY)
bad("CONNECT without a port", b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: 127.0.0.1\r\n<A>\r\n", ways=PROXY)
bad("CONNECT with a path", b"CONNECT <H>/x HTTP/1.1\r\nHost: <H>\r\n<A>\r\n", ways=PROXY)
bad("CONNECT by the base URL", b"CONNECT /acme/x HTTP/1.1\r\nHost: <H>\r\nAuthorization: Bearer <K>\r\n\r\n", ways=BASE)
