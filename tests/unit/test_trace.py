"""The trace: what is written when, and that nothing which happens to its file reaches the gateway."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.rows import row
from valetkey.errors import TraceTooNew, TraceUnreadable
from valetkey.gateway.trace import Row, Trace, TraceReader
from valetkey.testing.clock import START, FakeClock

NOW = START.timestamp()
DAY = 86400
PATIENCE_SECONDS = 60


@pytest.fixture
def path(home: Path) -> Path:
    return home / "trace.db"


@pytest.fixture
def reader(path: Path) -> TraceReader:
    return TraceReader(path)


@pytest.fixture
def trace(path: Path, clock: FakeClock) -> Iterator[Trace]:
    made = Trace(path, clock)
    yield made
    made.close()


def put(trace: Trace, *rows: Row) -> None:
    for each in rows:
        trace.add(each)
    trace.flush()


def paths(reader: TraceReader) -> list[str]:
    return [recorded.row.path for recorded in reader.newest(100)]


# --- writing and reading ---------------------------------------------------------------------


def test_rows_come_back_as_they_were_the_newest_first(trace: Trace, reader: TraceReader) -> None:
    odd = row(client="", account="", status=0, outcome="client_gone", way="tunnel", first_byte_ms=None, model=None)
    odd = odd._replace(input_tokens=None, output_tokens=None, request_body="{}", response_body="é")
    put(trace, row(), odd)
    assert [recorded.row for recorded in reader.newest(10)] == [odd, row()]
    assert reader.newest(1)[0].id == reader.last_id() == 2


def test_a_row_is_written_without_anybody_asking(path: Path, clock: FakeClock, reader: TraceReader) -> None:
    written = threading.Event()
    trace = Trace(path, clock, [lambda rows: written.set()])
    trace.add(row())
    trace.start()
    trace.start()
    assert [thread.name for thread in threading.enumerate()].count("valetkey-trace") == 1
    assert written.wait(PATIENCE_SECONDS)
    written.clear()
    # Now it sleeps, or is about to: a row that comes has to wake it.
    trace.add(row())
    assert written.wait(PATIENCE_SECONDS)
    assert len(reader.newest(10)) == 2
    trace.close()


def test_what_is_waiting_is_written_at_the_end(trace: Trace, reader: TraceReader) -> None:
    trace.start()
    for _ in range(1234):
        trace.add(row())
    trace.close()
    assert reader.last_id() == 1234
    trace.add(row())
    assert trace.dropped == 1
    trace.close()


def test_a_queue_without_room_drops_and_counts(trace: Trace, reader: TraceReader) -> None:
    for number in range(32768 + 5):
        trace.add(row(path=f"/{number % 10}"))
    assert trace.dropped == 5
    trace.flush()
    assert reader.last_id() == 32768
    put(trace, row())
    assert trace.dropped == 5


def test_nothing_is_there_before_the_first_row_and_reading_makes_no_file(path: Path, reader: TraceReader) -> None:
    assert reader.newest(10) == reader.following(0) == []
    assert (reader.last_id(), reader.names(), reader.tokens_since("k1", START)) == (0, {}, 0)
    assert not path.exists()
    path.touch()  # what a writer leaves for a moment
    assert reader.newest(10) == []


def test_the_files_are_ours_alone_whatever_was_there(trace: Trace, path: Path) -> None:
    path.touch(0o644)
    put(trace, row())
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("trace.db*")}
    assert modes == {"trace.db": 0o600, "trace.db-wal": 0o600, "trace.db-shm": 0o600}


def test_a_home_that_is_not_there_is_made(tmp_path: Path, clock: FakeClock) -> None:
    trace = Trace(tmp_path / "new" / "trace.db", clock)
    put(trace, row())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert trace.dropped == 0
    trace.close()


def test_a_path_with_marks_of_an_address_in_it_is_read(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "a?b#c%41 ü" / "trace.db"
    trace = Trace(path, clock)
    put(trace, row())
    trace.close()
    assert TraceReader(path).last_id() == 1


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"client": "k1"}, ["/3", "/2", "/1"]),
        ({"client": "ci"}, ["/4"]),
        ({"client": "nobody"}, []),
        ({"account": "acme"}, ["/3", "/2", "/1"]),
        ({"account": "acme@work"}, ["/2"]),
        ({"account": "acm"}, []),
        ({"since": NOW + 2}, ["/4", "/3", "/2"]),
        ({"since": NOW + 2, "account": "acme", "client": "k1"}, ["/3", "/2"]),
    ],
)
def test_rows_are_found_by_client_account_and_time(
    trace: Trace, reader: TraceReader, filters: dict[str, object], found: list[str]
) -> None:
    trace.name_clients({"k1": "laptop", "k2": "ci"})
    put(
        trace,
        row(at=NOW + 1, path="/1"),
        row(at=NOW + 2, path="/2", account="acme@work"),
        row(at=NOW + 3, path="/3"),
        row(at=NOW + 4, path="/4", client="k2", account="other@default"),
    )
    assert [recorded.row.path for recorded in reader.newest(10, **filters)] == found  # type: ignore[arg-type]  # a table


def test_a_reader_follows_what_is_written_meanwhile(trace: Trace, reader: TraceReader) -> None:
    put(trace, row(path="/1"))
    last = reader.last_id()
    put(trace, row(path="/2"), row(path="/3", client="k2"), row(path="/4"))
    assert [r.row.path for r in reader.following(last)] == ["/2", "/3", "/4"]
    assert [r.row.path for r in reader.following(last, limit=2)] == ["/2", "/3"]
    assert [r.row.path for r in reader.following(last, client="k1")] == ["/2", "/4"]


def test_names_of_clients_are_kept_and_follow_a_change(trace: Trace, reader: TraceReader, path: Path) -> None:
    trace.name_clients({"k1": "lap\ntop", "k2": "ci"})
    put(trace, row())
    assert reader.names() == {"k1": "lap?top", "k2": "ci"}
    trace.name_clients({"k1": "desk"})
    put(trace, row())
    assert reader.names() == {"k1": "desk", "k2": "ci"}
    path.unlink()
    put(trace, row())
    assert reader.names() == {"k1": "desk"}


def test_a_row_that_is_none_does_not_take_others_with_it(trace: Trace, reader: TraceReader) -> None:
    put(trace, row(path="/1"), None, row(path="/2"))  # type: ignore[arg-type]  # a fault of ours
    assert paths(reader) == ["/2", "/1"]
    assert trace.dropped == 1


def test_observers_get_rows_without_secrets_and_one_that_fails_stops_nothing(
    path: Path, clock: FakeClock, reader: TraceReader
) -> None:
    seen: list[Row] = []

    def fail(rows: Sequence[Row]) -> None:
        raise RuntimeError

    trace = Trace(path, clock, [fail, seen.extend])
    put(trace, row(path="/a?b"))
    assert [each.path for each in seen] == paths(reader) == ["/a"]
    trace.close()


# --- sums ------------------------------------------------------------------------------------


def test_tokens_are_summed_by_client_from_a_minute_on(trace: Trace, reader: TraceReader) -> None:
    minutes = [row(at=NOW + 60 * n, input_tokens=10**n, output_tokens=10**n) for n in range(3)]
    put(trace, *minutes, row(client="k2", input_tokens=5, output_tokens=None), row(input_tokens=None))
    put(trace, minutes[2]._replace(account="other@default"))
    assert reader.tokens_since("k1", START) == 2 + 20 + 200 + 200 + 22
    assert trace.tokens_since("k1", START + timedelta(minutes=1)) == 20 + 200 + 200
    assert trace.tokens_since("k2", START) == 5
    assert trace.tokens_since("k3", START) == 0


def test_each_minute_of_a_client_and_account_has_its_sums(trace: Trace, path: Path) -> None:
    put(trace, row(), row(status=403, outcome="denied", bytes_in=1, bytes_out=2, duration_ms=0.5))
    put(trace, row(status=500, input_tokens=None, output_tokens=None), row(at=NOW + 60))
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT * FROM minute ORDER BY minute").fetchall()
    minute = int(NOW // 60)
    assert found == [
        ("k1", minute, "acme@default", 3, 1, 1, 22, 44, 201, 978, 5.5),
        ("k1", minute + 1, "acme@default", 1, 0, 0, 11, 22, 100, 488, 2.5),
    ]


# --- forgetting ------------------------------------------------------------------------------


def test_rows_and_sums_are_deleted_when_they_are_old(path: Path, clock: FakeClock, reader: TraceReader) -> None:
    trace = Trace(path, clock, keep_days=2)
    put(trace, *(row(path="/old") for _ in range(4500)), row(at=NOW + DAY, path="/new"))
    clock.advance(2 * DAY + 60)
    trace.flush()
    assert paths(reader) == ["/new"]
    assert trace.tokens_since("k1", START) == 33
    trace.close()


def test_the_oldest_rows_are_deleted_when_there_are_too_many_and_the_sums_stay(
    path: Path, clock: FakeClock, reader: TraceReader
) -> None:
    trace = Trace(path, clock, max_rows=10)
    put(trace, *(row(path=f"/{n}") for n in range(5000)))
    clock.advance(60)
    trace.flush()
    assert [recorded.id for recorded in reader.newest(100)] == list(range(5000, 4990, -1))
    assert trace.tokens_since("k1", START) == 5000 * 33
    put(trace, *(row() for _ in range(20)))
    assert len(reader.newest(100)) == 30  # looked after once a minute, not with every batch
    trace.close()


# --- what may happen to the file -------------------------------------------------------------


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE request (id)")


def broken_inside(path: Path) -> None:
    # The header is whole, and so is the list of tables: it is found at the first row.
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))


@pytest.mark.parametrize(
    ("spoil", "aside"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 300), "damaged"),
        (foreign, "damaged"),
        (broken_inside, "damaged"),
        (newer, "newer"),
    ],
)
def test_a_file_that_cannot_be_used_is_moved_aside_and_told(
    path: Path, clock: FakeClock, reader: TraceReader, spoil: object, aside: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(spoil)
    for _ in range(2):  # the second takes the first one's place
        before = Trace(path, clock)
        put(before, row(path="/before"))
        before.close()
        spoil(path)
        content = path.read_bytes()
        trace = Trace(path, clock)
        put(trace, row(path="/after"))
        assert paths(reader) == ["/after"]
        assert trace.dropped == 0
        trace.close()
        assert path.with_name(f"trace.db.{aside}").read_bytes()[4096:] == content[4096:]
    assert f"trace.db.{aside}" in caplog.text
    assert {file.name for file in path.parent.iterdir()} <= {"trace.db", f"trace.db.{aside}"}


def test_a_reader_tells_what_is_wrong_with_the_file(trace: Trace, reader: TraceReader, path: Path) -> None:
    put(trace, row())
    trace.close()
    newer(path)
    with pytest.raises(TraceTooNew, match="newer Valetkey"):
        reader.newest(1)
    path.write_bytes(b"no database at all" * 300)
    with pytest.raises(TraceUnreadable, match="damaged"):
        reader.newest(1)
    path.unlink()
    path.mkdir()
    with pytest.raises(TraceUnreadable, match="cannot be read"):
        reader.newest(1)
    assert trace.tokens_since("k1", START) == 0


def test_a_file_that_somebody_takes_away_is_made_anew(trace: Trace, reader: TraceReader, path: Path) -> None:
    put(trace, row(path="/1"))
    path.unlink()
    put(trace, row(path="/2"))
    assert paths(reader) == ["/2"]
    assert trace.dropped == 0


def test_the_log_of_a_file_that_is_moved_aside_goes_with_it(path: Path, trace: Trace, reader: TraceReader) -> None:
    put(trace, row(path="/before"))
    # Whoever has it open keeps its -wal alive; a new file would be read together with it.
    with closing(sqlite3.connect(path)) as other:
        trace.close()
        other.execute("PRAGMA user_version = 99")
        anew = Trace(path, FakeClock())
        put(anew, row(path="/after"))
        assert path.with_name("trace.db.newer-wal").exists()
        assert paths(reader) == ["/after"]
        assert other.execute("SELECT path FROM request").fetchall() == [("/before",)]
        anew.close()


def test_rows_are_dropped_where_no_file_can_be_and_that_is_told_once(
    home: Path, path: Path, trace: Trace, reader: TraceReader, caplog: pytest.LogCaptureFixture
) -> None:
    target = home / "target"
    path.symlink_to(target)
    put(trace, row())
    put(trace, row())
    assert not target.exists()
    assert trace.dropped == 2
    assert len(caplog.records) == 1
    path.unlink()
    put(trace, row(path="/again"))
    assert paths(reader) == ["/again"]
    assert trace.dropped == 2
    path.unlink()
    path.symlink_to(target)
    put(trace, row())
    assert len(caplog.records) == 2  # it was well in between


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from valetkey.testing.clock import FakeClock
from tests.support.rows import row
from valetkey.gateway.trace import Trace, TraceReader

path = Path(sys.argv[1])
trace = Trace(path, FakeClock())
trace.add(row())
trace.flush()
assert trace.dropped == 0
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
size = max(file.stat().st_size for file in path.parent.glob("trace.db*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
for _ in range(300):
    trace.add(row())
trace.flush()
assert trace.dropped == 300, trace.dropped
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for _ in range(300):
    trace.add(row())
trace.flush()
assert trace.dropped == 300, trace.dropped
assert TraceReader(path).last_id() == 301
trace.close()
"""


def test_a_full_disk_drops_rows_and_the_next_ones_are_written_when_there_is_room(path: Path) -> None:
    # A limit on the size of files fails the same writes, and needs no disk of its own.
    run = [sys.executable, "-c", _FULL_DISK, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


_KILLED = """
import sys
from pathlib import Path
from tests.support.rows import row
from valetkey.clock import SystemClock
from valetkey.gateway.trace import Trace

trace = Trace(Path(sys.argv[1]), SystemClock())
for number in range(10_000_000):
    trace.add(row())
    if number % 100 == 99:
        trace.flush()
        print(number + 1, flush=True)
"""


def test_a_kill_loses_at_most_the_last_batch(path: Path, clock: FakeClock, reader: TraceReader) -> None:
    run = [sys.executable, "-c", _KILLED, str(path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(50):
            told = int(process.stdout.readline())
        process.kill()
        told = max([told, *map(int, process.stdout.read().split())])
    assert told <= reader.last_id() <= told + 100
    trace = Trace(path, clock)
    put(trace, row())
    assert trace.dropped == 0
    trace.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sums = connection.execute("SELECT sum(requests) FROM minute").fetchone()
    assert sums == (reader.last_id(),)
