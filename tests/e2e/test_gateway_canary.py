"""The real credential, echoed by its provider in every way: no file, counter, answer or client's memory has it."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import about, ask, background, declare, end, make_key, until
from valetkey import serving
from valetkey.gateway.trace import TraceReader
from valetkey.testing.command_line import PATIENCE_SECONDS
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply, Stream

PROGRAM = Path(__file__).parents[1] / "support" / "programs" / "asking.py"
KINDS = ("body", "header", "base64", "quoted", "error", "refusal", "stream", "redirect", "chat/completions")


def leaks(secret: str, data: bytes) -> list[bytes]:
    """Give what of a secret is in there: a part of it in the clear, URL-encoded, or in base64 at any offset."""
    encoded = [base64.b64encode(b"\0" * before + secret.encode())[8:-8] for before in range(3)]
    return [piece for piece in [secret[8:].encode(), quote(secret, safe="")[8:].encode(), *encoded] if piece in data]


def echoes(request: Received) -> Reply:
    said = request.headers["authorization"]
    key = said.removeprefix("Bearer ")
    encoded = base64.b64encode(key.encode()).decode()
    match request.path.strip("/"):
        case "header":
            return Answer(headers={"x-echo": key, "x-basic": encoded})
        case "base64":
            return Answer(body=encoded.encode())
        case "quoted":
            return Answer(body=quote(key, safe="").encode())
        case "error":
            return Answer(status=500, body=key.encode())
        case "refusal":
            return Answer(status=401, body=key.encode())
        case "redirect":
            return Answer(status=403, headers={"location": f"https://x.example/?key={key}"})
        case "stream":
            pieces = [b"data: ", *(char.encode() for char in key), b"\n\n"]
            return Stream(headers={"content-type": "text/event-stream"}, pieces=pieces)
        case "chat/completions":
            usage = '{"prompt_tokens": 3, "completion_tokens": 2}'
            body = f'{{"model": "{key}", "usage": {usage}, "said": "{key}"}}'
            return Answer(headers={"content-type": "application/json"}, body=body.encode())
    return Answer(body=request.head.encode() + request.body + said.encode())


def memory(pid: int) -> bytes:
    """Give all that a core dump of a process would hold."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as file:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match is None:
                continue
            start, end = (int(part, 16) for part in match.groups())
            file.seek(start)
            try:
                found.append(file.read(end - start))
            except OSError:  # a page that is not there
                continue
    return b"".join(found)


@pytest.fixture
def line(home: Path) -> Iterator[CommandLine]:
    line = CommandLine(home=home, environ={"VALETKEY_TRACE_BODIES": "on", "VALETKEY_LOG_LEVEL": "debug"})
    yield line
    end(line)


def control(line: CommandLine, path: str) -> bytes:
    transport = httpx2.HTTPTransport(uds=about(line)["control"])
    with httpx2.Client(transport=transport, timeout=PATIENCE_SECONDS) as client:
        return client.get(f"http://x{path}").content


def test_the_credential_is_nowhere_but_in_the_store_and_at_its_provider(line: CommandLine, tmp_path: Path) -> None:
    secret = "sk-" + "canary/+" + base64.b64encode(os.urandom(30)).decode().rstrip("=")
    policy = tmp_path / "policy.toml"
    with LocalServer(echoes) as server, background(line) as running:
        declare(line, server.url, key=secret)
        policy.write_text(f'default = "allow"\n[[rule]]\ndeny = "* {server.url.partition("//")[2]}/denied/**"\n')
        key = make_key(line, "--policy", str(policy), "--name", "canary")
        urls = [f"{running['url']}/acme/{kind}" for kind in KINDS]
        # Keys in the wrong places, of which none is the provider's business.
        urls += [f"{running['url']}/acme/denied/{key}", f"{running['url']}/acme/body?k={key}"]
        with subprocess.Popen(
            [sys.executable, str(PROGRAM), *urls],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "VALET_KEY": key},
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"%d\n" % len(urls)
            process = Path(f"/proc/{client.pid}")
            held = memory(client.pid)
            # It is looked into: what the client may know is there.
            assert key.encode() in held
            assert leaks(secret, held) == []
            for file in ("cmdline", "environ"):
                assert leaks(secret, (process / file).read_bytes()) == []
            client.communicate(b"\n", timeout=PATIENCE_SECONDS)

        until(lambda: len(TraceReader(line.home / "trace.db").newest(100, client="canary")) == len(urls))
        rows = [recorded.row for recorded in TraceReader(line.home / "trace.db").newest(100, client="canary")]
        assert any(row.response_body for row in rows)
        assert {row.path for row in rows if "denied" in row.path} == {"/denied/[secret]"}
        until(lambda: b'valetkey_requests_total{method="POST",outcome="denied"' in control(line, "/metrics"))
        for told in (control(line, "/metrics"), control(line, "/status"), control(line, "/approvals")):
            assert leaks(secret, told) == []
            assert key[16:].encode() not in told
        for words in (("trace", "--json"), ("status", "--json"), ("list", "--json"), ("key", "list", "--json")):
            done = line(*words)
            assert leaks(secret, (done.out + done.err).encode()) == []
            assert key[16:] not in done.out + done.err
        assert (line.home / "run" / serving.LOG).exists()
        for path in (p for p in line.home.rglob("*") if p.is_file() and not p.is_socket()):
            assert leaks(secret, path.read_bytes()) == [], path
            assert key[16:].encode() not in path.read_bytes(), path
    assert len(server.requests) == len(urls) - 1
    for request in server.requests:
        assert request.headers["authorization"] == f"Bearer {secret}"
        assert key[16:] not in request.head


# --- counters --------------------------------------------------------------------------------


def test_the_counters_say_what_happened(line: CommandLine) -> None:
    with LocalServer(echoes) as server, background(line):
        declare(line, server.url)
        key = make_key(line, "--rpm", "3")
        assert ask(line, key, "/acme/body").status_code == 200
        assert ask(line, key, "/acme/chat/completions", method="POST").status_code == 200
        assert ask(line, key, "/acme/error").status_code == 500
        assert ask(line, key, "/acme/body").status_code == 429
        assert ask(line, "vk_" + "0" * 77, "/acme/body").status_code == 401

        def counted(name: str, **labels: str) -> float:
            for one in control(line, "/metrics").decode().splitlines():
                if one.startswith(f"valetkey_{name}{{") and all(f'{k}="{v}"' in one for k, v in labels.items()):
                    return float(one.rpartition(" ")[2])
            return 0.0

        until(lambda: counted("refusals_total", provider="none", code="key_refused") == 1)
        assert counted("requests_total", provider="acme", method="GET", outcome="ok") == 2
        assert counted("requests_total", provider="acme", method="POST", outcome="ok") == 1
        assert counted("requests_total", provider="acme", method="GET", outcome="limit_reached") == 1
        assert counted("refusals_total", provider="acme", code="limit_reached") == 1
        assert counted("injections_total", provider="acme") == 3
        assert counted("tokens_total", provider="acme", kind="input") == 3
        assert counted("tokens_total", provider="acme", kind="output") == 2
        assert counted("request_seconds_count", provider="acme") == 3
        # Logins happen in other processes.
        assert counted("logins_total") == 0
