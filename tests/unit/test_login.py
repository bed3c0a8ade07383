"""Logins under way: what is stored when, and what never is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

from tests.support.declarations import ambient, jwt, method, provider
from valetkey.clock import SystemClock
from valetkey.credential import Ambient, ApiKey, CredentialRef, ExchangedKey, Health, Identity, OAuthToken, Secret
from valetkey.errors import (
    CompletionFailed,
    InvalidName,
    KeyRejected,
    LoginTimeout,
    PollFailed,
    PortsBusy,
    RestrictedLogin,
    TlsFailed,
    UnknownProvider,
    Unreachable,
    UsageError,
    ValetkeyError,
    ValidationFailed,
)
from valetkey.flow import EnterFields, OpenBrowser, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.login import Logins, poll_until_complete
from valetkey.provider import AuthMethod, Loopback, Provider, Redirect
from valetkey.store import Account, Record
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer
from valetkey.testing.memory_store import MemoryStore

KEY = "sk-" + "k" * 40
TOKENS = {"access_token": "at-" + "a" * 40, "refresh_token": "rt-" + "r" * 40, "expires_in": 3600}
REF = CredentialRef(provider="test")


class Catalogue:
    """One provider, which tests change."""

    def __init__(self, declared: Provider) -> None:
        self.declared = declared

    def get(self, id: str) -> Provider:
        if id != self.declared.id:
            raise UnknownProvider(f"no provider is called {id}", hint="run `valetkey providers list`")
        return self.declared


class ContestedStore(MemoryStore):
    """A store into which somebody else saves first, `rivals` times."""

    rivals = 0

    def save(self, record: Record) -> Record:
        newest = self.load(record.ref)
        if self.rivals and newest is not None:
            self.rivals -= 1
            super().save(newest)
        return super().save(record)


@pytest.fixture
def store(clock: FakeClock) -> ContestedStore:
    return ContestedStore(clock=clock)


@pytest.fixture
def catalogue(authorization_server: AuthorizationServer) -> Catalogue:
    url = authorization_server.url
    return Catalogue(
        provider(url, *(method(k, url) for k in ("api-key", "device", "device-exchange", "authorization-code")))
    )


@pytest.fixture
def logins(store: MemoryStore, catalogue: Catalogue, http: HttpClient, clock: FakeClock) -> Logins:
    return Logins(store=store, catalogue=catalogue, http=http, clock=clock, environ={})


def declare(catalogue: Catalogue, server: AuthorizationServer, *methods: AuthMethod) -> None:
    catalogue.declared = provider(server.url, *methods)


@pytest.mark.anyio
async def test_a_key_is_stored_once_the_provider_took_it(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore
) -> None:
    authorization_server.answers("/api/probe", json={"name": "Ann"})
    pending = await logins.begin("test", method="api-key")
    account = await logins.complete(pending, {"key": KEY})
    assert (account.ref, account.identity, account.health) == (REF, Identity(name="Ann"), Health.OK)
    assert account.is_default
    record = store.load(REF)
    assert record is not None
    assert record.credential == ApiKey(method="api-key", key=Secret(KEY))
    host = urlsplit(authorization_server.url).netloc
    assert (record.base_url, record.hosts, record.endpoints) == (f"{authorization_server.url}/api", (host,), ())
    assert not record.restricted


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "expected"), [(401, KeyRejected), (404, ValidationFailed)])
async def test_what_the_provider_refuses_is_not_stored(
    authorization_server: AuthorizationServer,
    logins: Logins,
    store: MemoryStore,
    status: int,
    expected: type[ValetkeyError],
) -> None:
    authorization_server.answers("/api/probe", status=status)
    pending = await logins.begin("test", method="api-key")
    with pytest.raises(expected):
        await logins.complete(pending, {"key": KEY})
    assert store.load(REF) is None
    account = await logins.complete(pending, {"key": KEY}, verify=False)
    assert account.identity == Identity()


@pytest.mark.anyio
async def test_a_new_login_takes_the_place_of_the_old(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore
) -> None:
    authorization_server.answers("/api/probe", json={})
    for key in (KEY, KEY + "2"):
        await logins.complete(await logins.begin("test", method="api-key"), {"key": key})
        store.mark(REF, generation=1, health=Health.NEEDS_LOGIN, reason="it was ended")
    record = store.load(REF)
    assert record is not None
    assert (record.generation, record.health, record.reason) == (2, Health.OK, "")
    assert record.credential == ApiKey(method="api-key", key=Secret(KEY + "2"))


@pytest.mark.anyio
async def test_a_renewal_meanwhile_does_not_win(
    authorization_server: AuthorizationServer, logins: Logins, store: ContestedStore
) -> None:
    """Between reading the generation and saving, somebody else saves: the login is saved over that."""
    authorization_server.answers("/api/probe", json={})
    await logins.complete(await logins.begin("test", method="api-key"), {"key": KEY})
    store.rivals = 2
    account = await logins.complete(await logins.begin("test", method="api-key"), {"key": "new-" + KEY})
    assert account.generation == 4
    record = store.load(REF)
    assert record is not None
    assert record.credential == ApiKey(method="api-key", key=Secret("new-" + KEY))


@pytest.mark.anyio
async def test_hints_name_the_account_that_was_meant(
    authorization_server: AuthorizationServer, logins: Logins, clock: FakeClock
) -> None:
    authorization_server.answers("/api/probe", status=401)
    pending = await logins.begin("test", method="api-key", account="work")
    with pytest.raises(KeyRejected) as rejected:
        await logins.complete(pending, {"key": KEY})
    assert "`valetkey login test --account work --method api-key`" in rejected.value.hint
    pending = await logins.begin("test", method="authorization-code", account="work")
    with pytest.raises(LoginTimeout) as late:
        await poll_until_complete(logins, pending, clock=clock, timeout=timedelta(seconds=1))
    assert "`valetkey login test --account work --method authorization-code`" in late.value.hint


@pytest.mark.anyio
async def test_accounts_have_names(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore
) -> None:
    authorization_server.answers("/api/probe", json={})
    await logins.complete(await logins.begin("test", method="api-key", account="work"), {"key": KEY})
    await logins.complete(await logins.begin("test", method="api-key", account="home"), {"key": KEY})
    assert [(a.ref.account, a.is_default) for a in store.accounts()] == [("home", False), ("work", True)]
    with pytest.raises(InvalidName):
        await logins.begin("test", method="api-key", account="../x")


@pytest.mark.anyio
async def test_what_is_not_there_is_named(logins: Logins) -> None:
    with pytest.raises(UnknownProvider):
        await logins.begin("nobody")
    with pytest.raises(UsageError, match="magic"):
        await logins.begin("test", method="magic")


@pytest.mark.anyio
async def test_a_restricted_login_needs_a_yes(
    authorization_server: AuthorizationServer, logins: Logins, catalogue: Catalogue, store: MemoryStore
) -> None:
    restricted = replace(method("api-key", authorization_server.url), standing="restricted", notice="Only for them.")
    declare(catalogue, authorization_server, restricted)
    authorization_server.answers("/api/probe", json={})
    with pytest.raises(RestrictedLogin, match="Only for them") as caught:
        await logins.begin("test")
    assert "--yes" in caught.value.hint
    pending = await logins.begin("test", accept_restricted=True)
    await logins.complete(pending, {"key": KEY})
    record = store.load(REF)
    assert record is not None
    assert record.restricted


@pytest.mark.anyio
async def test_an_ambient_secret_is_never_stored(
    authorization_server: AuthorizationServer, logins: Logins, catalogue: Catalogue, store: MemoryStore
) -> None:
    declare(catalogue, authorization_server, ambient("echo", KEY))
    authorization_server.answers("/api/probe", json={})
    pending = await logins.begin("test")
    assert isinstance(pending.action, EnterFields)
    await logins.complete(pending, {})
    record = store.load(REF)
    assert record is not None
    assert isinstance(record.credential, Ambient)
    assert record.credential.values == {}


@pytest.mark.anyio
async def test_a_server_of_ones_own_is_where_the_user_said(
    authorization_server: AuthorizationServer, logins: Logins, catalogue: Catalogue, store: MemoryStore
) -> None:
    declare(catalogue, authorization_server, method("custom", "https://elsewhere.example"))
    authorization_server.answers("/v1/models", json={"data": []})
    base_url = f"{authorization_server.url}/v1"
    await logins.complete(await logins.begin("test"), {"name": "Lab", "base_url": base_url})
    record = store.load(REF)
    assert record is not None
    assert (record.base_url, record.hosts) == (base_url, (urlsplit(base_url).netloc,))


@pytest.mark.anyio
async def test_a_device_login_is_polled_to_the_stored_account(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore, clock: FakeClock
) -> None:
    authorization_server.answers(
        "/device", json={"device_code": "dc", "user_code": "ABCD", "verification_uri": "https://x.example/"}
    )
    authorization_server.answers("/token", status=400, json={"error": "authorization_pending"})
    authorization_server.answers("/token", json=TOKENS)
    api = f"{authorization_server.url}/theirs"
    authorization_server.answers("/exchange", json={"token": KEY, "endpoints": {"api": api}})
    authorization_server.answers("/theirs/probe", json={"name": "Ann"})
    pending = await logins.begin("test", method="device-exchange", account="work")
    account = await poll_until_complete(logins, pending, clock=clock)
    assert isinstance(account, Account)
    assert account.ref.account == "work"
    record = store.load(account.ref)
    assert record is not None
    assert isinstance(record.credential, ExchangedKey)
    assert record.base_url == api
    assert record.endpoints == (urlsplit(authorization_server.url).netloc,)


@pytest.mark.anyio
async def test_a_spent_device_code_is_not_polled_again_when_the_probe_fails(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore, clock: FakeClock
) -> None:
    authorization_server.answers(
        "/device", json={"device_code": "dc", "user_code": "ABCD", "verification_uri": "https://x.example/"}
    )
    authorization_server.answers("/token", json=TOKENS)
    authorization_server.drops("/api/probe")
    pending = await logins.begin("test", method="device")
    with pytest.raises(ValidationFailed, match="could not be checked") as caught:
        await poll_until_complete(logins, pending, clock=clock)
    assert isinstance(caught.value.__cause__, Unreachable)
    assert len(authorization_server.calls("/token")) == 1
    assert store.load(REF) is None


@pytest.mark.anyio
async def test_a_form_is_not_polled(logins: Logins, clock: FakeClock) -> None:
    with pytest.raises(PollFailed):
        await poll_until_complete(logins, await logins.begin("test", method="api-key"), clock=clock)


@pytest.mark.anyio
async def test_what_no_second_try_mends_is_not_tried_again(
    authorization_server: AuthorizationServer, logins: Logins, clock: FakeClock
) -> None:
    authorization_server.answers(
        "/device", json={"device_code": "dc", "user_code": "ABCD", "verification_uri": "https://x.example/"}
    )

    class Untrusted:
        async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Account:
            raise TlsFailed("the TLS connection failed", hint="check the certificate")

    with pytest.raises(TlsFailed):
        await poll_until_complete(Untrusted(), await logins.begin("test", method="device"), clock=clock)
    assert clock.waits == [5]


@pytest.mark.anyio
async def test_ctrl_c_leaves_nothing_behind(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore
) -> None:
    authorization_server.answers(
        "/device", json={"device_code": "dc", "user_code": "ABCD", "verification_uri": "https://x.example/"}
    )
    pending = await logins.begin("test", method="device")
    task = asyncio.create_task(poll_until_complete(logins, pending, clock=SystemClock()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(store.accounts()) == []
    assert authorization_server.calls("/token") == []


# --- by loopback -----------------------------------------------------------------------------------


def browse(pending: PendingAuthorization, **answer: str) -> None:
    """Come back from the provider's page as a browser does."""
    assert isinstance(pending.action, OpenBrowser)
    asked = {k: v[0] for k, v in parse_qs(urlsplit(pending.action.authorization_url).query).items()}
    answer.setdefault("state", asked["state"])
    query = "&".join(f"{name}={value}" for name, value in answer.items())
    with urlopen(f"{asked['redirect_uri']}?{query}") as page:
        assert page.status == 200


