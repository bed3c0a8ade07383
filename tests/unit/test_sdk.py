"""The calls that `import valetkey` gives, on a real store and real servers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

import valetkey
from valetkey.broker import Broker, open_broker
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Health, OAuthToken, Secret
from valetkey.errors import (
    BuiltInProvider,
    HostsNotAccepted,
    InvalidBaseUrl,
    KeyRejected,
    NotForThisUse,
    NotLoggedIn,
    ProviderCheckFailed,
    UnknownProvider,
    ValetkeyError,
)
from valetkey.flow import EnterFields, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.stores.keyfile import KeyFile
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer, Drop, LocalServer, Received, Reply

OLD, NEW = "tok-" + "old1" * 8, "tok-" + "new1" * 8
REFRESH = "ref-" + "esh1" * 8

DECLARATION = """
id = "acme"
name = "Acme"
default_model = "small"
[api]
base_url = "{url}/v1"
dialect = "openai-chat"
hosts = ["{host}"]
allow_http = true
probe = {{ get = "/models" }}
models = {{ get = "/models" }}
[[auth]]
id = "api-key"
kind = "api-key"
environment = ["ACME_KEY", "ACME_OLD"]
inject = [{{ set = {{ x-api-key = "{{key}}" }} }}]
[[auth]]
id = "device"
kind = "device"
client_id = "client"
device_authorization_endpoint = "{url}/device"
token_endpoint = "{url}/token"
exports = {{ ACME_TOKEN = "{{access_token}}" }}
inject = [{{ set = {{ x-api-key = "{{access_token}}" }} }}]
[[auth.parameters]]
key = "region"
label = "Region"
default = "here"
environment = ["ACME_REGION"]
"""


class Api:
    """A server whose good key can be changed; it renews to that key."""

    def __init__(self) -> None:
        self.good = NEW
        self.silent = False
        self.renewals = 0

    def __call__(self, request: Received) -> Reply:
        if self.silent:
            return Drop()
        if request.path == "/token":
            self.renewals += 1
            body: object = {"access_token": self.good, "expires_in": 3600, "token_type": "Bearer"}
            return Answer(headers={"content-type": "application/json"}, body=json.dumps(body).encode())
        if request.path == "/v1/away":
            return Answer(status=307, headers={"location": request.query["to"]})
        if request.headers.get("x-api-key") != self.good:
            return Answer(status=401, headers={"content-type": "application/json"}, body=b"{}")
        return Answer(headers={"content-type": "application/json"}, body=b'{"data": [{"id": "small"}]}')


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def server(api: Api) -> Iterator[LocalServer]:
    with LocalServer(api) as running:
        yield running


@pytest.fixture
def broker(home: Path, server: LocalServer, clock: FakeClock) -> Iterator[Broker]:
    (home / "providers").mkdir(mode=0o700)
    host = server.url.removeprefix("http://")
    (home / "providers" / "acme.toml").write_text(DECLARATION.format(url=server.url, host=host))
    store = open_store(Paths(home=home), clock=clock, key_source=KeyFile(str(home / "store.key")))
    opened = open_broker(store=store, clock=clock, http=HttpClient())
    yield opened
    opened.close()


@pytest.fixture
def host(server: LocalServer) -> str:
    return server.url.removeprefix("http://")


def keep_key(broker: Broker, host: str, key: str, account: str = "default") -> None:
    ref = CredentialRef(provider="acme", account=account)
    old = broker.store.account(ref)
    broker.store.save(
        Record(
            ref=ref,
            credential=ApiKey(method="api-key", key=Secret(key)),
            hosts=(host,),
            base_url=f"http://{host}/v1",
            generation=0 if old is None else old.generation,
        )
    )


def keep_token(broker: Broker, host: str, *, left: timedelta = timedelta(hours=1)) -> None:
    now = broker.clock.now()
    token = OAuthToken(
        method="device",
        access_token=Secret(OLD),
        refresh_token=Secret(REFRESH),
        issued_at=now - timedelta(minutes=1),
        expires_at=now + left,
        parameters={"region": "there"},
    )
    broker.store.save(
        Record(
            ref=CredentialRef(provider="acme"),
            credential=token,
            hosts=(host,),
            endpoints=(host,),
            base_url=f"http://{host}/v1",
        )
    )


# --- the package -----------------------------------------------------------------------------


def test_every_promised_name_is_there() -> None:
    for name in valetkey.__all__:
        assert getattr(valetkey, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = valetkey.nonsense  # type: ignore[attr-defined]  # that is the point


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import valetkey; print(sorted(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "['valetkey']\n"


def test_the_package_of_providers_can_be_called_too(home: Path) -> None:
    import valetkey.providers as package

    assert package.catalogue is not None
    assert "openai" in [provider.id for provider in valetkey.providers()]
    assert valetkey.providers(custom=True) == []
    valetkey.open_broker().close()


# --- token, auth -----------------------------------------------------------------------------


def test_token_gives_the_stored_secret_or_says_what_is_missing(broker: Broker, host: str) -> None:
    with pytest.raises(NotLoggedIn):
        valetkey.token("acme", broker=broker)
    keep_key(broker, host, NEW)
    assert valetkey.token("acme", broker=broker) == NEW
    with pytest.raises(UnknownProvider):
        valetkey.auth("nobody", broker=broker)


@pytest.mark.anyio
async def test_token_works_within_a_running_loop(broker: Broker, host: str) -> None:
    keep_key(broker, host, NEW)
    assert valetkey.token("acme", broker=broker) == NEW


def test_token_refuses_a_login_of_several_secrets(broker: Broker, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA" + "A" * 16)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s" * 40)
    with pytest.raises(NotForThisUse):
        valetkey.token("aws", broker=broker)


def test_auth_renews_on_a_401_and_sends_once_more(broker: Broker, host: str, server: LocalServer, api: Api) -> None:
    keep_token(broker, host)
    with httpx2.Client(auth=valetkey.auth("acme", broker=broker)) as client:
        answer = client.post(f"{server.url}/v1/models", json={"a": 1})
        assert answer.status_code == 200
        assert client.get(f"{server.url}/v1/models").status_code == 200
    assert api.renewals == 1
    assert [r.headers.get("x-api-key") for r in server.calls("/v1/models")] == [OLD, NEW, NEW]
    assert [r.body for r in server.calls("/v1/models")][:2] == [b'{"a":1}', b'{"a":1}']


@pytest.mark.anyio
async def test_auth_does_the_same_for_an_asynchronous_client(
    broker: Broker, host: str, server: LocalServer, api: Api
) -> None:
    keep_token(broker, host)
    async with httpx2.AsyncClient(auth=valetkey.auth("acme", broker=broker)) as client:
        answers = await asyncio.gather(*(client.get(f"{server.url}/v1/models") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert api.renewals == 1


@pytest.mark.anyio
async def test_auth_puts_the_credential_in_on_the_accounts_hosts_alone(
    broker: Broker, host: str, server: LocalServer
) -> None:
    keep_key(broker, host, NEW)
    auth = valetkey.auth("acme", broker=broker)
    with LocalServer(lambda _: Answer()) as elsewhere:
        with httpx2.Client(auth=auth, follow_redirects=True) as client:
            with pytest.raises(HostsNotAccepted):
                client.get(elsewhere.url)
            # x-api-key would go along: clients drop Authorization alone on the way to another origin.
            with pytest.raises(HostsNotAccepted, match="redirects to"):
                client.get(f"{server.url}/v1/away", params={"to": elsewhere.url})
            assert client.get(f"{server.url}/v1/away", params={"to": "/v1/models"}).status_code == 200
        async with httpx2.AsyncClient(auth=auth, follow_redirects=True) as client:
            with pytest.raises(HostsNotAccepted, match="redirects to"):
                await client.get(f"{server.url}/v1/away", params={"to": elsewhere.url})
        assert elsewhere.requests == []


# --- environment -----------------------------------------------------------------------------


def acme_variables() -> dict[str, str | None]:
    return {n: os.environ.get(n) for n in ("ACME_KEY", "ACME_OLD", "ACME_TOKEN", "ACME_REGION")}


def test_environment_sets_the_account_and_restores_exactly(
    broker: Broker, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_OLD", "mine")
    keep_token(broker, host)
    before = dict(os.environ)

    def fail_within() -> None:
        with valetkey.environment("acme", broker=broker):
            assert acme_variables() == {"ACME_KEY": None, "ACME_OLD": None, "ACME_TOKEN": OLD, "ACME_REGION": "there"}
            os.environ["ACME_TOKEN"] = "changed meanwhile"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert dict(os.environ) == before


def test_a_closed_stdout_is_none_of_its_business(home: Path) -> None:
    code = (
        "import os, sys, valetkey\n"
        "sys.stdout.close(); sys.stderr.close()\n"
        "with valetkey.environment('openai'): pass\n"
        "os._exit(0 if os.environ['OPENAI_API_KEY'] == 'sk-mine' else 1)\n"
    )
    environ = {**os.environ, "OPENAI_API_KEY": "sk-mine"}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == 0


# --- logins, providers -----------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_login_goes_from_begin_to_logout(broker: Broker, api: Api) -> None:
    pending = await valetkey.begin_login("acme", method="api-key", account="work", broker=broker)
    assert isinstance(pending, PendingAuthorization)
    assert isinstance(pending.action, EnterFields)
    with pytest.raises(KeyRejected):
        await valetkey.complete_login(pending, {"key": OLD}, broker=broker)
    assert valetkey.accounts("acme", broker=broker) == []
    account = await valetkey.complete_login(pending, {"key": NEW}, broker=broker)
    assert str(account.ref) == "acme@work"
    (state,) = valetkey.accounts("acme", broker=broker)
    assert (state.source, state.health, state.last_four, state.is_default) == ("stored", Health.OK, NEW[-4:], True)
    assert [m.id for m in await valetkey.models("acme", broker=broker)] == ["small"]
    api.good = OLD
    assert (await valetkey.check("acme", broker=broker)).health is Health.NEEDS_LOGIN
    gone = await valetkey.logout("acme@work", broker=broker)
    assert gone.revocation == "not supported"
    with pytest.raises(NotLoggedIn):
        await valetkey.logout("acme@work", broker=broker)


def shown_with_variables(error: BaseException) -> str:
    """Give what a reporter of errors shows: each frame below the test's own with its variables."""
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["models", "token", "auth", "environment", "complete_login", "add_provider"])
async def test_no_variable_of_a_frame_that_an_error_shows_holds_a_secret(
    broker: Broker, host: str, api: Api, what: str
) -> None:
    keep_token(broker, host, left=timedelta(hours=1 if what == "models" else -1))
    pending = await valetkey.begin_login("acme", method="api-key", broker=broker)
    api.silent = True
    try:
        await call(what, broker, host, pending)
    except ValetkeyError as error:
        shown = shown_with_variables(error)
    assert [secret for secret in (OLD, REFRESH) if secret in shown] == []


