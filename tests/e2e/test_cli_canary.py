"""A canary goes through every command, error and log level, and comes out only where it was asked for."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.command_line import CommandLine
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply

# With characters that URL-encoding changes, so that those forms are looked for as well.
CANARY = "sk-" + "canary/+7" * 5
FORMS = (
    CANARY,
    quote(CANARY, safe=""),
    json.dumps(CANARY)[1:-1],
    base64.b64encode(CANARY.encode()).decode().rstrip("="),
    base64.urlsafe_b64encode(CANARY.encode()).decode().rstrip("="),
)


def leaks(text: str | bytes) -> list[str]:
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    return [form for form in FORMS if form.encode() in data]


class Server:
    """Answers as `mode` says: takes the key, refuses it and quotes it, breaks, or sends rubbish with it inside."""

    def __init__(self) -> None:
        self.mode = "good"

    def __call__(self, request: Received) -> Reply:
        given = request.headers.get("authorization", "")
        quoting = json.dumps({"error": {"message": f"bad key {given}", "code": given}}).encode()
        match self.mode:
            case "good" if request.method == "GET":
                return Answer(headers={"content-type": "application/json"}, body=b'{"data": [{"id": "small"}]}')
            case "good":
                return Answer(
                    headers={"content-type": "application/json"},
                    body=json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode(),
                )
            case "401" | "403" | "500":
                return Answer(status=int(self.mode), headers={"content-type": "application/json"}, body=quoting)
            case _:
                return Answer(headers={"content-type": "text/html"}, body=b"<html>" + quoting)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def line(home: Path, server: Server, tmp_path: Path) -> Iterator[CommandLine]:
    with LocalServer(server) as running:
        made = CommandLine(
            home=home,
            environ={"VALETKEY_LOG_FILE": str(tmp_path / "log"), "VALETKEY_LOG_LEVEL": "debug"},
        )
        made.declare(
            "acme",
            f"""
            [api]
            base_url = "{running.url}/v1"
            dialect = "openai-chat"
            hosts = ["{running.url.removeprefix("http://")}"]
            allow_http = true
            probe = {{ get = "/models" }}
            [[auth]]
            id = "api-key"
            kind = "api-key"
            environment = ["ACME_API_KEY"]
            inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
            """,
        )
        yield made


def files_with_canary(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and leaks(path.read_bytes())]


def test_no_command_error_or_log_shows_it(line: CommandLine, server: Server, tmp_path: Path) -> None:
    said: dict[str, str] = {}

    def run(*words: str, stdin: str = "", environ: dict[str, str] | None = None) -> None:
        done = line(*words, "--verbose", stdin=stdin, environ=environ)
        assert "Traceback" not in done.err, words
        said[f"{server.mode}: {' '.join(words)[:60]}"] = done.out + done.err

    for server.mode in ("401", "403", "500", "rubbish"):
        run("login", "acme", "--key", "-", stdin=CANARY)
    server.mode = "good"
    run("login", "acme", "--key", CANARY)
    run("login", "acme", CANARY)
    run("login", CANARY)
    run("login", "acme", "--param", f"key={CANARY}", "--key", "-", stdin=CANARY)
    run("login", "acme", "--method", CANARY)
    run("login", "acme", "--key", "-", stdin=f"{CANARY}\n{CANARY}")
    run("login", "acme", "--env", environ={"ACME_API_KEY": f"{CANARY}\x01"})
    run("login", "acme", "--key", "-", stdin=CANARY)
    run("login", "acme", "--account", "b", "--key", "-", "--json", stdin=CANARY)
    for server.mode in ("good", "401", "403", "500", "rubbish"):
        for words in (
            ("list",),
            ("list", "--json"),
            ("status",),
            ("status", "--json"),
            ("doctor",),
            ("doctor", "--json"),
            ("models", "acme", "--refresh"),
            ("ask", "-m", "acme/small", "--no-stream", "hi"),
            ("providers", "check"),
            ("providers", "accept", "acme"),
        ):
            run(*words, environ={"ACME_API_KEY": CANARY})
    run("providers", "show", "acme")
    run("store", "rekey")
    run("config", "show")
    run("exec", "-p", "acme", "--", "true")
    run("exec", "-p", "acme", "--", "no-such-command")
    run("logout", "acme", "--account", "b", "--yes")
    found = {where: leaks(text) for where, text in said.items() if leaks(text)}
    assert found == {}
    assert files_with_canary(tmp_path) == []
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_what_is_asked_for_is_given_and_nothing_beside_it(line: CommandLine) -> None:
    line("login", "acme", "--key", "-", stdin=CANARY)
    assert line("token", "acme").out == f"{CANARY}\n"
    assert line("env", "acme").out == f"export ACME_API_KEY={CANARY}\n"
    assert leaks(line("token", "acme", "--verbose").err) == []


def test_the_process_list_never_shows_it(home: Path) -> None:
    arrived, seen = threading.Event(), threading.Event()

    def respond(request: Received) -> Reply:
        arrived.set()
        seen.wait(60)
        return Answer(headers={"content-type": "application/json"}, body=b'{"data": []}')

    with LocalServer(respond) as running:
        line = CommandLine(home=home)
        line.declare(
            "acme",
            f"""
            [api]
            base_url = "{running.url}"
            hosts = ["{running.url.removeprefix("http://")}"]
            allow_http = true
            probe = {{ get = "/models" }}
            [[auth]]
            id = "api-key"
            kind = "api-key"
            environment = ["ACME_API_KEY"]
            inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
            """,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "valetkey", "login", "acme", "--key", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=line.environ,
        )
        assert process.stdin is not None
        process.stdin.write(CANARY.encode())
        process.stdin.close()
        assert arrived.wait(60)
        shown = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    shown.append((entry / "cmdline").read_bytes())
                except OSError:  # it has ended
                    continue
        seen.set()
        assert process.wait(60) == 0
    assert any(b"login\0acme" in words for words in shown)
    assert [words for words in shown if leaks(words)] == []
    code = "print(open(f'/proc/self/cmdline').read().count('sk-can'), __import__('os').environ['ACME_API_KEY'][:6])"
    assert line("exec", "-p", "acme", "--", sys.executable, "-c", code).out.strip() == "1 sk-can"
