"""The gateway's process under load while it is killed, a key is revoked, a credential is replaced, a login ends."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import about, ask, background, declare, end, kill, make_key, until
from tests.support.load import load
from valetkey import serving
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, Health, OAuthToken, Secret
from valetkey.gateway.trace import TraceReader
from valetkey.store import Record, Store
from valetkey.stores import open_store
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.command_line import PATIENCE_SECONDS
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply, Stream

ACME = CredentialRef(provider="acme")
ANSWER = json.dumps({"model": "small", "usage": {"prompt_tokens": 30, "completion_tokens": 20}}).encode()
ROTATIONS = 30


@pytest.fixture
def line(home: Path) -> Iterator[CommandLine]:
    line = CommandLine(home=home)
    yield line
    end(line)


def counted(_: Received) -> Reply:
    return Answer(headers={"content-type": "application/json"}, body=ANSWER)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(counted) as running:
        yield running


def opened(line: CommandLine) -> Store:
    return open_store(Paths(home=line.home), clock=SystemClock(), environ={})


def intact(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        found: list[tuple[str]] = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    return found == [("ok",)]


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # The socket was still there and closed at once: it is on its way out.
        return False
    return False


def recorded(line: CommandLine, client: str) -> int:
    return len(TraceReader(line.home / "trace.db").newest(1000, client=client))


def test_killed_under_load_it_lets_nothing_through_and_comes_back_as_it_was(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    host = server.url.partition("//")[2]
    policy.write_text(
        f'default = "deny"\n[[rule]]\nallow = "POST {host}/chat/completions"\n[[rule]]\nask = "POST {host}/images/**"\n'
    )
    credential = declare(line, server.url)
    with background(line) as first:
        busy = make_key(line, "--policy", str(policy))
        counts = make_key(line, "--tokens-per-day", "100", "--name", "counts")
        paced = make_key(line, "--rpm", "2")
        revoked = make_key(line)
        line("key", "revoke", revoked)
        wanted = {
            (busy, "/acme/chat/completions"): 200,
            (busy, "/acme/files"): 403,
            (counts, "/acme/chat/completions"): 429,
            (revoked, "/acme/chat/completions"): 401,
        }
        for _ in range(2):
            assert ask(line, counts, "/acme/chat/completions", method="POST").status_code == 200
            assert ask(line, paced, method="POST").status_code == 200
        assert ask(line, paced, method="POST").status_code == 429
        for (key, path), status in wanted.items():
            assert ask(line, key, path, method="POST").status_code == status
        until(lambda: recorded(line, "counts") == 3)
        keys = line("key", "list", "--json").json

        with load(first["port"], busy, "/acme/chat/completions") as running, ThreadPoolExecutor(1) as pool:
            held = pool.submit(ask, line, busy, "/acme/images/x", method="POST")
            until(lambda: running.count(200) > 300)
            until(lambda: len(line("approvals", "list", "--json").json["approvals"]) == 1)
            kill(line)
            assert isinstance(held.exception(), httpx2.TransportError)
            # Its first thread is dead; the last one to go closes the socket.
            until(lambda: refused(first["port"]))
            through = running.count(200)
            fallen = running.count(0)
            until(lambda: running.count(0) > fallen + 20)
            assert running.count(200) <= through + 4  # what was answered in the moment of the kill
            assert line("up", "--json", environ={"VALETKEY_GATEWAY_PORT": str(first["port"])}).status == 0
            served = running.count(200)
            until(lambda: running.count(200) > served + 100)
            assert line("approvals", "list", "--json").json["approvals"] == []
        assert {asked.status for asked in running.asked} == {0, 200}
        for (key, path), status in wanted.items():
            assert ask(line, key, path, method="POST").status_code == status
        assert line("key", "list", "--json").json == keys
        # A minute begins anew with the process, and the limit is there as before.
        assert [ask(line, paced, method="POST").status_code for _ in range(3)] == [200, 200, 429]
        until(lambda: recorded(line, "counts") == 4)
    assert intact(line.home / "trace.db")
    assert all(intact(path) for path in line.home.glob("*.db"))
    assert len(list(line.home.glob("*.db"))) >= 2
    assert server.calls("/images/x") == []
    assert len(server.requests) >= running.count(200)
    for request in server.requests:
        assert request.headers["authorization"] == f"Bearer {credential}"
        assert "vk_" not in request.head


def test_a_key_revoked_under_load_by_another_process_opens_nothing_more(line: CommandLine) -> None:
    stop = threading.Event()

    def respond(request: Received) -> Reply:
        if request.path != "/events":
            return counted(request)

        def events() -> Iterator[bytes]:
            yield b"data: 1\n\n"
            stop.wait(PATIENCE_SECONDS)

        return Stream(headers={"content-type": "text/event-stream"}, pieces=events())

    with LocalServer(respond) as server:
        declare(line, server.url)
        with background(line) as running:
            key, other = make_key(line), make_key(line)
            with socket.create_connection(("127.0.0.1", running["port"]), PATIENCE_SECONDS) as stream:
                head = f"GET /acme/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
                stream.sendall(head.encode())
                got = b""
                while b"data: 1\n\n" not in got:
                    got += stream.recv(4096)
                with load(running["port"], key, "/acme/x", clients=8) as asking:
                    until(lambda: asking.count(200) > 200)
                    assert line("key", "revoke", key).status == 0
                    returned = time.monotonic()
                    until(lambda: asking.count(401) > 100)
                rest = b""
                try:
                    while piece := stream.recv(4096):
                        rest += piece
                except ConnectionResetError:
                    pass
                assert b"0\r\n\r\n" not in rest
            stop.set()
            assert ask(line, other).status_code == 200
    late = [asked for asked in asking.asked if asked.status == 200 and asked.begun > returned + 1.0]
    assert late == []
    # Once it was refused, it was for all: no connection goes on with what it knew.
    for number in range(8):
        statuses = [asked.status for asked in asking.asked if asked.id.startswith(f"{number}-")]
        first = statuses.index(401) if 401 in statuses else len(statuses)
        assert set(statuses[first:]) <= {401}


def test_a_credential_replaced_under_load_by_another_process_is_the_one_that_is_sent(line: CommandLine) -> None:
    seen: dict[str, str] = {}

    def respond(request: Received) -> Reply:
        seen[request.headers["x-request-id"]] = request.headers["authorization"]
        return Answer(body=b"served")

    prefix = "sk-" + os.urandom(12).hex()
    with LocalServer(respond) as server:
        declare(line, server.url, key=f"{prefix}000000")
        with background(line) as running, load(running["port"], make_key(line), "/acme/x", clients=4) as asking:
            until(lambda: asking.count(200) > 100)
            settings = {"home": str(line.home), "provider": "acme", "prefix": prefix, "times": ROTATIONS}
            done = subprocess.run(
                [sys.executable, "-m", "tests.support.rotating_process"],
                input=json.dumps({**settings, "every_seconds": 0.1}) + "\n",
                capture_output=True,
                text=True,
                check=True,
                env={**line.environ, "PYTHONPATH": os.getcwd()},
                timeout=60,
            )
            enough = asking.count(200) + 50
            until(lambda: asking.count(200) > enough)
    saved = [json.loads(one) for one in done.stdout.splitlines()]
    assert len(saved) == ROTATIONS
    assert {asked.status for asked in asking.asked} == {200}
    sent = set()
    for asked in asking.asked:
        authorization = seen[asked.id]
        assert authorization.startswith(f"Bearer {prefix}")
        number = int(authorization[-6:])
        least = max((one["value"] for one in saved if one["at"] < asked.begun), default=0)
        assert number >= least, (asked, number, least)
        sent.add(number)
    assert len(sent) > ROTATIONS // 2


# --- the state of a login, everywhere ----------------------------------------------------------


def log_in(store: Store, *, life: timedelta, left: timedelta) -> Record:
    ends = datetime.now(UTC) + left
    token = OAuthToken(
        method="device",
        access_token=Secret("at-" + os.urandom(12).hex()),
        refresh_token=Secret("rt-" + os.urandom(12).hex()),
        issued_at=ends - life,
        expires_at=ends,
    )
    record = store.load(ACME)
    assert record is not None
    return store.save(replace(record, credential=token, health=Health.OK))


def told_everywhere(line: CommandLine, key: str, health: Health, status: int, code: str | None) -> None:
    """Hold what the gateway, its control API and the command line say against it: at once, and by all of them."""
    answer = ask(line, key)
    assert answer.status_code == status, answer.text
    assert (answer.json()["error"]["code"] if code else None) == code
    found = serving.ask(str(line.home), "GET", "/status")
    assert [account["health"] for account in found["accounts"]] == [health.value]
    assert [account["health"] for account in line.accounts()] == [health.value]


def test_the_state_of_a_login_is_told_alike_everywhere_and_a_new_one_goes_on(line: CommandLine) -> None:
    with LocalServer(lambda request: Answer(body=b"{}")) as server, AuthorizationServer() as login:
        login.answers("/token", status=400, json={"error": "invalid_grant"})
        host = server.url.partition("//")[2]
        line.declare(
            "acme",
            f'[api]\nbase_url = "{server.url}"\nhosts = ["{host}"]\ndialect = "openai-chat"\nallow_http = true\n'
            'probe = { get = "/models" }\n'
            '[[auth]]\nid = "api-key"\nkind = "api-key"\n'
            'inject = [{ set = { authorization = "Bearer {key}" } }]\n'
            f'[[auth]]\nid = "device"\nkind = "device"\nclient_id = "client-1"\n'
            f'device_authorization_endpoint = "{login.url}/device"\ntoken_endpoint = "{login.url}/token"\n'
            'inject = [{ set = { authorization = "Bearer {access_token}" } }]\n',
        )
        words = ("login", "acme", "--method", "api-key", "--key", "-", "--no-verify")
        assert line(*words, stdin="sk-" + "first" * 5).status == 0
        store = opened(line)
        record = store.load(ACME)
        assert record is not None
        store.save(replace(record, endpoints=(login.url.partition("//")[2],)))
        with background(line):
            key = make_key(line)
            log_in(store, life=timedelta(hours=1), left=timedelta(minutes=59))
            told_everywhere(line, key, Health.OK, 200, None)
            # Its end comes, and the provider has ended the login.
            log_in(store, life=timedelta(hours=1), left=timedelta(seconds=-1))
            count = len(server.requests)
            told_everywhere(line, key, Health.NEEDS_LOGIN, 401, "needs_login")
            assert len(server.requests) == count
            assert len(login.calls("/token")) == 1
            # A person logs in again.
            assert line(*words, stdin="sk-" + "again" * 5).status == 0
            told_everywhere(line, key, Health.UNKNOWN, 200, None)  # it was stored unverified
            assert server.requests[-1].headers["authorization"] == "Bearer sk-" + "again" * 5
            # Another process finds that it has ended.
            record = log_in(store, life=timedelta(hours=1), left=timedelta(seconds=-1))
            assert store.mark(ACME, generation=record.generation, health=Health.NEEDS_LOGIN, reason="ended elsewhere")
            told_everywhere(line, key, Health.NEEDS_LOGIN, 401, "needs_login")
            metrics = serving_metrics(line)
            assert 'valetkey_renewals_total{outcome="refresh_rejected",provider="acme"} 1.0' in metrics, metrics
        store.close()


def serving_metrics(line: CommandLine) -> str:
    transport = httpx2.HTTPTransport(uds=about(line)["control"])
    with httpx2.Client(transport=transport, timeout=PATIENCE_SECONDS) as client:
        return client.get("http://x/metrics").text
