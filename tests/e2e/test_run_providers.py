"""Providers in runs, used by the programs that people use: what they reach, and that none sees a credential."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.abroad import OWN_HEADER, Abroad, abroad
from tests.support.command_line import ORDINARY, CommandLine
from tests.support.gateway_process import end
from tests.support.inside import SEARCH, canary, found, let_search
from tests.support.repositories import create
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import Credential, CredentialRef, ExchangedKey, Identity, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.testing.canary import holding, holds
from valetkey.testing.command_line import Done

PATIENCE_SECONDS = 120
PROGRAMS = Path(__file__).parents[1] / "support" / "programs"
INSIDE = "http://127.0.0.1:3128"


# What a package ships: a provider, and the login that it is used with.
DECLARATION = """
id = "works"
name = "Works"
tools = ["works-cli"]
[api]
base_url = "https://api.works.example/v1"
hosts = ["api.works.example"]
probe = { get = "/me", name = "/name" }
[[auth]]
id = "badge"
kind = "works-badge"
token_endpoint = "https://login.works.example/token"
inject = [{ set = { authorization = "Bearer {access_token}" } }]
[auth.sandbox]
environment = { WORKS_TOKEN = "{placeholder}", WORKS_URL = "{base_url}" }
placeholder = "works-valetkey-placeholder"
files = { "/etc/works.conf" = ["token={placeholder}"], "~/.config/works/token" = ["{placeholder}"] }
"""
FLOW = """
from valetkey.flows import probe, token_endpoint


class BadgeFlow:
    kind = "works-badge"

    def __init__(self, context):
        self._context = context

    async def refresh(self, credential):
        return await token_endpoint.refresh(self._context, credential)

    async def validate(self, credential):
        return await probe.validate(self._context, credential)
