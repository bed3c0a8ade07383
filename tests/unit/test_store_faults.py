"""Killed at every step, used by many processes at once: nothing is lost, and what was there stays readable."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.forking import KILLED, Killer, in_child, start_child, wait_for
from tests.support.stored import fill, opened, ref, secret, whole
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.errors import GenerationConflict
from valetkey.store import Record
from valetkey.stores import migrations
from valetkey.stores.backup import backup, restore
from valetkey.stores.database import Database, Step, connect, no_step
from valetkey.stores.datakeys import DataKeys
from valetkey.stores.keyfile import KeyFile, read_keys
from valetkey.stores.keysource import KeySource, sources
from valetkey.stores.passphrase import Passphrase
from valetkey.stores.rekey import change_source, rekey
from valetkey.stores.sqlite import SqliteStore
from valetkey.testing.clock import FakeClock

SOAK = bool(os.environ.get("VALETKEY_SOAK"))
COUNTER = CredentialRef(provider="acme", account="counter")
RECORDS = 5


def _passphrase() -> Passphrase:
    return Passphrase(lambda: Secret("a passphrase"), log_n=4)


def _any(home: Path) -> SqliteStore:
    """Open a store whatever its source: what the next process does."""

    def make(kind: str | None, store_id: str) -> KeySource:
        return _passphrase() if kind == "passphrase" else KeyFile(str(home / "store.key"))

    database = Database(Paths(home=home))
    return SqliteStore(database, DataKeys(database, make), FakeClock())


def _killed_everywhere(made: Path, work: Callable[[Path, Step], object], check: Callable[[Path], None]) -> int:
    """Kill `work` at each of its steps, each time on a copy of `made`; gives how many steps it has."""
    for step in range(1000):
        home = made.parent / f"killed-{step}"
        shutil.copytree(made, home, symlinks=True) if made.exists() else None
        status = in_child(lambda home=home, step=step: work(home, Killer(step)))  # type: ignore[misc]  # mypy knows no lambda with a default
        check(home)
        if status == 0:
            return step
        assert status == KILLED
        # Whoever comes next does it to the end.
        work(home, no_step)
        check(home)
        shutil.rmtree(home)
    raise AssertionError("it never ends")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Give a home with records, closed."""
    home = tmp_path / "made"
    store = opened(home)
    fill(store, RECORDS)
    store.close()
    return home


def _is_whole(home: Path) -> None:
    store = _any(home)
    assert whole(store, RECORDS)
    store.close()


def _old_database(home: Path) -> None:
    """Make a store as the first version had it, with an account in it."""
    home.mkdir(mode=0o700)
    (home / "valetkey.db").touch(0o600)
    connection = connect(str(home / "valetkey.db"))
    connection.execute("PRAGMA journal_mode = WAL")
    migrations.migrate(connection, step=no_step, upto=1)
    connection.execute("INSERT INTO setting VALUES ('default_model', 'acme/large')")
    connection.close()


def test_a_database_that_is_being_made_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def make(home: Path, step: Step) -> None:
        database = Database(Paths(home=home), step=step)
        database.open()
        database.close()

    def check(home: Path) -> None:
        store = opened(home)
        number = len(store.accounts())
        store.save(Record(ref=ref(number), credential=ApiKey(method="api-key", key=secret(number))))
        store.close()
        assert not [path.name for path in home.iterdir() if ".new" in path.name]

    assert _killed_everywhere(tmp_path / "nothing", make, check) >= 8


def test_an_older_database_is_brought_up_and_keeps_what_it_has(tmp_path: Path) -> None:
    _old_database(tmp_path / "old")

    def make(home: Path, step: Step) -> None:
        database = Database(Paths(home=home), step=step)
        database.open()
        database.close()

    def check(home: Path) -> None:
        store = opened(home)
        assert store.setting("default_model") == "acme/large"
        assert store.documents("note") == []
        store.close()

    assert _killed_everywhere(tmp_path / "old", make, check) == 3


