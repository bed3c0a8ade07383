"""What every sandbox promises."""

from __future__ import annotations

import base64
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from valetkey.errors import RunError, WorkspaceRefused
from valetkey.sandbox import Limits, Mount, Sandbox, Started
from valetkey.testing.place import PYTHON, Gateway, Place, ended, processes_with, sandbox_place

__all__ = ["SandboxSuite"]

THROUGH_THE_PORT = """
import socket, sys
with socket.create_connection(("127.0.0.1", 3128), timeout=60) as connection:
    connection.sendall(sys.stdin.buffer.read())
    connection.shutdown(socket.SHUT_WR)
    while data := connection.recv(65536):
        sys.stdout.buffer.write(data)
"""
# Says that it runs, then waits for ever.
WAITING = "import signal; print('up', flush=True); signal.pause()"
# Starts a pickled sandbox with a pickled spec, on its own three streams.
STARTER = """
import base64, os, pickle, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
sandbox, spec = pickle.loads(base64.b64decode(sys.argv[2]))
sandbox.start(spec, stdin=0, stdout=1, stderr=2).wait()
"""
MANY = """
import socket
connections = [socket.create_connection(("127.0.0.1", 3128), timeout=60) for _ in range(50)]
for number, connection in enumerate(connections):
    connection.sendall(b"n%d" % number)
    connection.shutdown(socket.SHUT_WR)
print([connection.recv(9).decode() for connection in connections] == ["N%d" % number for number in range(50)])
"""
# In sessions of their own, which hold none of the streams, and with memory that takes a while to give back.
DAEMONS = """
import os, signal
held = b""
for _ in range(30):
    if os.fork() == 0:
        os.setsid()
        held = os.urandom(1 << 20) * 10
        os.write(1, b".")
        os.closerange(0, 3)
        signal.pause()
"""


