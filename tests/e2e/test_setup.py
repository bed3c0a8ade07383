"""`valetkey setup`: other tools' settings, changed with consent and taken back byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.command_line import CommandLine
from tests.support.servers import ApiMock
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.gateway.keys import Keys
from valetkey.stores import open_store
from valetkey.testing.command_line import Done
from valetkey.testing.local_server import Answer, LocalServer, Received

MODULES = Path(__file__).parents[2] / "node_modules"
CODEX = next(iter(sorted(MODULES.glob("@openai/codex-*/vendor/*/bin/codex"))), Path("none"))
CLAUDE = MODULES / "@anthropic-ai" / "claude-code-linux-x64" / "claude"
CANARY = "ca" + "nary" * 8
FILES = {
    "git": ".gitconfig",
    "claude": ".claude/settings.json",
    "aws": ".aws/config",
    "codex": ".codex/config.toml",
    "docker": ".docker/config.json",
}
# What somebody wrote by hand, with oddities that a reader and writer would lose.
BEFORE = {
    "git": b"""# mine
[user]
\tname = A  ; note
[credential "https://forge.example"]
\thelper = store
[alias]
\tx = y""",
    "claude": b'{"theme":   "dark",\n\n      "env": {\t"A": "\\u00e9 \xc3\xa9"} ,\n"n": 1e5 }',
    "aws": b"""# mine
[default]
region=eu-west-1\x20
s3 =
  max_concurrent_requests = 20

[profile x]\r
region = y
""",
    "codex": b'''# mine
model = "a"   # b

[model_providers.other]
name = """
[x]
"""
[projects."/x"]
trust_level = "trusted"''',
    "docker": b'{\n\t"auths": {},\n\t"HttpHeaders": {"A": "b"}\n}\n\n',
}
# What tools and people add later, elsewhere in the file.
LATER: dict[str, Callable[[bytes], bytes]] = {
    "git": lambda now: now + b"\n[color]\n\tui = auto\n",
    "claude": lambda now: now.replace(b'"n": 1e5', b'"n": 2'),
    "aws": lambda now: now + b"\n[profile later]\nregion = z\n",
    "codex": lambda now: now.replace(b'"a"', b'"z"') + b'\n[projects."/y"]\ntrust_level = "trusted"\n',
    "docker": lambda now: now.replace(b'"b"', b'"c"'),
}
TOOLS = list(FILES)


@pytest.fixture(scope="module")
def logged_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VALETKEY_HOME with a login for each tool, to be copied."""
    home = tmp_path_factory.mktemp("logged-in") / "home"
    home.mkdir(mode=0o700)
    made = CommandLine(home=home)
    made.declare(
        "forge",
        """
        tools = ["git", "docker"]
        [api]
        base_url = "https://forge.example/api"
        hosts = ["forge.example", "*.forge.example"]
        [[auth]]
        id = "token"
        kind = "api-key"
        inject = [{ basic = "me:{key}" }]
        """,
    )
    keys = f"access_key_id=AKIA{'A' * 16}\nsecret_access_key={CANARY}\n"
    for words, stdin in (
        (("forge",), CANARY),
        (("anthropic", "--method", "api-key"), CANARY),
        (("openai",), CANARY),
        (("aws", "--method", "keys"), keys),
    ):
        done = made("login", *words, "--key", "-", "--no-verify", stdin=stdin)
        assert done.status == 0, done.err
    return home


@pytest.fixture
def line(home: Path, logged_in: Path) -> CommandLine:
    shutil.copytree(logged_in, home, dirs_exist_ok=True)
    return CommandLine(home=home)


def file_of(line: CommandLine, tool: str) -> Path:
    return Path(line.environ["HOME"]) / FILES[tool]


def put(line: CommandLine, tool: str, content: bytes) -> Path:
    path = file_of(line, tool)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def good(done: Done) -> Done:
    assert done.status == 0, done.err
    return done


def keys(line: CommandLine) -> list[str]:
    store = open_store(Paths(home=line.home), clock=SystemClock(), key_source_kind="key-file")
    states: list[str] = [key.state(SystemClock().now()) for key in Keys(store, SystemClock()).all()]
    store.close()
    return states


def records(line: CommandLine) -> list[Path]:
    folder = line.home / "setup"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("written", [True, False])
