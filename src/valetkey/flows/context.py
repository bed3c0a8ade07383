"""What every flow is built from: the declaration, the parameters and the outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from valetkey.clock import Clock
from valetkey.http import HttpClient
from valetkey.inject import fill
from valetkey.provider import AuthMethod, Provider

__all__ = ["Context"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """One way to log in at one provider, with `parameters` as given by the user so far."""

    provider: Provider
    method: AuthMethod
    parameters: Mapping[str, str]
    http: HttpClient
    clock: Clock
    environ: Mapping[str, str]

    @property
    def id(self) -> str:
        """The provider's id."""
        return self.provider.id

    @property
    def login(self) -> str:
        """The command that logs in this way, for hints."""
        return f"valetkey login {self.provider.id} --method {self.method.id}"

    def url(self, template: str, parameters: Mapping[str, str]) -> str:
        """Fill the parameters into an endpoint's address."""
        return fill(template, parameters)