def test_two_processes_may_migrate_at_once(tmp_path: Path) -> None:
    for attempt in range(5):
        home = tmp_path / str(attempt)
        _old_database(home)
        children = [start_child(lambda home=home: fill_new(home)) for _ in range(4)]  # type: ignore[misc]  # mypy knows no lambda with a default
        assert [wait_for(child) for child in children] == [0, 0, 0, 0]
        store = opened(home)
        assert store.setting("default_model") == "acme/large"
        assert len(store.accounts()) == 4
        store.close()


def fill_new(home: Path) -> None:
    store = opened(home)
    store.save(Record(ref=ref(os.getpid()), credential=ApiKey(method="api-key", key=secret(0))))
    store.close()


def test_many_processes_may_make_the_same_store_at_once(tmp_path: Path) -> None:
    for attempt in range(3):
        home = tmp_path / str(attempt)
        children = [start_child(lambda home=home: fill_new(home)) for _ in range(6)]  # type: ignore[misc]  # mypy knows no lambda with a default
        assert [wait_for(child) for child in children] == [0] * 6
        store = opened(home)
        assert [store.load(account.ref) is not None for account in store.accounts()] == [True] * 6
        store.close()


@pytest.mark.parametrize("source", ["key-file", "passphrase"])
def test_rekey_killed_at_any_step_leaves_all_records_readable(filled: Path, source: str) -> None:
    if source == "passphrase":
        store = _any(filled)
        change_source(store, _passphrase())
        store.close()

    def work(home: Path, step: Step) -> None:
        store = _any(home)
        assert rekey(store, step=step) == []
        store.close()

    assert _killed_everywhere(filled, work, _is_whole) >= 6


def test_rekey_leaves_one_new_data_key_and_one_new_key_of_the_source(filled: Path) -> None:
    (before,) = read_keys(str(filled / "store.key"))
    store = _any(filled)
    with store.database.reading() as connection:
        ((old_id,),) = connection.execute("SELECT id FROM data_key").fetchall()
    assert rekey(store) == []
    with store.database.reading() as connection:
        ((new_id,),) = connection.execute("SELECT id FROM data_key").fetchall()
        assert {row[0] for row in connection.execute("SELECT key_id FROM account")} == {new_id}
        assert {row[0] for row in connection.execute("SELECT key_id FROM document")} == {new_id}
    (after,) = read_keys(str(filled / "store.key"))
    assert (old_id, before) != (new_id, after)
    assert old_id != new_id
    assert before != after
    store.close()
    _is_whole(filled)


def test_rekey_leaves_a_damaged_record_as_it_is_and_names_it(filled: Path) -> None:
    store = _any(filled)
    with store.database.writing() as connection:
        connection.execute("UPDATE account SET sealed = zeroblob(60) WHERE account = 'a000001'")
        connection.execute("UPDATE document SET body = zeroblob(60) WHERE id = '2'")
    with store.database.reading() as connection:
        before = connection.execute("SELECT * FROM account WHERE account = 'a000001'").fetchone()
    assert rekey(store) == ["acme@a000001", "note 2"]
    store.close()
    assert rekey(store) == ["acme@a000001", "note 2"]
    with store.database.reading() as connection:
        assert connection.execute("SELECT * FROM account WHERE account = 'a000001'").fetchone() == before
    assert store.load(ref(2)) is not None
    store.close()


def test_rekey_in_batches_reaches_every_record(tmp_path: Path) -> None:
    store = opened(tmp_path / "home")
    for number in range(450):
        store.save(Record(ref=ref(number), credential=ApiKey(method="api-key", key=secret(number))))
    steps: list[str] = []
    assert rekey(store, step=steps.append) == []
    assert steps.count("a batch of accounts sealed again") == 3
    assert all(store.load(ref(number)) is not None for number in range(450))
    store.close()


def test_a_process_that_is_open_goes_on_while_another_rekeys(filled: Path) -> None:
    store, other = opened(filled), opened(filled)
    assert whole(store, RECORDS)
    for _ in range(3):
        rekey(other)
        assert whole(store, RECORDS)
        assert in_child(lambda: fill_new(filled)) == 0
        record = store.load(ref(0))
        assert record is not None
        store.save(record)
        assert whole(other, RECORDS)
    store.close()
    other.close()


