"""Kernel locks on files: freed when their holder dies, never broken by age, never unlinked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valetkey.errors import StoreUnwritable
from valetkey.stores import modes

__all__ = ["FileLock", "ThreadLock", "held", "try_lock", "try_lock_file"]

_WAIT_SECONDS = 30.0


class ThreadLock:
    """A re-entrant lock between threads; a forked child gets a fresh one, since its parent's may be held for good."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.pid = os.getpid()

    def __enter__(self) -> None:
        if self.pid != os.getpid():
            self._lock, self.pid = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# What this process holds. An flock lives as long as any copy of its description: see _let_go.
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An flock that is held. It excludes threads too: each has a file description of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._pid = os.getpid()
        _held.add(self)

    def release(self) -> None:
        """Let it go. Releasing twice is harmless; a forked child cannot release its parent's."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._pid == os.getpid():
            # Said aloud: closing alone would leave it to a child that is between fork and exec.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def outlive(self) -> int:
        """Give the descriptor to the program that takes this process's place (exec): it holds the lock from then on."""
        if self._descriptor is None:
            raise ValueError("the lock was let go")
        os.set_inheritable(self._descriptor, True)
        return self._descriptor

    def __del__(self) -> None:
        self.release()


def _let_go() -> None:
    """Close a forked child's copies: with one open, the lock would outlive a holder that is killed."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go)


def try_lock(folder: Path, name: str) -> FileLock | None:
    """Take the lock of this name, which may hold anything; None when it is held."""
    modes.own_folder(str(folder))
    return try_lock_file(folder / hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest())


def try_lock_file(path: Path) -> FileLock | None:
    """Take the lock that this file is; None when it is held. Raises: StoreUnwritable."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise StoreUnwritable(
            f"the lock file in {path.parent} cannot be made: {(error.strerror or '').lower()}",
            hint="make the folder writable, or free some space",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of this name, waiting for it. Raises: StoreUnwritable after 30 s."""
    # The machine's own time: what is waited for is another process, as in SQLite's busy time-out.
    end = time.monotonic() + _WAIT_SECONDS
    while (lock := try_lock(folder, name)) is None:
        if time.monotonic() > end:
            raise StoreUnwritable(
                "another process is changing the store", hint="wait for it to end, or stop it, and try again"
            )
        time.sleep(0.01)
    try:
        yield
    finally:
        lock.release()