def test_a_setup_is_taken_back_byte_for_byte(line: CommandLine, tool: str, written: bool) -> None:
    path = file_of(line, tool)
    if written:
        put(line, tool, BEFORE[tool]).chmod(0o640)
    there = {p.name for p in Path(line.environ["HOME"]).iterdir()}
    done = good(line("setup", tool, "--yes"))
    assert f"+++ {path}" in done.out
    after = path.read_bytes()
    assert after != BEFORE[tool]
    assert path.stat().st_mode & 0o777 == (0o640 if written else 0o600)
    (record,) = records(line)
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert CANARY.encode() not in after + record.read_bytes() + (done.out + done.err).encode()
    back = good(line("setup", tool, "--undo", "--yes"))
    assert CANARY not in back.out + back.err
    if written:
        assert path.read_bytes() == BEFORE[tool]
        assert path.stat().st_mode & 0o777 == 0o640
    else:
        assert {p.name for p in Path(line.environ["HOME"]).iterdir()} == there
    assert records(line) == []
    assert "live" not in keys(line)
    again = line("setup", tool, "--undo", "--yes")
    assert (again.status, f"no setup of {tool}" in again.err) == (2, True)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_was_changed_elsewhere_since_stays(line: CommandLine, tool: str) -> None:
    path = put(line, tool, BEFORE[tool])
    good(line("setup", tool, "--yes"))
    path.write_bytes(LATER[tool](path.read_bytes()))
    good(line("setup", tool, "--undo", "--yes"))
    expected = LATER[tool](BEFORE[tool])
    assert [x for x in path.read_bytes().splitlines() if x.strip()] == [x for x in expected.splitlines() if x.strip()]


@pytest.mark.parametrize("tool", TOOLS)
def test_an_undo_that_would_lose_something_is_refused_and_by_force_keeps_it_aside(line: CommandLine, tool: str) -> None:
    path = put(line, tool, BEFORE[tool])
    good(line("setup", tool, "--yes"))
    ours = path.read_bytes()
    changed = ours.replace(b"valetkey", b"valetkey-mine")
    path.write_bytes(changed)
    done = line("setup", tool, "--undo", "--yes")
    assert done.status == 1
    assert f"valetkey setup {tool} --undo --force" in done.err
    assert path.read_bytes() == changed
    forced = good(line("setup", tool, "--undo", "--force", "--yes"))
    assert path.read_bytes() == BEFORE[tool]
    (aside,) = records(line)
    assert aside.read_bytes() == changed
    assert str(aside) in forced.err


@pytest.mark.parametrize("tool", TOOLS)
def test_what_somebody_put_back_already_is_only_forgotten(line: CommandLine, tool: str) -> None:
    path = put(line, tool, BEFORE[tool])
    good(line("setup", tool, "--yes"))
    path.write_bytes(BEFORE[tool])
    assert good(line("setup", tool, "--undo", "--json")).json["action"] == "unchanged"
    good(line("setup", tool, "--yes"))
    path.unlink()
    good(line("setup", tool, "--undo"))
    assert not path.exists()
    assert (records(line), "live" in keys(line)) == ([], False)


def test_setups_lie_on_one_another_and_come_off_one_by_one(line: CommandLine) -> None:
    path = put(line, "claude", BEFORE["claude"])
    good(line("setup", "claude", "--yes"))
    first = path.read_bytes()
    good(line("setup", "claude", "--gateway", "--yes"))
    assert path.read_bytes() != first
    good(line("setup", "claude", "--undo", "--yes"))
    assert path.read_bytes() == first
    good(line("setup", "claude", "--undo", "--yes"))
    assert path.read_bytes() == BEFORE["claude"]


@pytest.mark.parametrize("tool", [t for t in TOOLS if t != "codex"])
def test_a_second_setup_that_changes_nothing_leaves_no_record(line: CommandLine, tool: str) -> None:
    good(line("setup", tool, "--yes"))
    assert good(line("setup", tool, "--json")).json["action"] == "unchanged"
    assert len(records(line)) == 1


# --- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "content"),
    [
        ("git", b"[user\n"),
        ("claude", b'{"a": 1, // note\n}'),
        ("claude", b'{"env": []}'),
        ("docker", b""),
        ("docker", b'{"credHelpers": "x"}'),
        ("aws", b"region = x\n"),
        ("aws", b"[default]\nx =\n  [profile valetkey]\n"),
        ("aws", b"\xff"),
        ("aws", b"[default]\n[default]\n"),
        ("codex", b"a = \n"),
        ("codex", b"\xff"),
        ("codex", b"model_providers = { other = { name = 'x' } }\n"),
        ("codex", b'model_provider = """\nx"""\n'),
    ],
)
def test_a_file_that_cannot_be_read_is_left_as_it_is(line: CommandLine, tool: str, content: bytes) -> None:
    path = put(line, tool, content)
    words = ("--gateway",) if content == b'{"env": []}' else ()
    done = line("setup", tool, *words, "--yes")
    assert (done.status, done.out) == (1, "")
    assert str(path) in done.err
    assert path.read_bytes() == content
    assert (records(line), keys(line)) == ([], [])


