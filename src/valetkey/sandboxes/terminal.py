"""A sandboxed command on the user's terminal: a terminal of its own in between, of which all output is recorded too.

The command never has the user's terminal, so that nothing it does to its own (modes, typed-in characters) outlasts it
or reaches the user's shell. Ctrl-C and Ctrl-Z are keys like others here: what they do is decided inside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from valetkey.sandbox import Sandbox, Spec, Started

__all__ = ["read_now", "run_on_terminal"]

# What tcgetattr gives: flags, speeds, and the list of keys.
_Modes = list[Any]
_SIGNALS = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP, signal.SIGCONT)


def run_on_terminal(
    sandbox: Sandbox,
    spec: Spec,
    *,
    terminal: int,
    record: Callable[[bytes], None],
    started: Callable[[Started], None] = lambda _: None,
) -> int:
    """Run the command on this terminal until it ends; give its exit status.

    `record` is given all output as it comes, `started` what `sandbox.start` gave. The terminal is as before whatever
    happens, save for SIGKILL of this process. SIGTERM, SIGHUP and SIGINT sent to this process are passed on to the
    command. Called in the main thread, for it takes signals meanwhile.

    Raises: what `sandbox.start` raises.
    """
    with contextlib.ExitStack() as stack:
        # First of all: a new size, or an end, may come while the sandbox is being made.
        with _signals() as signals:
            outer, inner = os.openpty()
            stack.callback(os.close, outer)
            try:
                os.set_blocking(outer, False)
                _copy_size(terminal, outer)
                # As the user has it: which key erases a character, and the rest.
                termios.tcsetattr(inner, termios.TCSANOW, termios.tcgetattr(terminal))
                running = sandbox.start(spec, stdin=inner, stdout=inner, stderr=inner)
            finally:
                os.close(inner)
            stack.callback(running.stop, 0)
            started(running)
            with _raw(terminal) as before:
                _Relay(terminal, outer, signals, running, record, before).run()
        return running.wait()


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[_Modes]:
    before: _Modes = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSANOW)
        yield before
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Give a descriptor from which the numbers of the signals that came are read, one byte each.

    The interpreter writes them itself, in whichever thread one comes: a function of ours would be called in the main
    thread alone, and nothing wakes that from its poll for a signal that the kernel gave to another one.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _taken) for number in _SIGNALS}
    # A full pipe has woken the reader already.
    other = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(other)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _taken(_number: int, _frame: FrameType | None) -> None:
    """Without a function of its own a signal is not written to the descriptor."""


class _Relay:
    """Passes everything on between two terminals."""

    def __init__(
        self,
        terminal: int,
        outer: int,
        signals: int,
        running: Started,
        record: Callable[[bytes], None],
        before: _Modes,
    ) -> None:
        self._terminal = terminal
        self._outer = outer
        self._signals = signals
        self._running = running
        self._record = record
        self._before = before
        # Typed, and not yet taken: what is pasted may be more than a terminal holds.
        self._typed = b""
        self._gone = False

    def run(self) -> None:
        """Return when nobody has the inner end open any more."""
        while True:
            poll = select.poll()
            poll.register(self._signals, select.POLLIN)
            poll.register(self._outer, select.POLLIN | (select.POLLOUT if self._typed else 0))
            if not self._typed and not self._gone:
                poll.register(self._terminal, select.POLLIN)
            ready = dict(poll.poll())
            if self._signals in ready:
                for number in os.read(self._signals, 64):
                    self._answer(number)
                # We may have been stopped: what was ready before is perhaps the shell's by now.
                continue
            if ready.get(self._outer, 0) & ~select.POLLOUT:
                output = read_now(self._outer)
                if output == b"":
                    return
                if output is not None:
                    _write(self._terminal, output)
                    self._record(output)
            if self._terminal in ready:
                self._take()
            if self._typed:
                with contextlib.suppress(OSError):  # full, or its reader is gone, which the next read says
                    self._typed = self._typed[os.write(self._outer, self._typed) :]

    def _take(self) -> None:
        typed = read_now(self._terminal)
        if typed == b"":  # closed: the window, or the connection
            self._gone = True
            self._running.signal(signal.SIGHUP)
        self._typed = typed or b""

    def _answer(self, number: int) -> None:
        match number:
            case signal.SIGWINCH:
                _copy_size(self._terminal, self._outer)
            case signal.SIGTSTP:
                # Another program sent it: Ctrl-Z comes as a key.
                termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
                os.kill(os.getpid(), signal.SIGSTOP)
            case signal.SIGCONT:
                # Whoever stopped us, the shell has had the terminal meanwhile.
                tty.setraw(self._terminal, termios.TCSANOW)
                _copy_size(self._terminal, self._outer)
            case signal.SIGTERM | signal.SIGHUP | signal.SIGINT:
                self._running.signal(number)


def _copy_size(terminal: int, outer: int) -> None:
    # The kernel sends SIGWINCH inside. Opaque: struct winsize.
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(outer, termios.TIOCSWINSZ, size)


def read_now(descriptor: int) -> bytes | None:
    """Give what there is, None where there is nothing now, nothing (b"") where nobody has the other end."""
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:  # a key such as Ctrl-C lets a terminal drop what it had announced
        return None
    except OSError:  # EIO
        return b""


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError:  # its reader is gone
            return
