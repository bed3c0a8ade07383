"""An account that an endpoint serves: keys of a role for one run, asked once, kept, renewed, refused to all others."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Raw, RunningGateway, running_gateway
from tests.support.rig import faults
from tests.support.sts import Sts
from valetkey.audit.recorder import Audit
from valetkey.config import Paths
from valetkey.credential import Ambient, CredentialRef, Fields, Secret
from valetkey.errors import AuditUnwritable, EndpointUnavailable
from valetkey.gateway.decide import Forward, Refuse, RequestHead, decide
from valetkey.gateway.limits import Limits
from valetkey.gateway.policy import GRANTED_ALONE, Policy
from valetkey.gateway.runs import BegunRun, policy_of
from valetkey.providers import catalogue
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

REF = CredentialRef(provider="aws")
ROLE = "arn:aws:iam::123456789012:role/Reader"
KEY_ID = "AKIA" + os.urandom(8).hex().upper()
KEY = "canary" + os.urandom(17).hex()
PARAMETERS = {"role_arn": ROLE, "external_id": "ext", "duration_seconds": "900", "region": "eu-west-1"}


def keys(**parameters: str) -> Fields:
    values = {"access_key_id": Secret(KEY_ID), "secret_access_key": Secret(KEY)}
    return Fields(method="keys", values=values, parameters=PARAMETERS | parameters)


def role(**parameters: str) -> Ambient:
    values: dict[str, Secret] = {}
    return Ambient(
        method="role", values=values, issued_at=datetime.now(UTC), expires_at=None, parameters=PARAMETERS | parameters
    )


class Scene:
    """A gateway with an account that has keys and a role, and an STS behind it; the clock is one for all."""

    def __init__(self, running: RunningGateway, sts: Sts, clock: FakeClock) -> None:
        self.running, self.sts, self.clock = running, sts, clock

    def advance(self, seconds: float) -> None:
        """Let time pass; the gateway looks at its clock once a second, and a request must not begin before it has."""
        self.clock.advance(seconds)
        self.running.do(self.running.gateway.sweep)

    def ask(
        self, run: BegunRun, token: str | None = "", *, path: str = "/aws@default/credentials", method: str = "GET"
    ) -> tuple[int, Any]:
        """Ask by the run's socket; "" is the token that the run has."""
        shown = token_of(run) if token == "" else token
        with self.running.run_raw(run) as client:
            return asked(client, path, shown, method=method)


def token_of(run: BegunRun, ref: CredentialRef = REF) -> str:
    return run.environment[ref]["AWS_CONTAINER_AUTHORIZATION_TOKEN"]


def asked(client: Raw, path: str, token: str | None, *, method: str = "GET") -> tuple[int, Any]:
    shown = "" if token is None else f"Authorization: {token}\r\n"
    status, _, body = client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{shown}\r\n").answer()
    return status, json.loads(body)


@contextlib.contextmanager
def scene_of(home: Path, clock: FakeClock, sts: Sts, **more: Any) -> Iterator[Scene]:
    declared = catalogue(Paths(home=home)).get("aws")
    with faults(), running_gateway(declared, home=home, clock=clock, logged_in=False, **more) as running:
        yield Scene(running, sts, clock)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def sts(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sts]:
    with Sts(clock) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (folder := tmp_path / "h").mkdir(0o700)
    return folder


@pytest.fixture
def scene(home: Path, clock: FakeClock, sts: Sts) -> Iterator[Scene]:
    with scene_of(home, clock, sts) as made:
        made.running.log_in("aws", credential=keys())
        yield made


# --- what a run gets -------------------------------------------------------------------------


