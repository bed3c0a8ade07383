"""What every agent promises."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from valetkey.agent import Agent, McpServer, Prepared, Served
from valetkey.config import Paths
from valetkey.credential import CredentialRef
from valetkey.errors import HomeUnusable, McpServerUnusable
from valetkey.providers import catalogue
from valetkey.workspace import check_file_target

__all__ = ["AgentSuite"]

SESSION = "0199c3a0-5d2b-7c31-9d0e-1f2a3b4c5d6e"
SERVERS = (
    McpServer(name="by-http", url="http://127.0.0.1:3128/mcp/by-http"),
    McpServer(name="by-sse", url="http://127.0.0.1:3128/mcp/by-sse", transport="sse"),
    McpServer(name="by-stdio", command=("/opt/by-stdio", "--root", "a b")),
)


def served(agent: Agent, **variables: str) -> Served:
    ref = CredentialRef(provider=agent.providers[-1], account="work")
    url = f"http://127.0.0.1:3128/{ref}"
    return Served(
        ref=ref,
        base_url=url,
        dialect=agent.dialects[0],
        placeholder="placeholder-" + secrets.token_hex(8),
        variables=variables,
    )


def files(home: Path) -> list[Path]:
    """Give the files that it has in the home."""
    return [path for path in home.rglob("*") if not path.is_dir()]


def spoken(agent: Agent, folder: Path) -> tuple[McpServer, ...]:
    """Give those of the servers that it can speak to; each of the others it refuses."""
    found = []
    for server in SERVERS:
        (home := folder / server.name).mkdir(parents=True)
        try:
            agent.prepare(home, replace(served(agent), mcp_servers=(server,)))
            found.append(server)
        except McpServerUnusable:
            continue
    return tuple(found)


def settings(prepared: Prepared, home: Path) -> str:
    """Give the text of all its files: of those in the home each value as it is read."""
    texts = [content.decode() for content in prepared.files.values()]
    return "\n".join([*texts, *(json.dumps(json.loads(path.read_text())) for path in files(home))])


class AgentSuite:
    """Subclass it with a fixture `agent`. Its providers have to be built in, or shipped by an installed package.

    What it writes into its home has to be JSON, or nothing.
    """

    @pytest.fixture
    def agent_home(self, tmp_path: Path) -> Path:
        """Give the home of a first run."""
        (folder := tmp_path / "agent").mkdir()
        return folder

    def test_it_is_pointed_at_its_account_and_shows_the_placeholder(self, agent: Agent, agent_home: Path) -> None:
        account = served(agent)
        prepared = agent.prepare(agent_home, account)
        said = [*prepared.environment.values(), *(content.decode() for content in prepared.files.values())]
        assert any(account.base_url in text for text in said)
        assert account.placeholder in prepared.environment.values()
        for target in prepared.files:
            check_file_target(target)

    def test_its_providers_are_there_and_speak_its_dialects(self, agent: Agent, tmp_path: Path) -> None:
        providers = catalogue(Paths(home=tmp_path))
        assert {providers.get(name).api.dialect for name in agent.providers} == set(agent.dialects)

    def test_it_keeps_what_is_in_the_home_of_an_earlier_run(self, agent: Agent, agent_home: Path) -> None:
        agent.prepare(agent_home, served(agent))
        for path in files(agent_home):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"numStartups": 3}))
        agent.prepare(agent_home, served(agent))
        assert all(json.loads(path.read_text())["numStartups"] == 3 for path in files(agent_home))

    def test_its_settings_name_the_servers_that_it_is_given_and_no_more_those_of_an_earlier_run(
        self, agent: Agent, agent_home: Path, tmp_path: Path
    ) -> None:
        account, usable = served(agent), spoken(agent, tmp_path / "trials")
        for given in (usable, *((server,) for server in usable), ()):
            said = settings(agent.prepare(agent_home, replace(account, mcp_servers=given)), agent_home)
            for server in SERVERS:
                # By its name alone it is not reached.
                ways = [server.name] if server not in given else [server.name, server.url or "", *server.command]
                assert [way in said for way in ways] == [server in given] * len(ways)

    def test_a_link_that_a_run_left_leads_nowhere(self, agent: Agent, agent_home: Path, tmp_path: Path) -> None:
        """A run can leave any link in its home; what it leads to outside is neither read nor written."""
        account = replace(served(agent), mcp_servers=spoken(agent, tmp_path / "trials"))
        agent.prepare(agent_home, account)
        outside = tmp_path / "outside"
        outside.write_text('{"mine": 1}')
        for path in files(agent_home):
            path.unlink()
            path.symlink_to(outside)
            with pytest.raises(HomeUnusable):
                agent.prepare(agent_home, account)
            path.unlink()
            os.mkfifo(path)
            with pytest.raises(HomeUnusable):
                agent.prepare(agent_home, account)
            path.unlink()
            path.mkdir()
            with pytest.raises(HomeUnusable):
                agent.prepare(agent_home, account)
            path.rmdir()
            agent.prepare(agent_home, account)
        assert outside.read_text() == '{"mine": 1}'

    def test_a_folder_that_a_run_made_a_link_leads_nowhere(
        self, agent: Agent, agent_home: Path, tmp_path: Path
    ) -> None:
        account = replace(served(agent), mcp_servers=spoken(agent, tmp_path / "trials"))
        agent.prepare(agent_home, account)
        (outside := tmp_path / "outside").mkdir()
        for path in files(agent_home):
            (outside / path.name).write_text('{"mine": 1}')
            if path.parent == agent_home:
                continue
            path.parent.rename(tmp_path / "moved")
            path.parent.symlink_to(outside)
            with pytest.raises(HomeUnusable):
                agent.prepare(agent_home, account)
            path.parent.unlink()
            (tmp_path / "moved").rename(path.parent)
        assert all(path.read_text() == '{"mine": 1}' for path in outside.iterdir())

    def test_a_session_to_go_on_with_stands_in_its_command_and_the_words_stay(self, agent: Agent) -> None:
        without = agent.command(("node", "it"), ("exec", "-x", "hi there"), None)
        going_on = agent.command(("node", "it"), ("exec", "-x", "hi there"), SESSION)
        for command in (without, going_on):
            assert command[:2] == ("node", "it")
            assert command[-2:] == ("-x", "hi there")
        assert SESSION in going_on
        assert [word for word in going_on if word in without] == list(without)

    def test_a_home_without_sessions_has_none(self, agent: Agent, agent_home: Path) -> None:
        assert agent.sessions(agent_home) == []
