"""Work in a forked child, and a child that is killed at a numbered step of it."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable

__all__ = ["KILLED", "Killer", "in_child", "start_child", "wait_for"]

KILLED = 137


def start_child(work: Callable[[], object]) -> int:
    """Fork; the child does the work and ends with 0, or with 1 and a traceback. Gives its process id."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads that other tests' servers may have left; the child does not need them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_for(pid: int) -> int:
    """Give the exit status of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], object]) -> int:
    """Do the work in a forked child and give its exit status."""
    return wait_for(start_child(work))


class Killer:
    """Ends the process at step number `at`, as a SIGKILL does: nothing is cleaned up."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, step: str) -> None:
        if self._left == 0:
            os._exit(KILLED)
        self._left -= 1