def test_a_run_gets_keys_of_the_role_in_a_session_that_is_called_after_it(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    assert run.environment[REF]["AWS_CONTAINER_CREDENTIALS_FULL_URI"] == "http://127.0.0.1:3128/aws@default/credentials"
    assert run.environment[REF]["AWS_DEFAULT_REGION"] == "eu-west-1"
    status, found = scene.ask(run)
    assert status == 200
    ends = scene.clock.now() + timedelta(seconds=900)
    assert found.keys() == {"AccessKeyId", "SecretAccessKey", "Token", "Expiration", "RoleArn"}
    assert [found["SecretAccessKey"], found["Token"]] == scene.sts.issued
    assert (found["Expiration"], found["RoleArn"]) == (ends.strftime("%Y-%m-%dT%H:%M:%SZ"), ROLE)
    (sent,) = scene.sts.asked
    assert {name: sent[name] for name in ("RoleArn", "RoleSessionName", "ExternalId", "DurationSeconds")} == {
        "RoleArn": ROLE,
        "RoleSessionName": "valetkey-run-1",
        "ExternalId": "ext",
        "DurationSeconds": "900",
    }
    assert f"Credential={KEY_ID}/" in scene.sts.signed[0]
    assert "/eu-west-1/sts/" in scene.sts.signed[0]
    assert not [text for text in (KEY, KEY_ID) if text in json.dumps([found, dict(run.environment[REF])])]


def test_the_answer_says_that_nobody_may_keep_it(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    with scene.running.run_raw(run) as client:
        head = f"GET /aws/credentials HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token_of(run)}\r\n\r\n"
        status, headers, _ = client.send(head).answer()
        again, *_ = client.send(head).answer()
    assert (status, again) == (200, 200)
    assert (headers["cache-control"], headers["content-type"]) == ("no-store", "application/json")


def test_a_role_of_a_profile_is_taken_with_what_the_profile_holds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at = tmp_path / "aws-config"
    at.write_text(f"[profile work]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {KEY}\n")
    scene.running.log_in("aws", credential=role(profile="work"))
    status, _ = scene.ask(scene.running.begin_run("aws"))
    assert status == 200
    # Once: that the login itself would take the role is for other uses.
    assert [sent["RoleSessionName"] for sent in scene.sts.asked] == ["valetkey-run-1"]
    assert f"Credential={KEY_ID}/" in scene.sts.signed[0]


def test_two_runs_have_sessions_and_keys_of_their_own(scene: Scene) -> None:
    one, other = scene.running.begin_run("aws"), scene.running.begin_run("aws", id="run-2")
    first, second = scene.ask(one)[1], scene.ask(other)[1]
    assert first["SecretAccessKey"] != second["SecretAccessKey"]
    assert [sent["RoleSessionName"] for sent in scene.sts.asked] == ["valetkey-run-1", "valetkey-run-2"]


# --- once, kept, renewed ---------------------------------------------------------------------


def test_a_hundred_who_ask_at_once_make_one_call(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(scene.running.run_raw(run)) for _ in range(100)]
        scene.sts.open.clear()
        for client in crowd:
            client.send(f"GET /aws/credentials HTTP/1.1\r\nHost: h\r\nAuthorization: {token_of(run)}\r\n\r\n")
        until(lambda: scene.running.do(lambda: scene.running.gateway.active) == 100)
        scene.sts.open.set()
        found = [client.answer() for client in crowd]
    assert {status for status, _, _ in found} == {200}
    assert len({body for _, _, body in found}) == 1
    assert len(scene.sts.asked) == 1


def until(true: Any) -> None:
    for _ in range(6000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to be")


def test_keys_are_given_again_until_five_minutes_are_left(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    first = scene.ask(run)[1]
    scene.advance(599)
    assert scene.ask(run)[1] == first
    scene.advance(2)
    second = scene.ask(run)[1]
    assert second["SecretAccessKey"] != first["SecretAccessKey"]
    assert len(scene.sts.asked) == 2
    # The wall clock goes on while a machine sleeps, and the other one does not.
    scene.clock.jump(601)
    assert scene.ask(run)[1]["SecretAccessKey"] != second["SecretAccessKey"]


def test_who_goes_away_loses_the_answer_for_nobody_else(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    scene.sts.open.clear()
    with scene.running.run_raw(run) as client:
        client.send(f"GET /aws/credentials HTTP/1.1\r\nHost: h\r\nAuthorization: {token_of(run)}\r\n\r\n")
        until(lambda: scene.sts.asked)
    # Who has closed a half is waited for, for this long.
    scene.advance(6)
    until(lambda: scene.running.do(lambda: scene.running.gateway.active) == 0)
    scene.sts.open.set()
    assert scene.ask(run)[0] == 200
    assert len(scene.sts.asked) == 1


def test_a_gateway_that_takes_over_serves_the_same_token(home: Path, clock: FakeClock, sts: Sts) -> None:
    store = MemoryStore(clock=clock)
    with scene_of(home, clock, sts, store=store) as first:
        first.running.log_in("aws", credential=keys())
        run = first.running.begin_run("aws")
        assert first.ask(run)[0] == 200
    with scene_of(home, clock, sts, store=store) as second:
        assert second.ask(run)[0] == 200
        assert second.ask(run, "guessed")[0] == 403


def test_a_new_login_and_a_logout_count_at_once(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    assert scene.ask(run)[0] == 200
    scene.running.log_in("aws", credential=keys(external_id="other"))
    assert scene.ask(run)[0] == 200
    assert [sent["ExternalId"] for sent in scene.sts.asked] == ["ext", "other"]
    scene.running.store.delete(REF)
    scene.running.do(scene.running.gateway.refresh)
    status, told = scene.ask(run)
    assert (status, told["error"]["code"]) == (401, "needs_login")
    assert "valetkey login aws" in told["error"]["hint"]
    assert len(scene.sts.asked) == 2


def test_once_a_run_has_ended_nothing_of_it_is_kept(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    assert scene.ask(run)[0] == 200
    scene.running.runs.end(run.id)
    scene.running.do(scene.running.gateway.refresh)
    assert not (run.folder / "gateway.sock").exists()
    again = scene.running.begin_run("aws")
    assert (again.id, scene.ask(again)[0]) == (run.id, 200)
    assert len(scene.sts.asked) == 2


# --- for nobody else -------------------------------------------------------------------------


def test_without_the_token_nothing_is_served(scene: Scene) -> None:
    run, other = scene.running.begin_run("aws"), scene.running.begin_run("aws", id="run-2")
    of_files = run.placeholders[REF][""]
    assert scene.ask(run, None)[1]["error"]["code"] == "endpoint_refused"
    assert scene.ask(run, f"Bearer {of_files}")[1]["error"]["code"] == "endpoint_refused"
    assert scene.ask(run, token_of(run)[:-1])[0] == 403
    assert scene.ask(run, token_of(run) + "0")[0] == 403
    assert scene.ask(run, "guessed")[1]["error"]["code"] == "foreign_credential"
    assert scene.ask(run, token_of(other))[1]["error"]["code"] == "foreign_credential"
    assert scene.sts.asked == []
    assert scene.ask(run, f"Bearer {token_of(run)}")[0] == 200


def test_a_valet_key_gets_none_at_the_port(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    key = scene.running.key("aws")
    for shown, code in ((f"Bearer {key}", "not_for_this_use"), (token_of(run), "key_refused")):
        with scene.running.raw() as client:
            status, told = asked(client, "/aws/credentials", shown)
        assert (status in (401, 403), told["error"]["code"]) == (True, code)
    assert scene.sts.asked == []


def test_a_run_that_was_not_granted_the_account_gets_none_of_it(scene: Scene) -> None:
    scene.running.log_in("aws@work", credential=keys())
    run, other = scene.running.begin_run("aws"), scene.running.begin_run("aws@work", id="run-2")
    work = CredentialRef(provider="aws", account="work")
    status, told = scene.ask(run, path="/aws@work/credentials")
    assert (status, told["error"]["code"]) == (404, "unknown_provider")
    both = scene.running.begin_run("aws", "aws@work", id="run-3")
    assert scene.ask(both, token_of(both, work))[1]["error"]["code"] == "not_granted"
    assert scene.ask(both, token_of(both, work), path="/aws@work/credentials")[0] == 200
    assert scene.ask(other, token_of(other, work), path="/aws@work/credentials")[0] == 200


@pytest.mark.parametrize(
    ("path", "method"),
    [("/aws/", "GET"), ("/aws/credentials/x", "GET"), ("/aws/credentials", "POST"), ("/aws/?Action=X", "GET")],
)
def test_nothing_else_is_served_and_nothing_is_passed_on(scene: Scene, path: str, method: str) -> None:
    run = scene.running.begin_run("aws")
    status, told = scene.ask(run, path=path, method=method)
    assert (status, told["error"]["code"]) == (404, "no_endpoint")
    assert scene.sts.asked == []


# --- policy, limits, trace, audit ------------------------------------------------------------


def test_the_policy_and_the_limits_of_a_run_hold_for_it_too(scene: Scene) -> None:
    denied = scene.running.begin_run("aws", policy='default = "deny"\n')
    status, told = scene.ask(denied)
    line = 'allow = "GET sts.eu-west-1.amazonaws.com/credentials"'
    assert (status, told["error"]["code"], told["error"]["allow_line"]) == (403, "denied", line)
    allowed = scene.running.begin_run("aws", id="run-2", policy=f'default = "deny"\n[[rule]]\n{line}\n')
    assert scene.ask(allowed)[0] == 200
    limited = scene.running.begin_run("aws", id="run-3", limits=Limits(requests_per_minute=1))
    assert [scene.ask(limited)[0] for _ in range(2)] == [200, 429]
    assert len(scene.sts.asked) == 2


def test_it_is_traced_without_what_was_issued(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    found = scene.ask(run)[1]
    (row,) = scene.running.wait_for_rows(1)
    assert (row.client, row.account, row.path, row.status, row.outcome) == (
        "run:run-1",
        "aws@default",
        "/credentials",
        200,
        "ok",
    )
    assert not [text for text in (*found.values(), token_of(run)) if text in repr(row) and text != ROLE]


def test_each_issue_is_a_use_in_the_audit_and_without_its_entry_nothing_is_given(
    home: Path, clock: FakeClock, sts: Sts, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(Paths(home=home), clock)
    with scene_of(home, clock, sts, audit=audit) as scene:
        scene.running.log_in("aws", credential=keys())
        run = scene.running.begin_run("aws")
        assert [scene.ask(run)[0] for _ in range(3)] == [200] * 3
        uses = [(one.who, one.account) for one in scene.running.do(lambda: audit.take_over(all=True))]
        assert uses
        assert set(uses) == {("run:run-1", "aws@default")}

        def refuse(*_: object, **__: object) -> None:
            raise AuditUnwritable("no room", hint="free some space")

        monkeypatch.setattr(audit, "note", refuse)
        status, told = scene.ask(run)
        assert (status, told["error"]["code"]) == (503, "audit_unwritable")
        assert "SecretAccessKey" not in told


# --- where tools go with the keys ------------------------------------------------------------


def test_what_a_tool_signs_itself_goes_through_a_tunnel_that_nobody_looks_into(scene: Scene) -> None:
    def decided(policy: Policy, host: str = "sts.eu-west-1.amazonaws.com") -> Forward | Refuse:
        live = scene.running.do(lambda: scene.running.gateway.ring.run("run-1"))
        head = RequestHead(method="CONNECT", scheme="https", host=host, port=443, path="/")
        found = decide(head, live.client, policy)
        assert isinstance(found, Forward | Refuse)
        return found

    scene.running.begin_run("aws")
    opened = decided(GRANTED_ALONE)
    assert isinstance(opened, Forward)
    assert (opened.how, opened.grant) == ("tunnel", None)
    other = "s3.eu-west-1.amazonaws.com"
    assert isinstance(decided(GRANTED_ALONE, other), Refuse)
    assert isinstance(decided(policy_of("", file="", allow=[other]), other), Forward)
    shut = decided(policy_of('default = "deny"\n', file="p.toml", allow=()))
    assert isinstance(shut, Refuse)
    assert (shut.code, shut.allow_line) == ("denied", 'allow = "CONNECT sts.eu-west-1.amazonaws.com/**"')


# --- what is missing before a run begins -----------------------------------------------------


def test_without_a_role_a_run_does_not_begin(scene: Scene) -> None:
    scene.running.log_in("aws", credential=keys(role_arn=""))
    with pytest.raises(EndpointUnavailable, match="aws@default names no role") as caught:
        scene.running.begin_run("aws")
    assert "--param role_arn=" in caught.value.hint
    assert scene.running.runs.live() == []


def test_without_boto3_a_run_does_not_begin_and_the_extra_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(EndpointUnavailable, match="boto3, which is not installed") as caught:
        scene.running.begin_run("aws")
    assert caught.value.hint == "run `pip install 'valetkey[aws]'`"
    assert scene.running.runs.live() == []


# --- four kinds of failure -------------------------------------------------------------------

BASE, DENIED, WRONG, NOT_NOW = "base_credential_refused", "role_denied", "role_invalid", "issuer_unavailable"


@pytest.mark.parametrize(
    ("answer", "kind", "status", "hint"),
    [
        (("ExpiredToken", 403), BASE, 401, "valetkey login aws"),
        (("InvalidClientTokenId", 403), BASE, 401, "valetkey login aws"),
        (("SignatureDoesNotMatch", 403), BASE, 401, "valetkey login aws"),
        (("AccessDenied", 403), DENIED, 403, "trust policy"),
        (("ValidationError", 400), WRONG, 502, "duration_seconds"),
        (("RegionDisabledException", 403), WRONG, 502, "region"),
        (("Throttling", 400), NOT_NOW, 503, "try again"),
        (("InternalFailure", 500), NOT_NOW, 503, "try again"),
    ],
)
def test_what_sts_answers_is_told_apart(
    scene: Scene, answer: tuple[str, int], kind: str, status: int, hint: str
) -> None:
    scene.sts.refusal = answer
    got, told = scene.ask(scene.running.begin_run("aws"))
    error = told["error"]
    assert (got, error.get("cause", error["code"]), error["provider"]) == (status, kind, "aws")
    assert hint in error["hint"]
    assert answer[0] in error["message"]
    assert "words of the provider" not in json.dumps(told)
    assert KEY not in json.dumps(told)


def test_a_profile_that_is_not_there_or_holds_nothing_is_a_matter_of_its_own_keys(scene: Scene, tmp_path: Path) -> None:
    scene.running.log_in("aws", credential=role(profile="nobody"))
    run = scene.running.begin_run("aws")
    status, told = scene.ask(run)
    assert (status, told["error"]["code"], told["error"]["cause"]) == (401, "needs_login", BASE)
    assert "`aws sso login --profile nobody`" in told["error"]["hint"]
    (tmp_path / "aws-config").write_text("[profile empty]\nregion = eu-west-1\n")
    scene.running.log_in("aws", credential=role(profile="empty"))
    assert scene.ask(run)[1]["error"]["cause"] == BASE
    assert scene.sts.asked == []


def test_parameters_that_the_sdk_refuses_are_wrong_ones(scene: Scene) -> None:
    scene.running.log_in("aws", credential=keys(role_arn="arn"))
    assert scene.ask(scene.running.begin_run("aws"))[1]["error"]["code"] == WRONG
    assert scene.sts.asked == []


def test_a_network_that_fails_is_told_as_such_and_who_issues_is_left_alone_for_a_while(scene: Scene) -> None:
    run = scene.running.begin_run("aws")
    scene.sts.drops = True
    assert scene.ask(run)[1]["error"]["code"] == NOT_NOW
    calls = len(scene.sts.asked)
    scene.sts.drops = False
    scene.advance(4)
    assert scene.ask(run)[1]["error"]["code"] == NOT_NOW
    assert len(scene.sts.asked) == calls
    scene.advance(2)
    assert scene.ask(run)[0] == 200
