"""What somebody who edits a declaration, answers in a provider's place or sits on the way gets of a stored secret."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest

from tests.support import declarations
from tests.support.brokers import broker_of
from tests.support.tls import CertificateAuthority
from valetkey.access import Access
from valetkey.account_state import AccountState
from valetkey.broker import Broker
from valetkey.checking import check
from valetkey.credential import ApiKey, CredentialRef, Health, OAuthToken, Secret
from valetkey.errors import HostsNotAccepted, InvalidBaseUrl, InvalidParameter
from valetkey.http import HttpClient
from valetkey.httpx_auth import AccountAuth
from valetkey.inject import endpoint_hosts, headers_for, reach
from valetkey.provider import Api, AuthMethod, Call, Claims, Inject, Parameter, Provider, When
from valetkey.store import Record
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer, LocalServer, Received
from valetkey.testing.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

KEY = "sk-" + "s" * 40


METHOD = AuthMethod(id="api-key", kind="api-key", inject=(Inject(set={"x-api-key": "{key}"}),))
CREDENTIAL = ApiKey(method="api-key", key=Secret(KEY))


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A broker that serves one access."""

    access_given: Access

    async def access(self, name: str, *, use: str, rejected: object = None) -> Access:
        return self.access_given


@pytest.fixture
def own() -> Iterator[LocalServer]:
    """The server that the login was for."""
    with LocalServer(_welcome) as server:
        yield server


@pytest.fixture
def foreign() -> Iterator[LocalServer]:
    """The server that the declaration names by now."""
    with LocalServer(_welcome) as server:
        yield server


def _welcome(request: Received) -> Answer:
    return Answer(headers={"content-type": "application/json"}, body=b'{"name": "somebody", "data": []}')


async def _checked(own: LocalServer, provider: Provider) -> AccountState:
    broker = _broker(own, provider)
    try:
        return await check(broker, "test")
    finally:
        broker.close()