"""


def package(site: Path) -> None:
    """Install it there."""
    (site / "works_valetkey").mkdir(parents=True)
    (site / "works_valetkey" / "works.toml").write_text(DECLARATION)
    (site / "works_valetkey" / "__init__.py").write_text(FLOW)
    (about := site / "works_valetkey-1.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: works-valetkey\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[valetkey.providers]\nworks = works_valetkey\n[valetkey.flows]\nworks-badge = works_valetkey:BadgeFlow\n"
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """A home that is logged in everywhere, and the providers behind it."""

    line: CommandLine
    world: Abroad

    def run(self, workspace: Path, *grants: str, script: str, env: Sequence[str] = ()) -> Done:
        """Run a script of the shell, and then the search."""
        words = [word for grant in grants for word in ("--grant", grant)]
        words += [word for one in env for word in ("--env", one)]
        command = ("run", *words, "--workspace", str(workspace), "--", "sh", "-e", "-c", f"{script}\n{SEARCH}")
        return self.line(*command, patience_seconds=PATIENCE_SECONDS)

    def run_with(self, workspace: Path, *grants: str, command: Sequence[str], **more: object) -> Done:
        """Run it with what the command line has no option for."""
        asked = {"command": command, "grants": grants, "workspace": str(workspace), **more}
        words = [*self.line.through, sys.executable, str(PROGRAMS / "run_with.py"), json.dumps(asked)]
        done = subprocess.run(
            words,
            env=self.line.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return Done(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    def assert_no_credential_showed(self, workspace: Path, done: Done) -> None:
        """See that none was inside, that the search did look, and that none is in what is kept."""
        seen = found(workspace)
        assert (seen.canaries, seen.unread) == ([], [])
        assert {"environ", "memory"} <= seen.kinds
        kept = [*(self.line.home / "runs").rglob("*"), *workspace.rglob("*")]
        for whose, key in self.world.keys.items():
            assert not holds(key, (done.out + done.err).encode()), whose
            assert holding(key, kept) == [], whose


@pytest.fixture(scope="module")
def place(
    certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("git")
    with abroad(certificate_authority, aimock, folder) as world, tempfile.TemporaryDirectory(prefix="vk") as short:
        (home := Path(short, "home")).mkdir(mode=0o700)
        (home / "config.toml").write_text(f"[network]\nca_file = {json.dumps(str(certificate_authority.ca_file))}\n")
        (home / "config.toml").chmod(0o600)
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{world.outside.port}", "NO_PROXY": "127.0.0.1"}
        package(site := Path(short, "site"))
        line = CommandLine(home=home, through=ORDINARY, environ={**environ, "PYTHONPATH": str(site)})
        for provider, method in (
            ("openai", "api-key"),
            ("anthropic", "api-key"),
            ("google", "api-key"),
            ("github", "token"),
        ):
            login(line, provider, world.keys[provider], "--method", method)
        add = ("--base-url", "https://llm.company.example/v1", "--dialect", "openai-chat", "--no-verify", "--key", "-")
        done = line("providers", "add", "mine", *add, stdin=world.keys["mine"])
        assert done.status == 0, done.err
        line.declare(
            "acme",
            '[api]\nbase_url = "https://acme.company.example/v1"\nhosts = ["acme.company.example"]\n'
            'dialect = "openai-chat"\n[[auth]]\nid = "api-key"\nkind = "api-key"\nenvironment = ["ACME_TOKEN"]\n'
            f'inject = [{{ set = {{ {OWN_HEADER} = "{{key}}" }}, remove = ["authorization", "x-api-key"] }}]\n',
        )
        login(line, "acme", world.keys["acme"])
        yield Place(line=line, world=world)
        end(line)


def login(line: CommandLine, provider: str, key: str, *words: str) -> None:
    done = line("login", provider, *words, "--key", "-", "--no-verify", stdin=key)
    assert done.status == 0, done.err


def store(
    line: CommandLine,
    provider: str,
    credential: Credential,
    base_url: str,
    *hosts: str,
    endpoints: Sequence[str] = (),
    restricted: bool = True,
) -> None:
    """Store a login as its page would leave it."""
    with contextlib.closing(open_store(Paths(home=line.home), clock=SystemClock())) as opened:
        opened.save(
            Record(
                ref=CredentialRef(provider=provider),
                credential=credential,
                identity=Identity(account_id="account-1"),
                hosts=hosts,
                endpoints=tuple(endpoints),
                base_url=base_url,
                restricted=restricted,
            )
        )


@pytest.fixture(autouse=True)
def nothing_received(place: Place) -> None:
    place.world.forget()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (folder := tmp_path / "project").mkdir()
    let_search(folder)
    return folder


# --- one after the other -----------------------------------------------------------------------

OPENAI = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}
ANTHROPIC = {"model": "claude-x", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("provider", "host", "path", "question", "header"),
    [
        ("openai", "api.openai.com", CHAT, OPENAI, "authorization: Bearer $OPENAI_API_KEY"),
        ("anthropic", "api.anthropic.com", "/v1/messages", ANTHROPIC, "x-api-key: $ANTHROPIC_API_KEY"),
        (
            "google",
            "generativelanguage.googleapis.com",
            "/v1beta/models/gemini-x:generateContent",
            GEMINI,
            "x-goog-api-key: $GEMINI_API_KEY",
        ),
        ("mine", "llm.company.example", CHAT, OPENAI, "authorization: Bearer $MINE_API_KEY"),
        ("acme", "acme.company.example", CHAT, OPENAI, f"{OWN_HEADER}: $ACME_TOKEN"),
    ],
)
def test_curl_asks_by_base_url_and_by_proxy(
    place: Place, aimock: ApiMock, workspace: Path, provider: str, host: str, path: str, question: object, header: str
) -> None:
    (workspace / "question").write_text(json.dumps(question))
    ask = "curl -sS --fail -H 'content-type: application/json' --data @question"
    addresses = (f"{INSIDE}/{provider}{path}", f"https://{host}{path}")
    # With what stands for the key where that goes, and with nothing.
    script = "".join(f'{ask} -H "{header}" {address}\n{ask} {address}\n' for address in addresses)
    done = place.run(workspace, provider, script=script)
    assert (done.status, done.out.count(aimock.reply)) == (0, 4), done.err
    requests = place.world.only(host)
    assert len(requests) == 4
    assert not any("vkp_" in request.head for request in requests)
    place.assert_no_credential_showed(workspace, done)


@pytest.mark.parametrize(
    ("provider", "host", "brought"),
    [
        ("openai", "api.openai.com", "authorization: Bearer <F>"),
        ("anthropic", "api.anthropic.com", "x-api-key: <F>"),
        ("google", "generativelanguage.googleapis.com", "x-goog-api-key: <F>"),
        ("github", "api.github.com", "authorization: token <F>"),
        ("github", "github.com", "authorization: Basic <B>"),
        # A header that only the declaration knows for one is replaced.
        ("acme", "acme.company.example", "authorization: Bearer <F>"),
    ],
)
def test_what_a_tool_brought_itself_gets_nowhere(
    place: Place, workspace: Path, provider: str, host: str, brought: str
) -> None:
    foreign = "sk-" + secrets.token_hex(20)
    basic = base64.b64encode(f"x-access-token:{foreign}".encode()).decode()
    header = brought.replace("<F>", foreign).replace("<B>", basic)
    done = place.run(workspace, provider, script=f"curl -sS -H '{header}' https://{host}/v1/x")
    assert json.loads(done.out)["error"]["code"] == "foreign_credential"
    assert place.world.servers[host].requests == []


# --- SDKs --------------------------------------------------------------------------------------

PACKAGES, PYTHON = "/opt/packages", "/opt/python"


def sdk(place: Place, workspace: Path, provider: str, program: str, **variables: str) -> Done:
    """Run a program of Python with the packages that the tests have."""
    (workspace / "program.py").write_bytes((PROGRAMS / f"{program}.py").read_bytes())
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    mounts, python = {packages: PACKAGES}, sys.executable
    base = Path(sys.base_prefix)
    if not base.is_relative_to("/usr"):
        mounts[str(base)] = PYTHON
        python = f"{PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # The search runs beside it, while its memory has whatever it has of a key.
    program = (
        f"import subprocess, runpy, sys\nsys.argv = ['program.py', 'm']\nrunpy.run_path('program.py')\n"
        f"sys.stdout.flush()\nsubprocess.run({SEARCH.split()}, check=True, env={{}})\n"
    )
    more = {"PYTHONPATH": PACKAGES, "LD_LIBRARY_PATH": f"{PYTHON}/lib", **variables}
    return place.run_with(
        workspace, provider, command=[python, "-W", "ignore", "-c", program], mounts=mounts, variables=more
    )


@pytest.mark.parametrize("way", ["base URL", "proxy"])
def test_the_openai_sdk(place: Place, aimock: ApiMock, workspace: Path, way: str) -> None:
    more = {"OPENAI_BASE_URL": f"{INSIDE}/openai"} if way == "base URL" else {}
    done = sdk(place, workspace, "openai", "openai_sdk", **more)
    assert done.status == 0, done.err
    told = done.json
    assert (told["chat"], told["chat_stream"], told["responses"]) == (aimock.reply,) * 3
    assert told["async"] == [aimock.reply] * 4
    assert place.world.only("api.openai.com")
    place.assert_no_credential_showed(workspace, done)


@pytest.mark.parametrize("way", ["base URL", "proxy"])
def test_the_anthropic_sdk(place: Place, aimock: ApiMock, workspace: Path, way: str) -> None:
    more = {"ANTHROPIC_BASE_URL": f"{INSIDE}/anthropic"} if way == "base URL" else {}
    done = sdk(place, workspace, "anthropic", "anthropic_sdk", **more)
    assert done.status == 0, done.err
    assert (done.json["messages"], done.json["async_stream"]) == (aimock.reply,) * 2
    assert place.world.only("api.anthropic.com")
    place.assert_no_credential_showed(workspace, done)


@pytest.mark.parametrize("way", ["base URL", "proxy"])
def test_nodes_own_fetch_at_a_server_of_ones_own(place: Place, aimock: ApiMock, workspace: Path, way: str) -> None:
    (workspace / "fetch.mjs").write_bytes((PROGRAMS / "fetch.mjs").read_bytes())
    base_url = "BASE_URL=$MINE_BASE_URL"
    if way == "proxy":
        base_url = "BASE_URL=https://llm.company.example/v1 BY_PROXY=$HTTPS_PROXY"
    done = place.run(workspace, "mine", script=f"{base_url} API_KEY=$MINE_API_KEY node --no-warnings fetch.mjs")
    assert done.status == 0, done.err
    assert (done.json["statuses"], done.json["whole"], done.json["stream"]) == ([200, 200], aimock.reply, aimock.reply)
    place.assert_no_credential_showed(workspace, done)


# --- GitHub --------------------------------------------------------------------------------------

AUTHOR = (
    "GIT_AUTHOR_NAME=A",
    "GIT_AUTHOR_EMAIL=a@example.org",
    "GIT_COMMITTER_NAME=A",
    "GIT_COMMITTER_EMAIL=a@example.org",
)
WORK = """
    git clone -q ADDRESS work
    cd work; echo new > new; git add .; git commit -q -m new; git push -q origin main; git fetch -q; cd ..