def test_writers_lose_nothing_while_keys_change(filled: Path) -> None:
    children = [start_child(lambda number=number: _write_on(filled, number)) for number in range(3)]  # type: ignore[misc]  # mypy knows no lambda with a default
    store = opened(filled)
    for _ in range(8):
        assert rekey(store) == []
    assert [wait_for(child) for child in children] == [0, 0, 0]
    for account in store.accounts():
        assert store.load(account.ref) is not None
    assert [account.generation for account in store.accounts()][:3] == [41, 41, 41]
    store.close()


def _write_on(home: Path, number: int) -> None:
    store = opened(home)
    for _ in range(40):
        record = store.load(ref(number))
        assert record is not None
        store.save(record)
    store.close()


class _Meanwhile(KeyFile):
    """A key file whose first opening takes so long that something else happens."""

    def __init__(self, home: Path, what: Callable[[], object]) -> None:
        super().__init__(str(home / "store.key"))
        self._what: Callable[[], object] | None = what

    def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        what, self._what = self._what, None
        if what is not None:
            what()
        return super().unwrap(wrapped, key_id)


@pytest.mark.parametrize("what", ["rekey", "source"])
def test_a_key_that_changes_between_two_readings_is_read_again(filled: Path, what: str) -> None:
    other = _any(filled)

    def happens() -> None:
        if what == "rekey":
            rekey(other)
        else:
            change_source(other, _passphrase())

    late = _Meanwhile(filled, happens)

    def make(kind: str | None, store_id: str) -> KeySource:
        return _passphrase() if kind == "passphrase" else late

    database = Database(Paths(home=filled))
    store = SqliteStore(database, DataKeys(database, make), FakeClock())
    assert [title for _, title, _ in store.documents("note")] == ["t"] * RECORDS
    assert whole(store, RECORDS)
    store.close()
    other.close()


@pytest.mark.parametrize("way", ["to-passphrase", "to-key-file", "to-another-passphrase"])
def test_a_change_of_source_killed_at_any_step_leaves_all_records_readable(filled: Path, way: str) -> None:
    def to_passphrase(home: Path, step: Step) -> None:
        store = _any(home)
        change_source(store, _passphrase(), step=step)
        store.close()

    def to_key_file(home: Path, step: Step) -> None:
        store = _any(home)
        change_source(store, "key-file", step=step)
        store.close()

    if way != "to-passphrase":
        to_passphrase(filled, no_step)
        assert not (filled / "store.key").exists()
    work = to_key_file if way == "to-key-file" else to_passphrase
    assert _killed_everywhere(filled, work, _is_whole) == 3


def test_a_new_passphrase_takes_the_place_of_the_old(filled: Path) -> None:
    store = _any(filled)
    change_source(store, _passphrase())
    change_source(store, Passphrase(lambda: Secret("another"), log_n=4))
    assert whole(store, RECORDS)
    store.close()
    other = opened(filled, Passphrase(lambda: Secret("another"), log_n=4))
    assert whole(other, RECORDS)
    assert other.source_kind() == "passphrase"
    other.close()


def test_backup_killed_at_any_step_leaves_a_whole_file_or_none(filled: Path) -> None:
    def work(home: Path, step: Step) -> None:
        path = home / "copy.backup"
        if path.exists():
            path.unlink()
        store = opened(home)
        backup(store, path, Secret("words"), log_n=4, step=step)
        store.close()

    def check(home: Path) -> None:
        _is_whole(home)
        path = home / "copy.backup"
        if path.exists():
            _restore(home / "restored", path)
            _is_whole(home / "restored")
            shutil.rmtree(home / "restored")

    assert _killed_everywhere(filled, work, check) == 2


def _restore(home: Path, path: Path, *, force: bool = False, step: Step = no_step) -> Path | None:
    made = sources(Paths(home=home), kind="key-file", environ={})
    return restore(Paths(home=home), path, Secret("words"), clock=FakeClock(), sources=made, force=force, step=step)