class SandboxSuite:
    """Subclass it with a fixture `sandbox`. It has to work here: `check` is called, and what it raises fails the test.

    The commands inside need sh, env, cat, touch, head, tr and /usr/bin/python3. Where the tests run as root, folders
    belong to `nobody`, whom the commands then are. The sandbox is pickled once, to be started from another process.
    """

    @pytest.fixture
    def place(self, sandbox: Sandbox) -> Iterator[Place]:
        """Give folders for a run."""
        sandbox.check()
        with sandbox_place(sandbox) as made:
            yield made

    def mounts(self, place: Place) -> list[str]:
        """Give the mounts of this machine, of which a sandbox leaves none."""
        return Path("/proc/self/mountinfo").read_text().splitlines()

    @pytest.mark.parametrize(
        ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    )
    def test_the_exit_status_is_the_commands(self, place: Place, script: str, status: int) -> None:
        assert place.run(place.spec("sh", "-c", script)).status == status

    def test_a_command_that_is_not_there_ends_with_127_and_says_so(self, place: Place) -> None:
        done = place.run(place.spec("no-such-command"))
        assert done.status == 127
        assert "no-such-command" in done.err

    def test_the_three_streams_are_the_callers(self, place: Place) -> None:
        done = place.run(place.spec("sh", "-c", "cat; echo wrong >&2"), given="said\n")
        assert (done.out, done.err) == ("said\n", "wrong\n")

    def test_it_says_which_programs_are_not_inside(self, place: Place) -> None:
        programs, path = ("cat", "no-such-program", "sh", "nor-this-one"), "/usr/bin:/bin"
        found = place.sandbox.lacking(programs, path=path)
        assert found == ["no-such-program", "nor-this-one"]
        look = "for name; do command -v $name > /dev/null || echo $name; done"
        done = place.run(place.spec("sh", "-c", look, "sh", *programs, environment={"PATH": path}))
        assert done.out.split() == found

    def test_only_the_three_streams_are_open(self, place: Place) -> None:
        done = place.probe("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])")
        assert done.out == "[0, 1, 2]\n"

    def test_nothing_of_the_hosts_environment_goes_in(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        canary = secrets.token_hex(16)
        monkeypatch.setenv("SECRET_OF_THE_HOST", canary)
        everywhere = "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'"
        done = place.run(place.spec("sh", "-c", everywhere, environment={"GIVEN": "yes"}))
        assert canary not in done.out
        assert "GIVEN=yes" in done.out.splitlines()
        names = place.run(place.spec("env", environment={"GIVEN": "yes"})).out.splitlines()
        assert {line.split("=")[0] for line in names} == {"GIVEN", "HOME", "LANG", "PATH", "PWD", "USER"}

    def test_the_environment_shows_in_no_argument_of_the_host(self, place: Place) -> None:
        canary = secrets.token_hex(16)
        with place.talking(place.spec(PYTHON, "-c", WAITING, environment={"TOKEN": canary})) as (_, talk):
            assert talk.recv(10) == b"up\n"
            assert processes_with(canary) == []

    def test_the_workspace_is_written_as_its_owner(self, place: Place) -> None:
        done = place.run(place.spec("sh", "-c", "pwd; echo made > file; echo kept > ~/state"))
        assert done.out == "/workspace\n"
        assert (place.workspace / "file").read_text() == "made\n"
        assert (place.workspace / "file").stat().st_uid == place.workspace.stat().st_uid
        assert (place.home / "state").read_text() == "kept\n"

    def test_a_read_only_workspace_stays_as_it_is(self, place: Place) -> None:
        done = place.run(place.spec("touch", "file", read_only=True))
        assert done.status != 0
        assert list(place.workspace.iterdir()) == []

    def test_a_mount_is_read_only_unless_it_says_otherwise(self, place: Place) -> None:
        folders = {name: place.root / name for name in ("read", "write")}
        for folder in folders.values():
            folder.mkdir()
            (folder / "there").write_text("seen\n")
            folder.chmod(0o777)
        mounts = (
            Mount(source=folders["read"], target="/mnt/read"),
            Mount(source=folders["write"], target="/mnt/write", read_only=False),
        )
        done = place.run(place.spec("sh", "-c", "cat /mnt/*/there; touch /mnt/write/new /mnt/read/new", mounts=mounts))
        assert done.out == "seen\nseen\n"
        assert (folders["write"] / "new").exists()
        assert not (folders["read"] / "new").exists()

    def test_a_file_is_there_to_read_alone(self, place: Place) -> None:
        spec = place.spec(
            "sh",
            "-c",
            "cat /etc/valetkey/ca.pem; echo x > /etc/valetkey/ca.pem",
            files={"/etc/valetkey/ca.pem": b"pem"},
        )
        done = place.run(spec)
        assert done.out == "pem"
        assert done.status != 0

    @pytest.mark.parametrize("target", ["/workspace/x", "/home/agent/.netrc", "/etc/../home/agent/x", "etc/x", "/etc"])
    def test_no_file_is_put_where_a_run_may_have_left_a_link(self, place: Place, target: str) -> None:
        with pytest.raises(WorkspaceRefused):
            place.run(place.spec("true", files={target: b""}))

    @pytest.mark.parametrize("target", ["/workspace/x", "/home/agent", "/etc", "/run/valetkey", "/", "mnt"])
    def test_nothing_is_mounted_over_what_the_sandbox_makes(self, place: Place, target: str) -> None:
        with pytest.raises(WorkspaceRefused):
            place.run(place.spec("true", mounts=(Mount(source=place.workspace, target=target),)))

    def test_what_comes_to_the_port_goes_to_the_gateway(self, place: Place) -> None:
        with Gateway(place):
            done = place.run(place.spec(PYTHON, "-c", THROUGH_THE_PORT), given="abc" * 1_000_000)
        assert done.out == "ABC" * 1_000_000

    def test_a_gateway_bound_anew_is_reached(self, place: Place) -> None:
        twice = "import subprocess, sys\nfor _ in range(2):\n  sys.stdin.readline()\n" + (
            "  subprocess.run([sys.executable, '-c', sys.argv[1]], input=b'abc')"
        )
        with place.talking(place.spec(PYTHON, "-c", twice, THROUGH_THE_PORT)) as (_, talk):
            for _ in range(2):
                with Gateway(place):
                    talk.sendall(b"\n")
                    assert talk.recv(3) == b"ABC"

    def test_many_connections_at_once_are_kept_apart(self, place: Place) -> None:
        with Gateway(place):
            assert place.probe(MANY).out == "True\n"

    def test_without_a_gateway_a_connection_is_closed(self, place: Place) -> None:
        assert place.run(place.spec(PYTHON, "-c", THROUGH_THE_PORT)).out == ""

    def test_stop_lets_the_command_end_by_itself(self, place: Place) -> None:
        ending = (
            "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(5))\nprint('up', flush=True)\nsignal.pause()"
        )
        with place.talking(place.spec(PYTHON, "-c", ending)) as (started, talk):
            assert talk.recv(10) == b"up\n"
            started.stop(30)
            assert started.wait() == 5

    def test_stop_ends_what_does_not_listen(self, place: Place) -> None:
        deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
        with place.talking(place.spec(PYTHON, "-c", deaf)) as (started, talk):
            assert talk.recv(10) == b"up\n"
            started.stop(0.1)
            assert started.wait() == 137

    def test_nothing_is_left_of_it(self, place: Place) -> None:
        word = secrets.token_hex(8)
        before = self.mounts(place)
        with place.talking(place.spec(PYTHON, "-c", f"{DAEMONS}\ninput()", word)) as (started, talk):
            assert sum(len(talk.recv(1)) for _ in range(30)) == 30
            talk.sendall(b"\n")
            assert started.wait() == 0
            assert processes_with(word) == []
        assert self.mounts(place) == before

    def test_nothing_is_left_when_its_starter_is_killed(self, place: Place) -> None:
        word = secrets.token_hex(8)
        spec = place.spec(PYTHON, "-c", WAITING, word)
        pickled = base64.b64encode(pickle.dumps((place.sandbox, spec))).decode()
        with subprocess.Popen(
            [sys.executable, "-c", STARTER, os.pathsep.join(sys.path), pickled],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            inside = processes_with(word)
            assert inside
            process.kill()
            assert ended(inside)

    def test_it_outlives_the_thread_that_started_it(self, place: Place) -> None:
        begun: list[Started] = []
        read, write = os.pipe()
        with open(read, "rb") as reader, open(write, "wb") as writer, open(os.devnull, "r+") as null:

            def start() -> None:
                spec = place.spec("sh", "-c", "read line; exit $line")
                streams = {"stdin": reader.fileno(), "stdout": null.fileno(), "stderr": null.fileno()}
                begun.append(place.sandbox.start(spec, **streams))

            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
            writer.write(b"5\n")
            writer.flush()
            assert begun[0].wait() == 5

    def test_many_run_at_once(self, place: Place) -> None:
        with open(os.devnull, "r+") as null:
            streams = {"stdin": null.fileno(), "stdout": null.fileno(), "stderr": null.fileno()}
            started = [place.sandbox.start(place.spec("sh", "-c", f"exit {number}"), **streams) for number in range(10)]
            assert [one.wait() for one in started] == list(range(10))

    def test_one_that_cannot_start_says_why(self, place: Place) -> None:
        with pytest.raises(RunError, match="nowhere"):
            place.run(replace(place.spec("true"), gateway=place.root / "nowhere"))

    def test_the_time_limit_ends_it(self, place: Place) -> None:
        with place.talking(place.spec(PYTHON, "-c", WAITING, limits=Limits(seconds=0.5))) as (started, _):
            assert started.wait() == 128 + signal.SIGTERM
            assert started.overrun == "time"

    def test_the_time_limit_ends_what_does_not_listen(self, place: Place) -> None:
        deaf = "import signal; signal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()"
        # Time enough to become deaf before it is over.
        with place.talking(place.spec(PYTHON, "-c", deaf, limits=Limits(seconds=3))) as (started, _):
            assert started.wait() == 137
            assert started.overrun == "time"

    def test_a_file_can_be_no_longer_than_the_limit(self, place: Place) -> None:
        write = "head -c 2000000 /dev/zero > file"
        assert place.run(place.spec("sh", "-c", write)).status == 0
        assert place.run(place.spec("sh", "-c", write, limits=Limits(file_bytes=1_000_000))).status != 0
        assert (place.workspace / "file").stat().st_size == 1_000_000

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_nothing_is_run_as_root(self, place: Place) -> None:
        os.chown(place.workspace, 0, 0)
        with pytest.raises(WorkspaceRefused, match="root"):
            place.run(place.spec("true"))
