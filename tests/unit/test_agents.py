"""Agents: which account one uses, where its program is, what it leaves behind, and what it is prepared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from valetkey.agent import Agent, Login, McpServer, Served
from valetkey.agents import agent_for, chosen
from valetkey.agents.claude import Claude
from valetkey.agents.codex import Codex
from valetkey.agents.copilot import Copilot
from valetkey.agents.gemini import Gemini
from valetkey.agents.program import Program, located
from valetkey.credential import CredentialRef
from valetkey.errors import AgentNotInstalled, BrokenAgent, HomeUnusable, McpServerUnusable, WorkspaceRefused
from valetkey.provider import DialectId
from valetkey.sandbox import Mount

ONE, OTHER = "11111111-5d2b-4c31-9d0e-1f2a3b4c5d6e", "22222222-5d2b-4c31-9d0e-1f2a3b4c5d6e"


def login(name: str, dialect: str, *for_agents: str) -> Login:
    provider, _, account = name.partition("@")
    ref = CredentialRef(provider=provider, account=account or "default")
    return Login(ref=ref, method="key", dialect=dialect, for_agents=for_agents)  # type: ignore[arg-type]  # one of them


# --- which account ----------------------------------------------------------------------------

MESSAGES, RESPONSES = "anthropic-messages", "openai-responses"
KEY, PLAN = login("anthropic", MESSAGES), login("anthropic@plan", MESSAGES, "claude")
SEAT, GOOGLE = login("github-copilot", "openai-chat", "copilot"), login("google", "gemini")
OWN, OPENAI, CHATGPT = login("mine", RESPONSES), login("openai", RESPONSES), login("chatgpt", RESPONSES)


@pytest.mark.parametrize(
    ("agent", "granted", "used", "usable"),
    [
        (Claude(), [], None, 0),
        (Claude(), [login("github", "none")], None, 0),
        (Claude(), [KEY], KEY, 1),
        (Claude(), [KEY, PLAN], PLAN, 2),
        (Claude(), [PLAN, KEY], PLAN, 2),
        (Claude(), [OPENAI, KEY], KEY, 1),
        (Claude(), [login("mine", MESSAGES), KEY], KEY, 2),
        (Codex(), [OWN], OWN, 1),
        (Codex(), [OWN, OPENAI, CHATGPT], CHATGPT, 3),
        (Codex(), [OWN, OPENAI], OPENAI, 2),
        (Codex(), [login("second", RESPONSES), OWN], login("second", RESPONSES), 2),
        (Copilot(), [KEY, OPENAI], OPENAI, 2),
        (Copilot(), [OPENAI, SEAT], SEAT, 2),
        (Gemini(), [OPENAI, GOOGLE], GOOGLE, 1),
    ],
)
def test_the_account_that_an_agent_uses(agent: Agent, granted: list[Login], used: Login | None, usable: int) -> None:
    assert chosen(agent, granted) == (used, usable)


# --- its program ------------------------------------------------------------------------------


class Machine:
    """A PATH with programs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.bin = folder / "home", folder / "bin"
        self.home.mkdir()
        self.bin.mkdir()

    def program(self, path: str, text: str = "\x7fELF") -> Path:
        """Put one somewhere."""
        made = self.folder / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text)
        made.chmod(0o755)
        return made

    def located(self, configured: str | None = None) -> Program:
        environ = {"PATH": str(self.bin)}
        return located(
            Codex(), configured=configured, environ=environ, home=self.home, valetkey_home=self.home / ".valetkey"
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (folder := tmp_path / "machine").mkdir()
    return Machine(folder)


def test_a_program_of_its_own_is_mounted_alone(machine: Machine) -> None:
    real = machine.program("home/.local/share/codex/1.2")
    (machine.bin / "codex").symlink_to(real)
    inside = "/opt/valetkey/programs/codex/1.2"
    assert machine.located() == Program(command=(inside,), mounts=(Mount(source=real, target=inside),))


def test_a_script_of_npm_brings_its_packages_and_its_interpreter(machine: Machine) -> None:
    real = machine.program("npm/node_modules/a/node_modules/@b/c/bin/codex.js", "#!/usr/bin/env node\n")
    (machine.bin / "codex").symlink_to(real)
    node = machine.program("bin/node")
    found = machine.located()
    at = "/opt/valetkey/programs"
    assert found.command == (
        f"{at}/node/node",
        f"{at}/codex/node_modules/a/node_modules/@b/c/bin/codex.js",
    )
    assert found.mounts == (
        Mount(source=node, target=f"{at}/node/node"),
        Mount(source=machine.folder / "npm" / "node_modules", target=f"{at}/codex/node_modules"),
    )
    assert all(mount.read_only for mount in found.mounts)


def test_what_lies_in_usr_is_there_already(machine: Machine) -> None:
    assert machine.located("/usr/bin/env") == Program(command=(str(Path("/usr/bin/env").resolve()),))


def test_what_is_not_there_is_told_with_how_to_install_it(machine: Machine) -> None:
    with pytest.raises(AgentNotInstalled, match="no program codex on PATH") as told:
        machine.located()
    assert "npm install -g @openai/codex" in told.value.hint
    with pytest.raises(AgentNotInstalled, match="no program codex at /nowhere"):
        machine.located("/nowhere")
    machine.program("bin/codex", "#!/usr/bin/env node\n")
    with pytest.raises(AgentNotInstalled, match="needs node"):
        machine.located()


def test_a_program_in_a_place_of_credentials_is_refused(machine: Machine) -> None:
    real = machine.program("home/.codex/bin/codex")
    with pytest.raises(WorkspaceRefused) as told:
        machine.located(str(real))
    assert "agents.codex.program" in told.value.hint


# --- sessions ---------------------------------------------------------------------------------


def left(home: Path, path: str, seconds: int) -> None:
    (home / path).parent.mkdir(parents=True, exist_ok=True)
    (home / path).write_text("{}\n")
    os.utime(home / path, (seconds, seconds))


@pytest.mark.parametrize(
    ("agent", "form", "no_session"),
    [
        (Claude(), ".claude/projects/-workspace/{id}.jsonl", ".claude/projects/-workspace/agent-{id}.jsonl"),
        (Claude(), ".claude/projects/-workspace/{id}.jsonl", ".claude/projects/-elsewhere/{id}.jsonl"),
        (Codex(), ".codex/sessions/2026/11/24/rollout-2026-11-24T19-12-01-{id}.jsonl", ".codex/{id}.jsonl"),
        (Copilot(), ".copilot/session-state/{id}/events.jsonl", ".copilot/session-state/{id}/other.jsonl"),
    ],
)
def test_sessions_are_found_by_their_files_the_last_used_first(
    agent: Agent, form: str, no_session: str, tmp_path: Path
) -> None:
    left(tmp_path, form.format(id=ONE), 100)
    left(tmp_path, form.format(id=OTHER), 200)
    left(tmp_path, no_session.format(id="33333333-5d2b-4c31-9d0e-1f2a3b4c5d6e"), 300)
    found = [(session.id, session.used_at) for session in agent.sessions(tmp_path)]
    assert found == [(OTHER, datetime.fromtimestamp(200, UTC)), (ONE, datetime.fromtimestamp(100, UTC))]


def test_of_gemini_the_file_tells_the_rest_of_the_id_and_whether_it_is_a_subagents(tmp_path: Path) -> None:
    def begun(id: str, seconds: int, **more: str) -> None:
        path = f".gemini/tmp/workspace/chats/session-2026-11-24T19-12-{id[:8]}.jsonl"
        left(tmp_path, path, seconds)
        (tmp_path / path).write_text(json.dumps({"sessionId": id, **more}) + "\n{}\n")
        os.utime(tmp_path / path, (seconds, seconds))

    begun(ONE, 100, kind="main")
    begun(OTHER, 200)
    begun("33333333-5d2b-4c31-9d0e-1f2a3b4c5d6e", 300, kind="subagent")
    begun("44444444; rm -rf", 400)
    chats = tmp_path / ".gemini/tmp/workspace/chats"
    (chats / "session-2026-11-24T19-12-55555555.jsonl").write_text("[" * 100_000)
    os.mkfifo(chats / "session-2026-11-24T19-12-66666666.jsonl")
    (chats / "session-2026-11-24T19-12-77777777.jsonl").symlink_to(chats / f"session-2026-11-24T19-12-{ONE[:8]}.jsonl")
    found = [(session.id, session.used_at) for session in Gemini().sessions(tmp_path)]
    assert found == [(OTHER, datetime.fromtimestamp(200, UTC)), (ONE, datetime.fromtimestamp(100, UTC))]


@pytest.mark.parametrize("link", [".claude", ".claude/projects", ".claude/projects/-workspace", "file"])
def test_no_link_leads_to_sessions(link: str, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    file = f".claude/projects/-workspace/{ONE}.jsonl"
    left(tmp_path / "outside", file, 100)
    at = home / (file if link == "file" else link)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(tmp_path / "outside" / (file if link == "file" else link))
    assert Claude().sessions(home) == []


def test_a_thousand_folders_in_each_other_do_no_harm(tmp_path: Path) -> None:
    left(tmp_path, f".codex/sessions/2026/11/24/rollout-2026-11-24T19-12-01-{ONE}.jsonl", 100)
    at = os.open(tmp_path / ".codex/sessions/2026", os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("x", dir_fd=at)
        below = os.open("x", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        assert [session.id for session in Codex().sessions(tmp_path)] == [ONE]
    finally:  # pytest would walk through them
        subprocess.run(["rm", "-rf", tmp_path / ".codex"], check=True)


# --- what they are prepared with --------------------------------------------------------------


def served(provider: str, **variables: str) -> Served:
    ref = CredentialRef(provider=provider, account="work")
    return Served(
        ref=ref, base_url="http://127.0.0.1:3128/x", placeholder="holds-a-place", dialect="none", variables=variables
    )


def test_claude_code_has_one_login_and_is_asked_nothing(tmp_path: Path) -> None:
    prepared = Claude().prepare(tmp_path, served("anthropic", ANTHROPIC_API_KEY="sk-ant-api03-a-very-long-placeholder"))
    assert prepared.environment["ANTHROPIC_API_KEY"] == "sk-ant-api03-a-very-long-placeholder"
    assert prepared.without >= {"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"}
    state = json.loads((tmp_path / ".claude.json").read_text())
    assert state["customApiKeyResponses"]["approved"] == ["ery-long-placeholder"]
    assert state["projects"]["/workspace"]["hasTrustDialogAccepted"] is True
    assert (tmp_path / ".claude.json").stat().st_mode & 0o077 == 0
    plan = Claude().prepare(tmp_path, served("anthropic", CLAUDE_CODE_OAUTH_TOKEN="sk-ant-oat01-x"))
    assert {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"} & set(plan.environment) == set()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_state_that_cannot_be_read_is_not_overwritten(text: str, tmp_path: Path) -> None:
    (tmp_path / ".claude.json").write_text(text)
    with pytest.raises(HomeUnusable):
        Claude().prepare(tmp_path, served("anthropic"))
    assert (tmp_path / ".claude.json").read_text() == text


def test_codex_is_told_in_the_systems_settings_and_its_home_stays_empty(tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    prepared = Codex().prepare(home, served("openai"))
    settings = tomllib.loads(prepared.files["/etc/codex/config.toml"].decode())
    provider = settings["model_providers"][settings["model_provider"]]
    assert provider["base_url"] == "http://127.0.0.1:3128/x"
    assert prepared.environment[provider["env_key"]] == "holds-a-place"
    assert settings["projects"]["/workspace"]["trust_level"] == "trusted"
    assert list(home.iterdir()) == []


LINEAR = McpServer(name="linear", url="http://127.0.0.1:3128/mcp/linear")
OLDER = McpServer(name="older", url="http://127.0.0.1:3128/mcp/older", transport="sse")
FILES = McpServer(name="files", command=("npx", "files", "a b"))


BY_ADDRESS = {
    "linear": {"type": "http", "url": LINEAR.url},
    "older": {"type": "sse", "url": OLDER.url},
}
BY_COMMAND = {"command": "npx", "args": ["files", "a b"]}


@pytest.mark.parametrize(
    ("agent", "file", "more", "by_command"),
    [
        (Claude(), ".claude.json", {}, {"type": "stdio", "env": {}}),
        (Copilot(), ".copilot/mcp-config.json", {"tools": ["*"]}, {"type": "local"}),
        (Gemini(), ".gemini/settings.json", {}, {}),
    ],
)
def test_an_agent_has_the_servers_of_its_run_beside_its_own_and_none_of_an_earlier_one(
    agent: Agent, file: str, more: dict[str, object], by_command: dict[str, object], tmp_path: Path
) -> None:
    def kept(*servers: McpServer) -> dict[str, object]:
        agent.prepare(tmp_path, replace(served("anthropic"), mcp_servers=servers))
        found: dict[str, object] = json.loads((tmp_path / file).read_text())["mcpServers"]
        return found

    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text('{"mcpServers": {"own": {"command": "x"}}}')
    assert kept(LINEAR, OLDER, FILES) == {
        "own": {"command": "x"},
        **{name: server | more for name, server in BY_ADDRESS.items()},
        "files": BY_COMMAND | by_command | more,
    }
    assert list(kept(OLDER)) == ["own", "older"]
    assert list(kept()) == ["own"]


@pytest.mark.parametrize("left", ['{"valetkey": 1}', '{"valetkey": {"mcpServers": [{}, 1, "x"]}, "mcpServers": []}'])
def test_a_list_of_servers_that_a_run_spoilt_does_no_harm(left: str, tmp_path: Path) -> None:
    (tmp_path / ".claude.json").write_text(left)
    Claude().prepare(tmp_path, replace(served("anthropic"), mcp_servers=(LINEAR,)))
    assert list(json.loads((tmp_path / ".claude.json").read_text())["mcpServers"]) == ["linear"]


def test_codex_has_the_servers_of_its_run_and_refuses_what_it_cannot_speak(tmp_path: Path) -> None:
    account = replace(served("openai"), mcp_servers=(LINEAR, FILES))
    settings = tomllib.loads(Codex().prepare(tmp_path, account).files["/etc/codex/config.toml"].decode())
    assert settings["mcp_servers"] == {
        "linear": {"url": LINEAR.url},
        "files": {"command": "npx", "args": ["files", "a b"]},
    }
    with pytest.raises(McpServerUnusable, match="older is configured for sse"):
        Codex().prepare(tmp_path, replace(account, mcp_servers=(OLDER,)))


@pytest.mark.parametrize(
    ("dialect", "spoken"),
    [
        ("openai-chat", ("openai", "completions")),
        ("openai-responses", ("openai", "responses")),
        ("anthropic-messages", ("anthropic", None)),
    ],
)
def test_copilot_is_told_what_its_server_speaks(
    dialect: DialectId, spoken: tuple[str, str | None], tmp_path: Path
) -> None:
    account = replace(served("mine"), dialect=dialect, model="small")
    told = Copilot().prepare(tmp_path, account).environment
    assert (told["COPILOT_PROVIDER_TYPE"], told.get("COPILOT_PROVIDER_WIRE_API")) == spoken
    assert (told["COPILOT_PROVIDER_API_KEY"], told["COPILOT_MODEL"]) == ("holds-a-place", "small")
    assert json.loads((tmp_path / ".copilot/config.json").read_text())["trustedFolders"] == ["/workspace"]


def test_copilot_with_a_login_at_github_has_no_other_server(tmp_path: Path) -> None:
    (tmp_path / ".copilot").mkdir()
    (tmp_path / ".copilot/config.json").write_text('// managed\n{"trustedFolders": ["/elsewhere"]}\n')
    prepared = Copilot().prepare(tmp_path, served("github-copilot", COPILOT_GITHUB_TOKEN="github_pat_x"))
    assert prepared.environment["COPILOT_GITHUB_TOKEN"] == "github_pat_x"
    assert not [name for name in prepared.environment if name.startswith("COPILOT_PROVIDER")]
    assert "COPILOT_PROVIDER_BASE_URL" in prepared.without
    state = json.loads((tmp_path / ".copilot/config.json").read_text())
    assert state["trustedFolders"] == ["/elsewhere", "/workspace"]


# --- those of packages ------------------------------------------------------------------------


def test_a_package_brings_an_agent_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_agent-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: their-agent\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[valetkey.agents]\ntheirs = their_agent:Theirs\nbroken = their_agent:No\n"
    )
    (tmp_path / "their_agent.py").write_text("class Theirs:\n    id = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = agent_for("theirs")
        assert found is not None
        assert found.id == "theirs"
        with pytest.raises(BrokenAgent, match="the agent broken could not be loaded: AttributeError"):
            agent_for("broken")
    finally:
        sys.modules.pop("their_agent", None)
    assert agent_for("nobody") is None
    assert agent_for("../x") is None


def test_an_agent_that_two_packages_ship_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("their_agent", "other_agent"):
        package = tmp_path / f"{name}-1.dist-info"
        package.mkdir()
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (package / "entry_points.txt").write_text(f"[valetkey.agents]\ntheirs = {name}:Theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BrokenAgent, match="other_agent, their_agent"):
        agent_for("theirs")
