"""Processes that write to one audit at the same time, and are killed while they do."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from tests.support.stored import opened
from valetkey.audit import reader
from valetkey.audit.recorder import Audit
from valetkey.audit.signing import public_key, sign, signing_key
from valetkey.audit.verify import verify
from valetkey.config import Paths
from valetkey.testing.clock import FakeClock

WRITERS, ROUNDS = 4, 6
# Says after each entry that it is durable.
WRITE = """
import sys
from pathlib import Path
from valetkey.audit.recorder import Audit
from valetkey.clock import SystemClock
from valetkey.config import Paths
audit = Audit(Paths(home=Path(sys.argv[1])), SystemClock(), busy_seconds=30)
number = 0
while True:
    audit.append("use", who=sys.argv[2], account=f"acme@a{number}")
    number += 1
    print(number, flush=True)
"""


def writer(home: Path, name: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITE, str(home), name]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def test_killed_while_four_write_the_chain_is_whole_and_has_all_that_was_said(home: Path) -> None:
    home.mkdir(mode=0o700, exist_ok=True)
    paths, clock, store = Paths(home=home), FakeClock(), opened(home)
    audit, chance = Audit(paths, clock), random.Random(7)
    key = public_key(signing_key(store, paths, clock))
    said: dict[str, int] = {}
    for number in range(ROUNDS):
        running = {f"run:{number}-{n}": writer(home, f"run:{number}-{n}") for n in range(WRITERS)}
        for name, process in running.items():
            assert process.stdout is not None
            for _ in range(chance.randrange(3, 30)):
                said[name] = int(process.stdout.readline())
        for process in running.values():
            process.kill()
        for name, process in running.items():
            rest, _ = process.communicate()
            said[name] = int(rest.split()[-1]) if rest else said[name]
        found = verify(reader.lines(paths.audit), key=key, anchor=None, whole=False)
        assert sign(audit, store, paths, clock) == found.entries
    written: dict[str, list[str]] = {}
    for entry in reader.newest(paths.audit, 10**6, wanted=lambda entry: True):
        written.setdefault(entry["who"], []).append(entry["account"])
    for name, count in said.items():
        # One more may be durable that nobody got to say.
        assert written[name] == [f"acme@a{n}" for n in range(len(written[name]))], name
        assert len(written[name]) in (count, count + 1), name
    assert verify(reader.lines(paths.audit), key=key, anchor=None, whole=True).checkpoints == ROUNDS
    audit.close()
    store.close()


def test_one_that_is_killed_while_it_holds_the_lock_holds_nobody_up(home: Path) -> None:
    paths = Paths(home=home)
    audit = Audit(paths, FakeClock(), busy_seconds=20)
    audit.append("login")
    hold = (
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        "c.execute('INSERT INTO entry VALUES (2, \\'half\\', \\'half\\')')\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(paths.audit)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    audit.append("logout")
    assert verify(reader.lines(paths.audit), key=None, anchor=None, whole=False).entries == 2
    audit.close()
