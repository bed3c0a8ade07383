"""What an endpoint is: it serves a run what no header can carry, such as short-lived keys that a tool signs with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from valetkey.credential import Credential, CredentialRef, Secret
from valetkey.provider import AuthMethod

__all__ = ["Endpoint", "Granted", "Issued"]


@dataclass(frozen=True, kw_only=True)
class Granted:
    """An account that a run was granted. `run` is the run's id, `method` the login that the account was made by.

    `credential` gives the account's own credential, fresh; it is asked only where the endpoint needs it. It raises what
    `Broker.access` does.
    """

    ref: CredentialRef
    run: str
    method: AuthMethod
    parameters: Mapping[str, str]
    credential: Callable[[], Awaitable[Credential]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """What goes to the run, as JSON. Until `again_until` the same is given to whoever asks again; None: not at all."""

    content: Secret
    again_until: datetime | None = None


class Endpoint(Protocol):
    """Serves accounts to runs, over HTTP. It is a value without a state: the gateway keeps what was issued.

    A login names it (`endpoint` in its declaration). Requests for such an account go nowhere else: the gateway puts
    nothing in, and tunnels what the tool has signed itself.
    """

    @property
    def id(self) -> str:
        """Its name in declarations."""
        ...

    @property
    def routes(self) -> Sequence[str]:
        """The paths that it serves by GET, below the account's base URL at the gateway: each begins with `/`."""
        ...

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables that it wants in a run, as templates.

        They may name `{address}` (the account's base URL inside, without a `/` at its end), `{token}` (what has to
        stand in `Authorization`, alone or behind a scheme), and the login's parameters.
        """
        ...

    def check(self, ref: CredentialRef, parameters: Mapping[str, str]) -> None:
        """See, before a run begins and without asking anybody, that this account can be served.

        Raises: EndpointUnavailable, with what is missing and the command that mends it.
        """
        ...

    async def issue(self, route: str, granted: Granted) -> Issued:
        """Answer a request for one of `routes`. One call serves all who ask at the same time.

        Raises: BaseCredentialRefused, RoleDenied, RoleInvalid, IssuerUnavailable; what `granted.credential` raises.
        """
        ...
