"""Every OAuth login against npm oidc-provider, which is certified and which nobody here wrote."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.support.oidc_provider import OidcProvider, oidc_provider
from valetkey.credential import CredentialRef, ExchangedKey, Identity, OAuthToken
from valetkey.errors import (
    CompletionFailed,
    InitiationFailed,
    LoginDenied,
    LoginExpired,
    RefreshRejected,
    UnknownProvider,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, EnterUserCode, OpenBrowser, PendingAuthorization
from valetkey.flows import flow_for, revoke
from valetkey.http import HttpClient
from valetkey.login import Logins, poll_until_complete
from valetkey.provider import Api, AuthMethod, Call, Claims, Exchange, Inject, Loopback, Provider, Redirect, Token
from valetkey.store import Account
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

pytestmark = pytest.mark.anyio
REF = CredentialRef(provider="oidc")
ALICE = Identity(account_id="alice", name="Test alice", email="alice@example.test")


def declared(oidc: OidcProvider) -> Provider:
    """Give a declaration as a user would write it for this provider."""
    common = AuthMethod(
        id="browser",
        kind="authorization-code",
        client_id=oidc.client_id,
        issuer=oidc.issuer,
        scope=("openid", "offline_access", "email", "profile"),
        authorization_endpoint=oidc.authorization_endpoint,
        authorization_parameters={"prompt": "consent"},
        device_authorization_endpoint=oidc.device_authorization_endpoint,
        token_endpoint=oidc.token_endpoint,
        revocation_endpoint=oidc.revocation_endpoint,
        redirect=Redirect(loopback=Loopback(path="/callback")),
        claims=Claims(account_id=("/sub",), email=("/email",)),
        inject=(Inject(set={"authorization": "Bearer {access_token}"}),),
        probe=Call(get=oidc.probe_endpoint, name="/name"),
    )
    device = replace(common, id="device", kind="device")
    exchange = replace(
        device,
        id="exchange",
        kind="device-exchange",
        inject=(Inject(set={"authorization": "Bearer {key}"}),),
        probe=Call(get="/keyed"),
        exchange=Exchange(
            get=oidc.exchange_endpoint,
            expires_at="/expires_at",
            refresh_in="/refresh_in",
            base_url="/endpoints/api",
        ),
    )
    api = Api(base_url=f"{oidc.issuer}/v1", hosts=(urlsplit(oidc.issuer).netloc,))
    return Provider(id="oidc", name="OIDC", api=api, auth=(common, device, exchange))


class Setting:
    """What a login needs, around one provider."""

    def __init__(self, oidc: OidcProvider, http: HttpClient, clock: FakeClock) -> None:
        self.oidc = oidc
        self.provider = declared(oidc)
        self.http = http
        self.clock = clock
        self.store = MemoryStore(clock=clock)
        self.logins = Logins(store=self.store, catalogue=self, http=http, clock=clock, environ={})

    def get(self, id: str) -> Provider:
        if id != self.provider.id:
            raise UnknownProvider(f"no provider is called {id}", hint="use oidc")
        return self.provider

    def flow(self, method: str) -> AuthFlow:
        chosen = self.provider.method(method)
        assert chosen is not None
        return flow_for(self.provider, chosen, parameters={}, http=self.http, clock=self.clock, environ={})

    async def approve(self, pending: PendingAuthorization, *, deny: bool = False) -> str:
        if isinstance(pending.action, EnterUserCode):
            await asyncio.to_thread(self.oidc.approve_device, pending.action.user_code, deny=deny)
            return ""
        assert isinstance(pending.action, OpenBrowser)
        return await asyncio.to_thread(self.oidc.approve_in_browser, pending.action.authorization_url, deny=deny)

    def token(self) -> OAuthToken:
        record = self.store.load(REF)
        assert record is not None
        assert isinstance(record.credential, OAuthToken)
        return record.credential


@pytest.fixture
def at(oidc: OidcProvider, http: HttpClient, clock: FakeClock) -> Setting:
    return Setting(oidc, http, clock)


def visit(url: str) -> int:
    """Go where the provider sends the browser; give the status of what is there."""
    try:
        with urlopen(url) as page:
            status: int = page.status
            return status
    except HTTPError as error:
        with error:
            return error.code


async def pasted_login(at: Setting) -> OAuthToken:
    pending = await at.logins.begin("oidc", method="browser")
    await at.logins.complete(pending, {"pasted": await at.approve(pending)})
    return at.token()


async def test_a_browser_login_by_loopback(at: Setting) -> None:
    async with at.logins.listening("oidc", method="browser") as (pending, heard):
        location = await at.approve(pending)
        state = pending.private["state"]
        assert await asyncio.to_thread(visit, location.replace(state, "x" * len(state))) == 400
        assert heard.answer is None
        assert await asyncio.to_thread(visit, location) == 200
        account = await poll_until_complete(at.logins, pending, clock=at.clock, heard=heard)
    assert isinstance(account, Account)
    assert account.identity == ALICE
    assert at.oidc.is_good(at.token().access_token.reveal())
    assert at.token().refresh_token is not None
    assert at.token().expires_at == at.clock.now() + timedelta(seconds=3600)


@pytest.mark.parametrize("form", ["{url}", "{code}#{state}", "code={code}&state={state}", "{code}"])
async def test_a_browser_login_by_paste(at: Setting, form: str) -> None:
    pending = await at.logins.begin("oidc", method="browser")
    location = await at.approve(pending)
    query = dict(pair.split("=", 1) for pair in urlsplit(location).query.split("&"))
    text = form.format(url=location, code=query["code"], state=query["state"])
    wrapped = "\n".join(text[i : i + 30] for i in range(0, len(text), 30))
    account = await at.logins.complete(pending, {"pasted": wrapped})
    assert account.identity == ALICE


async def test_a_code_works_once(at: Setting) -> None:
    pending = await at.logins.begin("oidc", method="browser")
    location = await at.approve(pending)
    await at.logins.complete(pending, {"pasted": location})
    with pytest.raises(CompletionFailed, match="invalid_grant") as caught:
        await at.logins.complete(pending, {"pasted": location})
    assert "a code works once" in caught.value.hint


async def test_a_code_of_another_login_is_worth_nothing(at: Setting) -> None:
    """With its state it is refused here; bare, the server refuses it, because the verifier is another."""
    ours, other = await at.logins.begin("oidc", method="browser"), await at.logins.begin("oidc", method="browser")
    location = await at.approve(other)
    before = at.oidc.counts().token.get("authorization_code", 0)
    with pytest.raises(CompletionFailed, match="state is not ours"):
        await at.logins.complete(ours, {"pasted": location})
    assert at.oidc.counts().token.get("authorization_code", 0) == before
    code = location.partition("code=")[2].partition("&")[0]
    with pytest.raises(CompletionFailed, match="invalid_grant"):
        await at.logins.complete(ours, {"pasted": code})
    assert at.store.load(REF) is None


@pytest.mark.parametrize("pasted", [True, False])
async def test_a_refusal_in_the_browser(at: Setting, pasted: bool) -> None:
    if pasted:
        pending = await at.logins.begin("oidc", method="browser")
        location = await at.approve(pending, deny=True)
        with pytest.raises(LoginDenied, match="the user said no"):
            await at.logins.complete(pending, {"pasted": location})
    else:
        async with at.logins.listening("oidc", method="browser") as (pending, heard):
            location = await at.approve(pending, deny=True)
            assert await asyncio.to_thread(visit, location) == 403
            with pytest.raises(LoginDenied, match="the user said no"):
                await at.logins.complete(pending, await heard.wait())
    assert at.store.load(REF) is None


async def test_another_issuer_is_refused(at: Setting) -> None:
    browser, *others = at.provider.auth
    at.provider = replace(at.provider, auth=(replace(browser, issuer="https://login.example"), *others))
    pending = await at.logins.begin("oidc", method="browser")
    location = await at.approve(pending)
    with pytest.raises(CompletionFailed, match="another server"):
        await at.logins.complete(pending, {"pasted": location})


# --- device ----------------------------------------------------------------------------------------


async def test_a_device_login_waits_for_the_user(at: Setting) -> None:
    pending = await at.logins.begin("oidc", method="device")
    assert isinstance(pending.action, EnterUserCode)
    assert pending.action.expires_in == 600
    assert await at.logins.poll(pending) == pending
    await at.approve(pending)
    account = await poll_until_complete(at.logins, pending, clock=at.clock)
    assert account.identity == ALICE
    assert at.oidc.is_good(at.token().access_token.reveal())


async def test_a_device_login_may_be_denied(at: Setting) -> None:
    pending = await at.logins.begin("oidc", method="device")
    await at.approve(pending, deny=True)
    with pytest.raises(LoginDenied):
        await poll_until_complete(at.logins, pending, clock=at.clock)
    assert at.store.load(REF) is None


async def test_a_device_login_expires_at_the_server(http: HttpClient, clock: FakeClock) -> None:
    with oidc_provider(device_code_seconds=1) as oidc:
        at = Setting(oidc, http, clock)
        pending = await at.logins.begin("oidc", method="device")
        with pytest.raises(LoginExpired, match="the code for oidc has expired"):
            await until_the_server_says_no(at.logins, pending)


async def until_the_server_says_no(logins: Logins, pending: PendingAuthorization) -> None:
    """Ask for as long as the server's own second lasts."""
    while isinstance(await logins.poll(pending), PendingAuthorization):
        pass


