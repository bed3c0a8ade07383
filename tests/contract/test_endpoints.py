"""What every endpoint promises, whichever it is: a built-in one, or one that a package brings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.gateway import RunningGateway, running_gateway
from tests.support.rig import faults
from tests.support.sts import Sts
from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, CredentialRef, Fields, Secret
from valetkey.endpoint import Endpoint
from valetkey.endpoints import BUILT_IN, endpoint_for
from valetkey.errors import EndpointUnavailable
from valetkey.gateway.runs import BegunRun
from valetkey.provider import Api, AuthMethod, Parameter, Provider
from valetkey.providers import catalogue
from valetkey.testing.clock import FakeClock

# A third party's: tickets that are made out of the account's key and the run's name.
PACKAGE = """
import json
from datetime import timedelta
from valetkey.credential import Secret, secrets_of
from valetkey.endpoint import Issued
from valetkey.errors import EndpointUnavailable

class Tickets:
    id = "tickets"
    routes = ("/ticket", "/ticket/long")
    variables = {"TICKETS_URL": "{address}/ticket", "TICKETS_TOKEN": "Bearer {token}", "TICKETS_DESK": "{desk}"}

    def check(self, ref, parameters):
        if not parameters.get("desk"):
            raise EndpointUnavailable(f"{ref} names no desk", hint="log in again with --param desk=NAME")

    async def issue(self, route, granted):
        key = secrets_of(await granted.credential())["key"].reveal()
        ticket = f"{route} {granted.parameters['desk']} {granted.run} {hash(key)}"
        return Issued(content=Secret(json.dumps({"ticket": ticket})))
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An account that the endpoint serves, one that it cannot serve, and the key that is never given to a run."""

    provider: Provider
    served: Credential
    lacking: Credential
    key: str


def aws(home: Path) -> Case:
    values = {"access_key_id": Secret("AKIA" + "A" * 16), "secret_access_key": Secret("canary" * 7)}
    parameters = {"role_arn": "arn:aws:iam::123456789012:role/Test", "duration_seconds": "900", "region": "us-east-1"}
    return Case(
        provider=catalogue(Paths(home=home)).get("aws"),
        served=Fields(method="keys", values=values, parameters=parameters),
        lacking=Fields(method="keys", values=values, parameters=parameters | {"role_arn": ""}),
        key="canary" * 7,
    )


def tickets(home: Path) -> Case:
    method = AuthMethod(
        id="key", kind="api-key", endpoint="tickets", parameters=(Parameter(key="desk", label="Desk", required=False),)
    )
    return Case(
        provider=Provider(
            id="fair", name="Fair", api=Api(base_url="https://fair.example/v1", hosts=("fair.example",)), auth=(method,)
        ),
        served=ApiKey(method="key", key=Secret("canary" * 7), parameters={"desk": "north"}),
        lacking=ApiKey(method="key", key=Secret("canary" * 7), parameters={"desk": ""}),
        key="canary" * 7,
    )


CASES: Mapping[str, Callable[[Path], Case]] = {"aws": aws, "tickets": tickets}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime.now(UTC).replace(microsecond=0))


@pytest.fixture(name="id", params=CASES)
def _id(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (about := tmp_path / "their_endpoint-1.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-endpoint\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[valetkey.endpoints]\n"
        "tickets = their_endpoint:Tickets\nbroken = their_endpoint:No\naws = their_endpoint:Tickets\n"
    )
    (tmp_path / "their_endpoint.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield str(request.param)
    sys.modules.pop("their_endpoint", None)


@pytest.fixture
def endpoint(id: str) -> Endpoint:
    return endpoint_for(id)


@pytest.fixture
def case(id: str, tmp_path: Path) -> Case:
    return CASES[id](tmp_path)


@pytest.fixture
def running(case: Case, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningGateway]:
    (home := tmp_path / "h").mkdir(0o700)
    with (
        Sts(clock) as sts,
        faults(),
        running_gateway(case.provider, home=home, clock=clock, logged_in=False) as made,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        made.log_in(case.provider.id, credential=case.served)
        yield made


def ask(running: RunningGateway, run: BegunRun, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
    shown = "" if token is None else f"Authorization: {token}\r\n"
    with running.run_raw(run) as client:
        return client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{shown}\r\n").answer()


def test_each_that_is_built_in_is_tried_here() -> None:
    assert set(BUILT_IN) < set(CASES)


def test_it_is_found_by_its_name_and_says_what_it_serves(endpoint: Endpoint, id: str) -> None:
    assert endpoint.id == id
    assert endpoint.routes
    assert all(re.fullmatch(r"(/[a-z0-9._-]+)+", route) for route in endpoint.routes)
    assert len(set(endpoint.routes)) == len(endpoint.routes)


def test_its_variables_lead_to_a_route_and_have_the_token(endpoint: Endpoint, case: Case) -> None:
    (method,) = [method for method in case.provider.auth if method.id == case.served.method]
    named = {name for template in endpoint.variables.values() for name in re.findall(r"\{(\w+)\}", template)}
    assert {"address", "token"} <= named
    assert named <= {"address", "token", *(parameter.key for parameter in method.parameters)}
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in endpoint.variables)


def test_what_it_cannot_serve_is_told_before_a_run_begins(endpoint: Endpoint, case: Case) -> None:
    ref = CredentialRef(provider=case.provider.id)
    endpoint.check(ref, case.served.parameters)
    with pytest.raises(EndpointUnavailable) as caught:
        endpoint.check(ref, case.lacking.parameters)
    assert str(ref) in caught.value.message
    assert caught.value.hint


def test_a_run_gets_json_from_each_route_by_its_token_alone(
    running: RunningGateway, endpoint: Endpoint, case: Case
) -> None:
    run, another = running.begin_run(case.provider.id), running.begin_run(case.provider.id, id="run-2")
    ref = CredentialRef(provider=case.provider.id)
    (name,) = [name for name, template in endpoint.variables.items() if "{token}" in template]
    token, of_another = run.environment[ref][name], another.environment[ref][name]
    for route in endpoint.routes:
        status, headers, body = ask(running, run, f"/{ref}{route}", token)
        assert (status, headers["cache-control"]) == (200, "no-store"), body
        assert isinstance(json.loads(body), dict)
        assert case.key.encode() not in body
        for wrong in (None, "", "guessed", token + "0", of_another):
            assert ask(running, run, f"/{ref}{route}", wrong)[0] == 403
    assert ask(running, run, f"/{ref}/nothing", token)[0] == 404
    assert {row.account for row in running.trace.rows if row.status == 200} == {str(ref)}


def test_one_of_a_package_that_breaks_or_is_not_there_is_told(id: str) -> None:
    with pytest.raises(EndpointUnavailable, match="the endpoint broken could not be loaded: AttributeError"):
        endpoint_for("broken")
    with pytest.raises(EndpointUnavailable, match="there is no endpoint 'nobody'"):
        endpoint_for("nobody")


def test_no_package_takes_the_place_of_a_built_in_one(id: str) -> None:
    assert type(endpoint_for("aws")).__module__.startswith("valetkey.")
