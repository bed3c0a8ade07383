"""Which addresses get a request: https anywhere, plain http only near by, metadata services never."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from valetkey.errors import InvalidBaseUrl

__all__ = ["Standing", "check_url", "is_here", "is_metadata", "is_near", "is_odd_number", "standing", "without_braces"]

Standing = Literal["public", "near", "never"]

_NEAR = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)
# Link-local and metadata addresses hand out a machine's own credentials; 0.0.0.0 is no destination.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure's wire server
        "0.0.0.0/8",
        "fe80::/10",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google Cloud
        "::/128",
    )
)
_NEVER_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.tencentyun.com",
    "instance-data",
    "instance-data.ec2.internal",
)
# RFC 6598: a carrier's, or a mesh VPN's; not the internet's.
_SHARED = (ipaddress.ip_network("100.64.0.0/10"),)
# The registries of RFC 6890: for protocols, documents, measurements, many hosts at once or nobody. No server is there.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # Teredo is in 2001::/23 and 6to4 is 2002::/16: behind both is an IPv4 address of the sender's choice.
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )
)
# Where IPv6 has hosts; all else is special, or not given out yet.
_UNICAST6 = ipaddress.ip_network("2000::/3")
# RFC 6052: an IPv4 address behind a translator. On a network of IPv6 alone, DNS64 gives every old server such a one.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEAR_SUFFIXES = (".localhost", ".local", ".internal")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
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


def is_here(host: str) -> bool:
    """Say whether it is this machine by what is written: a loopback address, or `localhost` (RFC 6761 section 6.3)."""
    address = _ip(host)
    return address.is_loopback if address is not None else host == "localhost" or host.endswith(".localhost")


def standing(address: str) -> Standing | None:
    """Say what kind of address this is: of the internet, of this machine or a private network, or no destination.

    None: it is not an address written as one, so a name.
    """
    found = _ip(address)
    if found is None:
        return None
    if found.version == 6 and found in _NAT64:
        found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        # RFC 6052 section 3.1: nothing that is not public belongs behind this prefix.
        return "never" if _in(found, (*_NEAR, *_SHARED, *_NEVER, *_SPECIAL)) else "public"
    if _in(found, _NEVER):
        return "never"
    if _in(found, (*_NEAR, *_SHARED)):
        return "near"
    if _in(found, _SPECIAL) or (found.version == 6 and found not in _UNICAST6):
        return "never"
    return "public"


def is_metadata(host: str) -> bool:
    """Say whether this name leads to a metadata service, whatever it resolves to."""
    return host in _NEVER_NAMES


def is_odd_number(host: str) -> bool:
    """Say whether a resolver takes it for an address though it is not written as one: 2130706433, 0x7f.1, 127.1."""
    return _ip(host) is None and _NUMBER.fullmatch(host.rsplit(".", 1)[-1]) is not None


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
    if is_metadata(host) or (address is not None and _in(address, _NEVER)):
        raise InvalidBaseUrl(
            f"{host} is a link-local or metadata address, which never gets a request",
            hint="use the server's own address",
        )
    if address is None and (len(host) > 253 or not all(map(_LABEL.match, host.split(".")))):
        raise InvalidBaseUrl(
            f"{host[:60]!r} is not a host name", hint="write a name such as api.example.com, or an address"
        )
    if is_odd_number(host):
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
