"""What every flow is built from: the declaration, the parameters and the outside.

Public: an entry point in the group `valetkey.flows` is called with a Context (docs/providers.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from valetkey.address import check_url
from valetkey.clock import Clock
from valetkey.credential import DEFAULT_ACCOUNT, CredentialRef, login_command
from valetkey.errors import InitiationFailed
from valetkey.http import HttpClient
from valetkey.inject import fill
from valetkey.provider import AuthMethod, Provider

__all__ = ["Context"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """One way to log in at one provider, with `parameters` as given by the user so far; `account` is named in hints."""

    provider: Provider
    method: AuthMethod
    parameters: Mapping[str, str]
    http: HttpClient
    clock: Clock
    environ: Mapping[str, str]
    account: str = DEFAULT_ACCOUNT

    @property
    def id(self) -> str:
        """The provider's id."""
        return self.provider.id

    @property
    def login(self) -> str:
        """The command that logs in this way, for hints."""
        return login_command(CredentialRef(provider=self.provider.id, account=self.account), method=self.method.id)

    def check_client(self) -> None:
        """Refuse to begin where the declaration leaves the client id to the user. Raises: InitiationFailed."""
        if self.method.client_id == "":
            raise InitiationFailed(
                f"this login at {self.provider.name} needs an OAuth app of your own",
                hint=f"register one there and set client_id below [providers.{self.provider.id}] in config.toml",
                provider=self.provider.id,
            )

    def url(self, template: str, parameters: Mapping[str, str]) -> str:
        """Fill the parameters into an endpoint's address.

        Raises: InvalidBaseUrl when what they make of it is a metadata service's or leaves by plain http.
        """
        url = fill(template, parameters)
        check_url(url, query=True)
        return url