@pytest.mark.parametrize("there", ["nothing", "a store", "a damaged file"])
def test_restore_killed_at_any_step_leaves_the_old_store_or_the_restored(
    filled: Path, tmp_path: Path, there: str
) -> None:
    store = opened(filled)
    backup(store, tmp_path / "copy", Secret("words"), log_n=4)
    store.close()
    made = tmp_path / "there"
    if there != "nothing":
        other = opened(made)
        other.save(Record(ref=CredentialRef(provider="zenith"), credential=ApiKey(method="m", key=Secret("k"))))
        other.close()
    if there == "a damaged file":
        (made / "valetkey.db").write_bytes(b"damaged" * 1000)

    def check(home: Path) -> None:
        if not (home / "valetkey.db").exists():
            assert there == "nothing"
            return
        if (home / "valetkey.db").read_bytes().startswith(b"damaged"):
            assert there == "a damaged file"
            return
        store = opened(home)
        if store.account(CredentialRef(provider="zenith")) is not None:
            assert store.load(CredentialRef(provider="zenith")) is not None
            assert len(store.accounts()) == 1
        else:
            assert whole(store, RECORDS)
        store.close()

    def work(home: Path, step: Step) -> None:
        _restore(home, tmp_path / "copy", force=True, step=step)

    assert _killed_everywhere(made, work, check) >= 4
    _restore(made, tmp_path / "copy", force=True)
    _is_whole(made)


def test_processes_that_count_by_compare_and_swap_lose_nothing(home: Path) -> None:
    processes, writes = (16, 200) if SOAK else (8, 25)
    store = opened(home)
    store.save(Record(ref=COUNTER, credential=ApiKey(method="m", key=Secret("0"))))
    children = [start_child(lambda: _count(home, writes)) for _ in range(processes)]
    assert [wait_for(child) for child in children] == [0] * processes
    record = store.load(COUNTER)
    assert record is not None
    assert record.credential == ApiKey(method="m", key=Secret(str(processes * writes)))
    assert record.generation == processes * writes + 1
    store.close()


def _count(home: Path, writes: int) -> None:
    store = opened(home)
    done = 0
    while done < writes:
        record = store.load(COUNTER)
        assert record is not None
        assert isinstance(record.credential, ApiKey)
        key = Secret(str(int(record.credential.key.reveal()) + 1))
        try:
            store.save(replace(record, credential=ApiKey(method="m", key=key)))
        except GenerationConflict:
            continue
        done += 1


def test_a_forked_child_may_use_the_store_of_its_parent(home: Path) -> None:
    store = opened(home)
    fill(store, RECORDS)
    held = store.try_lock("parent's")
    assert held is not None
    with store.database.reading() as parents:
        pass

    def use() -> None:
        with store.database.reading() as childs:
            assert childs is not parents
        assert whole(store, RECORDS)
        store.save(Record(ref=ref(77), credential=ApiKey(method="m", key=secret(77))))
        assert store.try_lock("parent's") is None
        store.close()

    assert in_child(use) == 0
    assert store.load(ref(77)) is not None
    assert whole(store, RECORDS)
    held.release()
    store.close()


def test_a_released_lock_is_free_though_a_child_was_forked_meanwhile(home: Path) -> None:
    store = opened(home)
    lock = store.try_lock("acme")
    assert lock is not None
    child = start_child(signal.pause)
    lock.release()
    again = store.try_lock("acme")
    os.kill(child, signal.SIGKILL)
    wait_for(child)
    assert again is not None
    again.release()
    store.close()


def test_the_kernel_frees_the_lock_of_a_killed_process(home: Path) -> None:
    store = opened(home)
    ready, tell = os.pipe()

    def hold() -> None:
        lock = opened(home).try_lock("acme")
        assert lock is not None
        os.write(tell, b"x")
        signal.pause()

    child = start_child(hold)
    os.read(ready, 1)
    assert store.try_lock("acme") is None
    os.kill(child, signal.SIGKILL)
    assert wait_for(child) == -signal.SIGKILL
    lock = store.try_lock("acme")
    assert lock is not None
    lock.release()
    os.close(ready)
    os.close(tell)
    store.close()
