"""The chain of what was done: its form, uses that are counted, and what happens where it cannot be written."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from tests.support.forking import in_child
from valetkey.audit import chain, reader
from valetkey.audit.recorder import KINDS, Audit, Counted, person, who_of
from valetkey.audit.verify import verify
from valetkey.config import Paths
from valetkey.errors import AuditUnwritable, WrongMode
from valetkey.log import set_up
from valetkey.testing.clock import FakeClock

DOCS = Path(__file__).parents[2] / "docs"

_TEXT = st.text(st.characters(codec="utf-8"))
_NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths(home=home)


@pytest.fixture
def audit(paths: Paths, clock: FakeClock) -> Iterator[Audit]:
    made = Audit(paths, clock)
    yield made
    made.close()


def entries(paths: Paths) -> list[dict[str, Any]]:
    return reader.newest(paths.audit, 10_000, wanted=lambda entry: True)


def whole(paths: Paths) -> int:
    return verify(reader.lines(paths.audit), key=None, anchor=None, whole=False).entries


def use_many(audit: Audit) -> None:
    for number in range(200):
        audit.used("command:auth", f"acme@a{number}")


# --- the form --------------------------------------------------------------------------------


@given(_VALUES)
def test_entries_are_written_as_rfc_8785_wants_it(value: Any) -> None:
    assert chain.canonical(value) == rfc8785.dumps(value)


def test_what_has_no_canonical_form_is_refused(audit: Audit) -> None:
    with pytest.raises(ValueError, match="no kind"):
        audit.append("logon")
    for wrong in (1.5, b"bytes", object()):
        with pytest.raises(TypeError):
            audit.append("login", detail={"x": wrong})
    with pytest.raises(AuditUnwritable):
        audit.append("login", account="acme@\ud800")


def test_an_entry_holds_all_that_is_documented(audit: Audit, paths: Paths) -> None:
    audit.append("login", account="acme@work", detail={"method": "api-key"})
    (entry,) = entries(paths)
    assert list(entry) == ["account", "at", "detail", "kind", "salt", "seq", "who", "hash"]
    assert (entry["seq"], entry["at"], entry["who"]) == (1, "2026-11-22T12:00:00.000Z", person())
    assert entry["hash"] == chain.link(
        "0" * 64, chain.content_hash(chain.canonical({k: v for k, v in entry.items() if k != "hash"}))
    )
    told = (DOCS / "audit.md").read_text()
    assert all(f"`{name}`" in told for name in entry)
    assert all(f"`{kind}`" in told for kind in KINDS)


def test_nothing_secret_gets_into_a_detail(audit: Audit, paths: Paths) -> None:
    secret = "sk-ant-api03-" + os.urandom(24).hex()
    audit.append("denial", detail={"path": f"/v1/{secret}", "more": [{"url": f"https://h/?key={secret}"}]})
    assert secret not in json.dumps(entries(paths))
    assert secret.encode() not in paths.audit.read_bytes() + Path(f"{paths.audit}-wal").read_bytes()


def test_the_file_is_ours_alone_and_takes_nothing_back(audit: Audit, paths: Paths) -> None:
    audit.append("login")
    assert paths.audit.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(paths.audit)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        for statement in ("UPDATE entry SET hash = ''", "DELETE FROM entry"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                connection.execute(statement)
    os.chmod(paths.audit, 0o644)
    with pytest.raises(WrongMode):
        Audit(paths, FakeClock()).append("login")


def test_clients_have_names(audit: Audit) -> None:
    assert (who_of("ab12"), who_of("run:x"), who_of("")) == ("key:ab12", "run:x", "unknown")
    assert person().startswith("person:")


# --- uses ------------------------------------------------------------------------------------


def test_the_first_use_of_a_minute_is_written_and_the_others_are_counted(
    audit: Audit, paths: Paths, clock: FakeClock
) -> None:
    for _ in range(5):
        audit.used("command:auth", "acme@work", {"source": "stored"})
    assert [(e["kind"], e["detail"]) for e in entries(paths)] == [
        ("use", {"minute": "2026-11-22T12:00Z", "source": "stored"})
    ]
    audit.used("command:auth", "acme@other")
    clock.advance(60)
    audit.used("command:auth", "acme@work")
    told = [(e["kind"], e["account"], e["detail"].get("further")) for e in entries(paths)]
    assert told == [
        ("use", "acme@work", None),
        ("use", "acme@other", None),
        ("use", "acme@work", None),
        ("uses", "acme@work", 4),
    ]
    assert whole(paths) == 4


def test_what_was_counted_is_written_at_the_end(audit: Audit, paths: Paths) -> None:
    for _ in range(3):
        audit.used("command:auth", "acme@work")
    audit.close()
    assert [e["detail"].get("further") for e in entries(paths)] == [None, 2]


def test_short_processes_count_in_the_file(home: Path, paths: Paths, clock: FakeClock, audit: Audit) -> None:
    at = clock.now().timestamp()
    for _ in range(4):
        with closing(chain.opened(str(paths.audit), busy_seconds=1)) as connection:
            chain.use(connection, "command:token", "acme@work", {}, at)
    assert [e["kind"] for e in entries(paths)] == ["use"]
    audit.settle()
    assert [e["kind"] for e in entries(paths)] == ["use"]
    clock.advance(60)
    audit.settle()
    audit.settle()
    assert [(e["kind"], e["detail"].get("further")) for e in entries(paths)] == [("use", None), ("uses", 3)]


def test_the_quick_way_writes_what_the_long_way_does(home: Path, paths: Paths) -> None:
    assert chain.quick_use(str(home), "command:token", "acme@work")
    (entry,) = entries(paths)
    assert (entry["kind"], entry["who"], entry["account"]) == ("use", "command:token", "acme@work")


def test_many_threads_make_one_chain(audit: Audit, paths: Paths) -> None:
    def work(number: int) -> None:
        for _ in range(25):
            audit.append("login", account=f"acme@a{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(paths) == 100


def test_a_forked_child_writes_with_a_connection_of_its_own(audit: Audit, paths: Paths) -> None:
    audit.append("login", account="acme@parent")
    audit.used("command:auth", "acme@parent")
    audit.used("command:auth", "acme@parent")
    assert in_child(audit.close) == 0
    assert in_child(lambda: audit.append("login", account="acme@child")) == 0
    audit.append("logout", account="acme@parent")
    audit.close()
    told = [(e["kind"], e["account"], e["detail"].get("further")) for e in entries(paths)]
    assert told == [
        ("login", "acme@parent", None),
        ("use", "acme@parent", None),
        ("login", "acme@child", None),
        ("logout", "acme@parent", None),
        ("uses", "acme@parent", 1),
    ]
    assert whole(paths) == 5


# --- where it cannot be written --------------------------------------------------------------


def test_a_use_that_cannot_be_recorded_is_refused(audit: Audit, paths: Paths) -> None:
    paths.audit.mkdir()
    with pytest.raises(Exception, match="is not a file"):
        audit.used("command:auth", "acme@work")
    assert not chain.quick_use(str(paths.home), "command:token", "acme@work")
    paths.audit.rmdir()
    audit.used("command:auth", "acme@work")
    assert [e["kind"] for e in entries(paths)] == ["use"]


def test_on_a_full_disk_nothing_is_used_and_the_chain_stays_whole(audit: Audit, paths: Paths) -> None:
    audit.append("login")
    audit.transaction(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(AuditUnwritable, match="full") as caught:
        use_many(audit)
    assert caught.value.retryable
    written = whole(paths)
    audit.transaction(lambda connection: connection.execute("PRAGMA max_page_count = 100000"))
    audit.used("command:auth", "acme@work")
    assert whole(paths) == written + 1


def test_another_process_that_holds_it_is_waited_for_and_then_named(paths: Paths, clock: FakeClock) -> None:
    audit = Audit(paths, clock, busy_seconds=0.05)
    audit.append("login")
    with closing(sqlite3.connect(paths.audit, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditUnwritable, match="another process holds"):
            audit.append("login")
        holder.execute("ROLLBACK")
    audit.append("login")
    assert whole(paths) == 2
    audit.close()


@pytest.mark.parametrize("content", [b"", b"no database" * 400])
def test_a_file_that_is_no_audit_is_left_as_it_is(paths: Paths, audit: Audit, content: bytes) -> None:
    paths.home.mkdir(exist_ok=True)
    paths.audit.write_bytes(content)
    paths.audit.chmod(0o600)
    if content:
        with pytest.raises(AuditUnwritable):
            audit.append("login")
        assert paths.audit.read_bytes() == content
    else:
        audit.append("login")  # somebody was killed before the first entry
        assert whole(paths) == 1


def test_one_of_a_newer_valetkey_is_left_alone(paths: Paths, audit: Audit) -> None:
    audit.append("login")
    audit.close()
    with closing(sqlite3.connect(paths.audit)) as connection:
        connection.execute(f"PRAGMA user_version = {chain.SCHEMA + 1}")
    with pytest.raises(AuditUnwritable, match="newer"):
        audit.append("login")
    with pytest.raises(AuditUnwritable, match="newer"):
        list(reader.lines(paths.audit))


def test_what_must_happen_happens_without_its_entry_and_says_so(paths: Paths, audit: Audit, tmp_path: Path) -> None:
    paths.audit.mkdir()
    log = tmp_path / "log"
    stop = set_up(level="warning", file=str(log))
    try:
        audit.tell("logout", account="acme@work")
        audit.count([Counted("key:a", "acme@work", 1, 7)])
    finally:
        stop()
    said = log.read_text()
    assert "not in the audit: logout of acme@work" in said
    assert "7 uses are not in the audit" in said


def test_a_file_that_is_taken_away_is_begun_anew(audit: Audit, paths: Paths) -> None:
    audit.append("login")
    paths.audit.rename(paths.home / "aside.db")
    for end in ("-wal", "-shm"):
        Path(f"{paths.audit}{end}").unlink()
    audit.append("logout")
    assert [e["kind"] for e in entries(paths)] == ["logout"]
