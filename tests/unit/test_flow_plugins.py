"""A login that a Python package brings: the example of docs/providers.md, and packages that are missing or broken."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import broker_of
from tests.support.command_line import CommandLine
from tests.support.declarations import flow, provider
from valetkey.credential import CredentialRef, Health, OAuthToken, Secret
from valetkey.errors import InitiationFailed, InvalidProvider, RefreshFailed, UnclearAnswer, ValetkeyError
from valetkey.flow import AuthFlow
from valetkey.flows import package_flows, package_problems
from valetkey.http import HttpClient
from valetkey.method_choice import choose_method
from valetkey.provider import AuthMethod, Inject, Loopback, Provider, Redirect
from valetkey.sdk import logins
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore
from valetkey.testing.suites import FlowCase, FlowSuite

DOCS = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
OLD, NEW, RENEWAL = "at-" + "o" * 40, "at-" + "n" * 40, "rt-" + "r" * 40
TOKEN = OAuthToken(method="badge", access_token=Secret(OLD), refresh_token=Secret(RENEWAL), issued_at=FakeClock().now())
BROKEN_FLOW = """
class Flow:
    kind = "acme-badge"
    def __init__(self, context): {made}
    async def initiate(self, *, redirect_uri=None): return {given}
    async def refresh(self, credential): return {given}
    poll = complete = validate = lambda self, *rest: self.refresh(None)
