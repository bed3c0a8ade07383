"""Claude Code and Codex, the real programs, each in a run: they answer, go on with a session, and see no credential."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import holding, holds
from tests.support.command_line import CommandLine, Done
from tests.support.connect_proxy import ConnectProxy
from tests.support.front import Door, Target, guarded
from tests.support.gateway_process import end
from tests.support.inside import SEARCH, found, let_search
from tests.support.local_server import LocalServer, Received, Reply
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from tests.support.workplace import packaged_program
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, Identity, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store

ROOT = Path(__file__).parents[2]
# Root starts no run: where the tests run as root, they do this as an ordinary user of a namespace of their own.
ORDINARY = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--") if os.geteuid() == 0 else ()
PATIENCE_SECONDS = 120


@dataclass
class Place:
    """A home that is logged in, a workspace, and the providers' servers behind it."""

    line: CommandLine
    workspace: Path
    anthropic: LocalServer
    openai: LocalServer
    chatgpt: LocalServer
    keys: dict[str, str]
    outside: ConnectProxy

    def __call__(self, *words: str) -> Done:
        return self.line(*words, patience_seconds=PATIENCE_SECONDS)

    def login(self, account: str, method: str) -> None:
        words = ["login", account, "--method", method, "--key", "-", "--no-verify", "--yes"]
        done = self.line(*words, stdin=self.keys[method if account.startswith("anthropic") else "openai"])
        assert done.status == 0, done.err

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.line("runs", "list", "--json").json["runs"]
        return found

    def shows(self, *said: str) -> list[str]:
        """Name where a credential is to be seen: in what a run said, or in all that is kept of any."""
        found = []
        for key in self.keys.values():
            found += [text[:40] for text in said if holds(key, text.encode())]
            found += holding(key, [*(self.line.home / "runs").rglob("*"), *self.workspace.rglob("*")])
        return found


@pytest.fixture
def place(certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path: Path) -> Iterator[Place]:
    api_key, subscription, openai = (
        Door(header=header, form=form, key=start + "canary" + os.urandom(20).hex())
        for header, form, start in (
            ("x-api-key", "{key}", "sk-ant-api03-"),
            ("authorization", "Bearer {key}", "sk-ant-oat01-"),
            ("authorization", "Bearer {key}", "sk-proj-"),
        )
    )
    claude = Target(aimock.url, {"x-api-key": aimock.api_key})
    codex = Target(aimock.url, {"authorization": f"Bearer {aimock.api_key}"})
    (workspace := tmp_path / "project").mkdir()
    with contextlib.ExitStack() as stack:
        at = certificate_authority.context
        anthropic = stack.enter_context(
            # What one door does not open, the other may.
            LocalServer(guarded_by(api_key, subscription, claude), tls=at("api.anthropic.com"))
        )
        other = stack.enter_context(LocalServer(guarded(openai, codex), tls=at("api.openai.com")))
        plan = Door(key="eyJ" + "canary" + os.urandom(20).hex())
        chatgpt = stack.enter_context(LocalServer(guarded(plan, at_chatgpt(codex)), tls=at("chatgpt.com")))
        ports = {
            "api.anthropic.com:443": anthropic.port,
            "api.openai.com:443": other.port,
            "chatgpt.com:443": chatgpt.port,
        }
        outside = stack.enter_context(ConnectProxy(ports))
        # Its path is short, so that sockets are in it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vk"))
        (home := Path(folder, "home")).mkdir(mode=0o700)
        (home / "config.toml").write_text(
            f"[network]\nca_file = {json.dumps(str(certificate_authority.ca_file))}\n"
            f"[agents.claude]\nprogram = {json.dumps(packaged_program('@anthropic-ai/claude-code', 'claude'))}\n"
        )
        (home / "config.toml").chmod(0o600)
        environ = {
            "HTTPS_PROXY": f"http://127.0.0.1:{outside.port}",
            "NO_PROXY": "127.0.0.1",
            # Codex is found here, as npm would put it there.
            "PATH": f"{ROOT / 'node_modules' / '.bin'}:{os.environ['PATH']}",
        }
        line = CommandLine(home=home, through=ORDINARY, environ=environ)
        keys = {"api-key": api_key.key, "subscription": subscription.key, "openai": openai.key, "chatgpt": plan.key}
        yield Place(line, workspace, anthropic, other, chatgpt, keys, outside)
        end(line)


def at_chatgpt(target: Target) -> Callable[[Received], Reply]:
    """Answer where Codex finds a ChatGPT login's API, as the mock does at its own address."""
    return lambda request: target(replace(request, path=request.path.replace("/backend-api/codex", "/v1")))


def guarded_by(one: Door, other: Door, target: Target) -> Callable[[Received], Reply]:
    first, second = guarded(one, target), guarded(other, target)
    return lambda request: first(request) if one.opens(request) else second(request)


