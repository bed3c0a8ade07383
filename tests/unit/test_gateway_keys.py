"""Valet keys: made, found, revoked, kept without their secret."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.stored import opened
from tests.support.valet_keys import ACME, WORK, ZENITH, Desk, provider
from valetkey.credential import CredentialRef, Secret
from valetkey.errors import (
    ConfigError,
    NotForThisUse,
    NotLoggedIn,
    RecordDamaged,
    StoreUnwritable,
    UnknownKey,
    UnknownProvider,
    UsageError,
)
from valetkey.gateway.keys import ValetKey, base_urls, read_count, read_expiry
from valetkey.gateway.limits import Limits
from valetkey.provider import AuthMethod
from valetkey.store import Document
from valetkey.testing.clock import START
from valetkey.testing.memory_store import MemoryStore

NEARBY = CredentialRef(provider="nearby")
POLICY = 'default = "deny"\n[[rule]]\nallow = "GET api.acme.example/**"\n'


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- what is kept ----------------------------------------------------------------------------


def test_the_token_says_its_id_and_is_kept_as_its_hash_alone(desk: Desk) -> None:
    key, token = desk.issue(ACME, name="my tool")
    assert re.fullmatch(rb"vk_[0-9a-f]{12}_[0-9a-f]{64}", token)
    assert token[3:15].decode() == key.id
    assert key.digest == hashlib.sha256(token).digest()
    document = desk.store.document("valet-key", key.id)
    assert document is not None
    assert document.title == "my tool"
    assert token[16:].decode() not in document.body
    assert token.decode() not in repr(key)
    assert repr(key.digest) not in repr(key)


def test_no_two_tokens_are_alike(desk: Desk) -> None:
    tokens = {desk.issue()[1] for _ in range(50)}
    assert len({token[3:15] for token in tokens}) == len({token[16:] for token in tokens}) == 50


def test_all_of_it_comes_back_in_the_next_process(home: Path) -> None:
    desk = Desk(store=opened(home))
    desk.log_in(WORK)
    limits = Limits(requests_per_minute=60, tokens_per_day=10**6, concurrent=4)
    key, token = desk.issue(WORK, name="ci ü", policy=POLICY, limits=limits, hours=8)
    found = Desk(store=opened(home)).keys.all()
    assert found == [key]
    assert (key.grants, key.policy, key.policy_file) == ((WORK,), POLICY, "policy.toml")
    assert (key.created_at, key.expires_at) == (START, START + timedelta(hours=8))
    for path in home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert token[16:] not in content, path
            assert key.digest not in content, path
            assert b"ci " not in content, path


def test_keys_come_newest_first_and_a_grant_named_twice_is_one(desk: Desk) -> None:
    desk.log_in(WORK)
    first, _ = desk.issue(ACME, WORK, ACME)
    desk.clock.advance(1)
    second, _ = desk.issue()
    assert desk.keys.all() == [second, first]
    assert first.grants == (ACME, WORK)


# --- what may be granted ---------------------------------------------------------------------


def test_an_account_has_to_be_stored(desk: Desk) -> None:
    desk.log_in(ACME)
    with pytest.raises(NotLoggedIn, match="acme@work cannot be granted") as raised:
        desk.issue(ACME, WORK)
    assert raised.value.hint == "run `valetkey login acme --account work`"
    with pytest.raises(UnknownProvider):
        desk.issue(CredentialRef(provider="nobody"))
    with pytest.raises(UsageError, match="without a grant"):
        desk.keys.issue(grants=[], catalogue=desk.catalogue, environ={})
    assert desk.keys.all() == []


def test_a_server_without_a_key_may_be_granted_by_its_provider_alone(desk: Desk) -> None:
    key, _ = desk.issue(NEARBY)
    assert key.grants == (NEARBY,)
    with pytest.raises(NotLoggedIn):
        desk.issue(CredentialRef(provider="nearby", account="work"))


def test_a_key_in_the_environment_is_not_granted() -> None:
    known = (provider("acme", AuthMethod(id="api-key", kind="api-key", environment=("ACME_API_KEY",))),)
    desk = Desk(environ={"ACME_API_KEY": "sk-" + "e" * 20}, known=known)
    with pytest.raises(NotLoggedIn):
        desk.keys.issue(grants=[ACME], catalogue=desk.catalogue, environ=desk.environ)


def test_a_restricted_login_is_not_granted_whoever_says_that_it_is(desk: Desk) -> None:
    desk.log_in(ACME, restricted=True)
    by_now = CredentialRef(provider="now-restricted")
    desk.log_in(by_now, restricted=False)
    for ref in (ACME, by_now):
        with pytest.raises(NotForThisUse, match="restricted login"):
            desk.keys.issue(grants=[ref], catalogue=desk.catalogue, environ={})
    assert desk.keys.all() == []


def test_a_policy_has_to_be_readable_and_an_empty_file_is_none(desk: Desk) -> None:
    for wrong in ("", "default = 1", 'default = "deny"\n[[rule]]\ndeni = "GET a.example/x"\n'):
        with pytest.raises(ConfigError, match=r"policy\.toml"):
            desk.issue(policy=wrong)
    assert desk.keys.all() == []


# --- names -----------------------------------------------------------------------------------


def test_a_name_is_had_by_one_live_key(desk: Desk) -> None:
    first, _ = desk.issue(name="ci")
    with pytest.raises(UsageError, match="there is a valet key 'ci' already"):
        desk.issue(name="ci")
    with pytest.raises(UsageError, match="already"):
        desk.issue(name=first.id)
    desk.keys.revoke("ci")
    second, _ = desk.issue(name="ci", hours=1)
    assert desk.keys.find("ci") == second
    desk.clock.advance(3600)
    third, _ = desk.issue(name="ci")
    assert desk.keys.find("ci") == third
    desk.clock.advance(1)
    desk.keys.revoke(second.id)
    assert desk.keys.find("ci") == third
    assert desk.keys.find(first.id).id == first.id


@pytest.mark.parametrize("name", [" ci", "a\nb", "a\x1b[31m", "x" * 101, "vk_000000000000", "\ud800"])
def test_a_name_is_a_line_of_text(desk: Desk, name: str) -> None:
    with pytest.raises(UsageError):
        desk.issue(name=name)


def test_without_a_name_it_is_called_as_its_id(desk: Desk) -> None:
    key, token = desk.issue()
    assert key.name == key.id
    assert desk.keys.find(key.id) == desk.keys.find(token.decode()) == key


def test_what_is_not_there_is_not_shown_where_it_may_be_a_key(desk: Desk) -> None:
    for wanted, shown in (("0" * 12, "0" * 12), ("ci", "ci"), ("sk-" + "s" * 40, None), ("vk_" + "0" * 77, "0" * 12)):
        with pytest.raises(UnknownKey) as raised:
            desk.keys.find(wanted)
        expected = "of this id or name" if shown is None else repr(shown)
        assert raised.value.message == f"there is no valet key {expected}"


def test_names_are_given_one_at_a_time(desk: Desk) -> None:
    desk.log_in(ACME)
    lock = desk.store.try_lock("valet keys")
    assert lock is not None
    with pytest.raises(StoreUnwritable):
        desk.issue(name="ci")
    lock.release()
    desk.issue(name="ci")


# --- ends ------------------------------------------------------------------------------------


def test_revoking_is_for_good_and_once(desk: Desk) -> None:
    key, _ = desk.issue(name="ci", hours=1)
    assert key.state(desk.clock.now()) == "live"
    revoked = desk.keys.revoke("ci")
    assert revoked == replace(key, revoked_at=START)
    desk.clock.advance(7200)
    assert desk.keys.revoke(key.id) == revoked
    assert revoked.state(START) == revoked.state(desk.clock.now()) == "revoked"
    with pytest.raises(UnknownKey):
        desk.keys.revoke("nobody")


def test_an_end_is_a_moment(desk: Desk) -> None:
    key, _ = desk.issue(hours=1)
    end = START + timedelta(hours=1)
    assert key.state(end - timedelta(microseconds=1)) == "live"
    assert key.state(end) == "expired"
    with pytest.raises(UsageError, match="ended before"):
        desk.issue(hours=0)


def test_what_ended_a_month_ago_is_forgotten_when_the_next_is_made(desk: Desk) -> None:
    lasting, _ = desk.issue(name="lasting")
    expired, _ = desk.issue(name="expired", hours=1)
    revoked, _ = desk.issue(name="revoked")
    desk.keys.revoke("revoked")
    desk.clock.advance(30 * 86400)
    assert len(desk.keys.all()) == 3
    desk.issue(name="next")
    assert {key.name for key in desk.keys.all()} == {"lasting", "expired", "next"}
    desk.clock.advance(3600)
    desk.issue(name="last")
    assert {key.name for key in desk.keys.all()} == {"lasting", "next", "last"}
    assert lasting.id != expired.id != revoked.id


# --- what is damaged -------------------------------------------------------------------------


def body_of(desk: Desk, key: ValetKey) -> dict[str, Any]:
    document = desk.store.document("valet-key", key.id)
    assert document is not None
    value: dict[str, Any] = json.loads(document.body)
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"more": 1},
        {"name": 1},
        {"digest": "xyz"},
        {"digest": None},
        {"grants": ["acme/../x"]},
        {"grants": None},
        {"policy": None},
        {"limits": {"requests_per_minute": 0}},
        {"limits": {"requests_per_minute": True}},
        {"limits": {"requests_per_second": 1}},
        {"limits": []},
        {"created_at": None},
        {"expires_at": "2026-11-22"},
        {"revoked_at": 1},
    ],
    ids=str,
)
def test_what_was_not_written_so_is_damaged_and_hides_no_other(desk: Desk, change: dict[str, Any]) -> None:
    whole, _ = desk.issue(name="whole")
    desk.clock.advance(1)
    broken, _ = desk.issue(name="broken")
    body = json.dumps(body_of(desk, broken) | change)
    desk.store.put_document(Document(kind="valet-key", id=broken.id, title="broken", body=body, updated_at=START))
    assert desk.keys.all() == [whole]
    found = dict(desk.keys.each())
    assert isinstance(found[broken.id], RecordDamaged)


def test_a_body_that_is_no_json_is_damaged(desk: Desk) -> None:
    for body in ("", "[]", "null", "[" * 100_000):
        desk.store.put_document(Document(kind="valet-key", id="1", title="", body=body, updated_at=START))
        assert [type(found) for _, found in desk.keys.each()] == [RecordDamaged]


# --- as a person writes it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("90s", START + timedelta(seconds=90)),
        ("30m", START + timedelta(minutes=30)),
        ("8h", START + timedelta(hours=8)),
        ("7d", START + timedelta(days=7)),
        ("2w", START + timedelta(weeks=2)),
        ("2026-12-31", datetime(2026, 12, 31, tzinfo=UTC)),
        ("2026-12-31T18:00Z", datetime(2026, 12, 31, 18, tzinfo=UTC)),
        ("2026-12-31T18:00:00+02:00", datetime(2026, 12, 31, 16, tzinfo=UTC)),
    ],
)
def test_an_end_is_a_span_a_day_or_a_time_with_its_zone(text: str, end: datetime) -> None:
    assert read_expiry(text, START) == end
    assert read_expiry(text, START).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    ["", "8", "h", "-1h", "1.5h", "8 h", "8h30m", "999999w", "9999999d", "2026-13-01", "2026-12-31T18:00", "tomorrow",
     "0001-01-01T00:00+02:00", "8H", "٣h"],
)  # fmt: skip
def test_what_is_no_end_is_told(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_expiry(text, START)
    assert "2026-12-31T18:00Z" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "count"), [("1", 1), ("60", 60), ("1e6", 10**6), ("1.5e6", 1_500_000), ("1_000", 1000), ("2E+3", 2000)]
)
def test_a_count_may_be_written_short(text: str, count: int) -> None:
    assert read_count(text, "--rpm") == count
    assert type(read_count(text, "--rpm")) is int


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "1e-3", "1e99", "1.2345e2", "many", "0e5", "1e16", "inf", "nan"]
)
def test_what_is_no_count_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="--rpm"):
        read_count(text, "--rpm")
    with pytest.raises(UsageError):
        read_count("1000001", "--rpm", most=10**6)


def test_a_providers_name_alone_is_the_account_that_was_granted_first() -> None:
    assert base_urls("http://127.0.0.1:4380", [WORK, ACME, ZENITH]) == {
        WORK: "http://127.0.0.1:4380/acme",
        ACME: "http://127.0.0.1:4380/acme@default",
        ZENITH: "http://127.0.0.1:4380/zenith",
    }


def test_a_token_is_a_secret_from_its_making(desk: Desk) -> None:
    desk.log_in(ACME)
    _, token = desk.keys.issue(grants=[ACME], catalogue=desk.catalogue, environ={})
    assert isinstance(token, Secret)
    assert "vk_" not in f"{token} {token!r}"
    assert isinstance(desk.store, MemoryStore)
