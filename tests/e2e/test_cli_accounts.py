"""Log in, list, status, env, exec, logout: as a user and as a script meet them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, api_server
from valetkey.testing.local_server import LocalServer

KEY = "sk-" + "good1" * 8
OTHER = "sk-" + "good2" * 8

ACME = """
default_model = "small"
[api]
base_url = "{url}/v1"
dialect = "openai-chat"
hosts = ["{host}"]
allow_http = true
probe = {{ get = "/models", email = "/email", plan = "/plan" }}
[[auth]]
id = "api-key"
kind = "api-key"
environment = ["ACME_API_KEY", "ACME_TOKEN"]
prefix = "sk-"
inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
"""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with api_server([KEY, OTHER]) as running:
        yield running


@pytest.fixture
def valetkey(home: Path, server: LocalServer) -> CommandLine:
    line = CommandLine(home=home)
    line.declare("acme", ACME.format(url=server.url, host=server.url.removeprefix("http://")))
    return line


# --- login -----------------------------------------------------------------------------------


def test_a_key_from_standard_input_is_verified_and_stored(valetkey: CommandLine) -> None:
    done = valetkey("login", "acme", "--key", "-", stdin=KEY + "\n")
    assert done.status == 0, done.err
    assert "Logged in to acme@default." in done.out
    assert "a@example.org (pro)" in done.out
    assert "default model is now acme/small" in done.out
    # A machine without a keychain: told once.
    assert "the store's key lies in the file" in done.err
    again = valetkey("login", "acme", "--account", "work", "--key", "-", stdin=OTHER)
    assert again.status == 0
    assert "key lies in the file" not in again.err
    assert [a["account"] for a in valetkey.accounts()] == ["default", "work"]


def test_a_key_from_a_file_or_the_environment_is_taken(valetkey: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\r\n")
    assert valetkey("login", "acme", "--file", str(path), "--json").json["last_four"] == KEY[-4:]
    done = valetkey("login", "acme", "--account", "b", "--env", environ={"ACME_TOKEN": OTHER})
    assert done.status == 0, done.err
    assert valetkey("token", "acme@b").out == OTHER + "\n"


def test_a_key_on_the_command_line_is_refused_and_not_repeated(valetkey: CommandLine) -> None:
    done = valetkey("login", "acme", "--key", KEY)
    assert done.status == 2
    assert "a key on the command line can be read by every program" in done.err
    assert "valetkey: hint: pipe it" in done.err
    assert KEY not in done.err + done.out
    assert valetkey.accounts() == []


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ("sk-" + "bad" * 12, 1, "rejected the credential (HTTP 401)"),
        ("ghp-" + "bad" * 12, 1, "its keys start with sk- and this one does not"),
        ("", 2, "standard input is empty"),
        ("two\nlines", 2, "line break"),
        ("nul\0", 2, "control character"),
        ("x" * (1 << 20), 2, "longer than"),
        (b"\xff\xfe\x00", 2, "is no text"),
    ],
)
def test_a_bad_key_gives_its_own_error_and_stores_nothing(
    valetkey: CommandLine, given: str | bytes, status: int, said: str
) -> None:
    done = valetkey("login", "acme", "--key", "-", stdin=given)
    assert done.status == status
    assert said in done.err
    assert done.err.count("valetkey: hint: ") == 1
    assert "Traceback" not in done.err
    assert valetkey.accounts() == []


def test_a_key_that_nobody_can_be_asked_about_is_stored_and_that_is_said(valetkey: CommandLine) -> None:
    valetkey.declare(
        "mute",
        '[api]\nbase_url = "https://mute.example"\nhosts = ["mute.example"]\ndialect = "none"\n'
        '[[auth]]\nid = "api-key"\nkind = "api-key"\ninject = [{ set = { authorization = "Bearer {key}" } }]\n',
    )
    done = valetkey("login", "mute", "--key", "-", stdin="sk-" + "any" * 8)
    assert (done.status, "not verified" in done.out) == (0, True)
    assert valetkey("login", "mute", "--key", "-", "--json", stdin="sk-" + "any" * 8).json["verified"] is False
    assert valetkey("login", "acme", "--key", "-", "--json", stdin=KEY).json["verified"] is True


def test_no_verify_stores_without_asking_and_says_so(valetkey: CommandLine, server: LocalServer) -> None:
    done = valetkey("login", "acme", "--key", "-", "--no-verify", stdin="sk-" + "any" * 8)
    assert done.status == 0
    assert "not verified" in done.out
    assert server.requests == []


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("login",), 2),
        (("login", "acme"), 2),
        (("login", "amce", "--key", "-"), 2),
        (("login", "acme", "--method", "none"), 2),
        (("login", "acme", "--account", "../x", "--key", "-"), 2),
        (("login", "acme", "--account", "x" * 10_000, "--key", "-"), 2),
        (("login", "acme", "--param", "nothing", "--key", "-"), 2),
        (("login", "acme", "--param", "undeclared=1", "--key", "-"), 2),
        (("logout", "acme"), 2),
        (("logout", "acme", "--yes"), 3),
        (("token", "acme"), 3),
        (("env", "acme"), 3),
        (("exec", "-p", "acme", "--", "true"), 3),
        (("exec", "--", "true"), 2),
        (("status", "acme"), 3),
        (("providers", "remove", "acme"), 2),
        (("providers", "remove", "openai", "--yes"), 2),
        (("providers", "add", "x"), 2),
        (("store", "backup", "/nowhere/else"), 2),
        (("frobnicate",), 2),
        (("list", "--frobnicate"), 2),
    ],
)
def test_without_a_terminal_nothing_asks_and_every_failure_has_a_hint(
    valetkey: CommandLine, words: tuple[str, ...], status: int
) -> None:
    done = valetkey(*words, stdin=KEY if "-" in words else "")
    assert (done.status, done.out) == (status, "")
    first, second = done.err.splitlines()
    assert first.startswith("valetkey: error: ")
    assert second.startswith("valetkey: hint: ")
    assert len(done.err) < 1000


# --- list, status, logout --------------------------------------------------------------------


def test_list_shows_the_environment_as_such_and_ends_with_the_store(valetkey: CommandLine, home: Path) -> None:
    found = valetkey("list", environ={"ACME_API_KEY": OTHER})
    assert "$ACME_API_KEY" in found.out
    assert found.out.splitlines()[-1] == f"Store: {home / 'valetkey.db'}"
    valetkey("login", "acme", "--key", "-", stdin=KEY)
    both = valetkey("list", "--json", environ={"ACME_API_KEY": OTHER}).json["accounts"]
    assert [(a["source"], a["shadowed"], a["last_four"]) for a in both] == [
        ("stored", False, KEY[-4:]),
        ("environment", True, OTHER[-4:]),
    ]
    # Stored before environment.
    assert valetkey("token", "acme", environ={"ACME_API_KEY": OTHER}).out == KEY + "\n"


def test_list_is_paged_for_scripts(valetkey: CommandLine) -> None:
    for name in ("a", "b", "c"):
        valetkey("login", "acme", "--account", name, "--key", "-", "--no-verify", stdin=KEY)
    first = valetkey("list", "--json", "--limit", "2").json
    assert [a["account"] for a in first["accounts"]] == ["a", "b"]
    rest = valetkey("list", "--json", "--limit", "2", "--after", first["next"]).json
    assert ([a["account"] for a in rest["accounts"]], rest["next"]) == (["c"], None)
    assert valetkey("list", "--json", "--after", "nonsense").status == 2


def test_list_all_adds_the_providers_without_an_account(valetkey: CommandLine) -> None:
    done = valetkey("list", "--all", "--json").json
    assert "acme" in done["without_account"]
    assert "openai" in done["without_account"]


def test_status_asks_the_provider_and_tells_who_and_how(valetkey: CommandLine, server: LocalServer) -> None:
    valetkey("login", "acme", "--key", "-", "--no-verify", stdin=KEY)
    done = valetkey("status", "--json")
    assert done.status == 0
    (account,) = done.json["accounts"]
    assert account["identity"]["email"] == "a@example.org"
    assert account["identity"]["plan"] == "pro"
    assert (account["health"], account["source"]) == ("ok", "stored")
    valetkey("login", "acme", "--account", "bad", "--key", "-", "--no-verify", stdin="sk-" + "dead" * 10)
    bad = valetkey("status")
    assert bad.status == 3
    assert "valetkey login acme --account bad" in bad.out
    # What the probe said is what `list` says from now on.
    assert [a["health"] for a in valetkey.accounts()] == ["needs-login", "ok"]
    server.stop()
    assert valetkey("status", "acme@default", "--json").json["accounts"][0]["health"] == "unreachable"


def test_logout_deletes_and_says_what_became_of_the_key(valetkey: CommandLine) -> None:
    valetkey("login", "acme", "--key", "-", stdin=KEY)
    done = valetkey("logout", "acme", "--yes", "--json")
    assert done.json == {"provider": "acme", "account": "default", "revocation": "not supported"}
    assert valetkey.accounts() == []
    assert valetkey("token", "acme").status == 3


def test_the_other_names_are_the_same_commands(valetkey: CommandLine) -> None:
    assert valetkey("grant", "acme", "--key", "-", stdin=KEY).status == 0
    assert valetkey("auth", "list", "--json").json["accounts"][0]["provider"] == "acme"
    assert valetkey("auth", "token", "acme").out == KEY + "\n"
    assert valetkey("auth", "logout", "acme", "--yes").status == 0
    assert valetkey("auth", "login", "acme", "--key", "-", stdin=KEY).status == 0


# --- env, exec -------------------------------------------------------------------------------


def test_env_survives_the_shell_it_is_written_for(valetkey: CommandLine) -> None:
    odd = "sk-" + "a'b\"c$(d)`e`\\f" * 3
    valetkey("login", "acme", "--key", "-", "--no-verify", stdin=odd)
    lines = valetkey("env", "acme", environ={"ACME_TOKEN": "old"}).out
    script = lines + 'printf "%s|%s" "$ACME_API_KEY" "${ACME_TOKEN-unset}"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == f"{odd}|unset"
    assert valetkey("env", "acme", "--shell", "fish").out.startswith("set -gx ACME_API_KEY '")
    told = valetkey("env", "acme", "--json").json
    assert told["set"] == {"ACME_API_KEY": odd}
    assert told["unset"] == ["ACME_TOKEN"]


def test_exec_sets_the_named_account_for_one_child_and_nothing_else(valetkey: CommandLine) -> None:
    valetkey("login", "acme", "--key", "-", stdin=KEY)
    valetkey("login", "acme", "--account", "work", "--key", "-", stdin=OTHER)
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    before = {"ACME_TOKEN": "mine", "UNRELATED": "kept"}
    seen = json.loads(valetkey("exec", "-p", "acme@work", "--", *show, environ=before).out)
    expected = {**valetkey.environ, "UNRELATED": "kept", "ACME_API_KEY": OTHER}
    assert {name: value for name, value in seen.items() if name not in ("LC_CTYPE", "PWD", "SHLVL", "_")} == expected


def test_exec_refuses_two_accounts_that_want_one_variable(valetkey: CommandLine) -> None:
    for name in ("a", "b"):
        valetkey("login", "acme", "--account", name, "--key", "-", stdin=KEY)
    done = valetkey("exec", "-p", "acme@a", "-p", "acme@b", "--", "true")
    assert done.status == 2
    assert "both go into ACME_API_KEY" in done.err


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        (["no-such-command-anywhere"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exec_ends_as_the_command_ends(valetkey: CommandLine, argv: list[str], status: int) -> None:
    valetkey("login", "acme", "--key", "-", stdin=KEY)
    assert valetkey("exec", "-p", "acme", "--", *argv).status == status


def test_exec_hands_on_signals_and_the_options_of_the_command(valetkey: CommandLine) -> None:
    valetkey("login", "acme", "--key", "-", stdin=KEY)
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(42)); print('ready', flush=True); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-m", "valetkey", "exec", "-p", "acme", sys.executable, "-c", code],
        env=valetkey.environ,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(60) == 42
    process.stdout.close()
    assert valetkey("exec", "-p", "acme", "printf", "%s", "--json").out == "--json"


def test_a_pipe_that_closes_early_is_no_error(valetkey: CommandLine) -> None:
    script = f'"{sys.executable}" -m valetkey providers list | head -n 1'
    done = subprocess.run(["sh", "-c", script], env=valetkey.environ, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ID")
    assert done.stderr == ""


def test_a_full_disk_under_stdout_is_told(valetkey: CommandLine) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "valetkey", "providers", "list"],
            env=valetkey.environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("valetkey: error: no space left on device")
    assert os.path.exists("/dev/full")


# --- which account ---------------------------------------------------------------------------


def test_the_default_account_can_be_switched(valetkey: CommandLine) -> None:
    valetkey("login", "acme", "--key", "-", stdin=KEY)
    valetkey("login", "acme", "--account", "work", "--key", "-", stdin=OTHER)
    assert valetkey("token", "acme").out == f"{KEY}\n"
    assert valetkey("auth", "switch", "acme@work").out == "acme is now acme@work.\n"
    assert valetkey("token", "acme").out == f"{OTHER}\n"


@pytest.mark.parametrize(("name", "status"), [("acme", 2), ("acme@nobody", 3), ("nobody@x", 2), ("acme@", 2)])
def test_only_an_account_that_is_there_can_be_switched_to(valetkey: CommandLine, name: str, status: int) -> None:
    done = valetkey("auth", "switch", name)
    assert (done.status, done.out) == (status, "")
    assert "valetkey: hint: " in done.err


def test_a_login_that_nobody_was_asked_about_is_not_called_healthy(valetkey: CommandLine) -> None:
    valetkey("login", "acme", "--key", "-", "--no-verify", stdin=KEY)
    (account,) = valetkey.accounts()
    assert (account["health"], "was not asked" in account["reason"]) == ("unknown", True)
    assert valetkey("token", "acme").out == KEY + "\n"
    assert valetkey("status").status == 0
    (account,) = valetkey.accounts()
    assert (account["health"], account["reason"]) == ("ok", "")
