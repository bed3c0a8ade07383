"""The fake provider of the kit: what it was told to be is what a login, a renewal and a request find."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.brokers import broker_of
from valetkey.broker import Broker
from valetkey.config import Paths
from valetkey.credential import Health, OAuthToken
from valetkey.errors import KeyRejected, LoginError, NeedsLogin
from valetkey.flow import EnterUserCode, OpenBrowser, PendingAuthorization
from valetkey.providers import catalogue
from valetkey.providers.reader import read
from valetkey.sdk import logins
from valetkey.testing import FakeProvider, RunningProvider
from valetkey.testing.clock import FakeClock

pytestmark = pytest.mark.anyio


def brokered(provider: RunningProvider, clock: FakeClock) -> Broker:
    return broker_of(provider.as_declaration(), clock=clock)


async def logged_in(broker: Broker, provider: RunningProvider, **answer: str) -> Any:
    pending = await logins(broker).begin(provider.id)
    return await logins(broker).complete(pending, answer)


async def token(broker: Broker, provider: RunningProvider) -> str:
    access = await broker.access(provider.id, use="token")
    assert isinstance(access.credential, OAuthToken)
    return access.credential.access_token.reveal()


def ask(provider: RunningProvider, path: str, secret: str = "", **more: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    with httpx2.Client(trust_env=False, timeout=60) as client:
        return client.request("POST" if more else "GET", f"{provider.url}/v1{path}", headers=headers, **more)


# --- its key ----------------------------------------------------------------------------------


async def test_a_key_is_taken_and_another_is_not(clock: FakeClock, canary: str) -> None:
    with FakeProvider().with_api_key(canary) as provider:
        broker = brokered(provider, clock)
        with pytest.raises(KeyRejected):
            await logged_in(broker, provider, key="another")
        account = await logged_in(broker, provider, key=canary)
        assert (account.identity.name, account.identity.email) == ("Fay Kerr", "fay@example.org")
        assert (provider.refused, len(provider.api_requests), provider.secrets) == (1, 2, [canary])
        broker.close()


async def test_without_a_login_of_its_own_it_takes_anybody() -> None:
    with FakeProvider() as provider:
        assert ask(provider, "/models").json()["data"][0]["id"] == "fake-model"
        assert provider.as_declaration().auth[0].optional


async def test_it_answers_a_question_whole_and_in_pieces() -> None:
    with FakeProvider() as provider:
        whole = ask(provider, "/chat/completions", json={"messages": []}).json()
        assert whole["choices"][0]["message"]["content"] == "the fake model has answered"
        pieces = ask(provider, "/chat/completions", json={"stream": True}).text.split("\n\n")
        first = json.loads(pieces[0].removeprefix("data: "))
        assert first["choices"][0]["delta"]["content"] == "the fake model has answered"
        assert pieces[2] == "data: [DONE]"


# --- its tokens -------------------------------------------------------------------------------


async def test_a_token_that_expired_is_renewed_once_and_the_old_one_is_no_longer_good(clock: FakeClock) -> None:
    with FakeProvider().at(clock).expiring_in(60) as provider:
        broker = brokered(provider, clock)
        account = await logged_in(broker, provider)
        assert account.health is Health.OK
        old = await token(broker, provider)
        assert ask(provider, "/me", old).status_code == 200
        clock.advance(61)
        assert ask(provider, "/me", old).status_code == 401
        new = await token(broker, provider)
        assert await token(broker, provider) == new != old
        assert ask(provider, "/me", new).status_code == 200
        assert provider.refreshes == 1
        assert {old, new} < set(provider.secrets)
        broker.close()


async def test_a_renewal_is_refused_where_that_was_said(clock: FakeClock, canary: str) -> None:
    """The chain of the issue: a key, and beside it tokens that cannot be renewed."""
    with FakeProvider().with_api_key(canary).expiring_in(60).refusing_refresh().at(clock) as provider:
        broker = brokered(provider, clock)
        pending = await logins(broker).begin(provider.id, method="device")
        await logins(broker).complete(pending, {})
        clock.advance(61)
        with pytest.raises(NeedsLogin):
            await token(broker, provider)
        assert provider.refreshes == 1
        broker.close()


async def test_a_refresh_token_is_spent_unless_it_was_said_to_stay(clock: FakeClock) -> None:
    for asked, kept in ((FakeProvider(), False), (FakeProvider().without_rotation(), True)):
        with asked.at(clock).expiring_in(60) as provider, httpx2.Client(trust_env=False) as client:
            broker = brokered(provider, clock)
            await logged_in(broker, provider)
            first = provider.secrets[-1]
            fields = {"grant_type": "refresh_token", "refresh_token": first}
            answers = [client.post(f"{provider.url}/oauth/token", data=fields) for _ in range(2)]
            assert [answer.status_code for answer in answers] == ([200, 200] if kept else [200, 400])
            assert (answers[0].json()["refresh_token"] == first) is kept
            broker.close()


async def test_an_approval_is_waited_for(clock: FakeClock) -> None:
    with FakeProvider().waiting_for_approval().at(clock) as provider:
        broker = brokered(provider, clock)
        pending = await logins(broker).begin(provider.id)
        assert isinstance(pending.action, EnterUserCode)
        with pytest.raises(LoginError, match="not been entered"):
            await logins(broker).complete(pending, {})
        provider.approve()
        assert (await logins(broker).complete(pending, {})).health is Health.OK
        broker.close()


async def test_the_browser_comes_back_with_a_code_that_only_its_verifier_opens(clock: FakeClock) -> None:
    with FakeProvider().with_browser_login().at(clock) as provider, httpx2.Client(trust_env=False) as browser:
        broker = brokered(provider, clock)
        redirect_uri = "http://127.0.0.1:1/callback"
        pending: PendingAuthorization = await logins(broker).begin(provider.id, redirect_uri=redirect_uri)
        assert isinstance(pending.action, OpenBrowser)
        back = browser.get(pending.action.authorization_url)
        assert back.status_code == 302
        answer = dict(httpx2.URL(back.headers["location"]).params)
        fields = {"grant_type": "authorization_code", "code": answer["code"], "redirect_uri": redirect_uri}
        account = await logins(broker).complete(pending, answer)
        assert account.method == "browser"
        again = browser.get(pending.action.authorization_url)
        fields["code"] = dict(httpx2.URL(again.headers["location"]).params)["code"]
        refused = browser.post(f"{provider.url}/oauth/token", data={**fields, "code_verifier": "another"})
        assert refused.json() == {"error": "invalid_grant"}
        broker.close()


async def test_logins_that_were_ended_are_refused(clock: FakeClock) -> None:
    with FakeProvider().expiring_in(60).at(clock) as provider:
        broker = brokered(provider, clock)
        await logged_in(broker, provider)
        held = await token(broker, provider)
        provider.end_logins()
        assert ask(provider, "/me", held).status_code == 401
        clock.advance(61)
        with pytest.raises(NeedsLogin):
            await token(broker, provider)
        broker.close()


# --- faults -----------------------------------------------------------------------------------


async def test_a_fault_is_given_so_often_and_there_alone() -> None:
    asked = FakeProvider().answering(status=503, path="/v1/models", times=2).answering(status=418, path="/v1/tea")
    with asked as provider:
        assert [ask(provider, "/models").status_code for _ in range(3)] == [503, 503, 200]
        assert [ask(provider, path).status_code for path in ("/tea", "/tea", "/me")] == [418, 418, 200]


async def test_an_answer_is_held_back_until_the_test_lets_it_go() -> None:
    gate = threading.Event()
    with FakeProvider().slow(gate) as provider:
        got: list[int] = []
        asking = threading.Thread(target=lambda: got.append(ask(provider, "/me").status_code))
        asking.start()
        provider.wait_for(1)
        assert got == []
        gate.set()
        asking.join(60)
        assert got == [200]


async def test_one_that_is_held_back_for_ever_can_be_stopped() -> None:
    with FakeProvider().slow(threading.Event()) as provider:

        def asks() -> None:
            with contextlib.suppress(httpx2.HTTPError):
                ask(provider, "/me")

        asking = threading.Thread(target=asks)
        asking.start()
        provider.wait_for(1)
    asking.join(60)
    assert not asking.is_alive()


# --- its declaration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        FakeProvider(),
        FakeProvider().named("acme-labs").speaking("gemini").with_api_key("k" * 20),
        FakeProvider().with_device_login().with_browser_login(),
    ],
)
async def test_its_file_is_one_that_a_user_could_write(asked: FakeProvider, valetkey_home: Path) -> None:
    with asked as provider:
        path = provider.declare(valetkey_home)
        found = catalogue(Paths(home=valetkey_home)).get(asked.id)
        assert (found.api, found.auth) == (provider.as_declaration().api, provider.as_declaration().auth)
        assert read(provider.as_toml(), path=path, origin="user") == found


async def test_it_stands_in_for_another_provider(clock: FakeClock, valetkey_home: Path, canary: str) -> None:
    """What a provider's own declaration says about headers and paths is what arrives."""
    known = catalogue(Paths(home=valetkey_home)).get("anthropic")
    with FakeProvider().declared_by(known).with_api_key(canary) as provider:
        declared = provider.as_declaration()
        assert {method.id for method in declared.auth} < {method.id for method in known.auth}
        broker = brokered(provider, clock)
        pending = await logins(broker).begin("anthropic", method="api-key")
        await logins(broker).complete(pending, {"key": canary})
        (request,) = provider.api_requests
        assert (request.path, request.headers["x-api-key"]) == ("/v1/models", canary)
        assert "anthropic-version" in request.headers
        broker.close()


async def test_a_value_is_never_changed_by_what_is_made_of_it(canary: str) -> None:
    plain = FakeProvider()
    plain.with_api_key(canary).expiring_in(5).refusing_refresh().answering(status=500)
    assert plain == FakeProvider(clock=plain.clock)
    assert canary not in repr(plain.with_api_key(canary))
