"""Which URLs a declaration may name: https anywhere, plain http only near by, metadata services never."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from valetkey.errors import InvalidBaseUrl

__all__ = ["check_url", "is_near", "without_braces"]

_NEAR = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)
# Link-local and metadata addresses hand out a machine's own credentials; 0.0.0.0 is no destination.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "100.100.100.200/32",
        "0.0.0.0/8",
        "fe80::/10",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "::/128",
    )
)
_NEVER_NAMES = ("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal")
_NEAR_SUFFIXES = (".localhost", ".local", ".internal")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_BRACES = re.compile(r"\{[A-Za-z0-9_-]+\}")


def without_braces(template: str, values: dict[str, str] | None = None) -> str:
    """Give the template with an example in place of each name, so that its form can be looked at."""
    return _BRACES.sub(lambda m: (values or {}).get(m.group()[1:-1], "x"), template)


def is_near(host: str) -> bool:
    """Say whether plain http may go there: loopback, a private address, `localhost`, `*.local`, `*.internal`.

    Names are not resolved: what they resolve to can change between the check and the use.
    """
    address = _ip(host)
    if address is not None:
        return _in(address, _NEAR)
    return host == "localhost" or host.endswith(_NEAR_SUFFIXES)


def check_url(url: str, *, query: bool = False) -> str:
    """Look at one http(s) URL without braces and give its host, lower case, without port.

    `query` allows a query string (endpoints may have one, a base URL may not). Raises: InvalidBaseUrl.
    """
    shown = _shown(url)
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidBaseUrl(
            f"{shown} holds a space or a character that URLs do not have", hint="write it in plain ASCII without spaces"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidBaseUrl(
            f"{shown} is not a URL", hint="write it as `https://host/v1` or `http://127.0.0.1:8000/v1`"
        ) from error
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
        raise InvalidBaseUrl(
            f"{shown} has no https:// with a host behind it",
            hint="write the whole address, such as `https://host/v1` or `http://127.0.0.1:8000/v1`",
        )
    if "@" in parts.netloc:
        raise InvalidBaseUrl(
            "the URL holds a user name or a password before the @",
            hint="take it out; keys go into `valetkey login`, never into a URL",
        )
    if "#" in url or ("?" in url and not query):
        raise InvalidBaseUrl(
            f"{shown} has a ? or a # part", hint="leave it off; a base URL ends with its path, such as /v1"
        )
    if any(segment in (".", "..") for segment in parts.path.split("/")):
        raise InvalidBaseUrl(f"{shown} has . or .. in its path", hint="write the path without them")
    host = parts.hostname.removesuffix(".")
    _check_host(host, scheme=parts.scheme)
    return host


def _check_host(host: str, *, scheme: str) -> None:
    address = _ip(host)
    if host in _NEVER_NAMES or (address is not None and _in(address, _NEVER)):
        raise InvalidBaseUrl(
            f"{host} is a link-local or metadata address, which never gets a request",
            hint="use the server's own address",
        )
    if address is None and (len(host) > 253 or not all(map(_LABEL.match, host.split(".")))):
        raise InvalidBaseUrl(
            f"{host[:60]!r} is not a host name", hint="write a name such as api.example.com, or an address"
        )
    if address is None and re.fullmatch(r"\d+|0x[0-9a-f]*", host.rsplit(".", 1)[-1]):
        # 2130706433, 0x7f.1 and 127.1 are addresses to the system's resolver and would pass by the networks above.
        raise InvalidBaseUrl(f"{host} is not an address in the usual form", hint="write it as four numbers: 127.0.0.1")
    if scheme == "http" and not is_near(host):
        raise InvalidBaseUrl(
            f"{host} is not on this machine or a private network, and plain http would be read on the way",
            hint=f"write https://{host}",
        )


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _in(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _shown(url: str) -> str:
    # What stands before an @ may be a password, and what stands behind a ? a key.
    bare = url.rsplit("@", 1)[-1].split("?", 1)[0].split("#", 1)[0]
    return repr(bare[:80])
