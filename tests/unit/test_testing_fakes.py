"""The kit's small parts: the sandbox, the agent, canaries, and what all of it may import."""

from __future__ import annotations

import ast
import base64
import os
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from valetkey import testing
from valetkey.agent import Served
from valetkey.audit.recorder import Audit
from valetkey.config import Paths
from valetkey.credential import CredentialRef
from valetkey.errors import HomeUnusable, NotLoggedIn, SandboxUnavailable
from valetkey.runs.launch import Ready, Wanted, ready
from valetkey.runs.record import Records
from valetkey.sandbox import Spec
from valetkey.testing import FakeAgent, FakeGranting, FakeSandbox, assert_no_canary
from valetkey.testing.clock import FakeClock

KIT = Path(testing.__file__).parent
ACCOUNT = CredentialRef(provider="acme")
WORDS = ("fake-agent", "hello")


def made_ready(folder: Path, sandbox: FakeSandbox, granting: FakeGranting) -> Ready:
    """Make a run of the fake agent ready: nothing begins, and no gateway is there."""
    paths, clock = Paths(home=folder / "home"), FakeClock()
    (workspace := folder / "project").mkdir(exist_ok=True)
    wanted = Wanted(
        command=FakeAgent().command(WORDS[:1], WORDS[1:], None),
        grants=(ACCOUNT,),
        workspace=workspace,
        agent="fake-agent",
        account=ACCOUNT,
        prepare=FakeAgent().prepare,
    )
    return ready(
        wanted,
        granting=granting,
        records=Records(paths, clock),
        audit=Audit(paths, clock),
        sandbox=sandbox,
        home=paths.home,
        system_bundle=b"",
        environ={},
    )


def test_a_run_is_made_ready_with_fakes_alone(tmp_path: Path) -> None:
    granting, sandbox = FakeGranting(at=tmp_path / "sockets"), FakeSandbox(runs=lambda spec: len(spec.command))
    made = made_ready(tmp_path, sandbox, granting)
    assert granting.live() == [made.run.id]
    spec = made.order.spec
    assert spec.command == WORDS
    assert spec.environment["FAKE_AGENT_BASE_URL"] == "http://127.0.0.1:3128/acme@default"
    assert spec.environment["FAKE_AGENT_KEY"] == "file-placeholder-of-default"
    assert spec.environment["ACME_KEY"] == "placeholder-of-default"
    started = sandbox.start(spec, stdin=0, stdout=1, stderr=2)
    started.signal(15)
    started.stop(0)
    assert (started.wait(), started.pid, sandbox.specs) == (2, os.getpid(), [spec])
    granting.end(made.run.id)
    assert granting.live() == []


def test_what_is_missing_stops_a_run_before_it_is_one(tmp_path: Path) -> None:
    granting = FakeGranting(at=tmp_path / "sockets", missing=(ACCOUNT,))
    with pytest.raises(NotLoggedIn, match="acme@default"):
        made_ready(tmp_path, FakeSandbox(), granting)
    assert granting.live() == []
    fault = SandboxUnavailable("there is none", hint="install it")
    with pytest.raises(SandboxUnavailable):
        made_ready(tmp_path, FakeSandbox(fault=fault), FakeGranting(at=tmp_path / "sockets"))


def test_a_command_is_a_process_with_the_environment_of_its_spec_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SHELL", "x")
    spec = Spec(
        command=("sh", "-c", 'test "$GIVEN" = yes && test -z "$OF_THE_SHELL" && exit 7'),
        workspace=tmp_path,
        home=tmp_path,
        gateway=tmp_path,
        environment={"GIVEN": "yes"},
    )
    with open(os.devnull, "r+b") as null:
        started = FakeSandbox().start(spec, stdin=null.fileno(), stdout=null.fileno(), stderr=null.fileno())
        assert started.wait() == 7


def test_the_fake_agent_finds_its_sessions_and_no_settings_that_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / ".fake-agent").mkdir()
    (tmp_path / ".fake-agent" / "abc.session").touch()
    assert [session.id for session in FakeAgent().sessions(tmp_path)] == ["abc"]
    (tmp_path / ".fake-agent.json").write_text("[1]")
    at = "http://127.0.0.1:3128/acme@default"
    served = Served(ref=ACCOUNT, base_url=at, dialect="openai-chat", placeholder="holds-a-place")
    with pytest.raises(HomeUnusable):
        FakeAgent().prepare(tmp_path, served)
    assert (tmp_path / ".fake-agent.json").read_text() == "[1]"


@pytest.mark.parametrize(
    "shown",
    [
        lambda secret: secret,
        lambda secret: f"x {quote(secret, safe='')}",
        *(lambda secret, n=n: base64.b64encode(b"u" * n + secret.encode() + b"!").decode() for n in range(4)),
        *(lambda secret, n=n: base64.urlsafe_b64encode(b"u" * n + secret.encode()).decode() for n in range(4)),
    ],
)
def test_a_canary_is_seen_in_each_of_its_forms(shown: object, tmp_path: Path) -> None:
    secret = "sk-/?>>~" + os.urandom(8).hex() + "??>~/"
    text = shown(secret)  # type: ignore[operator]  # one of the above
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text(text)
    for place in (text, text.encode(), tmp_path):
        with pytest.raises(AssertionError) as caught:
            assert_no_canary(secret, "nothing", place)
        assert secret not in str(caught.value)
    assert_no_canary("of-another-" + secret[:8], text, tmp_path)


def test_a_place_that_is_not_there_shows_nothing_about_a_canary(canary: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not there"):
        assert_no_canary(canary, tmp_path / "nowhere")


@pytest.mark.parametrize("file", sorted(KIT.rglob("*.py")), ids=lambda file: str(file.relative_to(KIT)))
def test_the_kit_needs_nothing_but_valetkey_and_pytest_in_its_place(file: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    allowed = {"valetkey"} | ({"pytest"} if file.name == "plugin.py" or file.parent.name == "suites" else set())
    assert found - set(sys.stdlib_module_names) <= allowed
