"""Finds the valet key that a request presents: where the client puts its API key, or in the proxy's address."""

from __future__ import annotations

import base64
import binascii
import re

from valetkey.gateway.message import Header

__all__ = ["from_headers", "from_proxy", "within", "without"]

_MARK = b"vk_"
_WHOLE = re.compile(rb"vk_[0-9a-f]{12}_[0-9a-f]{64}(?![0-9A-Za-z_])")


def from_headers(credentials: list[Header]) -> bytes | None:
    """Give the key out of Authorization (Bearer, token, or Basic's password or user) or an API key's header."""
    for name, value in credentials:
        found: bytes | None
        if _MARK in value and name != b"cookie":
            found = _bearer(value) if name == b"authorization" else value
        elif name == b"authorization":
            found = _basic(value)
        else:
            continue
        if found is not None and found.startswith(_MARK):
            return found
    return None


def from_proxy(authorization: bytes | None) -> bytes | None:
    """Give the key out of Proxy-Authorization."""
    if authorization is None:
        return None
    found = _bearer(authorization) if _MARK in authorization else _basic(authorization)
    return found if found is not None and found.startswith(_MARK) else None


def within(text: bytes) -> bytes | None:
    """Give the first whole key that stands in a text.

    In a target: a parameter of the query (`?key=vk_…`, as Google's REST examples have it), or a part of the path, as
    some bots' APIs want it.
    """
    found = _WHOLE.search(text)
    return None if found is None else found[0]


def without(url: bytes, token: bytes) -> bytes:
    """Give the target without the query parameter that was the key."""
    path, mark, query = url.partition(b"?")
    if not mark:
        return url
    kept = b"&".join(pair for pair in query.split(b"&") if pair.partition(b"=")[2] != token)
    return b"%b?%b" % (path, kept) if kept else path


def _bearer(value: bytes) -> bytes:
    return value.rpartition(b" ")[2]


def _basic(value: bytes) -> bytes | None:
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        pair = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    user, _, password = pair.partition(b":")
    return password if password.startswith(_MARK) else user
