"""Renewal ahead of need: when it happens, what it leaves alone, and that it happens once."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from tests.support.brokers import Declared
from tests.support.scripted_flow import ScriptedFlow
from valetkey.broker import Broker
from valetkey.credential import ApiKey, Credential, CredentialRef, Health, OAuthToken, Secret
from valetkey.errors import RefreshFailed, RefreshRejected
from valetkey.flow import AuthFlow
from valetkey.gateway.ahead import LONGEST_SECONDS, SHORTEST_SECONDS, Ahead
from valetkey.http import HttpClient
from valetkey.provider import Api, AuthMethod, Inject, Provider
from valetkey.store import Record
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

ONE, TWO = CredentialRef(provider="acme", account="one"), CredentialRef(provider="acme", account="two")


def acme(*, refresh_interval: int | None = None) -> Provider:
    method = AuthMethod(
        id="device",
        kind="device",
        client_id="client-1",
        device_authorization_endpoint="https://login.acme.test/device",
        token_endpoint="https://login.acme.test/token",
        refresh_interval=refresh_interval,
        inject=(Inject(set={"authorization": "Bearer {access_token}"}),),
    )
    key = AuthMethod(id="api-key", kind="api-key", inject=(Inject(set={"authorization": "Bearer {key}"}),))
    api = Api(base_url="https://api.acme.test/v1", hosts=("api.acme.test",))
    return Provider(id="acme", name="Acme", api=api, auth=(method, key))


class CountingStore(MemoryStore):
    """Counts how often a record is opened."""

    opened = 0

    def load(self, ref: CredentialRef) -> Record | None:
        self.opened += 1
        return super().load(ref)


@dataclass(kw_only=True)
class Scene:
    """Accounts that are granted, a server that renews them, and a clock."""

    clock: FakeClock = field(default_factory=FakeClock)
    provider: Provider = field(default_factory=acme)
    granted: set[CredentialRef] = field(default_factory=lambda: {ONE})

    def __post_init__(self) -> None:
        self.store = CountingStore(clock=self.clock)
        self.flow = ScriptedFlow(clock=self.clock)

        def flow_for(provider: Provider, method: AuthMethod, **rest: object) -> AuthFlow:
            return self.flow

        self.broker = Broker(
            store=self.store,
            catalogue=Declared(known=(self.provider,)),  # type: ignore[arg-type]  # the part that a broker uses
            http=HttpClient(),
            clock=self.clock,
            environ={},
            flow_for=flow_for,
        )
        self.ahead = Ahead(broker=self.broker, granted=lambda: self.granted, clock=self.clock)

    def log_in(self, ref: CredentialRef = ONE, *, life: float | None = 3600) -> None:
        now = self.clock.now()
        self.save(
            ref,
            OAuthToken(
                method="device",
                access_token=Secret("access-1"),
                refresh_token=Secret("refresh-1"),
                issued_at=now,
                expires_at=None if life is None else now + timedelta(seconds=life),
            ),
        )

    def save(self, ref: CredentialRef, credential: Credential) -> None:
        account = self.store.account(ref)
        self.store.save(
            Record(
                ref=ref,
                credential=credential,
                hosts=("api.acme.test",),
                endpoints=("login.acme.test",),
                base_url="https://api.acme.test/v1",
                generation=0 if account is None else account.generation,
            )
        )

    async def look(self) -> float:
        """Look once, and let what begins come to its end."""
        wait = await self.ahead.look()
        await asyncio.to_thread(self.broker.wait_for_renewals)
        return wait

    async def pass_by(self, seconds: float) -> None:
        """Let time go by, in the steps that the looks ask for."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.clock.advance(min(await self.look(), left))
        await self.look()


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_token_is_renewed_at_three_quarters_of_its_life_without_a_request(scene: Scene) -> None:
    scene.log_in(life=3600)
    await scene.pass_by(2690)
    assert scene.flow.refreshes == 0
    await scene.pass_by(20)
    assert scene.flow.refreshes == 1
    account = scene.store.account(ONE)
    assert account is not None
    assert (account.generation, account.health) == (2, Health.OK)


async def test_it_goes_on_for_as_long_as_the_account_is_granted(scene: Scene) -> None:
    scene.log_in(life=3600)
    await scene.pass_by(4 * 2700 + 60)
    assert scene.flow.refreshes == 4
    scene.granted = set()
    await scene.pass_by(3 * 3600)
    assert scene.flow.refreshes == 4


async def test_a_declared_interval_counts_where_it_is_sooner() -> None:
    scene = Scene(provider=acme(refresh_interval=600))
    scene.log_in(life=None)
    await scene.pass_by(590)
    assert scene.flow.refreshes == 0
    await scene.pass_by(20)
    assert scene.flow.refreshes == 1