async def call(what: str, broker: Broker, host: str, pending: PendingAuthorization) -> None:
    match what:
        case "models":
            await valetkey.models("acme", broker=broker)
        case "token":
            valetkey.token("acme", broker=broker)
        case "auth":
            httpx2.get(f"http://{host}/v1/models", auth=valetkey.auth("acme", broker=broker))
        case "environment":
            await valetkey.environment("acme", broker=broker).__aenter__()
        case "complete_login":
            await valetkey.complete_login(pending, {"key": OLD}, broker=broker)
        case _:
            await valetkey.add_provider("Own", base_url=f"http://{host}/v1", key=OLD, allow_http=True, broker=broker)


def test_what_the_caller_was_dealing_with_keeps_its_frames(broker: Broker) -> None:
    def fall_back() -> None:
        try:
            raise KeyError("theirs")
        except KeyError:
            valetkey.token("acme", broker=broker)

    with pytest.raises(NotLoggedIn) as caught:
        fall_back()
    theirs = caught.value.__context__
    while not isinstance(theirs, KeyError):
        assert theirs is not None
        theirs = theirs.__context__
    assert theirs.__traceback__ is not None


@pytest.mark.anyio
async def test_health_follows_the_clock_and_the_stored_login_comes_first(
    broker: Broker, host: str, clock: FakeClock
) -> None:
    keep_token(broker, host, left=timedelta(minutes=59))
    environ: Mapping[str, str] = {"ACME_KEY": NEW}
    seen = replace_environ(broker, environ)
    stored, other = valetkey.accounts("acme", broker=seen)
    assert (stored.health, other.source, other.variable, other.shadowed) == (
        Health.OK,
        "environment",
        "ACME_KEY",
        True,
    )
    clock.advance(50 * 60)
    assert valetkey.accounts("acme", broker=seen)[0].health is Health.EXPIRING
    clock.advance(20 * 60)
    assert valetkey.accounts("acme", broker=seen)[0].health is Health.EXPIRED