"""


@pytest.mark.parametrize("address", ["https://github.com/", "git@github.com:", "ssh://git@github.com/"])
def test_git_clones_and_pushes_whatever_its_remote_says(place: Place, workspace: Path, address: str) -> None:
    name = f"owner/{secrets.token_hex(4)}.git"
    bare = create(place.world.git_folder, name, {"README": "begin\n"})
    # What it would be asked for, it has: a placeholder.
    asked = (
        "printf 'protocol=https\nhost=github.com\n\n' | git credential fill | grep -c '^password=github_pat_valetkey'"
    )
    done = place.run(workspace, "github", script=WORK.replace("ADDRESS", address + name) + asked, env=AUTHOR)
    assert (done.status, done.out) == (0, "1\n"), done.err
    assert bare.git("log", "--format=%s", "main").split("\n") == ["new", "begin", ""]
    real = base64.b64encode(f"x-access-token:{place.world.keys['github']}".encode()).decode()
    requests = place.world.only("github.com")
    assert {request.headers.get("authorization") for request in requests} == {f"Basic {real}"}
    assert any(request.path.endswith("/git-receive-pack") for request in requests)
    place.assert_no_credential_showed(workspace, done)


def test_git_that_shows_its_placeholder_clones_and_pushes(place: Place, workspace: Path) -> None:
    name = f"owner/{secrets.token_hex(4)}.git"
    bare = create(place.world.git_folder, name, {"README": "begin\n"})
    # Git itself sends it only where the server has asked, and the gateway is asked by none.
    sent = """
        export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=http.extraHeader
        export GIT_CONFIG_VALUE_0="Authorization: Basic $(printf x-access-token:$GH_TOKEN | base64 -w0)"
    """
    script = sent + WORK.replace("ADDRESS", f"https://github.com/{name}")
    done = place.run(workspace, "github", script=script, env=AUTHOR)
    assert done.status == 0, done.err
    assert bare.git("log", "--format=%s", "main").split("\n") == ["new", "begin", ""]
    assert not any("vkp_" in request.head for request in place.world.only("github.com"))
    place.assert_no_credential_showed(workspace, done)


def test_gh_asks_the_api(place: Place, workspace: Path) -> None:
    script = "gh api user; echo; gh auth status 2>&1; gh api graphql -f query='{viewer{login}}' --jq .data.viewer.login"
    done = place.run(workspace, "github", script=script)
    assert done.status == 0, done.out + done.err
    assert '{"login": "octo"}' in done.out
    assert "Logged in to github.com as octo (GH_TOKEN)" in done.out
    assert done.out.endswith("octo\n")
    requests = place.world.only("api.github.com")
    assert {request.headers["authorization"] for request in requests} == {f"Bearer {place.world.keys['github']}"}
    place.assert_no_credential_showed(workspace, done)


# --- logins that are for agents, or end -----------------------------------------------------------


def as_agent(place: Place, workspace: Path, agent: str, provider: str, *addresses: str) -> Done:
    """Ask with curl, where the login serves a run of this agent alone."""
    (workspace / "question").write_text(json.dumps(OPENAI))
    ask = "curl -sS --fail-with-body -H 'content-type: application/json' --data @question "
    script = "\n".join([*(ask + address for address in addresses), SEARCH])
    # These have no variable: the search gets something else to see.
    seen = {"CONTROL": f"placeholder-{'vkp'}_"}
    return place.run_with(workspace, provider, command=["sh", "-e", "-c", script], agent=agent, variables=seen)


def test_copilots_key_is_bought_outside_and_a_run_has_neither_it_nor_what_buys_it(
    place: Place, aimock: ApiMock, workspace: Path
) -> None:
    now = datetime.now(UTC)
    domain = {"domain": "github.com"}
    buys = Secret(place.world.keys["copilot-grant"])
    grant = OAuthToken(method="device", access_token=buys, issued_at=now, parameters=domain)
    # The one that it was logged in with has ended.
    ended = now - timedelta(hours=1)
    spent = ExchangedKey(
        method="device",
        key=Secret("tid=" + secrets.token_hex(20)),
        grant=grant,
        issued_at=ended - timedelta(minutes=30),
        expires_at=ended,
        parameters=domain,
    )
    hosts, endpoints = ("api.githubcopilot.com", "*.githubcopilot.com"), ("api.github.com", "github.com")
    store(place.line, "github-copilot", spent, "https://api.githubcopilot.com", *hosts, endpoints=endpoints)
    by_both = (f"{INSIDE}/github-copilot/chat/completions", "https://api.githubcopilot.com/chat/completions")
    done = as_agent(place, workspace, "copilot", "github-copilot", *by_both)
    assert (done.status, done.out.count(aimock.reply)) == (0, 2), done.out + done.err
    # Bought once, with the other token, by the gateway; the API saw the bought one alone.
    assert place.world.exchanges == [f"Bearer {place.world.keys['copilot-grant']}"]
    requests = place.world.servers["api.githubcopilot.com"].requests
    assert {request.headers["authorization"] for request in requests} == {f"Bearer {place.world.keys['copilot']}"}
    place.assert_no_credential_showed(workspace, done)
    # No other run gets it.
    refused = place.run(workspace, "github-copilot", script="true")
    assert (refused.status, "copilot" in refused.err) == (4, True), refused.err


def test_a_chatgpt_login_serves_the_run_of_an_agent(place: Place, aimock: ApiMock, workspace: Path) -> None:
    now = datetime.now(UTC)
    token = OAuthToken(
        method="login",
        access_token=Secret(place.world.keys["chatgpt"]),
        issued_at=now,
        expires_at=now + timedelta(days=8),
    )
    store(place.line, "chatgpt", token, "https://chatgpt.com/backend-api/codex", "chatgpt.com")
    path = "/chat/completions"
    by_both = (f"{INSIDE}/chatgpt{path}", f"https://chatgpt.com/backend-api/codex{path}")
    done = as_agent(place, workspace, "codex", "chatgpt", *by_both)
    assert (done.status, done.out.count(aimock.reply)) == (0, 2), done.out + done.err
    assert {request.headers["chatgpt-account-id"] for request in place.world.only("chatgpt.com")} == {"account-1"}
    place.assert_no_credential_showed(workspace, done)


def test_a_packages_login_is_renewed_in_the_middle_of_a_run_and_what_stands_for_it_stays(
    place: Place, workspace: Path
) -> None:
    works = place.world.works
    access, refresh = works.issue()
    now = datetime.now(UTC)
    token = OAuthToken(
        method="badge",
        access_token=Secret(access),
        refresh_token=Secret(refresh),
        issued_at=now,
        expires_at=now + timedelta(hours=1),
    )
    at = ("https://api.works.example/v1", "api.works.example")
    store(place.line, "works", token, *at, endpoints=("login.works.example",), restricted=False)
    ask = 'curl -sS --fail-with-body -H "authorization: Bearer'
    script = f"""
        for turn in 1 2 3; do
            {ask} $WORKS_TOKEN" $WORKS_URL/me
            {ask} $(cat ~/.config/works/token)" https://api.works.example/v1/me
        done
        . /etc/works.conf; {ask} $token" $WORKS_URL/me
        test "$token" = "$(cat ~/.config/works/token)"
    """
    done = place.run(workspace, "works", script=script)
    assert (done.status, done.out) == (0, '{"name": "Ann"}' * 7), done.out
    assert done.err == "valetkey: works is mostly used by works-cli, which is not in the sandbox\n"
    # Each token was good for two of them: three renewals, each with a refresh token that counts once.
    assert (len(works.used), len(set(works.used)), len(works.spent), len(set(works.spent))) == (7, 4, 3, 3)
    assert not any("vkp_" in request.head for request in place.world.servers["api.works.example"].requests)
    place.assert_no_credential_showed(workspace, done)
    seen = found(workspace).placeholders
    assert {"/etc/works.conf", "/home/agent/.config/works/token"} <= set(seen)


# --- the search itself -----------------------------------------------------------------------

# Keeps it in its memory alone, and says it to whoever asks at a port and at a socket.
KEEPER = """
import os, socket, sys, threading
with open("/workspace/leak", "rb") as file:
    kept = bytes(byte ^ 1 for byte in file.read())
