"""The states of docs/broker.md, row by row."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.scripted_flow import ScriptedFlow
from valetkey.broker import Broker
from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, CredentialRef, Health, OAuthToken, Secret
from valetkey.errors import (
    ConnectTimeout,
    CredentialExpired,
    HostsNotAccepted,
    NameNotResolved,
    NeedsLogin,
    NotForThisUse,
    NotLoggedIn,
    RefreshBusy,
    RefreshFailed,
    RefreshRejected,
    StoreUnwritable,
    UnknownProvider,
    ValetkeyError,
)
from valetkey.flow import AuthFlow
from valetkey.http import HttpClient
from valetkey.provider import Api, AuthMethod, Inject, Parameter, Provider, Token
from valetkey.store import Intent, Record, Retry, Store
from valetkey.stores import open_store
from valetkey.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

REF = CredentialRef(provider="acme")
DEVICE = AuthMethod(
    id="device",
    kind="device",
    client_id="client-1",
    device_authorization_endpoint="https://login.acme.test/device",
    token_endpoint="https://login.acme.test/token",
    inject=(Inject(set={"authorization": "Bearer {access_token}"}, remove=("x-api-key",)),),
)
KEY = AuthMethod(
    id="api-key",
    kind="api-key",
    environment=("ACME_API_KEY",),
    inject=(Inject(set={"authorization": "Bearer {key}"}),),
)
ACME = Provider(
    id="acme",
    name="Acme",
    api=Api(base_url="https://api.acme.test/v1", hosts=("api.acme.test",)),
    auth=(DEVICE, KEY),
)


@dataclass(kw_only=True)
class Providers:
    """A catalogue of what a test declares."""

    known: dict[str, Provider] = field(default_factory=lambda: {"acme": ACME})

    def get(self, id: str) -> Provider:
        try:
            return self.known[id]
        except KeyError:
            raise UnknownProvider(f"there is no provider {id!r}", hint="run `valetkey providers list`") from None


@dataclass(kw_only=True)
class Scene:
    """A broker with a store, a clock and a flow that the test moves."""

    clock: FakeClock
    store: Store
    flow: ScriptedFlow
    providers: Providers = field(default_factory=Providers)
    environ: dict[str, str] = field(default_factory=dict)
    here: dict[str, str] = field(default_factory=dict)

    def broker(self, store: Store | None = None) -> Broker:
        def flow_for(provider: Provider, method: AuthMethod, **rest: object) -> AuthFlow:
            return self.flow

        return Broker(
            store=store or self.store,
            catalogue=self.providers,  # type: ignore[arg-type]  # the part of a Catalogue that a broker uses
            http=HttpClient(),
            clock=self.clock,
            environ=self.environ,
            accounts_here=self.here,
            flow_for=flow_for,
        )

    def log_in(self, ref: CredentialRef = REF, *, life: float | None = 3600, restricted: bool = False) -> Record:
        now = self.clock.now()
        return self.save(
            ref,
            OAuthToken(
                method="device",
                access_token=Secret("access-1"),
                refresh_token=Secret("refresh-1"),
                issued_at=now,
                expires_at=None if life is None else now + timedelta(seconds=life),
            ),
            restricted=restricted,
        )

    def save(self, ref: CredentialRef, credential: Credential, *, restricted: bool = False) -> Record:
        account = self.store.account(ref)
        return self.store.save(
            Record(
                ref=ref,
                credential=credential,
                hosts=("api.acme.test",),
                endpoints=("login.acme.test",),
                base_url="https://api.acme.test/v1",
                restricted=restricted,
                generation=account.generation if account else 0,
            )
        )

    def watch_health(self) -> list[Health]:
        """Give a list that gets the account's health as it stands while the next renewal is sent."""
        seen: list[Health] = []

        def look(credential: Credential) -> Credential:
            seen.append(self.record().health)
            assert isinstance(credential, OAuthToken)
            return self.flow.next_token(credential)

        self.flow.steps = [look]
        return seen

    def record(self) -> Record:
        record = self.store.load(REF)
        assert record is not None
        return record


