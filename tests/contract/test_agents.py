"""What every agent promises, whichever it is."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from valetkey.agent import Agent, Served
from valetkey.agents import BUILT_IN, agent_for
from valetkey.config import Paths
from valetkey.credential import CredentialRef
from valetkey.errors import HomeUnusable
from valetkey.providers import catalogue
from valetkey.workspace import check_file_target

SESSION = "0199c3a0-5d2b-7c31-9d0e-1f2a3b4c5d6e"


@pytest.fixture(params=sorted(BUILT_IN))
def agent(request: pytest.FixtureRequest) -> Agent:
    found = agent_for(request.param)
    assert found is not None
    assert found.id == request.param
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (folder := tmp_path / "agent").mkdir()
    return folder


def served(agent: Agent, **variables: str) -> Served:
    ref = CredentialRef(provider=agent.providers[-1], account="work")
    url = f"http://127.0.0.1:3128/{ref}"
    return Served(ref=ref, base_url=url, placeholder="placeholder-" + secrets.token_hex(8), variables=variables)


def test_it_is_pointed_at_its_account_and_shows_the_placeholder(agent: Agent, home: Path) -> None:
    account = served(agent)
    prepared = agent.prepare(home, account)
    said = [*prepared.environment.values(), *(content.decode() for content in prepared.files.values())]
    assert any(account.base_url in text for text in said)
    assert account.placeholder in prepared.environment.values()
    for target in prepared.files:
        check_file_target(target)


def test_its_providers_are_there_and_speak_its_dialect(agent: Agent, tmp_path: Path) -> None:
    providers = catalogue(Paths(home=tmp_path))
    assert {providers.get(name).api.dialect for name in agent.providers} == {agent.dialect}


def test_it_keeps_what_is_in_the_home_of_an_earlier_run(agent: Agent, home: Path) -> None:
    agent.prepare(home, served(agent))
    for path in home.iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"numStartups": 3}))
    agent.prepare(home, served(agent))
    assert all(json.loads(path.read_text())["numStartups"] == 3 for path in home.iterdir())


def test_a_link_that_a_run_left_leads_nowhere(agent: Agent, home: Path, tmp_path: Path) -> None:
    """A run can leave any link in its home; what it leads to outside is neither read nor written."""
    agent.prepare(home, served(agent))
    outside = tmp_path / "outside"
    outside.write_text('{"mine": 1}')
    for path in list(home.iterdir()):
        path.unlink()
        path.symlink_to(outside)
        with pytest.raises(HomeUnusable):
            agent.prepare(home, served(agent))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(HomeUnusable):
            agent.prepare(home, served(agent))
        path.unlink()
        path.mkdir()
        with pytest.raises(HomeUnusable):
            agent.prepare(home, served(agent))
    assert outside.read_text() == '{"mine": 1}'


def test_a_session_to_go_on_with_stands_in_its_command_and_the_words_stay(agent: Agent) -> None:
    without = agent.command(("node", "it"), ("exec", "-x", "hi there"), None)
    going_on = agent.command(("node", "it"), ("exec", "-x", "hi there"), SESSION)
    for command in (without, going_on):
        assert command[:2] == ("node", "it")
        assert command[-2:] == ("-x", "hi there")
    assert SESSION in going_on
    assert [word for word in going_on if word in without] == list(without)


def test_a_home_without_sessions_has_none(agent: Agent, home: Path) -> None:
    assert agent.sessions(home) == []
