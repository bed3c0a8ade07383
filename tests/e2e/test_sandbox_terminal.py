"""A sandboxed command on a terminal: sizes, keys, job control, the record, and the terminal's state afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway_process import until
from valetkey.sandboxes import sandbox_for
from valetkey.sandboxes.terminal import read_now
from valetkey.testing.place import PYTHON, Place, sandbox_place

# Runs its arguments in the sandbox of the place, on the terminal that is its stdin; ends with 100 and the status.
PROGRAM = """
import sys
from pathlib import Path
from tests.support.gateway_process import until
from valetkey.testing.place import Place
from valetkey.sandboxes import sandbox_for
from valetkey.sandboxes.terminal import run_on_terminal
place = Place(root=Path(sys.argv[1]), sandbox=sandbox_for("bubblewrap"))
def started(_):
    {started}
spec = place.spec(*sys.argv[3:])
with open(sys.argv[2], "wb") as record:
    sys.exit(run_on_terminal(place.sandbox, spec, terminal=0, record=record.write, started=started))
"""
# Says the size that its terminal has once a new one was told.
SIZES = (
    "import os, signal\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n"
    "print('up', flush=True)\nsignal.sigwait([signal.SIGWINCH])\nprint(os.get_terminal_size())"
)


@pytest.fixture
def place() -> Iterator[Place]:
    with sandbox_place(sandbox_for("bubblewrap")) as made:
        yield made


class Session:
    """A user at a terminal, who has started a command in a sandbox."""

    def __init__(self, place: Place, *command: str, started: str = "") -> None:
        self.outer, self.inner = os.openpty()
        termios.tcsetwinsize(self.outer, (33, 77))
        self.before = termios.tcgetattr(self.inner)
        self.record = place.root / "output.log"
        self.seen = b""
        program = PROGRAM.format(started=started or "pass")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(place.root), str(self.record), *command],
            stdin=self.inner,
            stdout=self.inner,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.outer)
        os.close(self.inner)

    def type(self, keys: str) -> None:
        os.write(self.outer, keys.encode())

    def until(self, words: str) -> None:
        """Read what the terminal shows until these words come."""
        while words.encode() not in self.seen:
            assert select.select([self.outer], [], [], 60)[0], self.seen
            self.seen += os.read(self.outer, 65536)

    def status(self) -> int:
        """Wait for the end, showing what still comes; the terminal is then as it was."""
        handle = os.pidfd_open(self.process.pid)
        try:
            while handle not in (ready := select.select([handle, self.outer], [], [], 60)[0]):
                assert ready, self.seen
                self.seen += os.read(self.outer, 65536)
        finally:
            os.close(handle)
        assert termios.tcgetattr(self.inner) == self.before
        return self.process.wait()


def test_it_is_a_terminal_of_the_users_size(place: Place) -> None:
    with Session(place, "sh", "-c", "stty size; tty; exit 7") as session:
        session.until("33 77")
        session.until("/dev/")
        assert session.status() == 7
        assert b"33 77" in session.record.read_bytes()


def test_a_new_size_is_passed_on(place: Place) -> None:
    with Session(place, PYTHON, "-c", SIZES) as session:
        session.until("up")
        termios.tcsetwinsize(session.outer, (44, 88))
        session.process.send_signal(signal.SIGWINCH)
        session.until("columns=88, lines=44")
        assert session.status() == 0


def test_a_new_size_is_passed_on_whichever_thread_is_told(place: Place) -> None:
    os.mkfifo(place.root / "told")
    tells = (
        "import signal, threading; threading.Thread(target=lambda: (open(sys.argv[1] + '/told').read(),"
        " signal.pthread_kill(threading.get_ident(), signal.SIGWINCH)), daemon=True).start()"
    )
    with Session(place, PYTHON, "-c", SIZES, started=tells) as session:
        session.until("up")
        termios.tcsetwinsize(session.outer, (44, 88))
        (place.root / "told").write_text("now")
        session.until("columns=88, lines=44")
        assert session.status() == 0


def test_a_new_size_is_passed_on_while_the_sandbox_is_being_made(place: Place) -> None:
    resized = "import os, signal, termios; termios.tcsetwinsize(0, (44, 88)); os.kill(os.getpid(), signal.SIGWINCH)"
    with Session(place, "sh", "-c", "until stty size | grep '^44 88'; do :; done", started=resized) as session:
        session.until("44 88")
        assert session.status() == 0


def test_what_the_shell_took_while_the_run_was_stopped_is_not_waited_for(place: Place) -> None:
    os.mkfifo(place.root / "typed")
    stopped = "import os, signal; open(sys.argv[1] + '/typed').read(); os.kill(os.getpid(), signal.SIGTSTP)"
    ticks = "while :; do echo tick; sleep 0.05; done"
    with Session(place, "sh", "-c", ticks, started=stopped) as session:
        session.type("a line\n")
        (place.root / "typed").write_text("now")
        state = Path(f"/proc/{session.process.pid}/stat")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        assert termios.tcgetattr(session.inner) == session.before
        assert os.read(session.inner, 100) == b"a line\n"
        session.process.send_signal(signal.SIGCONT)
        session.until("tick")
        assert termios.tcgetattr(session.inner) != session.before
        session.process.terminate()
        assert session.status() == 128 + signal.SIGTERM


def test_control_c_interrupts_the_command_and_nothing_else(place: Place) -> None:
    waits = (
        "import signal\ntry:\n  print('up', flush=True)\n  signal.pause()\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\nprint(input())"
    )
    with Session(place, PYTHON, "-c", waits) as session:
        session.until("up")
        session.type("\x03")
        session.until("interrupted")
        session.type("goes on\r")
        session.until("goes on\r\ngoes on")
        assert session.status() == 0


def test_a_shell_inside_controls_its_jobs(place: Place) -> None:
    with Session(place, "bash", "--norc", "-i") as session:
        session.until("$ ")
        # What is typed does not hold the word that the job says.
        session.type("sh -c 'echo st\"\"arted; exec sleep 600'\r")
        session.until("started")
        session.type("\x1a")
        session.until("Stopped")
        # `wait` does not wait for a stopped job, and the shell may take this one for stopped until it has reaped it.
        session.type('kill -KILL %1; while kill -0 %1 2>&-; do :; done; echo ""gone\r')
        session.until("\ngone")
        session.type("exit 3\r")
        assert session.status() == 3


def test_control_z_does_not_stop_a_command_that_nobody_could_wake(place: Place) -> None:
    with Session(place, PYTHON, "-c", "print('up', flush=True); print(input())") as session:
        session.until("up")
        session.type("\x1a")
        session.type("goes on\r")
        session.until("goes on\r\n")
        assert session.status() == 0


def test_more_can_be_pasted_than_a_terminal_holds(place: Place) -> None:
    takes = (
        "import sys, tty\ntty.setraw(0)\nprint('up', flush=True)\n"
        "print(len(sys.stdin.buffer.read(200_000)), 'taken', flush=True)"
    )
    with Session(place, PYTHON, "-c", takes) as session:
        session.until("up")
        for _ in range(100):
            session.type("x" * 2000)
        session.until("200000 taken")
        assert session.status() == 0


def test_a_termination_ends_the_command_and_leaves_the_terminal_as_it_was(place: Place) -> None:
    with Session(
        place, PYTHON, "-c", "import signal, tty; tty.setraw(0); print('up', flush=True); signal.pause()"
    ) as session:
        session.until("up")
        assert termios.tcgetattr(session.inner) != session.before
        session.process.terminate()
        assert session.status() == 128 + signal.SIGTERM


def test_one_that_cannot_start_leaves_the_terminal_as_it_was(place: Place) -> None:
    place.gateway.rmdir()
    with Session(place, "true") as session:
        assert session.status() == 1
    place.gateway.mkdir()


def test_all_output_is_recorded(place: Place) -> None:
    with Session(place, "seq", "20000") as session:
        session.until("20000\r\n")
        assert session.status() == 0
        assert session.record.read_bytes() == "".join(f"{n}\r\n" for n in range(1, 20001)).encode()


def test_the_users_terminal_is_not_the_commands(place: Place) -> None:
    with Session(place, "sh", "-c", "stty raw -echo; ls -l /proc/self/fd; echo up; read line") as session:
        session.until("up")
        assert os.ttyname(session.inner).encode() not in session.seen
        session.process.terminate()
        session.status()


def test_a_terminal_without_output_is_told_from_one_that_is_over() -> None:
    outer, inner = os.openpty()
    os.set_blocking(outer, False)
    assert read_now(outer) is None
    os.write(inner, b"said")
    assert read_now(outer) == b"said"
    os.close(inner)
    assert read_now(outer) == b""
    os.close(outer)
