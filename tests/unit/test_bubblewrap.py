"""What is missing for a sandbox is named with the command that mends it; memory is counted once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from valetkey.errors import SandboxUnavailable
from valetkey.sandbox import Limits
from valetkey.sandboxes.bubblewrap import Bubblewrap
from valetkey.sandboxes.running import is_above
from valetkey.testing.place import PYTHON, Place, sandbox_place


@pytest.fixture
def place() -> Iterator[Place]:
    with sandbox_place(Bubblewrap()) as made:
        yield made


def program(folder: Path, script: str) -> str:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_it_works_here() -> None:
    Bubblewrap().check()


def test_a_missing_bubblewrap_is_named_with_its_package(place: Place) -> None:
    missing = Bubblewrap(program="no-such-bwrap")
    with pytest.raises(SandboxUnavailable) as checked:
        missing.check()
    assert "apt install bubblewrap" in checked.value.hint
    assert "container" in checked.value.hint
    with pytest.raises(SandboxUnavailable):
        missing.start(place.spec("true"), stdin=0, stdout=1, stderr=2)


def test_an_old_bubblewrap_is_named_with_its_version(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"0\.6\.1"):
        Bubblewrap(program=program(tmp_path, "echo bubblewrap 0.6.1")).check()


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces="),
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("kernel/hostname", "x", "security-opt seccomp=unconfined"),
    ],
)
def test_what_holds_user_namespaces_back_is_named(tmp_path: Path, setting: str, value: str, remedy: str) -> None:
    kernel = tmp_path / "kernel"
    (kernel / setting).parent.mkdir(parents=True)
    (kernel / setting).write_text(value + "\n")
    failing = program(
        tmp_path, 'test "$1" = --version && echo bubblewrap 0.8.0 || { echo "bwrap: No permissions" >&2; exit 1; }'
    )
    with pytest.raises(SandboxUnavailable, match="No permissions") as checked:
        Bubblewrap(program=failing, kernel=kernel).check()
    assert remedy in checked.value.hint
    assert "container" in checked.value.hint


def test_user_namespaces_that_are_switched_off_are_found_out() -> None:
    """In a namespace of its own the real setting is 0, and the real bwrap fails by it."""
    check = (
        "from pathlib import Path\n"
        "Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        "from valetkey.errors import SandboxUnavailable\n"
        "from valetkey.sandboxes import sandbox_for\n"
        "try: sandbox_for('bubblewrap').check()\n"
        "except SandboxUnavailable as error: print(error.hint)"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", check],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sudo sysctl -w user.max_user_namespaces=" in done.stdout


def test_memory_that_processes_share_is_counted_once(place: Place) -> None:
    forks = """
import os, signal
held = bytearray(b"x" * (60 << 20))
for _ in range(4):
    if os.fork() == 0:
        signal.pause()
print("up", flush=True)
signal.pause()
"""
    with place.talking(place.spec(PYTHON, "-c", forks)) as (started, talk):
        assert talk.recv(10) == b"up\n"
        assert is_above(started.pid, 50 << 20)
        assert not is_above(started.pid, 150 << 20)


def test_memory_of_what_has_ended_is_none() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert not is_above(process.pid, 0)


def test_the_descriptors_of_a_start_are_closed(place: Place) -> None:
    place.run(place.spec("true"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        place.run(place.spec("true"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_signal_right_at_the_start_is_not_lost(place: Place) -> None:
    """As where Ctrl-C is pressed, or a limit of time is over, before the command has run its first instruction."""
    ends = set()
    for _ in range(40):
        spec = place.spec("sleep", "600", limits=Limits(seconds=20))
        with place.talking(spec) as (started, _talk):
            started.signal(signal.SIGTERM)
            ends.add((started.wait(), started.overrun))
    assert ends == {(128 + signal.SIGTERM, None)}


def test_a_program_that_is_a_link_out_of_the_system_is_not_inside(tmp_path: Path) -> None:
    elsewhere = Path(shutil.copy("/usr/bin/env", tmp_path / "program"))
    (tmp_path / "of-the-system").symlink_to("/usr/bin/env")
    (tmp_path / "of-elsewhere").symlink_to(elsewhere)
    names = ("of-the-system", "of-elsewhere", "none")
    assert Bubblewrap().lacking(names, path=str(tmp_path)) == ["of-elsewhere", "none"]