async def test_a_login_that_only_a_run_may_use_is_renewed_too() -> None:
    provider = acme()
    only_for_an_agent = replace(provider.auth[0], standing="restricted", for_agents=("claude",))
    scene = Scene(provider=replace(provider, auth=(only_for_an_agent, *provider.auth[1:])))
    scene.log_in(life=3600)
    record = scene.store.load(ONE)
    assert record is not None
    scene.store.save(replace(record, restricted=True))
    await scene.pass_by(2710)
    assert scene.flow.refreshes == 1


async def test_a_short_life_is_looked_at_in_time(scene: Scene) -> None:
    scene.flow.life = timedelta(seconds=20)
    scene.log_in(life=20)
    await scene.pass_by(60)
    # At half of a life this short; it never gets as far as its end.
    assert 5 <= scene.flow.refreshes <= 6


async def test_the_next_look_comes_when_something_is_due_and_soon_enough_for_a_new_key(scene: Scene) -> None:
    assert await scene.look() == LONGEST_SECONDS
    scene.log_in(life=24)
    scene.clock.advance(LONGEST_SECONDS)
    scene.log_in(life=24)
    assert await scene.look() == 12
    scene.log_in(TWO, life=3)
    scene.granted = {ONE, TWO}
    assert await scene.look() == pytest.approx(1.5)
    scene.clock.advance(1.5)
    assert await scene.look() >= SHORTEST_SECONDS


async def test_an_account_that_needs_a_login_is_left_alone_until_there_is_one(scene: Scene) -> None:
    def rejected(credential: Credential) -> Credential:
        raise RefreshRejected("the refresh token was revoked", hint="log in", provider="acme")

    scene.flow.steps = [rejected]
    scene.log_in(life=3600)
    await scene.pass_by(8000)
    assert scene.flow.refreshes == 1
    account = scene.store.account(ONE)
    assert account is not None
    assert account.health is Health.NEEDS_LOGIN
    opened = scene.store.opened
    await scene.pass_by(600)
    assert scene.store.opened == opened  # not even looked at
    scene.log_in(life=3600)
    await scene.pass_by(2760)
    assert scene.flow.refreshes == 2


async def test_failures_wait_for_the_back_off_that_is_stored(scene: Scene) -> None:
    def failing(credential: Credential) -> Credential:
        raise RefreshFailed("the server answered 503", hint="try again", provider="acme", retry_after=120)

    scene.flow.steps = [failing, failing]
    scene.log_in(life=3600)
    await scene.pass_by(2730)
    assert scene.flow.refreshes == 1
    await scene.pass_by(80)
    assert scene.flow.refreshes == 1
    await scene.pass_by(60)
    assert scene.flow.refreshes == 2
    await scene.pass_by(180)
    assert scene.flow.refreshes == 3


async def test_a_dead_token_does_not_hold_up_the_others(scene: Scene) -> None:
    scene.granted = {ONE, TWO}
    scene.log_in(ONE, life=100)
    scene.clock.advance(200)
    scene.log_in(TWO, life=3600)
    scene.flow.gate = threading.Event()
    # The first waits for the server; the look ends all the same, and the next one begins nothing twice.
    await scene.ahead.look()
    await asyncio.to_thread(scene.flow.entered.wait, 30)
    tasks = len(asyncio.all_tasks())
    scene.clock.advance(LONGEST_SECONDS)
    await scene.ahead.look()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks
    scene.clock.advance(2700)
    await scene.ahead.look()
    scene.flow.gate.set()
    await asyncio.to_thread(scene.broker.wait_for_renewals)
    assert scene.flow.refreshes == 2
    accounts = [scene.store.account(ref) for ref in (ONE, TWO)]
    assert [account.generation for account in accounts if account is not None] == [2, 2]


async def test_what_does_not_get_old_is_not_opened(scene: Scene) -> None:
    scene.save(ONE, ApiKey(method="api-key", key=Secret("a-key")))
    scene.granted = {ONE, TWO}  # the second is logged out
    await scene.pass_by(3600)
    assert scene.store.opened == 0


async def test_there_is_one_loop_however_often_it_is_started(scene: Scene) -> None:
    scene.log_in(life=3600)
    looks = 0

    def granted() -> set[CredentialRef]:
        nonlocal looks
        looks += 1
        return {ONE}

    ahead = Ahead(broker=scene.broker, granted=granted, clock=scene.clock)
    running = asyncio.create_task(ahead.run())
    await asyncio.sleep(0)
    assert looks == 1
    async with asyncio.timeout(10):
        await ahead.run()  # returns at once
    assert looks == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_the_loop_renews_by_the_clock(scene: Scene) -> None:
    scene.log_in(life=3600)
    running = asyncio.create_task(scene.ahead.run())
    assert await asyncio.to_thread(scene.flow.entered.wait, 30)
    running.cancel()
    await asyncio.to_thread(scene.broker.wait_for_renewals)
    assert max(scene.clock.waits) <= LONGEST_SECONDS
    assert sum(scene.clock.waits) >= 2700