@pytest.mark.anyio
async def test_a_browser_login_comes_home(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore, clock: FakeClock
) -> None:
    authorization_server.answers("/token", json={**TOKENS, "id_token": jwt({"sub": "u1", "email": "a@example.test"})})
    authorization_server.answers("/api/probe", json={"name": "Ann"})
    async with logins.listening("test", method="authorization-code") as (pending, heard):
        await asyncio.to_thread(browse, pending, code="the-code")
        account = await poll_until_complete(logins, pending, clock=clock, heard=heard)
        redirect_uri = heard.redirect_uri
    assert account.identity == Identity(account_id="u1", name="Ann", email="a@example.test")
    assert authorization_server.calls("/token")[0].form["redirect_uri"] == redirect_uri
    record = store.load(REF)
    assert record is not None
    assert isinstance(record.credential, OAuthToken)


@pytest.mark.anyio
async def test_a_browser_that_never_comes_back(logins: Logins, clock: FakeClock) -> None:
    async with logins.listening("test", method="authorization-code") as (pending, heard):
        with pytest.raises(LoginTimeout):
            await poll_until_complete(logins, pending, clock=clock, timeout=timedelta(seconds=5), heard=heard)


@pytest.mark.anyio
async def test_when_every_port_is_busy_the_address_is_pasted(
    authorization_server: AuthorizationServer, logins: Logins, catalogue: Catalogue
) -> None:
    browser = method("authorization-code", authorization_server.url)
    busy = Redirect(loopback=Loopback(host="localhost", ports=(authorization_server.port,), path="/auth/callback"))
    declare(catalogue, authorization_server, replace(browser, redirect=busy))
    authorization_server.answers("/token", json=TOKENS)
    authorization_server.answers("/api/probe", json={})
    with pytest.raises(PortsBusy):
        async with logins.listening("test", method="authorization-code"):
            raise AssertionError("not reached")
    pending = await logins.begin("test", method="authorization-code")
    assert isinstance(pending.action, OpenBrowser)
    assert pending.action.paste
    pasted = f"{pending.action.redirect_uri}?code=the-code&state={pending.private['state']}"
    account = await logins.complete(pending, {"pasted": pasted})
    assert account.ref == REF