HOOK = {"type": "command", "command": SEARCH}


def searching(workspace: Path) -> None:
    """Let Claude Code search its surroundings when a session begins."""
    (workspace / ".claude").mkdir()
    (workspace / ".claude" / "settings.json").write_text(json.dumps({"hooks": {"SessionStart": [{"hooks": [HOOK]}]}}))
    let_search(workspace)


def asked(server: LocalServer, text: str) -> list[dict[str, Any]]:
    """Give the questions that had this in them."""
    return [json.loads(request.body) for request in server.requests if text.encode() in request.body]


@pytest.mark.parametrize("method", ["api-key", "subscription"])
def test_claude_code_answers_and_sees_no_credential(place: Place, aimock: ApiMock, method: str) -> None:
    place.login("anthropic", method)
    searching(place.workspace)
    done = place("run", "claude", "--workspace", str(place.workspace), "--", "-p", "Say hello.")
    assert (done.status, done.out, done.err) == (0, aimock.reply + "\n", "")
    seen = found(place.workspace)
    assert (seen.canaries, seen.unread) == ([], [])
    # The search does find: the placeholder is where the credential would be.
    assert {"environ", "memory"} <= seen.kinds
    assert place.shows(done.out, done.err) == []
    (kept,) = place.runs()
    assert (kept["agent"], kept["account"], kept["method"]) == ("claude", "anthropic@default", method)
    assert kept["grants"] == ["anthropic@default"]
    assert place.outside.heads, "it went out by the tests' own way"
    assert {head.split(b" ")[1] for head in place.outside.heads} == {b"api.anthropic.com:443"}


def test_claude_code_goes_on_with_a_session_by_its_id_its_run_and_its_workspace(place: Place, aimock: ApiMock) -> None:
    place.login("anthropic", "subscription")
    at = str(place.workspace)
    policy = place.line.home.parent / "policy.toml"
    policy.write_text('default = "allow"\nother_hosts = "deny"\n')
    held = ("--workspace", at, "--read-only", "--policy", str(policy), "--allow", "files.example")
    assert place("run", "claude", *held, "--", "-p", "My word is plover.").status == 0
    policy.unlink()
    (first,) = place.runs()
    (session,) = place("claude", "sessions", "--json").json["sessions"]
    assert (session["run"], session["workspace"], session["grants"]) == (first["id"], at, ["anthropic@default"])
    ways = (
        ("claude", "resume", session["id"], "-p"),
        ("run", "claude", "--resume", first["id"], "--", "-p"),
        ("run", "claude", "--continue", "--workspace", at, "--", "-p"),
        ("runs", "resume", first["id"], "--", "-p"),
    )
    for number, words in enumerate(ways):
        done = place(*words, f"Question {number}?")
        assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
        assert asked(place.anthropic, f"Question {number}?")
        assert all("plover" in json.dumps(question) for question in asked(place.anthropic, f"Question {number}?"))
    runs = place.runs()
    assert [run["home_of"] for run in runs] == [first["id"]] * 4 + [None]
    for run in runs:
        assert (run["read_only"], run["allow"], run["policy"]) == (True, ["files.example"], first["policy"])
    assert len(place("claude", "sessions", "--json").json["sessions"]) == 1
    assert place.shows() == []


def test_of_two_logins_the_subscription_counts_and_that_is_told(place: Place, aimock: ApiMock) -> None:
    place.login("anthropic", "api-key")
    place.login("anthropic@plan", "subscription")
    grants = ("--grant", "anthropic", "--grant", "anthropic@plan")
    done = place("run", *grants, "--workspace", str(place.workspace), "claude", "-p", "Say hello.")
    assert (done.status, done.out) == (2, ""), "options behind its name are ours"
    done = place("run", *grants, "--workspace", str(place.workspace), "claude", "--", "-p", "Say hello.")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    assert done.err == "valetkey: claude uses anthropic@plan, by its login subscription\n"
    (kept,) = place.runs()
    assert (kept["account"], kept["method"]) == ("anthropic@plan", "subscription")
    questions = [request for request in place.anthropic.requests if b"Say hello." in request.body]
    assert questions
    assert {request.headers.get("authorization") for request in questions} == {f"Bearer {place.keys['subscription']}"}


@pytest.mark.parametrize(
    ("agent", "dialect", "path", "words"),
    [
        ("claude", "anthropic-messages", "", ("-p", "Say hello.")),
        ("codex", "openai-responses", "/v1", ("exec", "Say hello.")),
    ],
)
def test_an_agent_uses_a_server_of_ones_own(
    place: Place, aimock: ApiMock, agent: str, dialect: str, path: str, words: tuple[str, ...]
) -> None:
    door = Door()
    place.keys["mine"] = door.key
    with LocalServer(guarded(door, Target(aimock.url, {"authorization": f"Bearer {aimock.api_key}"}))) as server:
        add = ("--base-url", server.url + path, "--dialect", dialect, "--allow-http", "--no-verify")
        done = place.line(
            "providers", "add", "mine", *add, "--key-header", "authorization", "--key", "-", stdin=door.key
        )
        assert done.status == 0, done.err
        done = place("run", "--grant", "mine", "--workspace", str(place.workspace), agent, "--", *words)
        assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
        assert any(b"Say hello." in request.body for request in server.requests)
    assert place.runs()[0]["account"] == "mine@default"
    assert place.shows(done.out, done.err) == []


