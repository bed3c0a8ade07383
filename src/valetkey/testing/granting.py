"""The gateway's side of a run, without a gateway: what is granted are placeholders that no one takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from valetkey.credential import CredentialRef
from valetkey.errors import NotLoggedIn
from valetkey.runs.launch import Wanted
from valetkey.runs.order import Order

__all__ = ["CERTIFICATE", "FakeBegun", "FakeGranting"]

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n"


@dataclass(frozen=True, kw_only=True)
class FakeBegun:
    """A valetkey.runs.launch.Begun."""

    environment: Mapping[CredentialRef, Mapping[str, str]]
    folder: Path
    certificate: str = CERTIFICATE

    @property
    def placeholders(self) -> Mapping[CredentialRef, Mapping[str, str]]:
        """Give what stands in files; no variable has one of its own."""
        return {ref: {"": f"file-placeholder-of-{ref.account}"} for ref in self.environment}

    @property
    def files(self) -> Mapping[CredentialRef, Mapping[str, str]]:
        """Give a file that accounts add to, one of each place, and one that no account may have."""
        return {
            ref: {
                "/etc/acme+": f"added-of-{ref.account}",
                "/etc/acme.d/it": f"alone-of-{ref.account}",
                "~/.config/acme/key": f"placeholder-of-{ref.account}",
                "/etc/valetkey/ca.pem": "of another",
            }
            for ref in self.environment
        }


@dataclass(kw_only=True)
class FakeGranting:
    """A valetkey.runs.launch.Granting that grants all but what is `missing`, and keeps in `granted` which runs live.

    Each account of a run has the variable PROVIDER_KEY, with `placeholder-of-ACCOUNT`. `at` is the folder for sockets.
    """

    at: Path
    missing: tuple[CredentialRef, ...] = ()
    granted: list[str] = field(default_factory=list)
    kept: dict[str, Order] = field(default_factory=dict)

    def begin(self, run: str, wanted: Wanted) -> FakeBegun:
        """Grant it. Raises: NotLoggedIn, naming all that is missing."""
        self.granted.append(run)
        lacking = [ref for ref in wanted.grants if ref in self.missing]
        if lacking:
            raise NotLoggedIn(
                f"no credential is stored for {', '.join(map(str, lacking))}",
                hint=f"run `valetkey login {lacking[0].provider}`",
            )
        variables = {
            ref: {f"{ref.provider.upper().replace('-', '_')}_KEY": f"placeholder-of-{ref.account}"}
            for ref in wanted.grants
        }
        return FakeBegun(environment=variables, folder=self.at / run)

    def keep(self, order: Order) -> None:
        """Keep it in `kept` until the run ends."""
        self.kept[order.run] = order

    def end(self, run: str) -> None:
        """Take it back."""
        self.kept.pop(run, None)
        if run in self.granted:
            self.granted.remove(run)

    def live(self) -> list[str]:
        """Give the ids of all."""
        return list(self.granted)
