"""A store that a passphrase opens: the gateway holds its key on demand, forgets it, and answers `token` meanwhile."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import about, ask, background, end, make_key, until
from valetkey import serving
from valetkey.testing.local_server import Answer, LocalServer, Received

KEY = "sk-" + "locked" * 6
PASSPHRASE = "correct horse " + "battery staple"


@pytest.fixture
def server() -> Iterator[LocalServer]:
    def respond(request: Received) -> Answer:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Answer(status=401)
        return Answer(headers={"content-type": "application/json"}, body=b'{"data": []}')

    with LocalServer(respond) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "passphrase"
    file.touch(mode=0o600)
    file.write_text(PASSPHRASE + "\n")
    return file


@pytest.fixture
def line(home: Path, file: Path, server: LocalServer) -> Iterator[CommandLine]:
    """Give a home with an account, under a passphrase that nobody has told it."""
    line = CommandLine(home=home)
    add = ("providers", "add", "acme", "--base-url", server.url, "--dialect", "openai-chat", "--allow-http")
    opened = {"VALETKEY_STORE_KEY_SOURCE": "passphrase", "VALETKEY_PASSPHRASE_FILE": str(file)}
    assert line(*add, environ=opened).status == 0
    assert line("login", "acme", "--key", "-", "--no-verify", stdin=KEY, environ=opened).status == 0
    assert line("store", "source", "--json").json["key_source"] == "passphrase"
    yield line
    end(line)


def healths(line: CommandLine) -> set[str]:
    return {account["health"] for account in line.accounts()}


def test_it_starts_locked_and_says_so_everywhere(line: CommandLine) -> None:
    with background(line) as running:
        assert running["locked"] is True
        assert "valetkey unlock" in line("up").err
        assert healths(line) == {"locked"}
        status = line("status", "--json")
        assert (status.status, status.json["gateway"]["locked"]) == (1, True)
        assert {account["health"] for account in status.json["accounts"]} == {"locked"}
        assert "locked" in line("status").out
        assert "valetkey unlock" in line("doctor", "--offline").out
        told = serving.ask(str(line.home), "GET", "/status")
        assert (told["locked"], {account["health"] for account in told["accounts"]}) == (True, {"locked"})
        done = line("token", "acme")
        assert (done.status, done.out) == (1, "")
        assert "valetkey unlock" in done.err


def test_unlocked_it_gives_the_token_that_nobody_else_could(line: CommandLine, file: Path) -> None:
    with background(line):
        done = line("unlock", "--passphrase-file", str(file), "--json")
        assert done.json == {"locked": False, "key_source": "passphrase"}
        assert line("token", "acme").out == KEY + "\n"
        told = line("token", "acme", "--json").json
        assert (told["token"], told["source"], told["account"]) == (KEY, "stored", "default")
        assert healths(line) == {"unknown"}
        # What is not logged in is asked of whoever may have it otherwise.
        line.declare(
            "other",
            '[api]\nbase_url = "https://o.example"\nhosts = ["o.example"]\n[[auth]]\nid = "api-key"\n'
            'kind = "api-key"\nenvironment = ["OTHER_KEY"]\ninject = [{ set = { x-api-key = "{key}" } }]\n',
        )
        assert line("token", "other", environ={"OTHER_KEY": "of-the-environment"}).out == "of-the-environment\n"
        assert line("token", "other").status == 3
    assert line("token", "acme").status == 1  # its end has forgotten it


def test_the_token_from_the_gateway_needs_neither_the_store_nor_its_cipher(line: CommandLine, file: Path) -> None:
    with background(line):
        line("unlock", "--passphrase-file", str(file))
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "valetkey", "token", "acme"],
            capture_output=True,
            text=True,
            check=True,
            env=line.environ,
        )
    assert done.stdout == KEY + "\n"
    imported = {row.rsplit("|", 1)[-1].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}
    heavy = {
        "click",
        "asyncio",
        "httpx2",
        "dataclasses",
        "tomllib",
        "logging",
        "sqlite3",
        "http.client",
        "cryptography",
    }
    assert imported & heavy == set()
    assert "valetkey.serving" in imported


def test_locked_again_everything_is_refused_until_it_is_unlocked(line: CommandLine, file: Path) -> None:
    with background(line):
        line("unlock", "--passphrase-file", str(file))
        key = make_key_with(line, file)
        assert ask(line, key).status_code == 200
        assert line("lock", "--json").json == {"locked": True, "gateway": True}
        assert healths(line) == {"locked"}
        refused = ask(line, key)
        assert refused.status_code == 503
        assert about(line)["locked"] is True
        assert line("token", "acme").status == 1
        line("unlock", "--passphrase-file", str(file))
        assert ask(line, key).status_code == 200
        assert line("token", "acme").out == KEY + "\n"


def make_key_with(line: CommandLine, file: Path) -> str:
    line.environ["VALETKEY_PASSPHRASE_FILE"] = str(file)
    key = make_key(line)
    del line.environ["VALETKEY_PASSPHRASE_FILE"]
    return key


def test_a_wrong_passphrase_is_told_and_opens_nothing(line: CommandLine) -> None:
    with background(line):
        done = line("unlock", "--passphrase-file", "-", stdin="another one\n")
        assert (done.status, "does not open the store" in done.err) == (1, True)
        assert healths(line) == {"locked"}
        assert line("unlock", "--passphrase-file", "-", stdin=PASSPHRASE + "\n").status == 0
        assert healths(line) == {"unknown"}


def test_the_passphrase_is_asked_for_on_a_terminal_and_not_shown(line: CommandLine) -> None:
    with background(line):
        with line.terminal("unlock") as terminal:
            terminal.expect("Passphrase of the store")
            terminal.send(PASSPHRASE + "\n")
            terminal.expect("The store is open")
            assert terminal.end() == 0
            assert PASSPHRASE not in terminal.shown
        assert healths(line) == {"unknown"}
        # Open already: there is nothing to ask for.
        assert line("unlock").status == 0


def test_without_a_terminal_nobody_is_asked(line: CommandLine) -> None:
    with background(line):
        done = line("unlock")
        assert (done.status, "VALETKEY_PASSPHRASE_FILE" in done.err) == (1, True)


def test_a_file_with_the_passphrase_opens_it_from_the_start_and_after_a_lock(line: CommandLine, file: Path) -> None:
    line.environ["VALETKEY_PASSPHRASE_FILE"] = str(file)
    with background(line) as running:
        assert running["locked"] is False
        line("lock")
        assert about(line)["locked"] is True
        assert line("unlock").status == 0
        assert about(line)["locked"] is False


def test_the_passphrase_is_in_no_log_and_no_argument(line: CommandLine, file: Path) -> None:
    line.environ["VALETKEY_LOG_LEVEL"] = "debug"
    with background(line) as running:
        line("unlock", "--passphrase-file", str(file))
        line("unlock", "--passphrase-file", "-", stdin="mistyped " + PASSPHRASE)
        line("token", "acme")
        command = Path(f"/proc/{running['pid']}/cmdline").read_bytes()
    log = line.home / "run" / serving.LOG
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    for text in (log.read_text(), command.decode()):
        assert PASSPHRASE not in text
        assert KEY not in text


def test_where_no_gateway_runs_there_is_nothing_to_lock_and_nobody_to_unlock(line: CommandLine) -> None:
    assert line("lock", "--json").json == {"locked": True, "gateway": False}
    done = line("unlock", "--json")
    assert (done.status, done.json["error"]["code"]) == (1, "gateway_down")
    assert "valetkey up" in done.err


def test_a_key_file_opens_again_when_it_is_asked_to(home: Path, server: LocalServer) -> None:
    line = CommandLine(home=home)
    line("providers", "add", "acme", "--base-url", server.url, "--dialect", "openai-chat", "--allow-http")
    line("login", "acme", "--key", "-", "--no-verify", stdin=KEY)
    try:
        with background(line) as running:
            assert running["locked"] is False
            key = make_key(line)
            line("lock")
            assert ask(line, key).status_code == 503
            assert healths(line) == {"locked"}
            assert line("unlock").status == 0
            assert ask(line, key).status_code == 200
    finally:
        end(line)


def test_a_renewal_by_another_process_is_seen_within_a_moment(home: Path, server: LocalServer) -> None:
    line = CommandLine(home=home)
    line("providers", "add", "acme", "--base-url", server.url, "--dialect", "openai-chat", "--allow-http")
    line("login", "acme", "--key", "-", "--no-verify", stdin="sk-" + "stale" * 6)
    try:
        with background(line):
            key = make_key(line)
            assert ask(line, key).status_code == 401
            assert line("login", "acme", "--key", "-", "--no-verify", stdin=KEY).status == 0
            until(lambda: ask(line, key).status_code == 200)
            assert os.stat(home / "run").st_mode & 0o077 == 0
    finally:
        end(line)
