"""The proxies that an environment names, and which of them are a Valetkey gateway.

A tool's shell names the gateway as its proxy, with a valet key. What runs in that shell and is Valetkey itself must not
go there: the gateway would ask itself without end, and a login that it needs for an answer would wait for that answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

__all__ = ["leads_to_gateway", "proxies_named", "variables_of_gateway", "without_gateway"]

_END_OF_AUTHORITY = re.compile("[/?#]")


def proxies_named(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Give what each `…_proxy` names, with its variable's name. Written in lower case it wins, and empty it ends it."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in environ.items():
        if value and name.lower().endswith("_proxy"):
            found[name.lower()[:-6]] = name, value
    for name, value in environ.items():
        if name.endswith("_proxy"):
            if value:
                found[name.lower()[:-6]] = name, value
            else:
                found.pop(name.lower()[:-6], None)
    return found


def leads_to_gateway(url: str) -> bool:
    """Say whether a proxy's address shows a valet key: as user or password, whatever the rest of it is."""
    text = url.strip()
    authority = _END_OF_AUTHORITY.split(text.partition("://")[2] or text, maxsplit=1)[0]
    user, _, password = authority.rpartition("@")[0].partition(":")
    return any(unquote(part).startswith("vk_") for part in (user, password))


def variables_of_gateway(environ: Mapping[str, str]) -> list[str]:
    """Name the variables whose proxy is a gateway."""
    return [name for name, value in environ.items() if name.lower().endswith("_proxy") and leads_to_gateway(value)]


def without_gateway(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment as it is where nothing was set up for a gateway."""
    dropped = variables_of_gateway(environ)
    return {name: value for name, value in environ.items() if name not in dropped}
