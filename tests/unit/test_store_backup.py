"""Backups: one file of mode 0600 that a passphrase opens, put back here or elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.stored import fill, opened, ref, secret, whole
from valetkey.config import Paths
from valetkey.credential import ApiKey, Secret
from valetkey.errors import BackupFailed, StoreUnwritable, WrongMode
from valetkey.store import Record
from valetkey.stores.backup import backup, restore
from valetkey.stores.keyfile import KeyFile
from valetkey.stores.keysource import KeySource, sources
from valetkey.stores.passphrase import Passphrase
from valetkey.stores.rekey import rekey
from valetkey.testing.clock import FakeClock

WORDS = Secret("correct horse battery staple")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give the backup of a store with three records."""
    store = opened(tmp_path / "first")
    fill(store, 3)
    backup(store, tmp_path / "copy", WORDS, log_n=4)
    store.close()
    return tmp_path / "copy"


def _restore(home: Path, path: Path, words: Secret = WORDS, *, force: bool = False) -> Path | None:
    made = sources(Paths(home=home), kind="key-file", environ={})
    return restore(Paths(home=home), path, words, clock=FakeClock(), sources=made, force=force)


def test_a_backup_opens_in_an_empty_home(copy: Path, tmp_path: Path) -> None:
    assert _restore(tmp_path / "second", copy) is None
    store = opened(tmp_path / "second")
    assert whole(store, 3)
    assert store.default_account("acme") == ref(0).account
    store.close()
    first, second = (KeyFile(str(tmp_path / name / "store.key")) for name in ("first", "second"))
    assert first != second
    assert (tmp_path / "first" / "store.key").read_bytes() != (tmp_path / "second" / "store.key").read_bytes()


def test_a_backup_is_of_mode_0600_and_shows_nothing(copy: Path) -> None:
    content = copy.read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not [word for word in (b"canary", b"SQLite", b"acme", b"account") if word in content]


def test_the_restored_files_are_of_mode_0600(copy: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        _restore(tmp_path / "second", copy)
    finally:
        os.umask(before)
    for path in (tmp_path / "second").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_backup_never_takes_the_place_of_a_file(copy: Path, tmp_path: Path) -> None:
    before = copy.read_bytes()
    store = opened(tmp_path / "first")
    with pytest.raises(BackupFailed, match="is there already"):
        backup(store, copy, WORDS, log_n=4)
    with pytest.raises(BackupFailed, match="passphrase is empty"):
        backup(store, tmp_path / "other", Secret(""), log_n=4)
    with pytest.raises(StoreUnwritable):
        backup(store, tmp_path / "nowhere" / "other", WORDS, log_n=4)
    assert copy.read_bytes() == before
    store.close()


def test_a_wrong_passphrase_and_any_damage_are_refused_and_change_nothing(copy: Path, tmp_path: Path) -> None:
    good = copy.read_bytes()
    with pytest.raises(BackupFailed, match="does not open"):
        _restore(tmp_path / "second", copy, Secret("wrong"))
    for position in [0, 5, 17, 18, 19, 30, 35, 36, 50, 100, 5000, len(good) - 1]:
        bad = bytearray(good)
        bad[position] ^= 1
        copy.write_bytes(bad)
        with pytest.raises(BackupFailed):
            _restore(tmp_path / "second", copy)
    for length in [0, 3, 18, 19, 34, 35, 60, len(good) - 1]:
        copy.write_bytes(good[:length])
        with pytest.raises(BackupFailed):
            _restore(tmp_path / "second", copy)
    with pytest.raises(BackupFailed, match="cannot be read"):
        _restore(tmp_path / "second", tmp_path / "nowhere")
    assert not (tmp_path / "second" / "valetkey.db").exists()


def test_a_store_that_is_there_is_put_aside_only_by_force(copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "second"
    store = opened(home)
    store.save(Record(ref=ref(7), credential=ApiKey(method="m", key=secret(7))))
    with pytest.raises(BackupFailed, match="there is a store") as caught:
        _restore(home, copy)
    assert "--force" in caught.value.hint
    aside = _restore(home, copy, force=True)
    assert aside is not None
    # The open one goes on with what was restored.
    assert whole(store, 3)
    assert store.load(ref(7)) is None
    store.close()
    # What was put aside is a whole store, still opened by the same key.
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    (home / "valetkey.db").unlink()
    aside.rename(home / "valetkey.db")
    store = opened(home)
    record = store.load(ref(7))
    assert record is not None
    assert record.credential == ApiKey(method="m", key=secret(7))
    store.close()


def test_a_damaged_store_is_moved_aside_as_it_is(copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "second"
    opened(home).close()
    (home / "valetkey.db").write_bytes(b"damaged" * 1000)
    (home / "valetkey.db-wal").touch(0o600)
    aside = _restore(home, copy, force=True)
    assert aside is not None
    assert aside.read_bytes() == b"damaged" * 1000
    assert Path(f"{aside}-wal").exists()
    store = opened(home)
    assert whole(store, 3)
    store.close()


def test_a_store_that_lost_its_key_is_restored(copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "first"
    (home / "store.key").unlink()
    _restore(home, copy, force=True)
    store = opened(home)
    assert whole(store, 3)
    store.close()


def test_a_store_keeps_its_kind_of_source_when_a_backup_is_put_back(copy: Path, tmp_path: Path) -> None:
    def make(kind: str | None, store_id: str) -> KeySource:
        assert kind == "passphrase"
        return Passphrase(lambda: Secret("p"), log_n=4)

    home = tmp_path / "second"
    store = opened(home, Passphrase(lambda: Secret("p"), log_n=4))
    fill(store, 1)
    restore(Paths(home=home), copy, WORDS, clock=FakeClock(), sources=make, force=True)
    assert store.source_kind() == "passphrase"
    assert whole(store, 3)
    assert not (home / "store.key").exists()
    store.close()


def test_a_backup_in_the_middle_of_a_rekey_opens(tmp_path: Path) -> None:
    store = opened(tmp_path / "first")
    fill(store, 3)
    taken: list[Path] = []

    def step(name: str) -> None:
        taken.append(tmp_path / f"copy-{len(taken)}")
        backup(store, taken[-1], WORDS, log_n=4)

    rekey(store, step=step)
    store.close()
    assert len(taken) >= 6
    for number, path in enumerate(taken):
        _restore(tmp_path / f"restored-{number}", path)
        restored = opened(tmp_path / f"restored-{number}")
        assert whole(restored, 3)
        restored.close()


def test_an_empty_store_can_be_backed_up(tmp_path: Path) -> None:
    store = opened(tmp_path / "first")
    backup(store, tmp_path / "copy", WORDS, log_n=4)
    store.close()
    _restore(tmp_path / "second", tmp_path / "copy")
    store = opened(tmp_path / "second")
    fill(store, 1)
    assert whole(store, 1)
    store.close()


def test_a_home_that_others_may_enter_gets_no_backup(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir(mode=0o755)
    with pytest.raises(WrongMode):
        _restore(tmp_path / "second", copy)
