"""A run asks a person for what it was refused, and waits for a login that has ended: a real sandbox, curl inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.command_line import CommandLine
from tests.support.gateway_process import declare, kill, until
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, OAuthToken, Secret
from valetkey.stores import open_store
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.command_line import PATIENCE_SECONDS
from valetkey.testing.local_server import LocalServer

KEY = "sk-" + "canary" + os.urandom(12).hex()
ACCESS = "http://127.0.0.1:3128/valetkey/access"


class Inside:
    """A shell in a sandbox: a line in, what it says out."""

    def __init__(self, line: CommandLine, workspace: Path, *words: str) -> None:
        before = {run["id"] for run in line("runs", "list", "--json").json["runs"]}
        shell = 'echo up; while IFS= read -r words; do eval "$words"; echo; echo "<end>"; done'
        self._process = subprocess.Popen(
            [*line.through, sys.executable, "-m", "valetkey", "run", *words, "--workspace", str(workspace), "--",
             "sh", "-c", shell],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=line.environ, bufsize=0,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"
        (self.id,) = {run["id"] for run in line("runs", "list", "--json").json["runs"]} - before

    def begin(self, words: str) -> None:
        """Say a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n".encode())

    def end(self) -> str:
        """Give all that it said to the line."""
        assert self._process.stdout is not None
        said: list[str] = []
        while (heard := self._process.stdout.readline()) != b"<end>\n":
            assert heard, f"it ended after {said}"
            said.append(heard.decode())
        return "".join(said).strip()

    def __call__(self, words: str) -> str:
        self.begin(words)
        return self.end()

    def json(self, words: str) -> Any:
        """Give what a line said as the JSON that it is."""
        return json.loads(self(words))

    def status(self, path: str) -> str:
        """Give the status of a GET by the base URL."""
        return self(f"curl -sS -o /dev/null -w '%{{http_code}}' http://127.0.0.1:3128/acme/{path}")

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE_SECONDS) == 0


