"""The accounts that there are, stored and in the environment, as they are shown: opens no record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from valetkey.access import credential_in
from valetkey.credential import CredentialRef, Health, Identity, secrets_of
from valetkey.provider import Provider
from valetkey.store import Account

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["AccountState", "in_environment", "in_store", "state_of"]

# Kinds that the broker renews at use; a past end of these is nothing that the user has to mend.
_RENEWED = frozenset({"exchanged-key", "ambient"})


@dataclass(frozen=True, kw_only=True)
class AccountState:
    """One account. `source` says where its credential is; a shadowed one is not used, as stored ones come first."""

    ref: CredentialRef
    source: Literal["stored", "environment", "none"]
    method: str
    kind: str
    health: Health
    reason: str = ""
    identity: Identity = Identity()
    last_four: str = ""
    variable: str | None = None
    shadowed: bool = False
    is_default: bool = False
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    updated_at: datetime | None = None
    generation: int = 0

    def as_dict(self) -> dict[str, object]:
        """Give the JSON form that the command line and the API share; times stay datetimes."""
        return {
            "provider": self.ref.provider,
            "account": self.ref.account,
            "default": self.is_default,
            "source": self.source,
            "variable": self.variable,
            "shadowed": self.shadowed,
            "method": self.method,
            "kind": self.kind,
            "health": self.health.value,
            "reason": self.reason,
            "identity": {
                "account_id": self.identity.account_id,
                "name": self.identity.name,
                "email": self.identity.email,
                "plan": self.identity.plan,
            },
            "last_four": self.last_four,
            "issued_at": self.issued_at,
            "expires_at": self.expires_at,
            "updated_at": self.updated_at,
        }


def in_store(
    broker: Broker, *, provider: str | None = None, after: CredentialRef | None = None, limit: int | None = None
) -> list[AccountState]:
    """Give stored accounts in order of provider and account, from behind `after`. Raises: StoreError."""
    now = broker.clock.now()
    return [state_of(a, now) for a in broker.store.accounts(provider=provider, after=after, limit=limit)]


def in_environment(broker: Broker, providers: Sequence[Provider]) -> list[AccountState]:
    """Give what the environment holds for these providers, each as the account that it would serve."""
    found = []
    for provider in providers:
        for method in provider.auth:
            credential = credential_in(broker.environ, method)
            if credential is None:
                continue
            ref = broker.resolve(provider.id)
            secrets = list(secrets_of(credential).values())
            found.append(
                AccountState(
                    ref=ref,
                    source="environment",
                    method=method.id,
                    kind="fields" if method.secrets else "api-key",
                    health=Health.UNKNOWN,
                    last_four=secrets[0].last_four if secrets else "",
                    variable=next(
                        (
                            name
                            for name in (*method.environment, *(n for s in method.secrets for n in s.environment))
                            if broker.environ.get(name)
                        ),
                        None,
                    ),
                    shadowed=broker.store.account(ref) is not None,
                )
            )
            break
    return found


def state_of(account: Account, now: datetime) -> AccountState:
    """Judge a stored account by its public columns and the time."""
    return AccountState(
        ref=account.ref,
        source="stored",
        method=account.method,
        kind=account.kind,
        health=_health(account, now),
        reason=account.reason,
        identity=account.identity,
        last_four=account.hint,
        is_default=account.is_default,
        issued_at=account.issued_at,
        expires_at=account.expires_at,
        updated_at=account.updated_at,
        generation=account.generation,
    )


def _health(account: Account, now: datetime) -> Health:
    ends, issued = account.expires_at, account.issued_at
    if account.health not in (Health.OK, Health.UNKNOWN) or ends is None or account.kind in _RENEWED:
        return account.health
    if now >= ends:
        return Health.EXPIRED
    if issued is not None and now >= ends - (ends - issued) / 4:
        return Health.EXPIRING
    return account.health