async def test_an_unknown_client_cannot_begin(at: Setting) -> None:
    at.provider = replace(at.provider, auth=tuple(replace(m, client_id="nobody") for m in at.provider.auth))
    with pytest.raises(InitiationFailed, match="invalid_client"):
        await at.logins.begin("oidc", method="device")


# --- renewal and end -------------------------------------------------------------------------------


async def test_a_refresh_token_is_spent_once(at: Setting) -> None:
    """Reuse ends the whole family, the newest token included."""
    old = await pasted_login(at)
    flow = at.flow("browser")
    new = await flow.refresh(old)
    assert isinstance(new, OAuthToken)
    assert new.refresh_token is not None
    assert new.refresh_token != old.refresh_token
    assert at.oidc.is_good(new.access_token.reveal())
    with pytest.raises(RefreshRejected, match="invalid_grant"):
        await flow.refresh(old)
    with pytest.raises(RefreshRejected, match="invalid_grant"):
        await flow.refresh(new)


async def test_a_server_that_does_not_rotate(http: HttpClient, clock: FakeClock) -> None:
    with oidc_provider(rotate=False) as oidc:
        at = Setting(oidc, http, clock)
        old = await pasted_login(at)
        new = await at.flow("browser").refresh(old)
        assert isinstance(new, OAuthToken)
        assert new.refresh_token == old.refresh_token
        assert new.access_token != old.access_token


