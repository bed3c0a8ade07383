"""An audit that somebody spoilt: both verifiers see it, and name the same entry."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.audits import MUTATIONS, by_both, filled, mutated, resigned, separate
from tests.support.stored import opened
from valetkey.audit import reader
from valetkey.audit.ending import verify_end
from valetkey.audit.export import export
from valetkey.audit.recorder import Audit
from valetkey.audit.signing import sign
from valetkey.audit.verify import Anchor, lines_of, verify
from valetkey.config import Paths
from valetkey.errors import AuditBroken, AuditUnwritable, UsageError
from valetkey.testing.clock import FakeClock

DOCS = Path(__file__).parents[2] / "docs"
# 16 of each of the seven ways: 112 spoilt exports.
SEEDS = range(16)


@pytest.mark.parametrize("how", sorted(MUTATIONS))
def test_each_spoilt_export_is_seen_by_both_verifiers(home: Path, how: str) -> None:
    key, lines = filled(home)
    end = verify(lines, key=key, anchor=None, whole=True).end
    assert by_both(lines, key, str(end)) is None
    unseen = [seed for seed in SEEDS if by_both(mutated(lines, how, seed, key), key, str(end)) is None]
    assert unseen == []


@pytest.mark.parametrize("how", sorted(set(MUTATIONS) - {"truncate"}))
def test_all_but_a_cut_is_seen_without_an_anchor(home: Path, how: str) -> None:
    key, lines = filled(home)
    assert [seed for seed in SEEDS if by_both(mutated(lines, how, seed, key), key) is None] == []


def test_a_cut_behind_a_checkpoint_needs_the_anchor(home: Path) -> None:
    key, lines = filled(home, count=12, signed_every=6)
    end = verify(lines, key=key, anchor=None, whole=True).end
    cut = lines[: 1 + 6 + 1]
    assert by_both(cut, key) is None
    assert by_both(cut, key, str(end)) == 7
    assert by_both(cut[:-1], key) == 1  # no checkpoint is left
    assert by_both(lines[:-1], key) == 7


def test_the_entry_is_named(home: Path) -> None:
    key, lines = filled(home, count=12, signed_every=6)
    # The header, entries 1 to 6, a checkpoint, entries 7 to 12, a checkpoint.
    changed = lines[3].replace(b'"kind":"use"', b'"kind":"run"')
    assert changed != lines[3]
    assert by_both([*lines[:3], changed, *lines[4:]], key) == 3
    assert by_both([*lines[:5], *lines[6:]], key) == 5
    assert by_both([*lines[:2], lines[3], lines[2], *lines[4:]], key) == 2
    assert by_both([*lines[:9], lines[8], *lines[9:]], key) == 8
    assert by_both(resigned(lines, Ed25519PrivateKey.generate()), key) == 6
    assert by_both([], key) == 0
    assert by_both(lines, key, f"9:{'0' * 64}") == 9
    assert by_both(lines, "0" * 64) == 6


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        # The later of two names counts for most readers, and a person may read the first.
        (b'"kind":"use"', b'"kind":"login","kind":"use"'),
        (b'"seq":1', b'"seq": 1'),
        (b'"use"', b'"\\u0075se"'),
        (b'"seq":1', b'"seq":1.0'),
        (b"\n", b""),
        (b"\n", b"\n\n"),
    ],
)
def test_a_line_has_one_form(home: Path, there: bytes, instead: bytes) -> None:
    key, lines = filled(home, count=6)
    changed = lines[1].replace(there, instead, 1)
    assert changed != lines[1]
    spoilt = b"".join([lines[0], changed, *lines[2:]]).splitlines(keepends=True)
    assert by_both(spoilt, key) is not None


def test_hashes_in_capitals_are_no_hashes(home: Path) -> None:
    key, lines = filled(home, count=6)
    value = json.loads(lines[-1])
    value["signature"] = value["signature"].upper()
    assert by_both([*lines[:-1], json.dumps(value, separators=(",", ":")).encode() + b"\n"], key) == 6


def test_an_export_for_one_client_hides_the_others_and_verifies(home: Path, tmp_path: Path) -> None:
    key, lines = filled(home)
    file = tmp_path / "run.jsonl"
    found = export(Paths(home=home).audit, file, client="run:b1", key=key)
    assert (found.entries, found.hidden) == (24, 12)
    content = file.read_bytes()
    assert by_both(content.splitlines(keepends=True), key, str(found.end)) is None
    assert content.count(b"run:b1") == 12
    assert b"key:aaaaaaaaaaaa" not in content
    assert len(content) < sum(map(len, lines))
    assert file.stat().st_mode & 0o777 == 0o600
    for how in sorted(MUTATIONS):
        spoilt = mutated(content.splitlines(keepends=True), how, 1, key)
        assert by_both(spoilt, key, str(found.end)) is not None, how
    with pytest.raises(FileExistsError):
        export(Paths(home=home).audit, file, client=None, key=key)


def test_an_export_ends_with_the_last_checkpoint(home: Path, tmp_path: Path) -> None:
    """While others go on writing."""
    key, lines = filled(home, count=6)
    audit = Audit(Paths(home=home), FakeClock())
    audit.append("login", account="acme@a")
    audit.close()
    found = export(Paths(home=home).audit, tmp_path / "audit.jsonl", client=None, key=key)
    assert found.entries == found.signed == 6
    assert (tmp_path / "audit.jsonl").read_bytes() == b"".join(lines)


def test_two_entries_that_say_the_same_have_other_hashes(home: Path) -> None:
    """Else whoever has the bare hash could try out what the entry says."""
    _, lines = filled(home, count=2)
    salts = {json.loads(line)["entry"]["salt"] for line in lines if b'"entry"' in line}
    assert len(salts) == 2


# --- the database itself ---------------------------------------------------------------------


@pytest.fixture
def paths(home: Path) -> Paths:
    filled(home, count=12, signed_every=6)
    return Paths(home=home)


def spoil(paths: Paths, *statements: str) -> None:
    with sqlite3.connect(paths.audit) as connection:
        for name in ("entry_stays", "entry_remains", "checkpoint_stays", "checkpoint_remains"):
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def broken_at(paths: Paths, anchor: str | None = None) -> int | None:
    key = paths.audit_key.read_text().strip()
    try:
        place = None if anchor is None else Anchor.read(anchor)
        verify(reader.lines(paths.audit), key=key, anchor=place, whole=False)
    except AuditBroken as error:
        return error.seq
    return None


@pytest.mark.parametrize(
    ("statement", "seq"),
    [
        ("UPDATE entry SET body = replace(body, 'acme@a1', 'acme@a2') WHERE seq = 4", 4),
        ("UPDATE entry SET body = 'x' WHERE seq = 4", 4),
        ("UPDATE entry SET hash = '' WHERE seq = 4", 4),
        ("DELETE FROM entry WHERE seq = 5", 5),
        ("DELETE FROM entry WHERE seq > 8", 9),
        ("UPDATE checkpoint SET body = replace(body, '2026', '2025') WHERE number = 1", 6),
        ("DELETE FROM checkpoint WHERE number = 1", 12),
    ],
)
def test_what_was_done_to_the_file_is_seen(paths: Paths, statement: str, seq: int) -> None:
    assert broken_at(paths) is None
    spoil(paths, statement)
    assert broken_at(paths) == seq


@pytest.mark.parametrize("body", ["{}", "x", "[" * 100_000, '{"seq": 4}'])
def test_an_entry_that_cannot_be_read_is_not_shown(paths: Paths, body: str) -> None:
    spoil(paths, f"UPDATE entry SET body = '{body}' WHERE seq = 4")
    with pytest.raises(AuditBroken) as caught:
        reader.newest(paths.audit, 100, wanted=lambda entry: True)
    assert caught.value.seq == 4
    assert broken_at(paths) == 4


def test_a_line_without_an_end_is_read_in_pieces(home: Path, tmp_path: Path) -> None:
    key, lines = filled(home, count=6)
    file = tmp_path / "endless"
    file.write_bytes(b"".join(lines) + b"x" * 3_000_000)
    with file.open("rb") as given:
        pieces = list(lines_of(given))
    assert max(map(len, pieces)) <= 1024 * 1024 + 1
    assert by_both(pieces, key) == 7


def test_a_file_that_was_cut_is_seen_with_the_anchor(paths: Paths) -> None:
    key = paths.audit_key.read_text().strip()
    end = verify(reader.lines(paths.audit), key=key, anchor=None, whole=False).end
    spoil(paths, "DELETE FROM entry WHERE seq > 6", "DELETE FROM checkpoint WHERE number = 2")
    assert broken_at(paths) is None
    assert broken_at(paths, str(end)) == 7


def test_a_broken_chain_is_not_signed(paths: Paths, home: Path) -> None:
    clock, store = FakeClock(), opened(home)
    audit = Audit(paths, clock)
    audit.append("login", account="acme@a")
    spoil(paths, "UPDATE entry SET body = replace(body, 'acme@a', 'acme@b') WHERE seq = 13")
    with pytest.raises(AuditBroken) as caught:
        sign(audit, store, paths, clock)
    assert caught.value.seq == 13
    assert caught.value.as_dict()["seq"] == 13
    audit.close()
    store.close()


def test_another_key_than_the_pinned_one_signs_nothing(paths: Paths, home: Path) -> None:
    clock, store = FakeClock(), opened(home)
    audit = Audit(paths, clock)
    audit.append("login", account="acme@a")
    store.delete_document("audit-key", "signing")
    with pytest.raises(AuditUnwritable):
        sign(audit, store, paths, clock)
    assert store.document("audit-key", "signing") is None
    audit.close()
    store.close()


def test_an_anchor_has_one_form() -> None:
    assert str(Anchor.read(f"12:{'a' * 64}")) == f"12:{'a' * 64}"
    for wrong in ("", "12", f"0:{'a' * 64}", f"12:{'A' * 64}", f"12:{'a' * 63}"):
        with pytest.raises(UsageError):
            Anchor.read(wrong)


# --- the separate verifier -------------------------------------------------------------------


def test_the_separate_verifier_is_small_and_knows_nothing_of_valetkey() -> None:
    source = (DOCS / "verify_audit.py").read_text()
    assert len(source.splitlines()) <= 300
    assert "import valetkey" not in source
    assert "from valetkey" not in source


def test_the_separate_verifier_is_a_program(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, lines = filled(home, count=6)
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"".join(lines))
    assert separate.main([str(file), "--key", str(home / "audit.pub")]) == 0
    shown = capsys.readouterr().out
    assert "6 entries" in shown
    anchor = shown.partition("elsewhere: ")[2].splitlines()[0]
    assert separate.main([str(file), "--key", key, "--anchor", anchor]) == 0
    file.write_bytes(b"".join(lines[:-1]))
    assert separate.main([str(file), "--key", key]) == 1
    assert "broken at entry 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        separate.main([str(file), "--key", "short"])


def test_the_end_of_a_long_audit_is_verified_without_the_rest(home: Path) -> None:
    key, _ = filled(home, count=24, signed_every=6)
    path = Paths(home=home).audit
    end = verify_end(path, key, at_the_end=4)
    assert (end.entries, end.looked_at, end.signed) == (24, 4, 24)
    assert verify_end(path, key).looked_at == 24


@pytest.mark.parametrize(
    "spoilt",
    [
        "UPDATE entry SET body = replace(body, 'acme', 'acne') WHERE seq = 23",
        "UPDATE entry SET hash = upper(hash) WHERE seq = 20",
        "UPDATE entry SET hash = 'no hash' WHERE seq = 20",
        "DELETE FROM entry WHERE seq = 22",
        "DELETE FROM entry WHERE seq = 24",
        "UPDATE checkpoint SET body = replace(body, '24', '23') WHERE seq = 24",
        "UPDATE checkpoint SET signature = (SELECT signature FROM checkpoint WHERE seq = 18) WHERE seq = 24",
    ],
)
def test_what_is_done_to_the_end_is_seen_there(home: Path, spoilt: str) -> None:
    key, _ = filled(home, count=24, signed_every=6)
    with closing(sqlite3.connect(Paths(home=home).audit)) as connection, connection:
        for trigger in ("entry_stays", "entry_remains", "checkpoint_stays"):
            connection.execute(f"DROP TRIGGER {trigger}")
        assert connection.execute(spoilt).rowcount == 1
    with pytest.raises(AuditBroken):
        verify_end(Paths(home=home).audit, key, at_the_end=4)


def test_the_end_is_signed_with_the_key_that_is_pinned(home: Path) -> None:
    filled(home)
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    for key in (other, None):
        with pytest.raises(AuditBroken):
            verify_end(Paths(home=home).audit, key)