"""


def ship(
    site: Path, code: str, *, kind: str = "acme-badge", package: str = "acme_flows", group: str = "valetkey.flows"
) -> None:
    """Install a package with one module, whose `Flow` or `BadgeFlow` is this kind."""
    module = site / package
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(code)
    about = site / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    name = "BadgeFlow" if "class BadgeFlow" in code else "Flow"
    (about / "entry_points.txt").write_text(f"[{group}]\n{kind} = {package}:{name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for name in ("acme_flows", "other_flows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def badge(url: str) -> AuthMethod:
    return AuthMethod(
        id="badge",
        kind="acme-badge",
        token_endpoint=f"{url}/token",
        inject=(Inject(set={"authorization": "Bearer {access_token}"}),),
    )


def declared(url: str = "https://acme.example") -> Provider:
    return provider(url, badge(url))


@pytest.fixture
def subject(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> AuthFlow:
    url = authorization_server.url
    return flow(badge(url), url, http=http, clock=clock)


@pytest.mark.anyio
async def test_the_example_logs_in_and_is_renewed(
    site: Path, authorization_server: AuthorizationServer, clock: FakeClock
) -> None:
    ship(site, EXAMPLE)
    authorization_server.answers("/token", json={"access_token": OLD, "refresh_token": RENEWAL, "expires_in": 3600})
    authorization_server.answers("/token", json={"access_token": NEW, "expires_in": 3600})
    authorization_server.answers("/api/probe", json={"name": "Ann"})
    store = MemoryStore(clock=clock)
    broker = broker_of(declared(authorization_server.url), store=store, clock=clock)
    pending = await logins(broker).begin("test")
    account = await logins(broker).complete(pending, {"pin": "1234"})
    assert (account.method, account.identity.name, account.health) == ("badge", "Ann", Health.OK)
    assert authorization_server.calls("/token")[0].form == {"grant_type": "urn:acme:badge", "pin": "1234"}

    clock.advance(7200)
    access = await broker.access("test", use="token")
    assert isinstance(access.credential, OAuthToken)
    assert access.credential.access_token == Secret(NEW)
    assert authorization_server.calls("/token")[1].form["refresh_token"] == RENEWAL
    record = store.load(CredentialRef(provider="test"))
    assert record is not None
    assert record.credential == access.credential
    broker.close()


class TestExample(FlowSuite):
    """The example does what every flow promises."""

    @pytest.fixture
    def case(self, site: Path, authorization_server: AuthorizationServer, subject: AuthFlow) -> FlowCase:
        ship(site, EXAMPLE)
        server = authorization_server

        def answers(path: str, **answer: Any) -> None:
            server.forget(path)
            server.answers(path, **answer)

        answers("/token", json={"access_token": OLD, "refresh_token": RENEWAL, "expires_in": 3600})
        return FlowCase(
            flow=subject,
            provider="test",
            method="badge",
            answer=lambda _: {"pin": "1234"},
            sends=lambda: len(server.requests),
            secrets=(OLD, NEW, RENEWAL),
            probe=lambda status: answers("/api/probe", status=status, json={"name": "Ann"}),
            renew=lambda: answers("/token", json={"access_token": NEW, "expires_in": 3600}),
            end=lambda: answers("/token", status=400, json={"error": "invalid_grant"}),
        )


@pytest.mark.anyio
async def test_a_missing_flow_ends_no_login_and_says_what_to_install(
    authorization_server: AuthorizationServer, subject: AuthFlow
) -> None:
    with pytest.raises(InvalidProvider, match="no installed package ships") as caught:
        await subject.initiate()
    assert "install the package" in caught.value.hint
    with pytest.raises(RefreshFailed, match="no installed package ships"):
        await subject.refresh(TOKEN)
    assert authorization_server.calls("/token") == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('" + OLD + "')",
        "import not_there_at_all",
        "Flow = 7",
        "",
        BROKEN_FLOW.format(made="raise ValueError('" + OLD + "')", given="None"),
        BROKEN_FLOW.format(made="pass", given="None"),
        BROKEN_FLOW.format(made="pass", given="1 / 0"),
        BROKEN_FLOW.format(made="pass", given="credential_of_somebody_else"),
    ],
)
async def test_a_broken_flow_is_an_error_of_its_own_login(site: Path, subject: AuthFlow, code: str) -> None:
    ship(site, code)
    with pytest.raises(ValetkeyError) as begun:
        await subject.initiate()
    with pytest.raises((RefreshFailed, UnclearAnswer)) as renewed:
        await subject.refresh(TOKEN)
    for caught in (begun, renewed):
        assert "acme-badge" in caught.value.message
        assert OLD not in caught.value.message
        assert "update or uninstall" in caught.value.hint
        assert caught.value.provider == "test"


@pytest.mark.anyio
async def test_a_flow_gives_credentials_of_its_own_login_only(site: Path, subject: AuthFlow) -> None:
    ship(site, BROKEN_FLOW.format(made="pass", given="__import__('dataclasses').replace(credential, method='other')"))
    with pytest.raises(UnclearAnswer, match="no credential of this login"):
        await subject.refresh(TOKEN)


@pytest.mark.anyio
async def test_a_browser_login_without_a_state_is_not_begun(site: Path, subject: AuthFlow) -> None:
    ship(site, EXAMPLE)
    assert (await subject.initiate()).provider == "test"
    with pytest.raises(InitiationFailed, match="`state`"):
        await subject.initiate(redirect_uri="http://127.0.0.1:1/callback")


@pytest.mark.anyio
async def test_a_flow_that_two_packages_ship_is_nobodys(site: Path, subject: AuthFlow) -> None:
    ship(site, EXAMPLE)
    ship(site, EXAMPLE, package="other_flows")
    with pytest.raises(InvalidProvider, match="acme_flows, other_flows"):
        await subject.initiate()


def test_a_built_in_kind_is_not_replaced(site: Path, http: HttpClient, clock: FakeClock) -> None:
    ship(site, "raise RuntimeError", kind="device")
    url = "https://acme.example"
    made = flow(AuthMethod(id="device", kind="device"), url, http=http, clock=clock)
    assert type(made).__module__ == "valetkey.flows.device"
    ((kind, error),) = package_problems([])
    assert (kind, "built in" in error.message, "uninstall acme_flows" in error.hint) == ("device", True, True)


def test_a_flow_that_no_declaration_names_is_not_loaded(site: Path) -> None:
    ship(site, "raise RuntimeError")
    assert package_flows() == [("acme-badge", "acme_flows")]
    assert package_problems([]) == []
    assert "acme_flows" not in sys.modules
    ((kind, error),) = package_problems([declared()])
    assert (kind, error.provider) == ("acme-badge", "test")


@pytest.mark.parametrize(
    ("method", "way"),
    [
        (badge("https://a.example"), "fields"),
        (AuthMethod(id="x", kind="acme-x", device_authorization_endpoint="https://a.example"), "device"),
        (AuthMethod(id="x", kind="acme-x", redirect=Redirect(loopback=Loopback(path="/"))), "loopback"),
        (AuthMethod(id="x", kind="acme-x", redirect=Redirect(paste="https://a.example")), "paste"),
    ],
)
def test_the_declaration_says_where_the_user_acts(method: AuthMethod, way: str) -> None:
    assert choose_method(provider("https://a.example", method), browser=True).way == way


def test_doctor_names_what_is_there_and_what_is_broken(site: Path, home: Path) -> None:
    ship(site, EXAMPLE)
    line = CommandLine(home=home, environ={"PYTHONPATH": str(site)})
    written = '[api]\nbase_url = "https://api.acme.example"\nhosts = ["api.acme.example"]\n[[auth]]\nid = "badge"\n'
    home.mkdir(mode=0o700, exist_ok=True)
    line.declare("acme", f'{written}kind = "acme-badge"\n')
    done = line("doctor", "--offline")
    assert (done.status, done.err) == (0, "")
    assert "flows of packages: acme-badge (acme_flows)" in done.out
    line.declare("other", f'{written}kind = "not-there"\n')
    done = line("doctor", "--offline", "--json")
    assert done.status == 12
    (failed,) = [f for f in done.json["findings"] if not f["ok"]]
    assert failed["subject"] == "flow not-there"
    assert "other/badge" in failed["error"]["message"]


def test_doctor_names_endpoints_and_agents_of_packages(site: Path, home: Path) -> None:
    ship(site, "raise RuntimeError", kind="acme-keys", package="acme_keys", group="valetkey.endpoints")
    ship(site, "raise RuntimeError", kind="acme-coder", package="acme_coder", group="valetkey.agents")
    line = CommandLine(home=home, environ={"PYTHONPATH": str(site)})
    done = line("doctor", "--offline")
    assert (done.status, done.err) == (0, "")
    assert "endpoints of packages: acme-keys (acme_keys); agents of packages: acme-coder (acme_coder)" in done.out
    home.mkdir(mode=0o700, exist_ok=True)
    api = '[api]\nbase_url = "https://api.acme.example"\nhosts = ["api.acme.example"]\n'
    line.declare("acme", f'{api}[[auth]]\nid = "key"\nkind = "api-key"\nendpoint = "acme-keys"\n')
    ship(site, "raise RuntimeError", kind="claude", package="false_claude", group="valetkey.agents")
    done = line("doctor", "--offline", "--json")
    failed = {f["subject"]: f["error"]["message"] for f in done.json["findings"] if not f["ok"]}
    assert done.status == 12
    assert failed == {
        "endpoint acme-keys": "the endpoint acme-keys could not be loaded: RuntimeError",
        "agent claude": "false_claude ships the agent claude, which is built in and stays so",
    }