def test_without_a_yes_nothing_is_changed(line: CommandLine) -> None:
    for tool in TOOLS:
        done = line("setup", tool)
        assert done.status == 2
        assert "--yes" in done.err
        assert not file_of(line, tool).exists()
    with line.terminal("setup", "codex") as shown:
        shown.expect('+experimental_bearer_token = "vk_…"')
        shown.expect("[y/N]")
        shown.send("\n")
        shown.expect("Nothing was changed")
        assert shown.end() == 0
    assert not file_of(line, "codex").exists()
    assert (records(line), keys(line)) == ([], [])
    with line.terminal("setup", "codex") as shown:
        shown.expect("[y/N]")
        shown.send("y\n")
        assert shown.end() == 0
    assert tomllib.loads(file_of(line, "codex").read_text())["model_provider"] == "valetkey"
    assert keys(line) == ["live"]
    done = line("setup", "codex", "--undo")
    assert (done.status, file_of(line, "codex").exists()) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ("emacs",),
        ("git", "--gateway"),
        ("docker", "--gateway"),
        ("aws", "--gateway"),
        ("git", "--profile", "x"),
        ("aws", "--profile", "a]b"),
        ("claude", "--force"),
        ("claude", "anthropic", "openai"),
        ("claude", "--gateway-url", "http://evil.example"),
        ("git", "anthropic"),
        ("git", "nonsense"),
    ],
)
def test_a_wish_that_means_nothing_is_wrong_usage(line: CommandLine, words: tuple[str, ...]) -> None:
    done = line("setup", *words, "--yes")
    assert done.status == 2, done.err
    assert records(line) == []


def test_a_login_that_would_not_be_handed_out_is_found_before_anything_is_written(line: CommandLine) -> None:
    for words, status in ((("claude", "anthropic@nobody"), 3), (("codex", "openai@nobody"), 3), (("aws", "openai"), 4)):
        assert line("setup", *words, "--yes").status == status
    assert records(line) == []


def test_a_file_that_cannot_be_written_leaves_neither_record_nor_key(line: CommandLine) -> None:
    folder = file_of(line, "codex").parent
    folder.write_text("a file where the folder should be")
    done = line("setup", "codex", "--yes")
    assert done.status == 1
    assert "Traceback" not in done.err
    folder.unlink()
    folder.mkdir()
    os.mkfifo(folder / "config.toml")
    assert line("setup", "codex", "--yes").status == 1
    # Nothing is there, and nothing can be made there.
    done = line("setup", "codex", "--yes", environ={"CODEX_HOME": "/proc/valetkey/codex"})
    assert done.status == 1
    assert "/proc/valetkey/codex" in done.err
    assert (records(line), keys(line)) == ([], ["revoked"])


# --- where ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "variable", "name"),
    [
        ("git", "GIT_CONFIG_GLOBAL", ""),
        ("claude", "CLAUDE_CONFIG_DIR", "settings.json"),
        ("aws", "AWS_CONFIG_FILE", ""),
        ("codex", "CODEX_HOME", "config.toml"),
        ("docker", "DOCKER_CONFIG", "config.json"),
    ],
)
def test_the_tool_s_own_variable_says_where(
    line: CommandLine, tmp_path: Path, tool: str, variable: str, name: str
) -> None:
    place = tmp_path / "else where"
    done = good(line("setup", tool, "--yes", "--json", environ={variable: str(place)}))
    assert Path(done.json["file"]) == (place / name if name else place)
    assert (place / name if name else place).is_file()
    assert not file_of(line, tool).exists()
    # Undo knows the place without the variable.
    good(line("setup", tool, "--undo", "--yes"))
    assert not place.exists()


