"""The audit of real commands and of a real gateway: each kind of entry, no secret in it, nothing without its entry."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import ask, background, declare, end, kill, make_key, until
from valetkey.audit.recorder import KINDS
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.canary import holding
from valetkey.testing.local_server import Answer, LocalServer

VERIFIER = Path(__file__).parents[2] / "docs" / "verify_audit.py"
POLICY = """
default = "allow"
[[rule]]
deny = "* */files"
[[rule]]
ask = "* */images"
"""


@pytest.fixture
def line(home: Path) -> Iterator[CommandLine]:
    line = CommandLine(home=home)
    yield line
    end(line)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(lambda _: Answer(headers={"content-type": "application/json"}, body=b"{}")) as running:
        yield running


def entries(line: CommandLine, *words: str) -> list[dict[str, Any]]:
    done = line("audit", "show", "--json", "--limit", "10000", *words)
    assert done.status == 0, done.err
    found: list[dict[str, Any]] = done.json["entries"]
    return found


def kinds(line: CommandLine, *words: str) -> list[str]:
    return [entry["kind"] for entry in entries(line, *words)]


def exported(line: CommandLine, file: Path, *words: str) -> dict[str, Any]:
    done = line("audit", "export", str(file), "--json", *words)
    assert done.status == 0, done.err
    found: dict[str, Any] = done.json
    return found


def verified_apart(file: Path, key: str, *words: str) -> int:
    return subprocess.run(
        [sys.executable, "-I", str(VERIFIER), str(file), "--key", key, *words], check=False, capture_output=True
    ).returncode


def test_what_commands_do_is_recorded(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    key = declare(line, server.url, key="sk-" + secrets.token_hex(24))
    with (line.home / "providers" / "acme.toml").open("a") as file:
        file.write('exports = { ACME_API_KEY = "{key}" }\n')
    assert line("login", "acme@work", "--key", "-", "--no-verify", stdin=key).status == 0
    assert kinds(line) == ["login", "login"]
    for _ in range(3):
        assert line("token", "acme").out.strip() == key
    assert line("exec", "-p", "acme", "--", sys.executable, "-c", "pass").status == 0
    assert line("env", "acme@work").status == 0
    assert line("helper", "claude", "acme").out.strip() == key
    assert line("status").status == 0
    uses = {(e["who"], e["account"]) for e in entries(line, "--kind", "use")}
    assert uses == {
        ("command:token", "acme@default"),
        ("command:exec", "acme@default"),
        ("command:exec", "acme@work"),
        ("command:helper", "acme@default"),
        ("command:probe", "acme@default"),
        ("command:probe", "acme@work"),
    }
    assert line("auth", "switch", "acme@work").status == 0
    assert line("store", "rekey").status == 0
    backup = tmp_path / "backup"
    assert line("store", "backup", str(backup), "--passphrase-file", "-", stdin=secrets.token_hex(8)).status == 0
    made = line("key", "create", "--grant", "acme", "--name", "ci", "--json").json
    assert line("key", "revoke", "ci").status == 0
    assert line("logout", "acme@default", "--yes").status == 0
    acts = [(e["kind"], e["account"]) for e in entries(line) if e["kind"] not in ("use", "uses")]
    assert acts == [
        ("login", "acme@default"),
        ("login", "acme@work"),
        ("default", "acme@work"),
        ("store", ""),
        ("store", ""),
        ("key-issued", ""),
        ("key-revoked", ""),
        ("logout", "acme@default"),
    ]
    issued, revoked = entries(line, "--client", made["id"])
    assert issued["detail"]["grants"] == ["acme@work"]
    assert (issued["kind"], revoked["kind"]) == ("key-issued", "key-revoked")
    out = tmp_path / "audit.jsonl"
    told = exported(line, out)
    assert told["signed"] == told["entries"]
    assert verified_apart(out, told["key"]) == 0
    assert line("audit", "verify", "--anchor", told["anchor"]).status == 0
    for secret in (key, made["key"], made["key"][16:]):
        assert holding(secret, [out, *line.home.glob("audit*")]) == []


def test_what_the_gateway_does_is_recorded(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    canary = declare(line, server.url, key="sk-" + secrets.token_hex(24))
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with background(line):
        limited = make_key(line, "--policy", str(policy), "--rpm", "4")
        assert ask(line, limited).status_code == 200
        assert ask(line, limited).status_code == 200
        assert ask(line, limited, "/acme/files").status_code == 403
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(ask(line, limited, "/acme/images").status_code))
        waiting.start()
        until(lambda: line("approvals", "list", "--json").json["approvals"])
        (held,) = line("approvals", "list", "--json").json["approvals"]
        assert line("approvals", "approve", held["id"]).status == 0
        waiting.join()
        assert answers == [200]
        until(lambda: ask(line, limited).status_code == 429)
        assert ask(line, "vk_" + "0" * 12 + "_" + "0" * 64).status_code == 401
        assert line("token", "acme").out.strip() == canary
        client = f"key:{limited[3:15]}"
        until(lambda: len(entries(line, "--kind", "denial")) == 3)
        # The first use of a minute at once; the others, with their number, when it ends.
        assert {e["who"] for e in entries(line, "--kind", "use", "--client", client)} == {client}
        (approval,) = entries(line, "--kind", "approval")
        assert (approval["detail"]["client"], approval["detail"]["approved"]) == (client, True)
        assert approval["who"].startswith("person:")
        denials = {(e["who"], e["detail"]["code"]) for e in entries(line, "--kind", "denial")}
        assert denials == {(client, "denied"), (client, "limit_reached"), ("unknown", "key_refused")}
        assert line("down").status == 0
    # What was counted is written at the end; however many minutes it took, no use is missing.
    first = len(entries(line, "--kind", "use", "--client", client))
    further = sum(e["detail"]["further"] for e in entries(line, "--kind", "uses", "--client", client))
    assert first + further == len(server.requests)
    told = line("audit", "verify", "--json").json
    assert told["signed"] == told["entries"]
    whole, own = tmp_path / "whole.jsonl", tmp_path / "own.jsonl"
    key = exported(line, whole)["key"]
    shown = exported(line, own, "--client", limited[3:15])
    assert 0 < shown["hidden"] < shown["entries"]
    assert verified_apart(whole, key) == verified_apart(own, key, "--anchor", shown["anchor"]) == 0
    assert b"command:token" in whole.read_bytes()
    assert b"command:token" not in own.read_bytes()
    for secret in (canary, limited, limited[16:]):
        assert holding(secret, [whole, own, *line.home.glob("audit*")]) == []


def test_the_first_use_outlives_a_gateway_that_is_killed(line: CommandLine, server: LocalServer) -> None:
    declare(line, server.url)
    with background(line):
        key = make_key(line)
        assert ask(line, key).status_code == 200
        kill(line)
        assert "use" in kinds(line, "--client", key[3:15])
        assert line("audit", "verify").status == 0


def test_a_use_that_a_login_may_not_serve_is_a_denial(line: CommandLine) -> None:
    line.declare(
        "forbidding",
        """
        [api]
        base_url = "https://api.forbidding.example/v1"
        hosts = ["api.forbidding.example"]
        [[auth]]
        id = "api-key"
        kind = "api-key"
        standing = "restricted"
        notice = "No."
        inject = [{ set = { authorization = "Bearer {key}" } }]
        """,
    )
    key = "sk-" + secrets.token_hex(24)
    assert line("login", "forbidding", "--yes", "--key", "-", "--no-verify", stdin=key).status == 0
    assert line("token", "forbidding").status != 0
    (denial,) = entries(line, "--kind", "denial")
    assert (denial["who"], denial["account"]) == ("command:token", "forbidding@default")
    assert denial["detail"] == {"code": "not_for_this_use"}
    assert entries(line, "--kind", "use") == []


def test_renewals_are_recorded_with_how_they_ended(
    line: CommandLine, authorization_server: AuthorizationServer
) -> None:
    line.declare(
        "forge",
        f"""
        [api]
        base_url = "https://api.forge.example"
        hosts = ["api.forge.example"]
        [[auth]]
        id = "device"
        kind = "device"
        client_id = "me"
        scope = ["repo"]
        device_authorization_endpoint = "{authorization_server.url}/device"
        token_endpoint = "{authorization_server.url}/token"
        inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]
        """,
    )
    now = datetime.now(UTC)
    token = OAuthToken(
        method="device",
        access_token=Secret("old-" + secrets.token_hex(12)),
        refresh_token=Secret("refresh-" + secrets.token_hex(12)),
        issued_at=now - timedelta(hours=2),
        expires_at=now - timedelta(hours=1),
    )
    hosts = (authorization_server.url.removeprefix("http://"),)
    store = open_store(Paths(home=line.home), clock=SystemClock(), environ={}, key_source_kind="key-file")
    store.save(
        Record(
            ref=CredentialRef(provider="forge"),
            credential=token,
            hosts=("api.forge.example",),
            endpoints=hosts,
            base_url="https://api.forge.example",
        )
    )
    store.close()
    fresh, again = "new-" + secrets.token_hex(12), "next-" + secrets.token_hex(12)
    authorization_server.answers(
        "/token",
        json={"access_token": fresh, "refresh_token": again, "token_type": "bearer", "expires_in": 1},
    )
    assert line("token", "forge").out.strip() == fresh
    (renewal,) = entries(line, "--kind", "renewal")
    assert (renewal["account"], renewal["detail"]) == ("forge@default", {"outcome": "ok"})
    assert kinds(line) == ["renewal", "use"]
    for secret in (fresh, again):
        assert holding(secret, line.home.glob("audit*")) == []


@pytest.mark.parametrize("gateway", [False, True])
def test_nothing_is_handed_out_that_cannot_be_recorded(line: CommandLine, server: LocalServer, gateway: bool) -> None:
    canary = declare(line, server.url, key="sk-" + secrets.token_hex(24))
    key = make_key(line)
    for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
        (line.home / name).unlink(missing_ok=True)
    (line.home / "audit.db").mkdir()
    if gateway:
        with background(line):
            answer = ask(line, key)
            assert answer.status_code in (502, 503)
            assert "audit.db" in answer.json()["error"]["message"]
    else:
        for words in (("token", "acme"), ("helper", "claude", "acme"), ("env", "acme"), ("token", "acme", "--json")):
            done = line(*words)
            assert done.status == 1, words
            assert canary not in done.out
            assert "audit.db" in done.err
        done = line("exec", "-p", "acme", "--", sys.executable, "-c", "print('ran')")
        assert (done.status, done.out) == (1, "")
        assert line("key", "create", "--grant", "acme").status == 1
        assert len(line("key", "list", "--json").json["keys"]) == 1
        assert line("login", "acme@more", "--key", "-", "--no-verify", stdin=canary).status == 1
        # What takes rights away is done all the same.
        assert line("key", "revoke", key[3:15]).status == 0
        done = line("logout", "acme@default", "--yes")
        assert done.status == 0
        assert "not in the audit" in done.err
        assert line("list", "--json").json["accounts"] == []
    assert server.requests == []


def test_a_record_that_was_changed_is_told_with_its_entry(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    declare(line, server.url)
    make_key(line)
    file = tmp_path / "audit.jsonl"
    told = exported(line, file)
    assert line("audit", "verify", str(file)).status == 0
    assert "without an --anchor" in line("audit", "verify", str(file)).out
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], lines[1].replace(b"acme@default", b"acme@another"), *lines[2:]]))
    done = line("audit", "verify", str(file))
    assert done.status == 1
    assert "entry 1" in done.err
    assert line("audit", "verify", str(file), "--json").json["error"]["seq"] == 1
    assert verified_apart(file, told["key"]) == 1
    file.write_bytes(b"".join(lines))
    assert line("audit", "verify", str(file), "--key", "0" * 64).status == 1
    assert line("audit", "verify", str(file), "--key", "short").status == 2
    assert line("audit", "verify", str(file), "--anchor", "soon").status == 2
    assert line("audit", "verify", str(file), "--anchor", f"99:{'0' * 64}").status == 1
    assert line("audit", "verify", "--anchor", f"99:{'0' * 64}").status == 1
    (line.home / "audit.pub").unlink()
    assert line("audit", "verify", str(file)).status == 2
    assert line("audit", "verify", str(file), "--key", told["key"]).status == 0
    assert line("audit", "show", "--key").out.strip() == told["key"]


def test_what_is_shown_is_what_is_asked_for(line: CommandLine, server: LocalServer) -> None:
    assert line("audit", "show").out == ""
    assert line("audit", "verify").status == 0
    declare(line, server.url)
    assert line("token", "acme").status == 0
    assert kinds(line, "--since", "1h") == ["login", "use"]
    assert kinds(line, "--since", "2999-01-01T00:00") == []
    assert kinds(line, "--account", "acme") == kinds(line, "--account", "acme@default") == ["login", "use"]
    assert kinds(line, "--account", "acme@other") == []
    assert kinds(line, "--client", "command:token") == ["use"]
    assert kinds(line, "--limit", "1") == ["use"]
    assert line("audit", "show", "--since", "soon").status == 2
    shown = line("audit", "show").out
    assert "command:token" in shown
    assert "salt" not in shown
    assert "salt" not in json.dumps(entries(line))
    assert line("audit", "show", "--kind", "nothing").status == 2
    assert len(KINDS) == len(set(KINDS))
    assert os.path.exists(line.home / "audit.pub")
