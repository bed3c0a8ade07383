"""docs/agents.md as somebody would follow it: the package, its agent in a real sandbox, its sessions, its test."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command_line import ORDINARY, CommandLine
from tests.support.gateway_process import end
from tests.support.packages import install, run_tests
from valetkey.testing import FakeProvider, RunningProvider, assert_no_canary

DOCS = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
(PROJECT,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
AGENT, PROGRAM, TEST = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
PATIENCE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Place:
    """A home with an account, the agent's package beside Valetkey, its program on PATH, and a workspace."""

    line: CommandLine
    provider: RunningProvider
    workspace: Path

    def __call__(self, *words: str) -> str:
        done = self.line(*words, patience_seconds=PATIENCE_SECONDS)
        assert done.status == 0, done.err
        return done.out

    def asked(self) -> list[str]:
        """Give what the last question was made of."""
        messages = self.provider.api_requests[-1].json["messages"]
        assert isinstance(messages, list)
        return [message["content"] for message in messages]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "valetkey_nib").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "valetkey_nib" / "__init__.py").write_text(AGENT)
    return install(source, tmp_path / "site")


@pytest.fixture
def place(site: Path, tmp_path: Path, canary: str) -> Iterator[Place]:
    (programs := tmp_path / "programs").mkdir()
    (programs / "nib").write_text(PROGRAM)
    (programs / "nib").chmod(0o755)
    (workspace := tmp_path / "project").mkdir()
    # Its path is short, so that sockets are in it.
    with (
        tempfile.TemporaryDirectory(prefix="vk") as folder,
        FakeProvider().with_api_key(canary) as provider,
    ):
        (home := Path(folder, "home")).mkdir(mode=0o700)
        environ = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(site)}
        line = CommandLine(home=home, through=ORDINARY, environ=environ)
        place = Place(line=line, provider=provider, workspace=workspace)
        provider.declare(home)
        assert line("login", "fake", "--key", "-", stdin=canary).status == 0
        yield place
        end(line)


def test_the_agent_answers_goes_on_with_its_sessions_and_sees_no_credential(place: Place, canary: str) -> None:
    run = ("run", "--grant", "fake", "--workspace", str(place.workspace), "nib")
    assert place(*run, "first words") == "the fake model has answered\n"
    assert place.asked() == ["first words"]
    assert place.provider.api_requests[-1].headers["authorization"] == f"Bearer {canary}"
    (session,) = place.line("nib", "sessions", "--json").json["sessions"]
    assert session["grants"] == ["fake@default"]

    assert place("nib", "resume", session["id"][:6], "second words") == "the fake model has answered\n"
    assert place.asked() == ["first words", "the fake model has answered", "second words"]
    place("run", "--workspace", str(place.workspace), "nib", "--continue", "--", "third words")
    assert place.asked()[-1] == "third words"
    assert len(place.asked()) == 5

    runs = place.line("runs", "list", "--json").json["runs"]
    assert [(one["agent"], one["account"], one["exit_status"]) for one in runs] == [("nib", "fake@default", 0)] * 3
    (home,) = (place.line.home / "runs").glob("*/home/.nibrc")
    assert home.read_text() == '{"telemetry": false}'
    assert_no_canary(canary, place.line.home / "runs", place.workspace)


def test_without_an_account_it_says_which_login_it_is_made_for(place: Place) -> None:
    done = place.line("nib", "hello")
    assert done.status == 3
    assert "valetkey login mistral" in done.err


def test_its_own_test_passes(site: Path, tmp_path: Path) -> None:
    (tests := tmp_path / "tests").mkdir()
    (tests / "test_nib.py").write_text(TEST)
    done = run_tests(tests, site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), "none is skipped"
