"""The store's files: their modes, what else may lie in their place, disks that do not take them."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.forking import in_child
from tests.support.stored import CANARY, fill, opened, ref, secret, whole
from valetkey.credential import ApiKey
from valetkey.errors import ForeignStore, StoreError, StoreTooNew, StoreUnwritable, WrongMode
from valetkey.store import Record
from valetkey.stores import modes
from valetkey.stores.check import check

NOBODY = 65534


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_whatever_the_umask_files_are_0600_and_folders_0700(tmp_path: Path, umask: int) -> None:
    home = tmp_path / "new"
    before = os.umask(umask)
    try:
        store = opened(home)
        fill(store, 1)
        lock = store.try_lock("acme")
    finally:
        os.umask(before)
    found = {path.name: _mode(path) for path in [home, *home.rglob("*")]}
    assert lock is not None
    lock.release()
    store.close()
    assert {"valetkey.db", "valetkey.db-wal", "valetkey.db-shm", "store.key", "locks", "new"} <= set(found)
    for name, mode in found.items():
        assert mode == (0o700 if name in ("new", "locks") else 0o600), name


def test_no_secret_is_in_any_byte_of_any_file(home: Path) -> None:
    store = opened(home)
    fill(store, 5)
    store.save(Record(ref=ref(0), credential=ApiKey(method="api-key", key=secret(0)), generation=1))
    for path in home.rglob("*"):
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path
    store.close()


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o755, 0o777, 0o701])
def test_a_home_that_others_may_enter_is_refused(home: Path, mode: int) -> None:
    opened(home).close()
    home.chmod(mode)
    with pytest.raises(WrongMode) as caught:
        opened(home)
    assert caught.value.hint == f"run `chmod 700 {home}`"


@pytest.mark.parametrize("name", ["valetkey.db", "valetkey.db-wal", "valetkey.db-shm"])
def test_a_database_that_others_may_read_is_refused(home: Path, name: str) -> None:
    store = opened(home)
    fill(store, 1)
    (home / name).chmod(0o644)
    with pytest.raises(WrongMode) as caught:
        opened(home)
    assert caught.value.hint == f"run `chmod 600 {home / name}`"
    store.close()


def test_the_command_of_the_hint_can_be_pasted(tmp_path: Path) -> None:
    home = tmp_path / "with space; rm -rf 'x'"
    opened(home).close()
    home.chmod(0o755)
    with pytest.raises(WrongMode) as caught:
        opened(home)
    assert os.system(caught.value.hint.removeprefix("run `").removesuffix("`")) == 0
    opened(home).close()


@pytest.mark.parametrize("name", ["%41?mode=ro#x", "ü", "a'b\"c"])
def test_a_home_of_any_name_works(tmp_path: Path, name: str) -> None:
    store = opened(tmp_path / name)
    fill(store, 1)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "user"])
    assert whole(opened(tmp_path / name), 1)


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    opened(real).close()
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(WrongMode, match="symbolic link"):
        opened(tmp_path / "link")
    shutil.move(real / "valetkey.db", tmp_path / "elsewhere.db")
    (real / "valetkey.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(WrongMode, match="symbolic link"):
        opened(real)


@pytest.mark.parametrize("name", ["", "valetkey.db"])
def test_what_belongs_to_another_user_is_refused(home: Path, name: str) -> None:
    opened(home).close()
    if os.geteuid() == 0:
        os.chown(home / name, NOBODY, NOBODY)
        with pytest.raises(WrongMode, match="belongs to another user"):
            opened(home)
    else:
        # Only root can give files away; what is root's will do.
        with pytest.raises(WrongMode, match="belongs to another user"):
            modes.check_file("/etc/passwd") if name else modes.check_folder("/")


def _foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE moz_cookies (x)")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    path.chmod(0o600)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()


def _truncated(path: Path) -> None:
    os.truncate(path, 8192)


def _no_table(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE account")
    connection.commit()
    connection.close()


def _scribbled(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xde\xad\xbe\xef" * 64)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.write_bytes(b""), ForeignStore),
        (lambda path: path.write_bytes(b"\x00" * 5000), ForeignStore),
        (lambda path: path.write_bytes(b"SQLite format 3\x00" + b"\x01" * 5000), ForeignStore),
        (lambda path: path.write_text("not a database at all\n" * 100), ForeignStore),
        (_foreign, ForeignStore),
        (_truncated, ForeignStore),
        (_scribbled, ForeignStore),
        (_no_table, ForeignStore),
        (_newer, StoreTooNew),
        (lambda path: path.unlink() or path.mkdir(), ForeignStore),
        (_fifo, ForeignStore),
    ],
    ids=["empty", "zeros", "header", "text", "foreign", "cut", "scribbled", "no-table", "newer", "folder", "fifo"],
)
def test_what_cannot_be_read_is_named_and_never_overwritten(
    home: Path, spoil: Callable[[Path], object], error: type[StoreError]
) -> None:
    store = opened(home)
    fill(store, 30)
    store.close()
    path = home / "valetkey.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error) as caught:
        _use(home)
    assert caught.value.hint
    assert str(path) in caught.value.message
    assert CANARY not in str(caught.value)
    if path.is_file():
        assert path.read_bytes() == before
    else:
        assert before is None


def test_a_database_of_another_program_is_told_by_its_head(home: Path) -> None:
    opened(home).close()
    _foreign(home / "valetkey.db")
    with pytest.raises(ForeignStore, match="is not a Valetkey database"):
        opened(home)


def _use(home: Path) -> None:
    store = opened(home)
    try:
        for number in range(30):
            store.load(ref(number))
        store.save(Record(ref=ref(99), credential=ApiKey(method="api-key", key=secret(99))))
    finally:
        store.close()


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("x")
    with pytest.raises(ForeignStore, match="not a folder"):
        opened(tmp_path / "home")
    with pytest.raises(StoreUnwritable):
        opened(tmp_path / "home" / "below")
    with pytest.raises(StoreUnwritable):
        opened(tmp_path / "nul\x00")


@contextmanager
def _as_nobody(home: Path) -> Iterator[None]:
    """Be a user whom modes concern: root passes them by."""
    if os.geteuid() != 0:
        yield
        return
    for path in [home, *home.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    os.chmod(home.parent, 0o711)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _readable_by_nobody(tmp_path: Path) -> Path:
    """Give a folder that the unprivileged user can get to."""
    import tempfile

    return Path(tempfile.mkdtemp(dir="/tmp")) / "home"


def test_a_read_only_store_says_so_and_a_folder_that_cannot_be_made_too(tmp_path: Path) -> None:
    home = _readable_by_nobody(tmp_path)
    try:
        store = opened(home)
        fill(store, 2)
        store.close()
        with _as_nobody(home):
            home.chmod(0o500)
            (home / "valetkey.db").chmod(0o400)
            with pytest.raises(StoreUnwritable) as caught:
                _use(home)
            assert caught.value.hint
            with pytest.raises(StoreUnwritable):
                opened(home / "below")
            home.chmod(0o700)
            (home / "valetkey.db").chmod(0o600)
            store = opened(home)
            assert whole(store, 2)
            store.close()
    finally:
        shutil.rmtree(home.parent)


def test_a_full_disk_changes_nothing(home: Path) -> None:
    store = opened(home)
    fill(store, 3)
    with store.database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    big = ApiKey(method="api-key", key=secret(1), parameters={"x": "y" * 200_000})
    with pytest.raises(StoreUnwritable, match="full"):
        store.save(Record(ref=ref(0), credential=big, generation=1))
    assert whole(store, 3)
    store.close()
    assert whole(opened(home), 3)


def test_a_disk_that_fails_in_the_middle_of_a_write_changes_nothing(home: Path) -> None:
    store = opened(home)
    fill(store, 3)
    store.close()

    def fail_to_write() -> None:
        size = max(path.stat().st_size for path in home.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, size + 50_000))
        inner = opened(home)
        big = ApiKey(method="api-key", key=secret(1), parameters={"x": "y" * 500_000})
        with pytest.raises(StoreUnwritable) as caught:
            inner.save(Record(ref=ref(0), credential=big, generation=1))
        assert caught.value.hint
        assert whole(inner, 3)

    assert in_child(fail_to_write) == 0
    assert whole(opened(home), 3)


def test_a_new_home_on_a_full_disk_leaves_no_half_database(tmp_path: Path) -> None:
    def fail_to_make() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(StoreUnwritable):
            opened(tmp_path / "home")

    assert in_child(fail_to_make) == 0
    assert not (tmp_path / "home" / "valetkey.db").exists()
    store = opened(tmp_path / "home")
    fill(store, 1)
    assert whole(store, 1)
    store.close()


def test_a_damaged_record_is_found_by_the_check(home: Path) -> None:
    store = opened(home)
    fill(store, 3)
    assert check(store) == []
    with store.database.writing() as connection:
        connection.execute("UPDATE account SET sealed = x'01' WHERE account = 'a000001'")
    assert check(store) == ["acme@a000001: a stored record fails its integrity check"]
    store.close()


def test_a_store_that_was_removed_under_an_open_one_is_made_anew(home: Path) -> None:
    store = opened(home)
    fill(store, 1)
    for path in home.glob("valetkey.db*"):
        path.unlink()
    assert store.load(ref(0)) is None
    fill(store, 1)
    assert whole(store, 1)
    store.close()


def test_a_watch_sees_that_the_file_was_replaced(home: Path) -> None:
    store = opened(home)
    fill(store, 1)
    watch = store.watch()
    seen = watch()
    assert watch() == seen
    aside = home / "aside"
    aside.mkdir()
    for path in list(home.glob("valetkey.db*")):
        path.rename(aside / path.name)
    assert watch() != seen, "it was moved away"
    seen = watch()
    for path in list(home.glob("valetkey.db*")):
        path.unlink()
    for path in list(aside.iterdir()):
        path.rename(home / path.name)
    assert watch() != seen, "and it was put back"
    seen = watch()
    opened(home).set_setting("default_model", "acme/small")
    assert watch() != seen


def test_a_watch_goes_on_in_a_forked_child(home: Path) -> None:
    store = opened(home)
    fill(store, 1)
    watch = store.watch()
    seen = watch()

    def child() -> None:
        before = watch()
        opened(home).set_setting("default_model", "acme/small")
        assert watch() != before

    assert in_child(child) == 0
    assert watch() != seen


def test_a_store_that_a_newer_version_took_over_is_not_written_any_more(home: Path) -> None:
    store = opened(home)
    fill(store, 1)
    _newer(home / "valetkey.db")
    with pytest.raises(StoreTooNew):
        fill(store, 1)
    store.close()


def test_a_closed_store_opens_again_when_it_is_used(home: Path) -> None:
    store = opened(home)
    fill(store, 1)
    store.close()
    assert whole(store, 1)
    store.close()
    assert not list(home.glob("valetkey.db-*"))
