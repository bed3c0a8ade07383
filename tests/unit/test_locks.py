"""Kernel locks: what a fork does to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.forking import start_child, wait_for
from valetkey.stores.locks import try_lock


def test_a_lock_dies_with_its_holder_though_a_child_of_it_lives_on(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    said, say = os.pipe()
    stay, leave = os.pipe()

    def live_on() -> None:
        os.write(say, b"forked")
        os.read(stay, 1)

    def hold_and_fork() -> None:
        lock = try_lock(folder, "account")
        assert lock is not None
        start_child(live_on)
        signal.pause()

    holder = start_child(hold_and_fork)
    assert os.read(said, 6) == b"forked"
    assert try_lock(folder, "account") is None
    os.kill(holder, signal.SIGKILL)
    assert wait_for(holder) == -signal.SIGKILL
    lock = try_lock(folder, "account")
    os.write(leave, b"x")
    for descriptor in (said, say, stay, leave):
        os.close(descriptor)
    assert lock is not None
    lock.release()
