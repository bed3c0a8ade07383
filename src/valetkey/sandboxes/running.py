"""A command in a sandbox from its start to its end: its limits of memory and time, its signals, its exit status."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from valetkey.sandbox import Limits, Overrun

__all__ = ["Running", "Stood", "is_above"]

# How often the memory is looked at, and how long a command may take to end once its time is over.
_TICK_SECONDS = 0.1
_GRACE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Stood:
    """A sandbox that stands and waits for its command.

    `process` is our child, which ends last and with the command's status. `top` is the process whose end is the end of
    all inside, as the host knows it; it may be the same. `control` is the socket to forward.py.
    """

    process: subprocess.Popen[bytes]
    top: int
    control: socket.socket


class Running:
    """One sandbox under way; a thread of its own starts it, watches over it and reaps it.

    The sandbox dies with the thread that started it (PR_SET_PDEATHSIG is of threads), so that thread has to last as
    long as the sandbox does, whatever becomes of the caller's.
    """

    def __init__(self, start: Callable[[], Stood], limits: Limits) -> None:
        """Call `start` in the new thread; it returns when the sandbox stands, which then waits for `go`.

        Raises: what `start` raises.
        """
        self._start = start
        self._limits = limits
        self._stood: Stood | None = None
        self._error: BaseException | None = None
        self._overrun: Overrun | None = None
        self._status = 0
        self._ended = False
        self._handles: list[int] = []
        self._begun = threading.Event()
        self._over = threading.Event()
        threading.Thread(target=self._live, name="sandbox", daemon=True).start()
        self._begun.wait()
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        """The host's id of the outermost process of the sandbox."""
        return self._there.top

    @property
    def overrun(self) -> Overrun | None:
        """The limit that it was ended for."""
        return self._overrun

    @property
    def _there(self) -> Stood:
        assert self._stood is not None  # noqa: S101  # __init__ has waited for it
        return self._stood

    def go(self, command: tuple[str, ...]) -> None:
        """Let the command run."""
        words = b"".join(os.fsencode(word) + b"\0" for word in command)
        with contextlib.suppress(OSError):  # it is over already, as `wait` will say
            self._there.control.sendall(len(words).to_bytes(4, "big") + words)

    def wait(self) -> int:
        """Wait until nothing of it is left; give its exit status."""
        self._over.wait()
        return self._status

    def signal(self, number: int) -> None:
        """Send the command's process group a signal."""
        with contextlib.suppress(OSError):
            self._there.control.send(bytes([number]))

    def stop(self, seconds: float) -> None:
        """Send SIGTERM, after that time SIGKILL to all; return when it is gone."""
        self.signal(signal.SIGTERM)
        if not self._over.wait(seconds):
            self.kill()
            self._over.wait()

    def kill(self) -> None:
        """Send SIGKILL to all."""
        if self._stood is not None and not self._ended:
            # The outermost one is enough: the kernel then ends the first one inside, and with it the namespace.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stood.top, signal.SIGKILL)

    def _live(self) -> None:
        try:
            self._stood = stood = self._start()
            # The first process inside outlives the outermost one by moments: the end is when both have ended.
            self._handles = [os.pidfd_open(pid) for pid in (stood.top, *_children(stood.top))]
        except BaseException as error:  # handed to the caller's thread
            self._error = error
            if self._stood is not None:  # it has ended in between
                self._stood.control.close()
                self._stood.process.kill()
                self._stood.process.wait()
            return
        finally:
            self._begun.set()
        try:
            self._watch(stood)
        finally:
            for handle in self._handles:
                os.close(handle)
            stood.control.close()
            self._over.set()

    def _watch(self, stood: Stood) -> None:
        memory, seconds = self._limits.memory_bytes, self._limits.seconds
        deadline = None if seconds is None else time.monotonic() + seconds
        while not _ended(self._handles[0], _patience(deadline, ticking=memory is not None)):
            if memory is not None and self._overrun is None and is_above(stood.top, memory):
                self._overrun = "memory"
                self.kill()
            if deadline is not None and time.monotonic() >= deadline:
                if self._overrun is None:
                    self._overrun = "time"
                    self.signal(signal.SIGTERM)
                    deadline += _GRACE_SECONDS
                else:
                    self.kill()
                    deadline = None
        self._ended = True
        code = stood.process.wait()
        for handle in self._handles[1:]:
            _ended(handle, None)
        self._status = code if code >= 0 else 128 - code


def _patience(deadline: float | None, *, ticking: bool) -> float | None:
    """Give the seconds until something has to be looked at; None is until it ends."""
    waits = [] if deadline is None else [max(0.0, deadline - time.monotonic())]
    return min([*waits, _TICK_SECONDS], default=None) if ticking else min(waits, default=None)


def _ended(handle: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


# --- what the kernel tells of the processes inside ------------------------------------------------


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # A process that ends meanwhile has none.
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _family(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        waiting += _children(one := waiting.pop())
        yield one


def is_above(pid: int, limit_bytes: int) -> bool:
    """Tell whether a process and all below it have more memory of their own than that.

    What each has is read first, for it costs little; memory that several share counts several times in it, so that a
    sum above the limit is counted again by shares.
    """
    family = list(_family(pid))
    if sum(_sizes(one, "status", ("RssAnon:", "RssShmem:", "VmSwap:")) for one in family) <= limit_bytes:
        return False
    return sum(_sizes(one, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")) for one in family) > limit_bytes


def _sizes(pid: int, file: str, names: tuple[str, ...]) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(errors="replace").splitlines()
    except PermissionError:
        # It has made itself unreadable: what it has is counted whole.
        return _sizes(pid, "status", ("RssAnon:", "RssShmem:", "VmSwap:")) if file != "status" else 0
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))
