"""Brings the address of a request into the one form that is matched and sent: two readers must not read it differently.

RFC 3986 section 6.2.2 and what servers do beyond it. Whatever a server could take for another path than a rule did
(an encoded slash, a hidden dot segment, a path parameter on dots) is not repaired: it is `Malformed`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from valetkey.address import check_url
from valetkey.errors import InvalidBaseUrl

__all__ = ["DEFAULT_PORTS", "Malformed", "Scheme", "Target", "loosened", "normalise", "split_authority"]

Scheme = Literal["https", "http"]
DEFAULT_PORTS: dict[str, int] = {"https": 443, "http": 80}

# More than any API has, and little enough for every pattern to be tried on it.
MAX_PATH = 8 * 1024
MAX_QUERY = 32 * 1024
# `%2541`: a server behind another one decodes twice. Nobody honest needs more than three.
_MAX_LEVELS = 3

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(?:\d+|0x[0-9a-f]*)\Z")
# What most requests have: nothing to decode, no empty segment, none that begins with a dot, no path parameter.
_PLAIN = re.compile(r"(?:/[\w~!$&'()*+,=:@-][\w.~!$&'()*+,=:@-]*)*/?\Z", re.ASCII)
_PATH = re.compile(r"[\w.~!$&'()*+,;=:@%/\[\]^`{|}-]*\Z", re.ASCII)
_QUERY = re.compile(r"[!$-;=?-\[\]-~]*\Z")
_LENIENT = re.compile(r"[\[\]^`{|}]")
_HALF_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(r"[\w.~-]", re.ASCII)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where a request goes, in normal form. `host` is lower case, an IPv6 address in brackets; `query` without `?`.

    `query` is None where there is no `?`: it is never matched, and sent as it came.
    """

    scheme: Scheme
    host: str
    port: int
    path: str
    query: str | None = None

    @property
    def authority(self) -> str:
        """Give host and port, the port only where it is not the scheme's own."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"

    @property
    def path_and_query(self) -> str:
        """Give the request target in origin form (RFC 9112 section 3.2.1)."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def url(self) -> str:
        """Give it whole."""
        return f"{self.scheme}://{self.authority}{self.path_and_query}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """The address cannot be used. `reason` goes on after "the request": "has an encoded slash in its path"."""

    reason: str
    code: Literal["malformed", "address_refused"] = "malformed"


def normalise(*, scheme: str, host: str, port: int | None, path: str) -> Target | Malformed:
    """Bring the parts of an address into normal form; `path` is the raw one, with its query.

    Doing it twice changes nothing.
    """
    if scheme not in ("https", "http"):
        return Malformed(reason="is neither https nor http")
    found = _host(host)
    if isinstance(found, Malformed):
        return found
    if port is None:
        port = DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        return Malformed(reason="has a port that is none")
    raw_path, mark, query = path.partition("?")
    clean = _path(raw_path)
    if isinstance(clean, Malformed):
        return clean
    if len(query) > MAX_QUERY:
        return Malformed(reason=f"has a query longer than {MAX_QUERY} characters")
    if not _QUERY.match(query):
        return Malformed(reason="has a character in its query that URLs do not have")
    known: Scheme = "https" if scheme == "https" else "http"
    return Target(scheme=known, host=found, port=port, path=clean, query=query if mark else None)


def split_authority(text: str) -> tuple[str, int | None] | Malformed:
    """Split `host[:port]`, the host as it is written."""
    if "@" in text:
        return Malformed(reason="has a user name or a password in its address")
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
    if not rest:
        return host, None
    if not re.fullmatch(r":[0-9]{1,5}", rest):
        return Malformed(reason="has a port that is none")
    return host, int(rest[1:])


# --- host ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _host(raw: str) -> str | Malformed:
    host = raw.lower().removesuffix(".")
    if not host or not raw.isascii():
        return Malformed(reason="has no host name in ASCII; other scripts are written as xn--…")
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1] if host.endswith(']') else '')}]"
        except ValueError:
            return Malformed(reason="has no IPv6 address between its brackets")
        if "%" in host:
            return Malformed(reason="has an address with a zone")
    elif not _is_ipv4(host):
        labels = host.split(".")
        # 127.1 and 0x7f000001 are addresses to a resolver and would pass by every rule for 127.0.0.1.
        if len(host) > 253 or not all(map(_LABEL.match, labels)) or _NUMBER.match(labels[-1]):
            return Malformed(reason="has a host that is neither a name nor an address in its usual form")
    try:
        check_url(f"https://{host}")
    except InvalidBaseUrl:
        return Malformed(
            reason="goes to a link-local or metadata address, which never gets one", code="address_refused"
        )
    return host


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


# --- path ------------------------------------------------------------------------------------


def _path(raw: str) -> str | Malformed:
    if len(raw) > MAX_PATH:
        return Malformed(reason=f"has a path longer than {MAX_PATH} characters")
    if not raw.startswith("/"):
        return Malformed(reason="has a path that does not begin with /")
    if _PLAIN.match(raw):
        return raw
    if not _PATH.match(raw):
        return Malformed(reason="has a character in its path that URLs do not have")
    if _HALF_ESCAPE.search(raw):
        return Malformed(reason="has a % in its path without two digits behind it")
    # Programs send these as they are, and servers read them as the escapes that the RFC wants.
    text = _LENIENT.sub(lambda found: f"%{ord(found.group()):02X}", raw)
    path = _without_dots(_ESCAPE.sub(_unescaped, text))
    if len(path) > MAX_PATH:
        return Malformed(reason=f"has a path longer than {MAX_PATH} characters")
    hidden = _hidden(path)
    return path if hidden is None else Malformed(reason=hidden)


def _unescaped(found: re.Match[str]) -> str:
    character = chr(int(found.group()[1:], 16))
    return character if _UNRESERVED.match(character) else found.group().upper()


def _without_dots(path: str) -> str:
    # RFC 3986 section 5.2.4, and empty segments with them.
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    ends_open = segments[-1] in ("", ".", "..") and kept
    return "/" + "/".join(kept) + ("/" if ends_open else "")


def _hidden(path: str) -> str | None:
    """Say what a server that decodes, once or again, would see and a rule did not."""
    text = path.encode("ascii")
    for _ in range(_MAX_LEVELS + 1):
        if any(segment.partition(b";")[0] in (b".", b"..") for segment in text.split(b"/")):
            return "has dot segments hidden in its path"
        decoded = unquote_to_bytes(text)
        if decoded == text:
            break
        if decoded.count(b"/") > text.count(b"/"):
            return "has an encoded slash in its path"
        if _CONTROL.search(decoded):
            return "has an encoded backslash or control character in its path"
        text = decoded
    else:
        return "has a path that is encoded over and over"
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return "has a path that is not UTF-8 once it is decoded"
    return None


@functools.lru_cache(maxsize=256)  # asked for each pattern anew
def loosened(path: str) -> str:
    """Give a normal path, or the path of a pattern, as the most lenient server would read it.

    That is: decoded to the end, in lower case, without path parameters (`;a=b`) and without a slash at the end. What
    refuses is matched on this, so that no spelling passes by it; what allows never is.
    """
    text = path
    for _ in range(_MAX_LEVELS if "%" in path else 0):
        text = unquote_to_bytes(text).decode("utf-8", "replace")
    if ";" in text or "?" in text or "#" in text:
        text = re.sub(r"[;?#][^/]*", "", text)
    return re.sub(r"/{2,}", "/", text).rstrip("/").lower()