def test_a_link_stays_a_link(line: CommandLine, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_bytes(BEFORE["claude"])
    path = file_of(line, "claude")
    path.parent.mkdir()
    path.symlink_to(real)
    good(line("setup", "claude", "--yes"))
    assert path.is_symlink()
    assert real.read_bytes() != BEFORE["claude"]
    good(line("setup", "claude", "--undo", "--yes"))
    assert path.is_symlink()
    assert real.read_bytes() == BEFORE["claude"]
    assert sorted(p.name for p in real.parent.iterdir()) == ["settings.json"]


def test_git_s_other_global_file_is_used_where_it_is_the_one(line: CommandLine) -> None:
    other = Path(line.environ["HOME"]) / ".config" / "git" / "config"
    other.parent.mkdir(parents=True)
    other.write_text("[user]\n\tname = A\n")
    assert Path(good(line("setup", "git", "--yes", "--json")).json["file"]) == other


# --- what is written -------------------------------------------------------------------------


def test_what_is_written_for_each_tool(line: CommandLine) -> None:
    for tool in TOOLS:
        good(line("setup", tool, "--yes"))
    listed = subprocess.run(
        ["git", "config", "--global", "--list"], env=line.environ, capture_output=True, text=True, check=True
    )
    empty, ours = listed.stdout.splitlines()
    assert empty == "credential.https://forge.example.helper="
    assert ours.endswith("valetkey helper git")
    assert json.loads(file_of(line, "claude").read_text())["apiKeyHelper"].endswith("valetkey helper claude anthropic")
    assert json.loads(file_of(line, "docker").read_text()) == {"credHelpers": {"forge.example": "valetkey"}}
    made: Any = tomllib.loads(file_of(line, "codex").read_text())["model_providers"]["valetkey"]
    token = made.pop("experimental_bearer_token")
    assert made == {"name": "Valetkey", "base_url": "http://127.0.0.1:4380/openai", "wire_api": "responses"}
    assert token.startswith("vk_")
    good(line("setup", "claude", "--gateway", "--yes"))
    env = json.loads(file_of(line, "claude").read_text())["env"]
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4380/anthropic"
    assert env["ANTHROPIC_AUTH_TOKEN"].startswith("vk_")


def test_what_would_come_before_our_setting_is_told(line: CommandLine) -> None:
    put(line, "claude", b'{"env": {"ANTHROPIC_API_KEY": "x"}}')
    assert "ANTHROPIC_API_KEY" in good(line("setup", "claude", "--yes")).err
    folder = Path(line.environ["HOME"]) / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text("[valetkey]\naws_access_key_id = x\n")
    assert "come first" in good(line("setup", "aws", "--yes")).err
    assert "not on PATH" in good(line("setup", "docker", "--yes", environ={"PATH": "/usr/bin:/bin"})).err
    assert good(line("setup", "docker", "--undo", "--yes")).err == ""


def test_no_value_of_the_file_that_looks_secret_is_shown(line: CommandLine) -> None:
    put(line, "docker", f'{{"auths": {{\n"x": {{"auth": "{CANARY}"}}}},\n"credHelpers": {{}}\n}}'.encode())
    put(line, "claude", f'{{"env": {{"SOME_TOKEN": "{CANARY}"}}}}'.encode())
    for words in (("setup",), ("setup", "--undo")):
        for tool in ("docker", "claude"):
            done = good(line(words[0], tool, *words[1:], "--yes"))
            assert CANARY not in done.out + done.err


# --- the tools themselves --------------------------------------------------------------------


def through(mock: ApiMock, seen: list[Received]) -> Callable[[Received], Answer]:
    """Give what stands for the gateway here: it takes the provider off the path, and puts the mock's key in."""

    def respond(request: Received) -> Answer:
        seen.append(request)
        _, _, rest = request.path.removeprefix("/").partition("/")
        path = rest if rest.startswith("v1/") else f"v1/{rest}"
        answer = httpx2.request(
            request.method,
            f"{mock.url}/{path}",
            content=request.body,
            headers={
                "content-type": request.headers.get("content-type", "application/json"),
                "authorization": f"Bearer {mock.api_key}",
                "x-api-key": mock.api_key,
            },
            timeout=60,
        )
        kind = answer.headers.get("content-type", "application/json")
        return Answer(status=answer.status_code, headers={"content-type": kind}, body=answer.content)

    return respond


@pytest.mark.skipif(not CODEX.exists(), reason="Codex has no build for this machine")
def test_codex_goes_through_the_gateway_with_the_valet_key(line: CommandLine, aimock: ApiMock, tmp_path: Path) -> None:
    seen: list[Received] = []
    with LocalServer(through(aimock, seen)) as gateway:
        good(line("setup", "codex", "--gateway-url", gateway.url, "--yes"))
        said = subprocess.run(
            [str(CODEX), "exec", "--skip-git-repo-check", "Say hello."],
            env=line.environ,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert aimock.reply in said.stdout, said.stdout + said.stderr
    asked = [request for request in seen if request.path.endswith("/responses")]
    assert {request.path for request in asked} == {"/openai/responses"}
    assert all(request.headers["authorization"].startswith("Bearer vk_") for request in asked)


@pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code has no build for this machine")
def test_claude_code_goes_through_the_gateway_with_the_valet_key(
    line: CommandLine, aimock: ApiMock, tmp_path: Path
) -> None:
    seen: list[Received] = []
    # The helper of an earlier setup, and a key in the environment, must not send the real key along.
    put(line, "claude", json.dumps({"env": {"ANTHROPIC_API_KEY": CANARY}}).encode())
    good(line("setup", "claude", "--yes"))
    with LocalServer(through(aimock, seen)) as gateway:
        good(line("setup", "claude", "--gateway-url", gateway.url, "--yes"))
        said = subprocess.run(
            [str(CLAUDE), "-p", "Say hello."],
            env={**line.environ, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert aimock.reply in said.stdout, said.stdout + said.stderr
    asked = [request for request in seen if request.path == "/anthropic/v1/messages"]
    assert asked
    assert all(request.headers["authorization"].startswith("Bearer vk_") for request in asked)
    assert not [request for request in seen if CANARY in str(dict(request.headers))]
