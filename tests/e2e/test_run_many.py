"""Many runs at once, and what one can reach of another: nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.command_line import CommandLine
from tests.support.gateway_process import declare, kill, until
from valetkey.testing.local_server import LocalServer

FEW = 8
FULL = 50 if os.environ.get("VALETKEY_SOAK") else FEW
PATIENCE_SECONDS = 240


class Going:
    """Runs that say `up`, go on when they are sent a line, ask the gateway, and say what it answered."""

    def __init__(self, line: CommandLine, folder: Path, count: int) -> None:
        script = "echo up; read x; curl -sS --max-time 60 http://127.0.0.1:3128/acme/$N; echo; read x"
        self.processes: list[subprocess.Popen[bytes]] = []
        for number in range(count):
            (workspace := folder / str(number)).mkdir()
            words = ["run", "--grant", "acme", "--workspace", str(workspace), "--env", f"N={number}"]
            self.processes.append(
                subprocess.Popen(
                    [*line.through, sys.executable, "-m", "valetkey", *words, "--", "sh", "-c", script],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=line.environ,
                    bufsize=0,
                )
            )
        assert self.read() == [b"up\n"] * count

    def read(self) -> list[bytes]:
        """Give a line of each."""
        return [process.stdout.readline() for process in self.processes if process.stdout is not None]

    def send(self, some: list[subprocess.Popen[bytes]] | None = None) -> None:
        """Let each go on."""
        for process in self.processes if some is None else some:
            assert process.stdin is not None
            process.stdin.write(b"\n")

    def end(self) -> list[int]:
        """Wait for the end of all."""
        statuses = []
        for process in self.processes:
            with process:
                statuses.append(process.wait(PATIENCE_SECONDS))
        return statuses


def left_of(line: CommandLine) -> list[str]:
    """Name what runs have left: sockets, and processes that know this home or a run of it."""
    sockets = [str(path) for path in (line.home / "run" / "runs").glob("*/gateway.sock")]
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
            about = (entry.parent / "mountinfo").read_text() if b"forward.py" in words else ""
        except OSError:
            continue
        if b"valetkey.runs.parent" in words and b"\0" in words and str(line.home) in _environ(entry.parent):
            found.append(words.decode())
        if str(line.home) in about:
            found.append(words.decode())
    return sockets + found


def _environ(process: Path) -> str:
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_many_runs_at_once_start_work_stop_and_leave_nothing(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    declare(line, server.url)
    going = Going(line, tmp_path, FULL)
    assert left_of(line), "what is looked for afterwards is found while they run"
    going.send()
    assert going.read() == [b"served\n"] * FULL
    assert sorted(request.path for request in server.requests) == sorted(f"/{number}" for number in range(FULL))
    going.send()
    assert going.end() == [0] * FULL
    until(lambda: not left_of(line))
    states = {(one["state"], one["exit_status"]) for one in line("runs", "list", "--json").json["runs"]}
    assert states == {("ended", 0)}


def test_runs_go_on_when_the_gateway_is_killed_and_none_is_left_over(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    count = 20 if FULL > FEW else 4
    declare(line, server.url)
    going = Going(line, tmp_path, count)
    kill(line)
    assert line("up").status == 0
    going.send()
    assert going.read() == [b"served\n"] * count
    for process in going.processes[: count // 2]:
        process.send_signal(signal.SIGKILL)
    going.send(going.processes[count // 2 :])
    assert sorted(going.end()) == [-signal.SIGKILL] * (count // 2) + [0] * (count // 2)
    until(lambda: not left_of(line))
    assert line("runs", "list").status == 0


# What a run can see of others. Each is tried from the host first.
REACH = """
import os, socket, sys
for path in sys.argv[1:]:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(path)
        print("reached", path)
    except OSError as error:
        print(type(error).__name__)
print(sorted(os.listdir("/run/valetkey")))
"""


def test_neither_the_control_api_nor_another_runs_socket_is_there(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    declare(line, server.url)
    going = Going(line, tmp_path, 1)
    (other,) = line("runs", "list", "--json").json["runs"]
    sockets = [
        str(line.home / "run" / "control.sock"),
        str(line.home / "run" / "gateway.sock"),
        str(line.home / "run" / "runs" / other["id"] / "gateway.sock"),
    ]
    for path in sockets:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    (workspace := tmp_path / "mine").mkdir()
    words = ("run", "--grant", "acme", "--workspace", str(workspace), "--", "/usr/bin/python3", "-c", REACH, *sockets)
    done = line(*words)
    assert done.out.splitlines() == ["FileNotFoundError"] * 3 + ["['gateway.sock']"]
    going.send()
    going.send()
    assert going.end() == [0]


def test_a_valet_key_is_refused_inside(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    declare(line, server.url)
    made = line("key", "create", "--grant", "acme", "--json").json["key"]
    (workspace := tmp_path / "mine").mkdir()
    (workspace / "key").write_text(made)
    script = 'curl -sS -o /dev/null -w "%{http_code} " -H "x-api-key: $(cat key)" http://127.0.0.1:3128/acme/x'
    done = line("run", "--grant", "acme", "--workspace", str(workspace), "--", "sh", "-c", script)
    assert done.out == "403 "
    assert server.requests == []