def _broker(own: LocalServer, provider: Provider) -> Broker:
    """Give a broker that holds a login at `own`, and `provider` as what is declared by now."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    store.save(
        Record(
            ref=CredentialRef(provider="test"),
            credential=ApiKey(method="api-key", key=Secret(KEY)),
            hosts=(own.url.removeprefix("http://"),),
            base_url=f"{own.url}/api",
        )
    )
    return broker_of(provider, store=store, clock=clock)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.acme.test/v1",
        "HTTPS://api.acme.test/v1",
        "ftp://api.acme.test/v1",
        "//api.acme.test/v1",
        " https://api.acme.test/v1",
        "https://user@api.acme.test/v1",
        "https://evil.test\\@api.acme.test/v1",
        "https://evil.test\t@api.acme.test/v1",
        "https://api.acme.test@evil.test/v1",
        "https://evil.test#@api.acme.test/v1",
        "https://api.acme.test.evil.test/v1",
        "https://[api.acme.test]/v1",
        "https:///v1",
    ],
)
def test_a_credential_goes_to_its_hosts_by_https_and_to_no_address_that_can_be_read_in_two_ways(url: str) -> None:
    with pytest.raises(HostsNotAccepted):
        headers_for(CREDENTIAL, method=METHOD, url=url, hosts=("api.acme.test",), headers={})


@pytest.mark.parametrize("value", ["a\r\nx-other: 1", "a\nb", "a\x00b", "\u00e9", "\ud800", "a\x1b[2J"])
def test_what_a_provider_called_an_account_ends_no_header(value: str) -> None:
    method = replace(METHOD, inject=(Inject(set={"x-account": "{account_id}"}),))
    with pytest.raises(InvalidParameter) as caught:
        headers_for(
            CREDENTIAL,
            method=method,
            url="https://api.acme.test/v1",
            hosts=("api.acme.test",),
            headers={},
            account_id=value,
        )
    assert "x-account" in caught.value.message
    assert value not in caught.value.message


@pytest.mark.parametrize("host", ["evil.test", "169.254.169.254", "metadata.google.internal", "2130706433", "127.1"])
def test_a_parameter_leads_a_login_neither_to_a_public_host_by_http_nor_to_a_metadata_service(host: str) -> None:
    parameter = Parameter(key="host", label="Host", pattern=r"[a-z0-9-]+(\.[a-z0-9-]+)*", default="gw.internal")
    api = Api(base_url="http://{host}/v1", hosts=("{host}",), allow_http=True)
    provider = Provider(id="acme", name="Acme", api=api, auth=(replace(METHOD, parameters=(parameter,)),))
    assert reach(provider, provider.auth[0], {"host": "gw.internal"}) == ("http://gw.internal/v1", ("gw.internal",))
    with pytest.raises(InvalidBaseUrl):
        reach(provider, provider.auth[0], {"host": host})


@pytest.mark.parametrize("host", ["evil.test", "169.254.169.254", "2130706433"])
async def test_a_parameter_leads_no_code_and_no_refresh_token_there_either(host: str) -> None:
    url = "http://gw.internal"
    declared = replace(declarations.method("device", url), token_endpoint="http://{host}/token")
    flow = declarations.flow(declared, url, http=HttpClient(), clock=FakeClock(), parameters={"host": host})
    token = OAuthToken(
        method="device",
        access_token=Secret("a" * 20),
        refresh_token=Secret("r" * 20),
        issued_at=FakeClock().now(),
        parameters={"host": host},
    )
    with pytest.raises(InvalidBaseUrl):
        await flow.refresh(token)
    with pytest.raises(InvalidBaseUrl):
        endpoint_hosts(declared, {"host": host})


@pytest.mark.parametrize("value", ["a/b", "a:443", "*", "x@evil", "a\\", "a b", "a\n"])
async def test_a_parameter_of_the_environment_has_the_declared_form_or_the_key_stays(value: str) -> None:
    parameter = Parameter(key="name", label="Name", pattern="[a-z]+", environment=("ACME_NAME",))
    api = Api(base_url="https://{name}.acme.test/v1", hosts=("{name}.acme.test",))
    method = replace(METHOD, environment=("ACME_KEY",), parameters=(parameter,))
    clock = FakeClock()
    broker = broker_of(
        Provider(id="acme", name="Acme", api=api, auth=(method,)),
        clock=clock,
        environ={"ACME_KEY": KEY, "ACME_NAME": value},
    )
    with pytest.raises(InvalidParameter, match="ACME_NAME"):
        await broker.access("acme", use="ask")


async def test_a_redirect_to_plain_http_of_the_same_host_gets_no_key(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    with LocalServer(_welcome) as plain:
        move = Answer(status=307, headers={"location": f"{plain.url}/v1"})
        with LocalServer(lambda _: move, tls=authority.context()) as secure:
            access = Access(
                ref=CredentialRef(provider="acme"),
                provider=Provider(id="acme", name="Acme", api=Api(base_url=secure.url), auth=(METHOD,)),
                method=METHOD,
                credential=CREDENTIAL,
                source="stored",
                base_url=secure.url,
                hosts=("127.0.0.1",),
            )
            auth = AccountAuth("acme", broker=Serving(access_given=access))  # type: ignore[arg-type]  # what it asks
            trust = ssl.create_default_context(cafile=str(authority.ca_file))
            with httpx2.Client(auth=auth, follow_redirects=True, verify=trust) as client:
                with pytest.raises(HostsNotAccepted, match="plain http"):
                    client.get(f"{secure.url}/v1")
                with pytest.raises(HostsNotAccepted, match="plain http"):
                    client.get(f"{plain.url}/v1")
            async with httpx2.AsyncClient(auth=auth, follow_redirects=True, verify=trust) as other:
                with pytest.raises(HostsNotAccepted, match="plain http"):
                    await other.get(f"{secure.url}/v1")
        assert plain.requests == []


def test_a_proxy_gets_no_key_that_goes_by_plain_http(
    own: LocalServer, foreign: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, foreign.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    http = HttpClient()
    http.send("GET", f"{own.url}/v1", headers={"authorization": f"Bearer {KEY}"})
    http.close()
    assert len(own.requests) == 1
    assert foreign.requests == []


def test_a_proxy_of_the_caller_s_client_gets_no_key_either(own: LocalServer, foreign: LocalServer) -> None:
    access = Access(
        ref=CredentialRef(provider="acme"),
        provider=Provider(id="acme", name="Acme", api=Api(base_url=own.url), auth=(METHOD,)),
        method=METHOD,
        credential=CREDENTIAL,
        source="stored",
        base_url=own.url,
        hosts=(own.url.removeprefix("http://"),),
    )
    auth = AccountAuth("acme", broker=Serving(access_given=access))  # type: ignore[arg-type]  # what it asks
    with httpx2.Client(auth=auth, proxy=foreign.url) as client, pytest.raises(HostsNotAccepted, match="proxy"):
        client.get(f"{own.url}/v1")
    with httpx2.Client(auth=auth) as client:
        assert client.get(f"{own.url}/v1").status_code == 200
    assert foreign.requests == []


def test_a_cookie_of_one_account_does_not_go_out_with_another() -> None:
    with LocalServer(lambda _: Answer(headers={"set-cookie": "session=first; Path=/"})) as server:
        http = HttpClient()
        for _ in range(2):
            http.send("GET", f"{server.url}/v1")
        http.close()
    assert [request.headers.get("cookie") for request in server.requests] == [None, None]


async def test_a_check_asks_where_the_login_was_for_and_not_where_its_declaration_leads_now(
    own: LocalServer, foreign: LocalServer
) -> None:
    method = declarations.method("api-key", own.url)
    host = foreign.url.removeprefix("http://")
    for edited in (
        declarations.provider(foreign.url, method),
        declarations.provider(own.url, replace(method, base_url=foreign.url, hosts=(host,))),
        declarations.provider(own.url, replace(method, when=(When(values={}, base_url=foreign.url, hosts=(host,)),))),
    ):
        state = await _checked(own, edited)
        assert state.health is Health.OK
    assert len(own.requests) == 3
    assert foreign.requests == []


async def test_a_check_sends_nothing_to_a_probe_or_profile_on_a_host_that_was_added_later(
    own: LocalServer, foreign: LocalServer
) -> None:
    method = declarations.method("api-key", own.url)
    elsewhere = Call(get=f"{foreign.url}/probe")
    hosts = (own.url.removeprefix("http://"), foreign.url.removeprefix("http://"))
    for edited in (
        replace(method, hosts=hosts, probe=elsewhere),
        replace(method, hosts=hosts, claims=Claims(token=(), profile=elsewhere)),
    ):
        state = await _checked(own, declarations.provider(own.url, edited))
        assert state.health is Health.UNKNOWN
        assert "may not be used at" in state.reason
    assert foreign.requests == []