async def test_the_life_is_read_from_the_access_token(http: HttpClient, clock: FakeClock) -> None:
    """The test's clock stands elsewhere than the server's: the Date header tells how far."""
    with oidc_provider(access_token_format="jwt", access_token_seconds=500) as oidc:
        at = Setting(oidc, http, clock)
        token = Token(expires_from="access_token")
        at.provider = replace(at.provider, auth=tuple(replace(m, token=token) for m in at.provider.auth))
        expires_at = (await pasted_login(at)).expires_at
        assert expires_at is not None
        assert abs(expires_at - clock.now() - timedelta(seconds=500)) < timedelta(seconds=5)


async def test_a_login_without_refresh_token_says_so_when_it_ends(http: HttpClient, clock: FakeClock) -> None:
    with oidc_provider(refresh_tokens=False) as oidc:
        at = Setting(oidc, http, clock)
        token = await pasted_login(at)
        assert token.refresh_token is None
        with pytest.raises(RefreshRejected, match="without a refresh token"):
            await at.flow("browser").refresh(token)


async def test_a_revoked_login_is_over(at: Setting, http: HttpClient) -> None:
    token = await pasted_login(at)
    browser = at.provider.auth[0]
    assert await revoke(at.provider, browser, token, http)
    assert not at.oidc.is_good(token.access_token.reveal())
    with pytest.raises(RefreshRejected):
        await at.flow("browser").refresh(token)
    with pytest.raises(ValidationFailed):
        await at.flow("browser").validate(token)


# --- a token that buys keys ------------------------------------------------------------------------


async def test_a_device_login_whose_token_buys_keys(at: Setting) -> None:
    pending = await at.logins.begin("oidc", method="exchange")
    await at.approve(pending)
    account = await poll_until_complete(at.logins, pending, clock=at.clock)
    record = at.store.load(account.ref)
    assert record is not None
    first = record.credential
    assert isinstance(first, ExchangedKey)
    assert record.base_url == at.oidc.issuer
    assert first.refresh_at == at.clock.now() + timedelta(seconds=300)
    second = await at.flow("exchange").refresh(first)
    assert isinstance(second, ExchangedKey)
    assert second.key != first.key
    assert second.grant == first.grant
    await at.flow("exchange").validate(second)
    await asyncio.to_thread(at.oidc.revoke_everything)
    with pytest.raises(RefreshRejected):
        await at.flow("exchange").refresh(second)