def replace_environ(broker: Broker, environ: Mapping[str, str]) -> Broker:
    return Broker(store=broker.store, catalogue=broker.catalogue, http=broker.http, clock=broker.clock, environ=environ)


@pytest.mark.anyio
async def test_a_server_of_ones_own_is_added_used_and_removed(broker: Broker, server: LocalServer, home: Path) -> None:
    with pytest.raises(ProviderCheckFailed):
        await valetkey.add_provider(
            "Own", base_url=server.url, dialect="openai-chat", key=NEW, allow_http=True, broker=broker
        )
    with pytest.raises(InvalidBaseUrl):
        await valetkey.add_provider("Own", base_url="http://own.example", dialect="openai-chat", broker=broker)
    assert not (home / "providers" / "own.toml").exists()
    # This server takes its key in a header of its own kind.
    own = await valetkey.add_provider(
        "Own", base_url=server.url, like="acme", key=NEW, allow_http=True, verify=False, model="small", broker=broker
    )
    assert (own.id, own.origin) == ("own", "user")
    assert valetkey.token("own", broker=broker) == NEW
    assert [str(ref) for ref in await valetkey.remove_provider("own", broker=broker)] == ["own@default"]
    assert valetkey.accounts(broker=broker) == []
    with pytest.raises(BuiltInProvider):
        await valetkey.remove_provider("openai", broker=broker)


def test_new_hosts_of_a_declaration_have_to_be_accepted(broker: Broker, host: str, home: Path) -> None:
    from valetkey.own_providers import accept, changes_of

    keep_key(broker, host, NEW)
    provider = broker.catalogue.get("acme")
    assert changes_of(broker, provider) == []
    moved = replace(provider, api=replace(provider.api, hosts=(host, "elsewhere.example.org")))
    (change,) = changes_of(broker, moved)
    assert (change.added, change.removed) == (("elsewhere.example.org",), ())
    accept(broker, change)
    assert changes_of(broker, moved) == []
    record = broker.store.load(CredentialRef(provider="acme"))
    assert record is not None
    assert record.hosts == (host, "elsewhere.example.org")