@pytest.mark.anyio
async def test_a_paste_for_another_login_stores_nothing(
    authorization_server: AuthorizationServer, logins: Logins, store: MemoryStore
) -> None:
    pending = await logins.begin("test", method="authorization-code")
    with pytest.raises(CompletionFailed):
        await logins.complete(pending, {"pasted": "http://127.0.0.1:1/callback?code=c&state=another"})
    assert store.load(REF) is None


@pytest.mark.anyio
async def test_without_a_loopback_nothing_listens(authorization_server: AuthorizationServer, logins: Logins) -> None:
    with pytest.raises(UsageError, match="does not come back"):
        async with logins.listening("test", method="device"):
            raise AssertionError("not reached")


@pytest.mark.anyio
@pytest.mark.parametrize("verify", [True, False])
async def test_identity_comes_from_the_claims_also_without_the_probe(
    authorization_server: AuthorizationServer, logins: Logins, verify: bool
) -> None:
    authorization_server.answers("/token", json={**TOKENS, "id_token": jwt({"sub": "u1"})})
    authorization_server.replies("/api/probe", lambda _: Answer(body=b"{}"))
    pending = await logins.begin("test", method="authorization-code")
    account = await logins.complete(pending, {"pasted": "the-code"}, verify=verify)
    assert account.identity.account_id == "u1"
    assert len(authorization_server.calls("/api/probe")) == int(verify)
