"""docker's credential helper protocol, as `docker-credential-valetkey` speaks it.

https://github.com/docker/docker-credential-helpers: the words of an error go to standard output, and docker knows
the ones of "not found" by heart.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from valetkey.errors import NotLoggedIn, UsageError, ValetkeyError
from valetkey.helpers.places import Candidate, candidates, choose, pair_at

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["MOST_BYTES", "NotFound", "NotKept", "answer", "hosts", "listing", "store"]

TOOL = "docker"
MOST_BYTES = 64 * 1024


class NotFound(NotLoggedIn):
    """No account is for this registry; docker goes on without one when it reads just these words."""

    exit_status = 1

    def __init__(self) -> None:
        super().__init__("credentials not found in native keychain", hint="run `valetkey list`")


class NotKept(ValetkeyError):
    """docker wants something kept or thrown away, and accounts are not docker's to change."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"valetkey does not {operation} logins for docker",
            hint="run `valetkey login PROVIDER` or `valetkey logout PROVIDER`",
        )


async def answer(broker: Broker, data: bytes) -> dict[str, str]:
    """Give the document for the registry whose address was written; it holds the secret.

    Raises: NotFound; HostsNotAccepted for plain http that the login is not for; what `Broker.access` raises.
    """
    server = data[:MOST_BYTES].decode(errors="replace").strip()
    if not server:
        raise UsageError("no credentials server URL", hint="let docker call this: `valetkey setup docker`")
    scheme, _, rest = server.rpartition("://")
    try:
        host = urlsplit(f"//{rest}").netloc.lower()
    except ValueError:
        host = ""
    found = choose(list(candidates(broker, TOOL)), host=host, tool=TOOL)
    if found is None or scheme not in ("", "https", "http"):
        raise NotFound
    access = await broker.access(found.name, use="helper")
    if access.credential is None:
        raise NotFound
    # A registry's name comes bare: how it is spoken to is the login's own word.
    access.check_place(f"{scheme or urlsplit(access.base_url).scheme}://{host}/")
    pair = pair_at(found, access.credential, host=host, tool=TOOL)
    return {"ServerURL": server, "Username": pair.user, "Secret": pair.password.reveal()}


async def store(broker: Broker, data: bytes) -> None:
    """Take what `docker login` would have kept, if it is what the account holds anyway. Raises: NotKept, UsageError."""
    try:
        given = json.loads(data[:MOST_BYTES])
        server, pair = given["ServerURL"], (given["Username"], given["Secret"])
    except (ValueError, LookupError, TypeError):
        raise UsageError("this is no JSON of docker's", hint="let docker call this: `valetkey setup docker`") from None
    try:
        held = await answer(broker, str(server).encode())
    except NotFound:
        raise NotKept("store") from None
    if (held["Username"], held["Secret"]) != pair:
        raise NotKept("store")


def listing(broker: Broker) -> dict[str, str]:
    """Give the account that serves at each registry; nothing is renewed, and no secret is read out."""
    found = list(candidates(broker, TOOL))
    return {host: str(chosen.ref) for host in hosts(found) if (chosen := choose(found, host=host, tool=TOOL))}


def hosts(found: list[Candidate]) -> list[str]:
    """Give the hosts that these accounts log in at by user and password."""
    named = dict.fromkeys(host for c in found for host in c.hosts if not host.startswith("*."))
    return [host for host in named if choose(found, host=host, tool=TOOL) is not None]