def waiting(line: CommandLine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = line("approvals", "list", "--json").json["approvals"]
    return found


def test_what_a_run_is_refused_it_asks_for_and_a_person_lets_it_have(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    declare(line, server.url, key=KEY)
    host = server.url.removeprefix("http://")
    policy = tmp_path / "policy.toml"
    policy.write_text(f'default = "deny"\n\n[[rule]]\nallow = "GET {host}/open"\n')
    (workspace := tmp_path / "project").mkdir()
    grant = ("--grant", "acme", "--policy", str(policy))
    with Inside(line, workspace, *grant) as run, Inside(line, workspace, *grant) as other:
        assert (run.status("open"), run.status("shut")) == ("200", "403")
        refused = run.json("curl -sS http://127.0.0.1:3128/acme/shut")["error"]
        # The run does as it is told, with the very words.
        asked = run.json(refused["ask"]["command"].replace("WHY IT IS NEEDED", "to finish the task"))
        assert (asked["state"], asked["allows"]) == ("pending", f"GET {host}/shut")
        told = line("approvals", "list").out
        assert f"run {run.id}" in told
        assert f"asks for: GET {host}/shut" in told
        assert 'it says: "to finish the task"' in told
        assert "waits for" in line("runs", "show", run.id).out
        assert "waits for" not in line("runs", "show", other.id).out
        assert line("status", "--json").json["gateway"]["approvals"] == 1
        assert "asks for access" in line("runs", "logs", run.id).out

        # Nothing that it can reach decides. What it waits for outlives the gateway.
        assert run("ls /run/valetkey") == "gateway.sock"
        assert (
            run.json(f"curl -sS {ACCESS}/{asked['id']} -d '{{\"approve\": true}}'")["error"]["code"] == "access_unknown"
        )
        kill(line)
        assert line("up").status == 0
        assert [one["id"] for one in waiting(line)] == [asked["id"]]
        assert run.status("shut") == "403"

        done = line("approvals", "approve", asked["id"], "--json")
        assert done.json | {"by": ""} == {"id": asked["id"], "approved": True, "scope": "run", "by": ""}
        assert (run.status("shut"), other.status("shut"), run.status("shut/in")) == ("200", "403", "403")
        kill(line)
        assert line("up").status == 0
        assert (run.status("shut"), other.status("shut")) == ("200", "403")
        assert run.json(f"curl -sS {ACCESS}/{asked['id']}")["state"] == "approved"

        # `policy explain` says of each what the gateway does.
        forms = (server.url, "/acme", "http://127.0.0.1:3128/acme", server.url)
        for of, path, form in zip((run, run, run, other), ("open", "shut", "shut/in", "shut"), forms, strict=True):
            said = line("policy", "explain", "GET", f"{form}/{path}", "--run", of.id[:8], "--json").json
            assert (said["verdict"] == "allow") == (of.status(path) == "200"), (path, said)
        said = line("policy", "explain", "GET", f"{server.url}/shut", "--run", run.id, "--json").json
        assert said["rule"]["place"] == f"approval {asked['id']}"
        assert line("policy", "explain", "GET", "/acme/x", "--run", run.id, "--grant", "acme").status == 2

        # A no is told, and not asked again; so many may wait.
        second = run.json(f"""curl -sS {ACCESS} -d '{{"url": "{server.url}/never"}}'""")
        assert line("approvals", "deny", second["id"]).status == 0
        assert run.json(f"curl -sS '{ACCESS}/{second['id']}?wait=10'")["state"] == "denied"
        assert run.status("never") == "403"
        codes = [
            run(f"""curl -sS -o /dev/null -w '%{{http_code}}' {ACCESS} -d '{{"url": "{server.url}/{n}"}}'""")
            for n in range(6)
        ]
        assert codes == ["202"] * 5 + ["429"]

        # Once is once; always is in the policy, for the next run.
        first, last = waiting(line)[:2]
        assert line("approvals", "approve", first["id"], "--once").status == 0
        assert (run.status("0"), run.status("0")) == ("200", "403")
        words = ("approvals", "approve", last["id"], "--always", "--policy", str(policy))
        assert line(*words).status == 2, "it is asked before"
        assert f"GET {host}/1" not in policy.read_text()
        assert line(*words, "--yes").status == 0
        assert (run.status("1"), other.status("1")) == ("200", "403")
        assert line("policy", "check", str(policy), "--json").json["rules"] == 2
        third = waiting(line)[0]
        assert f'allow = "GET {host}/2"' in line("approvals", "approve", third["id"], "--always").out
    with Inside(line, workspace, *grant) as later:
        assert (later.status("1"), later.status("2")) == ("200", "403")
    assert {call.headers["authorization"] for call in server.calls("/shut")} == {f"Bearer {KEY}"}
    entries = line("audit", "show", "--client", f"run:{run.id}", "--json").json["entries"]
    assert sum(entry["kind"] == "access-requested" for entry in entries) == 7


ENDED = """
[api]
base_url = "{url}"
hosts = ["{host}"]
dialect = "openai-chat"
allow_http = true
probe = {{ get = "/models" }}
[[auth]]
id = "api-key"
kind = "api-key"
inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
[[auth]]
id = "device"
kind = "device"
client_id = "client-1"
device_authorization_endpoint = "{login}/device"
token_endpoint = "{login}/token"
inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]
"""


def log_in_with_tokens(line: CommandLine, login: str) -> None:
    """Put a login in place whose access token has ended, as a flow would have stored it."""
    store = open_store(Paths(home=line.home), clock=SystemClock(), environ={})
    record = store.load(CredentialRef(provider="acme"))
    assert record is not None
    ends = datetime.now(UTC) - timedelta(seconds=1)
    token = OAuthToken(
        method="device",
        access_token=Secret("at-" + os.urandom(12).hex()),
        refresh_token=Secret("rt-" + os.urandom(12).hex()),
        issued_at=ends - timedelta(hours=1),
        expires_at=ends,
    )
    store.save(replace(record, credential=token, endpoints=(login.partition("//")[2],)))
    store.close()


def test_a_request_whose_login_has_ended_goes_on_after_a_new_one(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    words = ("login", "acme", "--method", "api-key", "--key", "-", "--no-verify")
    (workspace := tmp_path / "project").mkdir()
    with AuthorizationServer() as login:
        login.answers("/token", status=400, json={"error": "invalid_grant"})
        line.declare("acme", ENDED.format(url=server.url, host=server.url[7:], login=login.url))
        assert line(*words, stdin="sk-" + "first" * 5).status == 0
        with Inside(line, workspace, "--grant", "acme") as run:
            log_in_with_tokens(line, login.url)
            run.begin("curl -sS -w ' %{http_code}' http://127.0.0.1:3128/acme/held")
            until(lambda: waiting(line))
            (held,) = waiting(line)
            assert (held["kind"], held["account"], held["client"]) == ("login", "acme@default", f"run:{run.id}")
            # The same is told by all.
            assert "run `valetkey login acme" in line("approvals", "list").out
            assert "a login for acme@default" in line("runs", "show", run.id).out
            assert "acme@default needs a login" in line("runs", "logs", run.id).out
            assert [account["health"] for account in line.accounts()] == ["needs-login"]
            assert line("status", "--json").json["gateway"]["approvals"] == 1
            assert line("approvals", "approve", held["id"]).status == 2
            assert server.calls("/held") == []
            assert line(*words, stdin=KEY).status == 0
            assert run.end() == "served 200"
            assert waiting(line) == []
    (call,) = server.calls("/held")
    assert call.headers["authorization"] == f"Bearer {KEY}"


def test_where_requests_are_not_held_code_inside_is_told_at_once(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    line.environ["VALETKEY_RUNS_HOLD_FOR_LOGIN_SECONDS"] = "0"
    (workspace := tmp_path / "project").mkdir()
    with AuthorizationServer() as login:
        login.answers("/token", status=400, json={"error": "invalid_grant"})
        line.declare("acme", ENDED.format(url=server.url, host=server.url[7:], login=login.url))
        done = line("login", "acme", "--method", "api-key", "--key", "-", "--no-verify", stdin="sk-" + "first" * 5)
        assert done.status == 0
        with Inside(line, workspace, "--grant", "acme") as run:
            log_in_with_tokens(line, login.url)
            told = run.json("curl -sS http://127.0.0.1:3128/acme/x")["error"]
            assert (told["code"], "valetkey login acme" in told["hint"]) == ("needs_login", True)
            # The command line calls it the same.
            said = line("token", "acme")
            assert (said.status, told["message"] in said.err, told["hint"] in said.err) == (3, True, True)
