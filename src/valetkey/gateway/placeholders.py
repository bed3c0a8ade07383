"""Placeholders: what stands in a run where a credential would, and how they are found in a request.

One is the declared form and a mark behind it, `…-vkp_<tag>_<random>`: the tag is the run's, the random part tells the
account. It opens nothing: a run is known by its socket, and the mark only says which of its accounts is meant.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from valetkey.credential import CredentialRef
from valetkey.gateway.message import Header
from valetkey.provider import AuthMethod, Sandbox

__all__ = ["Placeholder", "by_mark", "decoded", "made", "marks_in", "new_tag", "sandbox_of", "tag_of"]

_NAMED = re.compile(r"\{([A-Za-z0-9_-]+)\}")
_MARK = re.compile(rb"vkp_[0-9a-f]{12}_[0-9a-f]{32}")


class Placeholder(NamedTuple):
    """Whose it is, and all of it as it stands in a run."""

    ref: CredentialRef
    text: bytes


def new_tag() -> str:
    """Give the tag of a run's placeholders."""
    return secrets.token_hex(6)


def made(form: str, tag: str) -> str:
    """Make one of the declared form."""
    return f"{form}-vkp_{tag}_{secrets.token_hex(16)}"


def sandbox_of(method: AuthMethod) -> Sandbox:
    """Give what a login wants in a run. Where its declaration does not say, that is what `exec` would set, with a
    placeholder in the place of each secret; nothing where an endpoint serves it.
    """
    if method.sandbox is not None or method.endpoint is not None:
        return method.sandbox or Sandbox()
    known = {"base_url", *(parameter.key for parameter in method.parameters if not parameter.secret)}

    def hidden(name: re.Match[str]) -> str:
        return name[0] if name[1] in known else "{placeholder}"

    exports = method.exports or dict.fromkeys(method.environment[:1], "{key}")
    return Sandbox(environment={variable: _NAMED.sub(hidden, text) for variable, text in exports.items()})


def by_mark(placeholders: Mapping[CredentialRef, Mapping[str, str]]) -> dict[bytes, Placeholder]:
    """Give a run's placeholders by what tells them from all others."""
    found = {}
    for ref, texts in placeholders.items():
        for text in texts.values():
            for mark in marks_in(text.encode()):
                found[mark] = Placeholder(ref, text.encode())
    return found


def tag_of(placeholders: Iterable[bytes]) -> bytes:
    """Give what all marks of a run begin with, out of these; of none, what those of any run begin with."""
    return next((mark[: len("vkp_") + 13] for mark in placeholders), b"vkp_")


def marks_in(text: bytes) -> Iterator[bytes]:
    """Give the marks that stand in a text, of any run's placeholders."""
    # Most texts have none: the search for it is the cheap half.
    return (match[0] for match in _MARK.finditer(text)) if b"vkp_" in text else iter(())


def decoded(header: Header) -> bytes:
    """Give a header's value, of Basic (RFC 7617) the user and the password in the open."""
    name, value = header
    if name not in (b"authorization", b"proxy-authorization"):
        return value
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return value
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return value
