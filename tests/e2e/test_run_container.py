"""`valetkey run --sandbox podman`: a podman of an ordinary user's own, the real gateway, and no credential inside."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.command_line import CommandLine
from tests.support.containers import IMAGE, Podman, ordinary_user, podman_storage
from tests.support.gateway_process import declare, end, until
from tests.support.packages import install
from valetkey.testing.local_server import LocalServer
from valetkey.testing.place import PYTHON, processes_with

# Of the form of a key, and made at run time.
KEY = "sk-" + "canary" + os.urandom(12).hex()
ASK = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:3128/acme/hello').read().decode(), flush=True)"


@pytest.fixture(scope="module")
def own_podman() -> Iterator[Podman]:
    """Give a podman of whom `valetkey run` is started as."""
    with ordinary_user() as through, podman_storage(through) as podman:
        yield podman


@pytest.fixture
def line(own_podman: Podman) -> Iterator[CommandLine]:
    # Its path is short, so that sockets are in it.
    with tempfile.TemporaryDirectory(prefix="vk") as folder:
        (home := Path(folder, "home")).mkdir(mode=0o700)
        Path(folder, "user").mkdir(mode=0o700)
        storage = {name: value for name, value in own_podman.environ.items() if name != "HOME"}
        line = CommandLine(home=home, through=own_podman.through, environ=storage)
        yield line
        end(line)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def forms(secret: str) -> list[str]:
    raw = base64.b64encode(secret.encode()).decode()
    return [secret, raw.rstrip("="), quote(secret, safe=""), secret[::-1]]


CONTAINER = ("--sandbox", "podman", "--image", IMAGE)


@contextlib.contextmanager
def going_on(line: CommandLine, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that says `up` when it is, and has a pipe as stdin."""
    with subprocess.Popen(
        [*line.through, sys.executable, "-m", "valetkey", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=line.environ,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[bytes], text: bytes) -> tuple[int, bytes]:
    """Write it a last line; give its exit status and what else it says."""
    out, _ = process.communicate(text, timeout=60)
    return process.returncode, out


def test_a_command_in_a_container_asks_through_the_gateway_and_has_no_credential(
    line: CommandLine, server: LocalServer, workspace: Path, own_podman: Podman
) -> None:
    declare(line, server.url, key=KEY)
    everything = "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; cat /etc/valetkey/* /proc/mounts; env"
    script = f'{PYTHON} -c "$ASK"; echo made > made; {everything}; exit 7'
    words = ("run", *CONTAINER, "--grant", "acme", "--env", f"ASK={ASK}", "--workspace", str(workspace), "--")
    done = line(*words, "sh", "-c", script, patience_seconds=60)
    assert (done.status, done.err) == (7, "")
    assert done.out.startswith("served\n")
    (request,) = server.calls("/hello")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert not [form for form in forms(KEY) if form in done.out]
    assert "SSL_CERT_FILE=/etc/valetkey/ca-bundle.pem" in done.out
    assert (workspace / "made").stat().st_uid == workspace.stat().st_uid
    (kept,) = line("runs", "list", "--json").json["runs"]
    assert (kept["sandbox"], kept["image"], kept["exit_status"]) == ("podman", IMAGE, 7)
    assert own_podman.containers() == []


def test_programs_that_a_grant_is_for_are_looked_for_in_the_image(
    line: CommandLine, server: LocalServer, workspace: Path, own_podman: Podman
) -> None:
    declare(line, server.url, key=KEY)
    declaration = line.home / "providers" / "acme.toml"
    declaration.write_text(declaration.read_text().replace("[api]", 'tools = ["cat", "of-no-image"]\n[api]', 1))
    words = ("run", *CONTAINER, "--grant", "acme", "--workspace", str(workspace), "--", "true")
    done = line(*words, patience_seconds=60)
    assert (done.status, done.err) == (
        0,
        "valetkey: acme is mostly used by of-no-image, which is not in the sandbox\n",
    )
    assert own_podman.containers() == []


def test_settings_choose_it_and_a_flag_wins(line: CommandLine, workspace: Path) -> None:
    settings = {"VALETKEY_RUNS_SANDBOX": "podman", "VALETKEY_RUNS_IMAGE": IMAGE}
    words = ("--workspace", str(workspace), "--", "sh", "-c", "test -e /run/.containerenv && echo container")
    assert line("run", *words, environ=settings, patience_seconds=60).out == "container\n"
    assert line("run", "--sandbox", "bubblewrap", *words, environ=settings, patience_seconds=60).out == ""
    refused = line("run", "--sandbox", "bubblewrap", "--image", IMAGE, *words)
    assert (refused.status, "takes no image" in refused.err) == (2, True)
    refused = line("run", "--sandbox", "podman", *words)
    assert (refused.status, "--image IMAGE" in refused.err) == (2, True)
    refused = line("run", *CONTAINER[:3], "localhost/not-there", *words)
    assert (refused.status, "podman pull localhost/not-there" in refused.err) == (1, True)


def test_on_a_terminal_it_has_one_of_its_own(line: CommandLine, workspace: Path) -> None:
    (workspace / "wait.sh").write_text(
        "trap 'echo interrupted; exit 3' INT; echo waiting; while :; do sleep 0.05; done"
    )
    with line.terminal(
        "run", *CONTAINER, "--env", "PS1=ready> ", "--workspace", str(workspace), "--", "sh"
    ) as terminal:
        terminal.resize(30, 99)
        terminal.expect("ready> ")
        terminal.send("stty size; exec sh wait.sh\n")
        terminal.expect("30 99")
        terminal.expect("waiting\r\n")
        terminal.interrupt()
        terminal.expect("interrupted")
        assert terminal.end() == 3


def test_what_a_run_left_whose_parent_was_killed_is_removed_by_the_next_one(
    line: CommandLine, workspace: Path, own_podman: Podman
) -> None:
    words = ["run", *CONTAINER, "--workspace", str(workspace), "--", "sh", "-c", "echo up; exec sleep 600"]
    with subprocess.Popen(
        [*line.through, sys.executable, "-m", "valetkey", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=line.environ,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            (kept,) = line("runs", "list", "--json").json["runs"]
            assert len(own_podman.containers()) == 1
        finally:
            process.send_signal(signal.SIGKILL)
    # By itself: its first process sees that the parent is gone.
    until(lambda: own_podman.containers() == [])
    # One that would not end by itself, as if that process had been overpowered from inside.
    limits = [f"--ulimit={name}=256:256" for name in ("nofile", "nproc")]
    made = own_podman("create", f"--label=valetkey.run={kept['id']}", "--network=none", *limits, IMAGE, "sleep", "600")
    assert made.returncode == 0, made.stderr
    assert len(own_podman.containers()) == 1
    done = line("run", "--workspace", str(workspace), "--", "true")
    assert (done.status, kept["id"] in done.err) == (0, True)
    assert own_podman.containers() == []


# --- more than one of them --------------------------------------------------------------------


def test_a_command_joins_in_a_container_of_its_own_and_leaves_that_of_the_run_alone(
    line: CommandLine, server: LocalServer, workspace: Path, own_podman: Podman
) -> None:
    declare(line, server.url, key=KEY)
    words = ("--grant", "acme", "--env", f"ASK={ASK}", "--workspace", str(workspace))
    with going_on(line, "run", *CONTAINER, *words, "--", "sh", "-c", "touch ~/left; echo up; read end") as run:
        (kept,) = line("runs", "list", "--json").json["runs"]
        first = own_podman.containers()
        script = f'echo up; {PYTHON} -c "$ASK"; pwd; ls ~; test -e /run/.containerenv && read end; exit 7'
        with going_on(line, "runs", "join", kept["id"], "--", "sh", "-c", script) as joined:
            assert len(own_podman.containers()) == 2
            assert told(joined, b"end\n") == (7, b"served\n/workspace\nleft\n")
        (request,) = server.calls("/hello")
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert own_podman.containers() == first

        with going_on(line, "runs", "join", kept["id"], "--", "sh", "-c", "echo up; read end") as killed:
            killed.kill()
            killed.wait()
            until(lambda: own_podman.containers() == first)
        with going_on(line, "runs", "join", kept["id"], "--", "sh", "-c", "trap '' TERM; echo up; read end") as last:
            # It ends with the run, whatever it does.
            assert told(run, b"end\n") == (0, b"")
            assert last.wait(60) == 137
    assert own_podman.containers() == []


def test_of_two_runs_at_once_nothing_is_left(line: CommandLine, workspace: Path, own_podman: Podman) -> None:
    mounted = own_podman.mounts()
    words = ("run", *CONTAINER, "--workspace", str(workspace), "--", "sh", "-c", "echo up; read end; echo $end")
    with going_on(line, *words) as first, going_on(line, *words) as second:
        assert len(set(own_podman.containers())) == 2
        assert len(own_podman.mounts()) > len(mounted)
        assert told(first, b"one\n") == (0, b"one\n")
        assert len(own_podman.containers()) == 1
        assert told(second, b"two\n") == (0, b"two\n")
    assert own_podman.containers() == []
    # The monitor of a container takes its last step, of which nobody hears, after podman has ended.
    until(lambda: own_podman.mounts() == mounted)
    until(lambda: set(processes_with(str(own_podman.root))) <= {own_podman.pause})


# --- going on ---------------------------------------------------------------------------------

# Its program is what every image has, and what that runs lies in the run's home.
AGENT = """
import re
from valetkey.agent import Prepared
from valetkey.agents import home as homes

PROGRAM = b'''
import os, pathlib, sys
file = pathlib.Path.home() / ".quill" / (sys.argv[1] + ".txt")
file.parent.mkdir(exist_ok=True)
with file.open("a") as said:
    print(*sys.argv[2:], file=said)
print(os.path.exists("/run/.containerenv"), file.read_text().split())
'''


class Quill:
    id, program, install = "quill", "python3", "it comes with the image"
    dialects, providers = ("openai-chat",), ()

    def prepare(self, home, served):
        homes.write(home, "quill.py", PROGRAM)
        return Prepared()

    def command(self, program, arguments, session):
        return (*program, "/home/agent/quill.py", session or "c0ffee", *arguments)

    def sessions(self, home):
        return homes.sessions(home, ".quill", re.compile(r"([0-9a-f]+)[.]txt"))
"""
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "valetkey-quill"
version = "1.0"
[project.entry-points."valetkey.agents"]
quill = "valetkey_quill:Quill"
"""


def test_a_run_that_is_gone_on_with_has_the_same_sandbox_and_image(
    line: CommandLine, server: LocalServer, workspace: Path, tmp_path: Path, own_podman: Podman
) -> None:
    source = tmp_path / "source"
    (source / "valetkey_quill").mkdir(parents=True)
    (source / "valetkey_quill" / "__init__.py").write_text(AGENT)
    (source / "pyproject.toml").write_text(PROJECT)
    installed = {"PYTHONPATH": str(install(source, tmp_path / "site"))}
    declare(line, server.url, key=KEY)

    def said(*words: str) -> str:
        done = line(*words, environ=installed, patience_seconds=60)
        assert done.status == 0, done.err
        return done.out

    wanted = ("--grant", "acme", "--workspace", str(workspace))
    assert said("run", *CONTAINER, *wanted, "quill", "--", "first") == "True ['first']\n"
    (first,) = line("runs", "list", "--json").json["runs"]
    assert said("runs", "resume", first["id"], "--", "second") == "True ['first', 'second']\n"
    assert said("quill", "resume", "c0ffee", "third") == "True ['first', 'second', 'third']\n"
    runs = line("runs", "list", "--json").json["runs"]
    assert [(one["sandbox"], one["image"]) for one in runs] == [("podman", IMAGE)] * 3
    assert own_podman.containers() == []