@pytest.fixture
def scene(clock: FakeClock, home: Path) -> Iterator[Scene]:
    store = open_store(Paths(home=home), clock=clock, key_source_kind="key-file")
    yield Scene(clock=clock, store=store, flow=ScriptedFlow(clock=clock))
    store.close()


def access_token(credential: Credential) -> str:
    assert isinstance(credential, OAuthToken)
    return credential.access_token.reveal()


def refuse(error: ValetkeyError, cause: BaseException | None = None):  # type: ignore[no-untyped-def]  # raises
    def step(_: Credential) -> Credential:
        raise error from cause

    return step


REJECTED = RefreshRejected("invalid_grant: revoked", hint="log in again")


# --- fresh, stale, dead -----------------------------------------------------------------------


async def test_a_fresh_token_is_returned_without_a_request(scene: Scene) -> None:
    scene.log_in()
    assert access_token(await scene.broker().credential(REF)) == "access-1"
    assert scene.flow.refreshes == 0


async def test_a_stale_token_is_returned_at_once_and_renewed_in_the_background(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(2700)
    broker = scene.broker()
    assert access_token(await broker.credential(REF)) == "access-1"
    broker.wait_for_renewals()
    assert access_token(await broker.credential(REF)) == "access-2"
    assert scene.flow.refreshes == 1


async def test_a_dead_token_is_never_returned(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    assert access_token(await scene.broker().credential(REF)) == "access-2"


async def test_a_renewal_is_saved_before_it_is_returned(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    await scene.broker().credential(REF)
    record = scene.record()
    assert access_token(record.credential) == "access-2"
    assert (record.generation, record.health) == (2, Health.OK)
    assert scene.store.intent(REF) is None


async def test_a_refused_token_is_renewed_however_young_it_is(scene: Scene) -> None:
    record = scene.log_in()
    assert access_token(await scene.broker().credential(REF, rejected=record.credential)) == "access-2"


async def test_a_peers_newer_token_is_used_without_another_refresh_after_a_401(scene: Scene) -> None:
    old = scene.log_in()
    broker, peer = scene.broker(), scene.broker()
    await peer.credential(REF, rejected=old.credential)
    assert access_token(await broker.credential(REF, rejected=old.credential)) == "access-2"
    assert scene.flow.refreshes == 1


async def test_a_key_that_was_refused_is_an_error_that_says_so(scene: Scene) -> None:
    key = ApiKey(method="api-key", key=Secret("k"))
    scene.save(REF, key)
    assert await scene.broker().credential(REF) == key
    with pytest.raises(CredentialExpired, match="refused"):
        await scene.broker().credential(REF, rejected=key)


async def test_a_token_without_refresh_token_ends_with_its_life(scene: Scene) -> None:
    record = scene.log_in()
    assert isinstance(record.credential, OAuthToken)
    scene.save(REF, replace(record.credential, refresh_token=None))
    scene.clock.advance(3590)
    await scene.broker().credential(REF)
    scene.clock.advance(10)
    with pytest.raises(CredentialExpired) as caught:
        await scene.broker().credential(REF)
    assert caught.value.hint == "run `valetkey login acme`"
    assert caught.value.exit_status == 3


# --- clocks -----------------------------------------------------------------------------------


async def test_a_clock_that_jumps_ahead_kills_no_token_that_this_process_knows(scene: Scene) -> None:
    scene.log_in()
    broker = scene.broker()
    await broker.credential(REF)
    scene.clock.jump(86_400)
    assert access_token(await broker.credential(REF)) == "access-1"
    assert scene.flow.refreshes == 0


async def test_a_clock_that_jumps_back_keeps_no_token_alive_that_this_process_knows(scene: Scene) -> None:
    scene.log_in()
    broker = scene.broker()
    await broker.credential(REF)
    scene.clock.jump(-86_400)
    scene.clock.advance(3600)
    assert access_token(await broker.credential(REF)) == "access-2"


async def test_a_back_off_longer_than_any_that_we_set_is_a_jumped_clock(scene: Scene) -> None:
    record = scene.log_in()
    far = scene.clock.now() + timedelta(days=300)
    scene.store.mark(
        REF, generation=record.generation, health=Health.UNREACHABLE, retry=Retry(failures=1, not_before=far)
    )
    scene.clock.advance(3600)
    assert access_token(await scene.broker().credential(REF)) == "access-2"


# --- one refresh however many ask -------------------------------------------------------------


async def test_fifty_tasks_share_one_refresh(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    broker = scene.broker()
    tokens = await asyncio.gather(*(broker.credential(REF) for _ in range(50)))
    assert {access_token(t) for t in tokens} == {"access-2"}
    assert scene.flow.refreshes == 1


async def test_brokers_of_several_processes_share_one_refresh(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    tokens = await asyncio.gather(*(scene.broker().credential(REF) for _ in range(10)))
    assert {access_token(t) for t in tokens} == {"access-2"}
    assert scene.flow.refreshes == 1


async def test_a_shared_failure_is_one_request(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    scene.flow.steps = [refuse(REJECTED)]
    broker = scene.broker()
    results = await asyncio.gather(*(broker.credential(REF) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(r, NeedsLogin) for r in results)
    assert scene.flow.refreshes == 1


async def test_a_refresh_outlives_its_only_caller(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    scene.flow.gate = threading.Event()
    broker = scene.broker()
    asking = asyncio.create_task(broker.credential(REF))
    await asyncio.to_thread(scene.flow.entered.wait, 30)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    scene.flow.gate.set()
    broker.wait_for_renewals()
    assert access_token(scene.record().credential) == "access-2"


async def test_accounts_of_one_client_renew_one_after_the_other_where_it_is_declared(scene: Scene) -> None:
    method = replace(DEVICE, token=Token(serialize="client"))
    scene.providers.known["acme"] = replace(ACME, auth=(method,))
    other = CredentialRef(provider="acme", account="work")
    scene.log_in()
    scene.log_in(other)
    scene.clock.advance(3600)
    scene.flow.gate = threading.Event()
    broker = scene.broker()
    first = asyncio.create_task(broker.credential(REF))
    await asyncio.to_thread(scene.flow.entered.wait, 30)
    assert scene.store.try_lock("client client-1") is None
    second = asyncio.create_task(broker.credential(other))
    assert scene.flow.refreshes == 1
    scene.flow.gate.set()
    await asyncio.gather(first, second)
    assert scene.flow.refreshes == 2


# --- failures ---------------------------------------------------------------------------------


async def test_invalid_grant_ends_the_login_once_and_deletes_nothing(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    scene.flow.steps = [refuse(REJECTED)]
    for _ in range(3):
        with pytest.raises(NeedsLogin) as caught:
            await scene.broker().credential(REF)
    assert "invalid_grant" in caught.value.message
    assert scene.flow.refreshes == 1
    record = scene.record()
    assert record.health is Health.NEEDS_LOGIN
    assert access_token(record.credential) == "access-1"
    assert scene.store.intent(REF) is None


async def test_a_rejected_refresh_lets_a_stale_token_live_to_its_end(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(2700)
    scene.flow.steps = [refuse(REJECTED)]
    broker = scene.broker()
    await broker.credential(REF)
    broker.wait_for_renewals()
    assert scene.record().health is Health.NEEDS_LOGIN
    assert access_token(await broker.credential(REF)) == "access-1"
    assert scene.flow.refreshes == 1


async def test_our_failure_loses_against_somebody_elses_success(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)

    def overtaken(credential: Credential) -> Credential:
        scene.save(REF, scene.flow.next_token(credential))  # type: ignore[arg-type]  # it is an OAuthToken
        raise REJECTED

    scene.flow.steps = [overtaken]
    assert access_token(await scene.broker().credential(REF)) == "access-2"
    assert scene.record().health is Health.OK


async def test_a_login_made_during_the_renewal_stays(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)

    def slow(credential: Credential) -> Credential:
        scene.log_in()
        assert isinstance(credential, OAuthToken)
        return replace(scene.flow.next_token(credential), access_token=Secret("late"))

    scene.flow.steps = [slow]
    assert access_token(await scene.broker().credential(REF)) == "access-1"
    assert (scene.record().generation, access_token(scene.record().credential)) == (2, "access-1")


def failed(cause: BaseException | None = None, *, retry_after: float | None = None) -> RefreshFailed:
    error = RefreshFailed("the server answered 503", hint="try later", retry_after=retry_after)
    error.__cause__ = cause
    return error


async def test_a_failed_refresh_backs_off_for_every_process_and_keeps_the_token(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    scene.flow.steps = [refuse(failed())]
    for _ in range(3):
        with pytest.raises(RefreshFailed):
            await scene.broker().credential(REF)
    assert scene.flow.refreshes == 1
    record = scene.record()
    assert (record.health, access_token(record.credential)) == (Health.UNREACHABLE, "access-1")
    assert scene.store.intent(REF) is None
    scene.clock.advance(1)
    assert access_token(await scene.broker().credential(REF)) == "access-3"  # of the second request
    assert (scene.record().health, scene.record().retry) == (Health.OK, None)


async def test_back_off_grows_from_a_second_to_five_minutes(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    waits = []
    for _ in range(12):
        scene.flow.steps = [refuse(failed())]
        with pytest.raises(RefreshFailed) as caught:
            await scene.broker().credential(REF)
        assert caught.value.retry_after is not None
        waits.append(caught.value.retry_after)
        scene.clock.advance(caught.value.retry_after)
    assert scene.flow.refreshes == 12
    assert 0.5 <= waits[0] <= 1
    assert all(0.5 * min(300, 2**n) <= wait <= min(300, 2**n) for n, wait in enumerate(waits))


async def test_retry_after_is_obeyed_up_to_five_minutes(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    for wish, got in ((120.0, 120.0), (9000.0, 300.0)):
        scene.flow.steps = [refuse(failed(retry_after=wish))]
        with pytest.raises(RefreshFailed) as caught:
            await scene.broker().credential(REF)
        assert caught.value.retry_after == got
        scene.clock.advance(got)


async def test_a_stale_token_is_served_while_the_server_is_away(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(2700)
    scene.flow.steps = [refuse(failed())]
    broker = scene.broker()
    await broker.credential(REF)
    broker.wait_for_renewals()
    assert access_token(await broker.credential(REF)) == "access-1"
    assert scene.flow.refreshes == 1


@pytest.mark.parametrize(
    ("cause", "health", "kept"),
    [
        (NameNotResolved("no address", hint="look", sent=False), Health.UNREACHABLE, False),
        (ConnectTimeout("no answer", hint="wait", sent=True), Health.UNCERTAIN, True),
    ],
)
async def test_only_a_request_without_answer_leaves_its_intent(
    scene: Scene, cause: BaseException, health: Health, kept: bool
) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    scene.flow.steps = [refuse(failed(), cause)]
    with pytest.raises(RefreshFailed):
        await scene.broker().credential(REF)
    assert scene.record().health is health
    assert (scene.store.intent(REF) is not None) is kept


# --- an intent that nobody cleared ------------------------------------------------------------


def leave_intent(scene: Scene, *, generation: int = 1) -> None:
    scene.store.begin_intent(
        REF, Intent(generation=generation, started_at=scene.clock.now(), refresh_token_hash="0" * 64)
    )


async def test_an_old_intent_is_tried_once_and_ends_well(scene: Scene) -> None:
    scene.log_in()
    leave_intent(scene)
    scene.clock.advance(3600)
    seen = scene.watch_health()
    await scene.broker().credential(REF)
    assert seen == [Health.UNCERTAIN]
    assert scene.record().health is Health.OK


async def test_an_old_intent_whose_token_was_spent_ends_as_needs_login_and_says_why(scene: Scene) -> None:
    scene.log_in()
    leave_intent(scene)
    scene.clock.advance(3600)
    scene.flow.steps = [refuse(REJECTED)]
    with pytest.raises(NeedsLogin, match="cut off before its answer was saved"):
        await scene.broker().credential(REF)
    with pytest.raises(NeedsLogin):
        await scene.broker().credential(REF)
    assert scene.flow.refreshes == 1


async def test_an_intent_of_an_older_generation_means_nothing(scene: Scene) -> None:
    scene.log_in()
    scene.log_in()
    leave_intent(scene, generation=1)
    scene.clock.advance(3600)
    seen = scene.watch_health()
    await scene.broker().credential(REF)
    assert seen == [Health.OK]


# --- the lock ---------------------------------------------------------------------------------


async def test_a_stopped_holder_makes_others_give_up_after_thirty_seconds_without_a_request(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    lock = scene.store.try_lock(str(REF))
    assert lock is not None
    before = scene.clock.monotonic()
    with pytest.raises(RefreshBusy):
        await scene.broker().credential(REF)
    assert scene.clock.monotonic() - before >= 30
    assert scene.flow.refreshes == 0
    lock.release()
    assert access_token(await scene.broker().credential(REF)) == "access-2"


async def test_a_living_token_is_served_while_the_holder_is_stopped(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(2700)
    lock = scene.store.try_lock(str(REF))
    assert lock is not None
    broker = scene.broker()
    assert access_token(await broker.credential(REF)) == "access-1"
    broker.wait_for_renewals()
    assert scene.flow.refreshes == 0


@dataclass(kw_only=True)
class SlowToWake:
    """A store whose first intent takes longer than a holder may be away: the process was stopped in between."""

    store: Store
    clock: FakeClock
    slept: bool = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def begin_intent(self, ref: CredentialRef, intent: Intent) -> None:
        self.store.begin_intent(ref, intent)
        if not self.slept:
            self.slept = True
            self.clock.advance(25)


async def test_a_holder_that_wakes_late_starts_again_and_is_not_uncertain(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    store = SlowToWake(store=scene.store, clock=scene.clock)
    seen = scene.watch_health()
    broker = scene.broker(store)  # type: ignore[arg-type]  # it passes everything on
    assert access_token(await broker.credential(REF)) == "access-2"
    assert store.slept
    assert seen == [Health.OK]
    assert scene.flow.refreshes == 1


# --- a disk that is full ----------------------------------------------------------------------


@dataclass(kw_only=True)
class FullDisk:
    """A store that cannot write; `from_save` means that it fills up between the intent and the save, `times` often."""

    store: Store
    times: int
    from_save: bool

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def begin_intent(self, ref: CredentialRef, intent: Intent) -> None:
        if not self.from_save:
            raise StoreUnwritable("the disk is full", hint="free some space")
        self.store.begin_intent(ref, intent)

    def save(self, record: Record) -> Record:
        if self.times:
            self.times -= 1
            raise StoreUnwritable("the disk is full", hint="free some space")
        return self.store.save(record)


async def test_a_full_disk_is_found_before_anything_is_spent(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    broker = scene.broker(FullDisk(store=scene.store, times=0, from_save=False))  # type: ignore[arg-type]  # as above
    with pytest.raises(StoreUnwritable):
        await broker.credential(REF)
    assert scene.flow.refreshes == 0


async def test_a_disk_that_fills_up_in_between_gets_some_seconds_to_recover(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    broker = scene.broker(FullDisk(store=scene.store, times=3, from_save=True))  # type: ignore[arg-type]  # as above
    assert access_token(await broker.credential(REF)) == "access-2"
    assert access_token(scene.record().credential) == "access-2"


# --- where the refresh token may go -----------------------------------------------------------


async def test_a_changed_token_endpoint_gets_no_refresh_token(scene: Scene) -> None:
    scene.log_in()
    scene.clock.advance(3600)
    moved = replace(DEVICE, token_endpoint="https://evil.test/token")
    scene.providers.known["acme"] = replace(ACME, auth=(moved,))
    with pytest.raises(HostsNotAccepted, match=r"evil\.test"):
        await scene.broker().credential(REF)
    assert scene.flow.refreshes == 0


async def test_a_credential_goes_to_the_hosts_of_its_login_alone(scene: Scene) -> None:
    scene.log_in()
    scene.providers.known["acme"] = replace(ACME, api=replace(ACME.api, hosts=("evil.test",)))
    access = await scene.broker().access("acme", use="token")
    assert access.headers("https://api.acme.test/v1/x", {})["authorization"] == "Bearer access-1"
    with pytest.raises(HostsNotAccepted):
        access.headers("https://evil.test/v1/x", {})


# --- who serves -------------------------------------------------------------------------------


async def test_the_named_account_then_the_folders_then_the_default(scene: Scene) -> None:
    work, home = CredentialRef(provider="acme", account="work"), CredentialRef(provider="acme", account="home")
    scene.log_in(work)
    scene.log_in(home)
    broker = scene.broker()
    assert broker.resolve("acme@home") == home
    assert broker.resolve("acme") == work  # the first is the default
    scene.here["acme"] = "home"
    assert scene.broker().resolve("acme") == home
    assert scene.broker().resolve("acme@work") == work


async def test_a_stored_login_goes_before_the_environment(scene: Scene) -> None:
    scene.environ["ACME_API_KEY"] = "from-environment"
    access = await scene.broker().access("acme", use="token")
    assert (access.source, access.variable) == ("environment", "ACME_API_KEY")
    assert access.headers("https://api.acme.test/v1/x", {})["authorization"] == "Bearer from-environment"
    scene.log_in()
    access = await scene.broker().access("acme", use="token")
    assert access.source == "stored"


async def test_the_environment_never_serves_a_named_account(scene: Scene) -> None:
    scene.environ["ACME_API_KEY"] = "from-environment"
    with pytest.raises(NotLoggedIn) as caught:
        await scene.broker().access("acme@work", use="token")
    assert caught.value.hint == "run `valetkey login acme --account work`"


async def test_the_environment_does_not_hide_a_login_that_has_ended(scene: Scene) -> None:
    scene.environ["ACME_API_KEY"] = "from-environment"
    scene.log_in()
    scene.clock.advance(3600)
    scene.flow.steps = [refuse(REJECTED)]
    with pytest.raises(NeedsLogin):
        await scene.broker().access("acme", use="token")


async def test_an_environment_key_without_its_required_parameter_serves_nothing(scene: Scene) -> None:
    method = replace(KEY, parameters=(Parameter(key="resource", label="Resource", environment=("ACME_RESOURCE",)),))
    scene.providers.known["acme"] = replace(ACME, auth=(method,))
    scene.environ["ACME_API_KEY"] = "from-environment"
    with pytest.raises(NotLoggedIn):
        await scene.broker().access("acme", use="token")
    scene.environ["ACME_RESOURCE"] = "r1"
    access = await scene.broker().access("acme", use="token")
    assert access.credential is not None
    assert access.credential.parameters == {"resource": "r1"}


async def test_a_server_that_needs_no_key_serves_without_login(scene: Scene) -> None:
    scene.providers.known["acme"] = replace(ACME, auth=(replace(KEY, optional=True),))
    access = await scene.broker().access("acme", use="ask")
    assert (access.source, access.credential) == ("none", None)
    assert "authorization" not in access.headers("https://api.acme.test/v1/x", {"X-Test": "1"})


@pytest.mark.parametrize("use", ["token", "exec", "helper", "ask", "auth", "gateway"])
async def test_a_restricted_login_serves_no_tool(scene: Scene, use: str) -> None:
    scene.log_in(restricted=True)
    with pytest.raises(NotForThisUse) as caught:
        await scene.broker().access("acme", use=use)  # type: ignore[arg-type]  # one of Use
    assert caught.value.exit_status == 4


async def test_a_restricted_login_for_its_own_agents_serves_no_chat_either(scene: Scene) -> None:
    scene.log_in(restricted=True)
    assert (await scene.broker().access("acme", use="chat")).source == "stored"
    scene.providers.known["acme"] = replace(ACME, auth=(replace(DEVICE, for_agents=("acme-cli",)),))
    with pytest.raises(NotForThisUse, match="acme-cli"):
        await scene.broker().access("acme", use="chat")
    assert (await scene.broker().access("acme", use="probe")).source == "stored"
