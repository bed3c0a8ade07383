"""A store with accounts to grant, and the keys on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from tests.support.brokers import Declared
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.gateway.keys import Keys, ValetKey
from valetkey.gateway.limits import Limits
from valetkey.gateway.ring import Ring
from valetkey.provider import Api, AuthMethod, Inject, Parameter, Provider
from valetkey.providers import Catalogue
from valetkey.store import Record, Store
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

__all__ = ["ACME", "WORK", "ZENITH", "Desk", "provider"]

ACME = CredentialRef(provider="acme")
WORK = CredentialRef(provider="acme", account="work")
ZENITH = CredentialRef(provider="zenith")
BEARER = (Inject(set={"authorization": "Bearer {key}"}),)


def provider(id: str, *methods: AuthMethod, base_url: str = "", off_limits: tuple[str, ...] = ()) -> Provider:
    """Give a provider at `<id>.example` with a plain key, or these ways to log in."""
    url = base_url or f"https://api.{id}.example/v1"
    key = AuthMethod(id="api-key", kind="api-key", inject=BEARER)
    api = Api(base_url=url, hosts=(url.partition("://")[2].partition("/")[0],), off_limits=off_limits)
    return Provider(id=id, name=id.title(), api=api, auth=methods or (key,))


def providers() -> tuple[Provider, ...]:
    """Give acme and zenith, one that wants no key, one whose address a login tells, one that is restricted by now."""
    tenant = Parameter(key="tenant", label="Tenant", pattern="[a-z]+")
    return (
        provider("acme", off_limits=("* /v1/keys/**",)),
        provider("zenith"),
        provider("nearby", AuthMethod(id="key", kind="custom", optional=True), base_url="http://127.0.0.1:11434/v1"),
        provider(
            "tenanted",
            AuthMethod(id="api-key", kind="cloud", parameters=(tenant,), inject=BEARER),
            base_url="https://{tenant}.tenanted.example/v1",
        ),
        provider("now-restricted", AuthMethod(id="api-key", kind="api-key", standing="restricted", inject=BEARER)),
    )


@dataclass(kw_only=True)
class Desk:
    """Where keys are made: clock, store, catalogue, and a ring on them."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: Store = field(default_factory=lambda: MemoryStore(clock=FakeClock()))
    known: tuple[Provider, ...] = field(default_factory=providers)
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def catalogue(self) -> Catalogue:
        """Give the providers; a ring that was made before goes on with those of then."""
        return cast("Catalogue", Declared(known=self.known))

    @property
    def keys(self) -> Keys:
        """Give the keys of the store."""
        return Keys(self.store, self.clock)

    def log_in(self, ref: CredentialRef, *, hosts: tuple[str, ...] = (), restricted: bool = False) -> Record:
        """Store an account, or a new login of it."""
        old = self.store.load(ref)
        record = Record(
            ref=ref,
            credential=ApiKey(method="api-key", key=Secret("sk-" + "valet" * 8)),
            hosts=hosts or (f"api.{ref.provider}.example",),
            base_url=f"https://{(hosts or (f'api.{ref.provider}.example',))[0]}/v1",
            restricted=restricted,
        )
        return self.store.save(record if old is None else replace(record, generation=old.generation))

    def issue(
        self,
        *grants: CredentialRef,
        name: str = "",
        policy: str | None = None,
        limits: Limits | None = None,
        hours: float | None = None,
    ) -> tuple[ValetKey, bytes]:
        """Make a key and give it with its token as it comes over a wire; the first grant is logged in if it is not."""
        from datetime import timedelta

        chosen = grants or (ACME,)
        if self.store.load(chosen[0]) is None and chosen[0] == ACME:
            self.log_in(ACME)
        key, token = self.keys.issue(
            grants=chosen,
            catalogue=self.catalogue,
            environ=self.environ,
            name=name,
            policy=policy,
            policy_file="policy.toml" if policy is not None else "",
            limits=limits,
            expires_at=None if hours is None else self.clock.now() + timedelta(hours=hours),
        )
        return key, token.reveal().encode()

    def ring(self, **more: object) -> Ring:
        """Give a ring that has read the store once."""
        made = Ring(self.store, self.catalogue, self.clock, self.environ, **more)  # type: ignore[arg-type]  # as named
        made.refresh()
        return made