def test_codex_answers_and_goes_on_with_its_session(place: Place, aimock: ApiMock) -> None:
    place.login("openai", "api-key")
    done = place("run", "--workspace", str(place.workspace), "codex", "exec", "My word is plover.")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    (session,) = place("codex", "sessions", "--json").json["sessions"]
    again = place("codex", "resume", session["id"], "exec", "And again?")
    assert (again.status, again.out) == (0, aimock.reply + "\n"), again.err
    assert asked(place.openai, "And again?")
    assert all("plover" in json.dumps(question) for question in asked(place.openai, "And again?"))
    assert [run["home_of"] for run in place.runs()] == [session["run"], None]
    assert place.shows(done.out, done.err, again.out, again.err) == []
    assert {head.split(b" ")[1] for head in place.outside.heads} == {b"api.openai.com:443"}


def test_an_agent_that_is_granted_nothing_it_can_use_gets_its_own_account_too(place: Place, aimock: ApiMock) -> None:
    place.login("anthropic", "api-key")
    words = ("run", "--workspace", str(place.workspace), "codex", "--grant", "anthropic", "--", "exec", "Say hello.")
    done = place(*words)
    assert (done.status, place.runs()) == (3, [])
    place.login("openai", "api-key")
    done = place(*words)
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    (kept,) = place.runs()
    assert (kept["account"], kept["grants"]) == ("openai@default", ["openai@default", "anthropic@default"])


def test_codex_goes_by_a_chatgpt_login_where_there_is_one(place: Place, aimock: ApiMock) -> None:
    """The login is stored here, as one in the browser would leave it: that is OpenAI's own page."""
    place.login("openai", "api-key")
    now = datetime.now(UTC)
    token = OAuthToken(
        method="login",
        access_token=Secret(place.keys["chatgpt"]),
        issued_at=now,
        expires_at=now + timedelta(days=8),
        parameters={},
    )
    with contextlib.closing(open_store(Paths(home=place.line.home), clock=SystemClock())) as store:
        store.save(
            Record(
                ref=CredentialRef(provider="chatgpt", account="default"),
                credential=token,
                identity=Identity(account_id="account-1"),
                hosts=("chatgpt.com",),
                base_url="https://chatgpt.com/backend-api/codex",
                restricted=True,
            )
        )
    done = place("run", "--workspace", str(place.workspace), "codex", "exec", "Say hello.")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    (question,) = [request for request in place.chatgpt.requests if b"Say hello." in request.body]
    assert question.path == "/backend-api/codex/responses"
    assert question.headers["chatgpt-account-id"] == "account-1"
    (kept,) = place.runs()
    assert (kept["account"], kept["method"], kept["grants"]) == ("chatgpt@default", "login", ["chatgpt@default"])
    assert place.shows(done.out, done.err) == []


def test_an_agent_without_a_login_or_a_program_says_what_to_do(place: Place) -> None:
    done = place("codex", "exec", "hi")
    assert (done.status, "`valetkey login openai`" in done.err) == (3, True)
    place.login("openai", "api-key")
    done = place.line("codex", "exec", "hi", environ={"PATH": "/usr/bin:/bin"})
    assert (done.status, "npm install -g @openai/codex" in done.err) == (1, True)
    assert place.runs() == []


def test_only_an_agent_goes_on(place: Place) -> None:
    done = place("run", "--workspace", str(place.workspace), "--continue", "--", "true")
    assert (done.status, "only an agent" in done.err) == (2, True)
    done = place("run", "--workspace", str(place.workspace), "--", "true")
    assert done.status == 0
    done = place("runs", "resume", place.runs()[0]["id"])
    assert (done.status, "had no agent" in done.err) == (2, True)


@pytest.mark.parametrize("method", ["api-key", "subscription"])
def test_on_a_terminal_claude_code_asks_nothing_before_the_first_word(place: Place, method: str) -> None:
    place.login("anthropic", method)
    with place.line.terminal("run", "--workspace", str(place.workspace), "claude") as terminal:
        terminal.expect("/workspace")
        terminal.send("plover")
        terminal.expect("plover")
        terminal.send("\r")
        # It puts each word at its place: there are no spaces between them.
        terminal.expect("mock.")
        assert asked(place.anthropic, "plover")
        terminal.signal(signal.SIGTERM)
        terminal.end()
    assert place.shows(terminal.shown) == []