ports = socket.create_server(("127.0.0.1", 4444)), socket.socket(socket.AF_UNIX)
ports[1].bind("/tmp/leak.sock")
ports[1].listen()
def serve(port):
    while True:
        with port.accept()[0] as client:
            # What it has not read would make the other end lose what it says.
            if client.recv(4096):
                client.sendall(kept)
for port in ports:
    threading.Thread(target=serve, args=(port,), daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""


def forms(key: str) -> dict[str, bytes]:
    """Give what programs make of a key, by names for files."""
    raw = key.encode()
    return {
        "plain": raw,
        "in quotes": json.dumps({"key": key}).encode(),
        "backwards": raw[::-1],
        "percent": "".join(f"%{byte:02x}" for byte in raw).encode(),
        "PERCENT": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "hex": raw.hex().encode(),
        "basic": base64.b64encode(b"x-access-token:" + raw),
        **{f"base64 {before}": base64.b64encode(b"?" * before + raw + b"!") for before in range(3)},
        **{f"base64url {before}": base64.urlsafe_b64encode(b"\xff" * before + raw) for before in range(3)},
    }


def test_the_search_finds_a_credential_in_any_place_and_form(line: CommandLine, workspace: Path) -> None:
    leak = canary()
    # Nothing of it is in this file: each byte is another one.
    (workspace / "leak").write_bytes(bytes(byte ^ 1 for byte in leak.encode()))
    (workspace / "keep.py").write_text(KEEPER)
    for name, text in forms(leak).items():
        (workspace / name).write_bytes(text)
    (workspace / "near").write_text(leak[:-1] + "g")
    # In memory and on sockets it is one process's alone, in the environment another's, in the arguments the shell's.
    script = f"""mkfifo /tmp/up; sleep 100 | python3 keep.py > /tmp/up & read up < /tmp/up
        LEAK=$1 sleep 100 & {SEARCH}; kill -9 -1"""
    words = ("run", "--workspace", str(workspace), "--", "sh", "-c", script, "sh", leak)
    line(*words, patience_seconds=PATIENCE_SECONDS)
    seen = found(workspace)
    files = {place for place in seen.canaries if place.startswith("/")}
    assert files == {f"/workspace/{name}" for name in forms(leak)}
    assert {place.partition(" ")[0] for place in set(seen.canaries) - files} == {
        "environ", "cmdline", "memory", "port", "socket",
    }  # fmt: skip
    assert {"port 4444", "socket /tmp/leak.sock"} <= set(seen.canaries)
    assert seen.unread == []
