"""`valetkey run` and `runs`: a real sandbox, the real gateway, and no credential inside."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import declare, kill, until
from valetkey.testing.local_server import Answer, LocalServer, Received

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
# Of the form of a key, and made at run time.
KEY = "sk-" + "canary" + os.urandom(12).hex()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def socket_of(line: CommandLine, run: str) -> Path:
    return line.home / "run" / "runs" / run / "gateway.sock"


def forms(secret: str) -> list[str]:
    raw = base64.b64encode(secret.encode()).decode()
    return [secret, raw.rstrip("="), quote(secret, safe=""), secret[::-1]]


def test_a_command_asks_through_the_gateway_and_has_no_credential(
    line: CommandLine, server: LocalServer, workspace: Path
) -> None:
    declare(line, server.url, key=KEY)
    script = (
        "curl -sS http://127.0.0.1:3128/acme/hello; echo; env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'"
    )
    done = line("run", "--grant", "acme", "--workspace", str(workspace), "--", "sh", "-c", script)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("served\n")
    (request,) = server.calls("/hello")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert not [form for form in forms(KEY) if form in done.out]
    for path in line.home.rglob("*"):
        if path.is_file() and "runs" in path.parts:
            assert KEY.encode() not in path.read_bytes()
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert (kept["state"], kept["exit_status"], kept["grants"]) == ("ended", 0, ["acme@default"])
    assert line("runs", "logs", kept["id"]).out == done.out
    assert "sh -c" in line("runs", "show", kept["id"]).out
    entries = line("audit", "show", "--client", f"run:{kept['id']}", "--json").json["entries"]
    told = [(entry["kind"], entry["account"]) for entry in entries]
    assert told == [("run-started", ""), ("use", "acme@default"), ("run-stopped", "")]
    assert entries[-1]["detail"] == {"exit_status": 0}
    assert KEY not in json.dumps(entries)


def test_the_status_and_the_streams_are_the_commands_own(line: CommandLine, workspace: Path) -> None:
    script = "read x; echo out $x; echo err >&2; pwd > made; exit 7"
    done = line("run", "--workspace", str(workspace), "--", "sh", "-c", script, stdin="word\n")
    assert (done.status, done.out, done.err) == (7, "out word\n", "err\n")
    assert (workspace / "made").read_text() == "/workspace\n"


def test_all_missing_logins_are_named_at_once_and_nothing_is_left(
    line: CommandLine, server: LocalServer, workspace: Path
) -> None:
    done = line(
        "run", "--grant", "openai", "--grant", "mistral", "--workspace", str(workspace), "--", "touch", "started"
    )
    assert done.status == 3
    assert "openai@default" in done.err
    assert "mistral@default" in done.err
    assert "valetkey login openai" in done.err
    assert list(workspace.iterdir()) == []
    assert line("runs", "list", "--json").json == {"runs": []}


def test_on_a_terminal_a_missing_login_is_offered_and_the_run_goes_on(
    line: CommandLine, server: LocalServer, workspace: Path
) -> None:
    declare(line, server.url, key=KEY)
    assert line("logout", "acme", "--yes").status == 0
    words = ("run", "--grant", "acme", "--workspace", str(workspace), "--", "sh", "-c", "echo be''gan")
    with line.terminal(*words) as terminal:
        terminal.expect("Log in to acme@default now? [Y/n]: ")
        terminal.send("n\n")
        terminal.expect("valetkey login acme")
        assert terminal.end() == 3
    with line.terminal(*words) as terminal:
        terminal.expect("Log in to acme@default now? [Y/n]: ")
        terminal.send("\n")
        terminal.expect("API key: ")
        terminal.send(KEY + "\n")
        terminal.expect("began")
        assert terminal.end() == 0
    assert KEY not in terminal.shown


def test_a_program_that_is_not_inside_is_told_before_anything_starts(line: CommandLine, workspace: Path) -> None:
    (programs := workspace / "bin").mkdir()
    (tool := programs / "my-tool").write_text("#!/bin/sh\n")
    tool.chmod(0o755)

    def hint(*words: str) -> str:
        done = line("run", "--workspace", str(workspace), *words, environ={"PATH": f"{programs}:{os.environ['PATH']}"})
        assert done.status == 127, done.err
        return done.err.partition("hint: ")[2]

    assert "`valetkey run claude`" in hint("claud")
    assert str(tool) in hint("--", "my-tool")
    assert "./run" in hint("--", "no-such-program")
    assert line("runs", "list", "--json").json == {"runs": []}
    # Where the command's own PATH is said, nobody knows better than the command.
    done = line("run", "--workspace", str(workspace), "--env", "PATH=/workspace/bin:/usr/bin:/bin", "--", "my-tool")
    assert done.status == 0, done.err


def test_once_a_run_has_ended_its_socket_is_gone(line: CommandLine, server: LocalServer, workspace: Path) -> None:
    declare(line, server.url, key=KEY)
    process = started(line, workspace, "--grant", "acme")
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert socket_of(line, kept["id"]).exists()
    assert line("runs", "stop", kept["id"]).status == 0
    ended(process)
    until(lambda: not socket_of(line, kept["id"]).exists())


def started(line: CommandLine, workspace: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a run that says a line when it is up, and goes on."""
    process = subprocess.Popen(
        [*line.through, sys.executable, "-m", "valetkey", "run", *words, "--workspace", str(workspace), "--",
         "sh", "-c", "echo up; while true; do sleep 1; done"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=line.environ,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def ended(process: subprocess.Popen[bytes]) -> int:
    with process:
        return process.wait(60)


def test_what_is_kept_is_told_in_the_shapes_that_are_documented(line: CommandLine, workspace: Path) -> None:
    assert line("run", "--workspace", str(workspace), "--", "echo", "said").status == 0
    (kept,) = line("runs", "list", "--json").json["runs"]
    sections = DOCS.read_text().split("### ")
    shapes = (re.match(r"`(runs \w+)`.*?JSON: `\{(.+?)\}`", text, re.DOTALL) for text in sections)
    promised = {shape[1]: shape[2] for shape in shapes if shape is not None}
    assert f"`runs` each `{{{', '.join(kept)}}}`" in DOCS.read_text()
    for word in ("show", "logs", "trace", "stop", "remove"):
        done = line("runs", word, kept["id"][:8], "--json")
        assert ", ".join(done.json) == promised[f"runs {word}"]


def test_stop_ends_a_run_and_remove_removes_it(line: CommandLine, workspace: Path) -> None:
    process = started(line, workspace)
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert kept["state"] == "running"
    refused = line("runs", "remove", kept["id"])
    assert (refused.status, "runs stop" in refused.err) == (1, True)
    assert line("runs", "stop", kept["id"]).status == 0
    assert ended(process) == 143
    assert line("runs", "list", "--json").json["runs"][0]["state"] == "ended"
    assert line("runs", "remove", kept["id"]).status == 0
    assert list((line.home / "runs").iterdir()) == []


def test_a_run_whose_parent_is_killed_is_lost_at_once_and_has_nothing_any_more(
    line: CommandLine, server: LocalServer, workspace: Path
) -> None:
    declare(line, server.url, key=KEY)
    process = started(line, workspace, "--grant", "acme")
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert socket_of(line, kept["id"]).exists()
    process.send_signal(signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert line("runs", "list", "--json").json["runs"][0]["state"] == "lost"
    until(lambda: not socket_of(line, kept["id"]).exists())
    done = line("run", "--workspace", str(workspace), "--", "true")
    assert (done.status, kept["id"] in done.err) == (0, True)
    assert [one["state"] for one in line("runs", "list", "--json").json["runs"]] == ["ended", "ended"]


def test_a_run_goes_on_when_the_gateway_is_killed_and_asks_the_next_one(
    line: CommandLine, server: LocalServer, workspace: Path
) -> None:
    declare(line, server.url, key=KEY)
    script = (
        "echo up; read x; curl -sS http://127.0.0.1:3128/acme/dead; echo $?;"
        " read x; curl -sS http://127.0.0.1:3128/acme/alive; echo; "
    )
    words = ["run", "--grant", "acme", "--workspace", str(workspace), "--", "sh", "-c", script]
    process = subprocess.Popen(
        [*line.through, sys.executable, "-m", "valetkey", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=line.environ, bufsize=0,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        kill(line)
        process.stdin.write(b"\n")
        assert process.stdout.readline().strip() not in (b"", b"0"), "nothing is let through meanwhile"
        assert line("up").status == 0
        process.stdin.write(b"\n")
        assert process.stdout.read() == b"served\n"
    assert process.returncode == 0
    assert server.calls("/dead") == []
    assert json.loads((next((line.home / "runs").iterdir()) / "run.json").read_text())["exit_status"] == 0


def test_on_a_terminal_it_has_one_of_its_own(line: CommandLine, workspace: Path) -> None:
    script = "trap 'echo interrupted; exit' INT; echo waiting; while :; do sleep 0.05; done"
    (workspace / "wait.sh").write_text(script)
    with line.terminal("run", "--workspace", str(workspace), "--", "sh") as terminal:
        terminal.expect("$ ")
        terminal.resize(30, 90)
        terminal.send("echo $$; until stty size | grep '^30 90'; do :; done\n")
        terminal.expect("30 90\r\n")
        terminal.send("sh wait.sh\n")
        terminal.expect("waiting")
        terminal.send("\x03")
        terminal.expect("interrupted")
        terminal.expect("$ ")
        terminal.send("exit 3\n")
        assert terminal.end() == 3
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert "interrupted" in line("runs", "logs", kept["id"]).out
    with line.terminal("runs", "logs", kept["id"]) as terminal:
        assert terminal.end() == 0
    assert "interrupted\r\n" in terminal.shown
    assert "exit 3" in line("runs", "show", kept["id"]).out


def test_a_limit_that_ended_a_run_is_named(line: CommandLine, workspace: Path) -> None:
    words = ("run", "--time", "0.5", "--workspace", str(workspace), "--", "sleep", "600")
    done = line(*words)
    assert (done.status, done.err) == (143, "valetkey: the run was ended: it had reached its limit of time\n")
    with line.terminal(*words) as terminal:
        terminal.expect("valetkey: the run was ended: it had reached its limit of time\r\n")
        assert terminal.end() == 143


def test_what_is_told_of_runs_as_json_is_documented(line: CommandLine, workspace: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    process = started(line, workspace)
    (kept,) = line("runs", "list", "--json").json["runs"]
    for words in (("show",), ("logs",), ("stop",), ("remove",)):
        told = line("runs", *words, kept["id"], "--json").json
        assert f"`{{{', '.join(told)}}}`" in text.partition(f"### `runs {words[0]}`")[2].partition("###")[0], words
        assert words != ("show",) or list(told) == list(kept)
        if words == ("stop",):
            ended(process)


def test_another_command_joins_a_live_run_and_has_what_that_has(
    line: CommandLine, server: LocalServer, workspace: Path
) -> None:
    declare(line, server.url, key=KEY)
    process = started(line, workspace, "--grant", "acme", "--env", "TYPED=a-word")
    (kept,) = line("runs", "list", "--json").json["runs"]
    plain = [path for path in line.home.rglob("*") if path.is_file() and b"a-word" in path.read_bytes()]
    assert plain == [], "a value that somebody typed may be a secret"
    script = "curl -sS http://127.0.0.1:3128/acme/joined; echo; echo $TYPED; pwd; touch ~/left; exit 7"
    done = line("runs", "join", kept["id"], "--", "sh", "-c", script)
    assert (done.status, done.out) == (7, "served\na-word\n/workspace\n"), done.err
    (request,) = server.calls("/joined")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (line.home / "runs" / kept["id"] / "home" / "left").exists()
    assert "a-word" in line("runs", "logs", kept["id"]).out
    assert len(line("runs", "list", "--json").json["runs"]) == 1
    entries = line("audit", "show", "--client", f"run:{kept['id']}", "--json").json["entries"]
    assert [entry["detail"]["program"] for entry in entries if entry["kind"] == "run-joined"] == ["sh"]
    assert line("runs", "stop", kept["id"]).status == 0
    ended(process)
    over = line("runs", "join", kept["id"], "--", "true")
    assert (over.status, "is over" in over.err) == (1, True)
    entries = line("audit", "show", "--client", f"run:{kept['id']}", "--json").json["entries"]
    assert [entry["kind"] for entry in entries].count("run-joined") == 1


def test_what_joined_a_run_ends_with_it(line: CommandLine, workspace: Path) -> None:
    process = started(line, workspace)
    (kept,) = line("runs", "list", "--json").json["runs"]
    # It takes no notice of what asks it to end.
    script = "trap '' TERM; echo joined; while :; do sleep 1; done"
    joined = subprocess.Popen(
        [*line.through, sys.executable, "-m", "valetkey", "runs", "join", kept["id"], "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=line.environ,
    )  # fmt: skip
    assert joined.stdout is not None
    assert joined.stdout.readline() == b"joined\n"
    process.kill()
    ended(process)
    try:
        assert joined.wait(60) == 137
    finally:
        joined.kill()
        joined.communicate()


def test_a_run_leaves_nothing_that_cannot_be_removed(line: CommandLine, workspace: Path) -> None:
    deep = "import os; os.chdir(os.environ['HOME']); [(os.mkdir('d'), os.chdir('d')) for _ in range(3000)]"
    script = (
        f'python3 -c "{deep}"; mkfifo ~/p;'
        " mkdir -p ~/a/b/c; touch ~/a/b/c/d; ln -s / ~/a/root; chmod 0 ~/a/b/c ~/a/b ~/p; chmod 0500 ~/a ~"
    )
    assert line("run", "--workspace", str(workspace), "--", "sh", "-c", script).status == 0
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert (kept["state"], kept["bytes"] > 0) == ("ended", True)
    done = line("runs", "remove", kept["id"])
    assert done.status == 0, done.err
    assert not (line.home / "runs" / kept["id"]).exists()


def test_words_that_are_no_command_hint_at_ask(line: CommandLine, workspace: Path) -> None:
    done = line("run", "--workspace", str(workspace), "what is this")
    assert (done.status, "valetkey ask" in done.err) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try to be root")
def test_root_is_told_to_be_somebody_else(home: Path, workspace: Path) -> None:
    done = CommandLine(home=home)("run", "--workspace", str(workspace), "--", "true")
    assert (done.status, "sudo -u" in done.err) == (1, True)


def test_an_account_that_is_refused_to_the_end_is_named_with_what_helps(line: CommandLine, workspace: Path) -> None:
    statuses = iter((401, 200, 401))

    def respond(request: Received) -> Answer:
        return Answer(status=next(statuses), headers={"content-type": "text/plain"}, body=b"")

    ask = "curl -sS http://127.0.0.1:3128/acme/x;"
    with LocalServer(respond) as server:
        declare(line, server.url, key=KEY)
        recovered = line("run", "--grant", "acme", "--workspace", str(workspace), "--", "sh", "-c", ask * 2)
        refused = line("run", "--grant", "acme", "--workspace", str(workspace), "--", "sh", "-c", ask)
    assert recovered.err == ""
    assert refused.err.splitlines() == [
        "valetkey: acme@default was refused with 401 to the end of the run",
        "valetkey: hint: run `valetkey login acme`",
    ]
    kept = line("runs", "list", "--json").json["runs"][1]
    requests = line("runs", "trace", kept["id"], "--json").json["requests"]
    assert [(one["client"], one["status"]) for one in requests] == [
        (f"run:{kept['id']}", status) for status in (401, 200)
    ]


def test_runs_that_ended_long_ago_are_removed_when_one_begins(line: CommandLine, workspace: Path) -> None:
    large = ("sh", "-c", "head -c 2000000 /dev/zero > ~/large")
    assert line("run", "--workspace", str(workspace), "--", *large).status == 0
    (old,) = line("runs", "list", "--json").json["runs"]
    words = ("run", "--workspace", str(workspace), "--", "true")
    assert line(*words, environ={"VALETKEY_RUNS_MAX_MB": "1"}).status == 0
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert kept["id"] != old["id"]
    entries = line("audit", "show", "--kind", "run-removed", "--json").json["entries"]
    assert [entry["who"] for entry in entries] == [f"run:{old['id']}"]
