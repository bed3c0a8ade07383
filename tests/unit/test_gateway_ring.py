"""The ring: what counts now, what has ended, and what happens where something is broken."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.stored import opened
from tests.support.valet_keys import ACME, WORK, ZENITH, Desk, provider, providers
from valetkey.credential import CredentialRef
from valetkey.errors import GatewayFailed, RecordDamaged, StoreLocked, StoreUnwritable
from valetkey.gateway.decide import Forward, Refuse, RequestHead, decide
from valetkey.gateway.keys import ValetKey
from valetkey.gateway.limits import Limits
from valetkey.gateway.policy import GRANTED_ALONE
from valetkey.gateway.ring import LiveKey, Ring
from valetkey.provider import AuthMethod
from valetkey.store import Document, Record
from valetkey.testing.memory_store import MemoryStore

NEARBY = CredentialRef(provider="nearby")
TENANTED = CredentialRef(provider="tenanted")
UNKNOWN = "there is no such valet key"


class TroubledStore(MemoryStore):
    """Fails as `trouble` says, when documents or accounts are read."""

    trouble: Exception | None = None
    of_account: Exception | None = None

    def documents(self, kind: str, *, limit: int = 50) -> Sequence[tuple[str, str, datetime]]:
        if self.trouble is not None:
            raise self.trouble
        return super().documents(kind, limit=limit)

    def load(self, ref: CredentialRef) -> Record | None:
        if self.of_account is not None and ref == ACME:
            raise self.of_account
        return super().load(ref)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def live(ring: Ring, token: bytes) -> LiveKey:
    found = ring.resolve(token)
    assert found is not None
    return found


# --- what counts -----------------------------------------------------------------------------


def test_a_token_gives_its_key_ready_for_the_decision(desk: Desk) -> None:
    desk.log_in(WORK)
    limits = Limits(concurrent=1)
    policy = 'default = "deny"\n[[rule]]\nallow = "GET api.acme.example/v1/**"\n'
    key, token = desk.issue(ACME, WORK, policy=policy, limits=limits)
    found = live(desk.ring(), token)
    assert found.key == key
    assert (found.client.id, found.client.kind) == (key.id, "key")
    assert [grant.ref for grant in found.client.grants] == [ACME, WORK]
    assert found.meter.limits == limits
    assert found.ended is False
    head = RequestHead(method="GET", scheme="https", host="api.acme.example", port=None, path="/v1/models")
    allowed = decide(head, found.client, found.policy)
    assert isinstance(allowed, Forward)
    assert allowed.rule.place == "policy.toml:3"


def test_without_a_policy_all_that_is_granted_is_allowed_but_what_is_off_limits(desk: Desk) -> None:
    _, token = desk.issue()
    found = live(desk.ring(), token)
    assert found.policy is GRANTED_ALONE
    head = RequestHead(method="POST", scheme="https", host="api.acme.example", port=None, path="/v1/keys/new")
    refused = decide(head, found.client, found.policy)
    assert isinstance(refused, Refuse)
    assert refused.code == "off_limits"


def test_no_other_token_counts(desk: Desk) -> None:
    _, token = desk.issue()
    _, second = desk.issue()
    ring = desk.ring()
    wrong = [
        b"",
        b"vk_",
        token[:-1],
        token + b"0",
        token + b"\n",
        token[:-1] + (b"0" if token[-1:] != b"0" else b"1"),
        token[:16] + second[16:],
        b"vk_" + b"0" * 12 + token[15:],
        b"sk_" + token[3:],
        token.replace(b"_", b"-"),
        token.upper(),
        b"\xff" * 80,
        token[3:15],
    ]
    assert [ring.resolve(other) for other in wrong] == [None] * len(wrong)
    assert {ring.why(other) for other in wrong} == {UNKNOWN}
    assert ring.resolve(token) is not ring.resolve(second) is not None


def test_it_is_empty_before_it_was_read(desk: Desk) -> None:
    _, token = desk.issue()
    ring = Ring(desk.store, desk.catalogue, desk.clock, {})
    assert ring.resolve(token) is None
    assert ring.changed() is True
    assert ring.refresh() == []
    assert ring.changed() is False
    assert ring.resolve(token) is not None
    assert [found.client.id for found in ring.live()] == [token[3:15].decode()]


# --- what ends -------------------------------------------------------------------------------


def test_a_revoked_key_ends_with_the_next_refresh(desk: Desk) -> None:
    key, token = desk.issue()
    _, other = desk.issue()
    ring = desk.ring()
    found, stays = live(ring, token), live(ring, other)
    assert ring.changed() is False
    desk.keys.revoke(key.id)
    assert ring.changed() is True
    assert ring.refresh() == [found]
    assert (found.ended, stays.ended) == (True, False)
    assert ring.resolve(token) is None
    assert ring.resolve(other) is stays
    assert ring.why(token) == "the valet key has been revoked"
    assert ring.why(token[:-1] + b"x") == UNKNOWN
    assert (ring.ended(token), ring.ended(token[:-1] + b"x")) == (token[3:15].decode(), "")
    assert ring.refresh() == []
    assert ring.problems() == {}


def test_an_expired_key_counts_no_more_from_the_moment_on(desk: Desk) -> None:
    _, token = desk.issue(hours=1)
    _, later = desk.issue(hours=2)
    ring = desk.ring()
    found = live(ring, token)
    desk.clock.advance(3599)
    assert ring.resolve(token) is found
    assert ring.changed() is False
    desk.clock.advance(1)
    assert ring.resolve(token) is None
    assert ring.why(token) == "the valet key has expired"
    assert ring.why(token[:-1] + b"x") == UNKNOWN
    assert ring.changed() is True
    assert ring.refresh() == [found]
    assert ring.why(token) == "the valet key has expired"
    assert ring.changed() is False
    desk.clock.advance(3600)
    assert ring.changed() is True
    assert [gone.key.id for gone in ring.refresh()] == [later[3:15].decode()]


def test_a_key_that_was_taken_out_of_the_store_ends(desk: Desk) -> None:
    key, token = desk.issue()
    ring = desk.ring()
    desk.store.delete_document("valet-key", key.id)
    assert [gone.key for gone in ring.refresh()] == [key]
    assert ring.why(token) == UNKNOWN


def test_another_process_is_heard(home: Path) -> None:
    """Two stores on one file."""
    mine, other = Desk(store=opened(home)), Desk(store=opened(home))
    ring = mine.ring()
    key, token = other.issue()
    assert ring.changed() is True
    ring.refresh()
    found = live(ring, token)
    other.keys.revoke(key.id)
    assert ring.changed() is True
    assert ring.refresh() == [found]


# --- what stays ------------------------------------------------------------------------------


def test_what_did_not_change_is_the_same_object_with_its_counts(desk: Desk) -> None:
    _, token = desk.issue(limits=Limits(requests_per_minute=1))
    ring = desk.ring()
    found = live(ring, token)
    assert found.meter.admit(desk.clock.monotonic()) is None
    desk.issue()
    desk.log_in(ACME)  # renewed: a new credential at the same place
    desk.store.set_setting("default_model", "acme/small")
    assert ring.changed() is True
    assert ring.refresh() == []
    assert ring.resolve(token) is found
    assert found.meter.admit(desk.clock.monotonic()) == 60


def test_a_login_that_goes_elsewhere_ends_the_old_and_keeps_the_counts(desk: Desk) -> None:
    _, token = desk.issue(ACME, limits=Limits(requests_per_minute=1))
    desk.log_in(ZENITH)
    _, other = desk.issue(ZENITH)
    ring = desk.ring()
    found, stays = live(ring, token), live(ring, other)
    assert found.meter.admit(desk.clock.monotonic()) is None
    desk.log_in(ACME, hosts=("eu.acme.example",))
    assert ring.refresh() == [found]
    assert found.ended is True
    now = live(ring, token)
    assert now is not found
    assert now.client.grants[0].hosts == ("eu.acme.example",)
    assert now.meter is found.meter
    assert ring.resolve(other) is stays


def test_the_days_tokens_come_from_before_the_restart_where_they_are_limited(desk: Desk) -> None:
    limited, token = desk.issue(limits=Limits(tokens_per_day=100))
    desk.issue()
    asked: list[str] = []

    def tokens_today(key_id: str) -> int:
        asked.append(key_id)
        return 100

    ring = desk.ring(tokens_today=tokens_today)
    assert asked == [limited.id]
    meter = live(ring, token).meter
    # START is noon.
    assert meter.admit(desk.clock.monotonic()) == 43200
    desk.store.set_setting("default_model", "acme/small")
    ring.refresh()
    assert asked == [limited.id]
    desk.clock.jump(43200 - 60)
    ring.refresh()
    assert meter.admit(desk.clock.monotonic()) == 60


# --- accounts that are out -------------------------------------------------------------------


def test_a_logged_out_account_stays_a_place_so_that_one_can_be_told_to_log_in(desk: Desk) -> None:
    _, token = desk.issue(ACME)
    ring = desk.ring()
    found = live(ring, token)
    desk.store.delete(ACME)
    assert ring.refresh() == []
    assert ring.resolve(token) is found
    assert found.client.grants[0].off_limits != ()


def test_one_whose_address_only_a_login_knows_disables_its_key_until_then(desk: Desk) -> None:
    desk.log_in(TENANTED, hosts=("a.tenanted.example",))
    _, token = desk.issue(TENANTED)
    _, other = desk.issue(ACME)
    ring = desk.ring()
    found = live(ring, token)
    desk.store.delete(TENANTED)
    assert ring.refresh() == [found]
    assert ring.resolve(token) is None
    assert ring.resolve(other) is not None
    assert "tenanted@default is logged out" in ring.why(token)
    assert "run `valetkey login tenanted`" in ring.problems()[found.key.id]
    assert ring.why(token[:-1] + b"x") == UNKNOWN
    desk.log_in(TENANTED, hosts=("a.tenanted.example",))
    ring.refresh()
    assert live(ring, token).meter is found.meter


def test_a_login_that_became_restricted_serves_no_key(desk: Desk) -> None:
    _, token = desk.issue(ACME)
    ring = desk.ring()
    desk.log_in(ACME, restricted=True)
    assert len(ring.refresh()) == 1
    assert ring.resolve(token) is None
    assert "restricted login" in ring.why(token)


def test_a_declaration_that_became_restricted_serves_no_key(desk: Desk) -> None:
    _, token = desk.issue(ACME)
    restricted = AuthMethod(id="api-key", kind="api-key", standing="restricted")
    desk.known = (provider("acme", restricted),)
    ring = desk.ring()
    assert ring.resolve(token) is None
    assert "restricted login" in ring.why(token)


def test_a_server_without_a_key_is_where_the_environment_says(desk: Desk) -> None:
    _, token = desk.issue(NEARBY)
    (grant,) = live(desk.ring(), token).client.grants
    assert (grant.base_url, grant.hosts) == ("http://127.0.0.1:11434/v1", ("127.0.0.1:11434",))


# --- what is broken --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("no provider", "there is no provider 'acme'"),
        ("no method", "acme has no login 'api-key' any more"),
        ("off limits", "off_limits of acme cannot be matched"),
        ("record", "the record is damaged"),
        ("key", "cannot be read"),
    ],
)
def test_what_is_broken_disables_only_its_key(broken: str, told: str) -> None:
    store = TroubledStore(clock=Desk().clock)
    desk = Desk(store=store)
    desk.log_in(ZENITH)
    key, token = desk.issue(ACME, ZENITH)
    _, other = desk.issue(ZENITH)
    _, none_needed = desk.issue(NEARBY)
    others = tuple(one for one in providers() if one.id != "acme")
    match broken:
        case "no provider":
            desk.known = others
        case "no method":
            desk.known = (*others, provider("acme", AuthMethod(id="other", kind="api-key")))
        case "off limits":
            desk.known = (*others, provider("acme", off_limits=("GET /a**b**c",)))
        case "record":
            store.of_account = RecordDamaged("the record is damaged", hint="log in again")
        case "key":
            store.put_document(Document(kind="valet-key", id=key.id, title="", body="{}", updated_at=key.created_at))
    ring = desk.ring()
    assert ring.resolve(token) is None
    assert ring.resolve(other) is not None
    assert ring.resolve(none_needed) is not None
    assert list(ring.problems()) == [key.id]
    assert told in ring.problems()[key.id]
    assert ring.failed is None


def test_a_policy_that_cannot_be_read_any_more_disables_only_its_key(desk: Desk) -> None:
    key, token = desk.issue(policy='default = "deny"\n', name="p")
    _, other = desk.issue()
    document = desk.store.document("valet-key", key.id)
    assert document is not None
    body = document.body.replace("default = ", "unknown = ")
    desk.store.put_document(Document(kind="valet-key", id=key.id, title="p", body=body, updated_at=key.created_at))
    ring = desk.ring()
    assert ring.resolve(token) is None
    assert "policy.toml:1: unknown key" in ring.why(token)
    assert ring.resolve(other) is not None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (GatewayFailed("the trace cannot be read", hint="look at its mode"), "cannot be read; look at its mode"),
        (sqlite3.OperationalError("no such table: " + "x" * 20), "something went wrong inside Valetkey: Operation"),
    ],
    ids=["foreseen", "unforeseen"],
)
def test_a_count_of_today_that_cannot_be_had_disables_only_its_key(desk: Desk, error: Exception, told: str) -> None:
    def tokens_today(_: str) -> int:
        raise error

    _, token = desk.issue(limits=Limits(tokens_per_day=5))
    _, other = desk.issue()
    ring = desk.ring(tokens_today=tokens_today)
    assert ring.resolve(token) is None
    assert told in ring.why(token)
    assert ring.resolve(other) is not None


@pytest.mark.parametrize("where", ["documents", "accounts"])
def test_while_the_store_is_locked_no_key_counts_and_no_count_is_lost(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = TroubledStore(clock=Desk().clock)
    desk = Desk(store=store)
    _, token = desk.issue(limits=Limits(requests_per_minute=1))
    ring = desk.ring()
    found = live(ring, token)
    assert found.meter.admit(desk.clock.monotonic()) is None
    locked = StoreLocked("the keychain is locked", hint="unlock it")
    if where == "documents":
        store.trouble = locked
    else:
        store.of_account = locked
    with caplog.at_level(logging.ERROR):
        assert ring.refresh() == [found]
        assert ring.refresh() == []
    assert found.ended is True
    assert ring.resolve(token) is None
    assert ring.failed is locked
    assert ring.why(token) == "the store cannot be read, so no valet key counts"
    assert [record.getMessage() for record in caplog.records] == [
        "no valet key counts: the keychain is locked; unlock it"
    ]
    store.trouble = store.of_account = None
    assert ring.refresh() == []
    assert ring.failed is None
    again = live(ring, token)
    assert again is not found
    assert again.ended is False
    assert again.meter is found.meter
    assert again.meter.admit(desk.clock.monotonic()) == 60


def test_a_store_that_failed_is_tried_again_now_and_then_and_when_it_changed(desk: Desk) -> None:
    store = TroubledStore(clock=desk.clock)
    desk.store = store
    desk.issue()
    ring = desk.ring()
    store.trouble = StoreLocked("the keychain is locked", hint="unlock it")
    ring.refresh()
    assert ring.changed() is False
    desk.clock.advance(4)
    assert ring.changed() is False
    desk.clock.advance(1)
    assert ring.changed() is True
    ring.refresh()
    assert ring.changed() is False
    store.set_setting("default_model", "acme/small")
    assert ring.changed() is True


def test_a_watch_that_fails_is_a_change_once(desk: Desk, home: Path) -> None:
    desk.store = opened(home)
    key, token = desk.issue()
    ring = desk.ring()
    home.chmod(0o755)
    for path in home.glob("valetkey.db*"):
        path.rename(home / f"{path.name}.aside")
    assert ring.changed() is True
    assert [gone.key for gone in ring.refresh()] == [key]
    assert ring.resolve(token) is None
    assert ring.failed is not None
    assert ring.changed() is False
    home.chmod(0o700)
    for path in home.glob("*.aside"):
        path.rename(path.with_suffix(""))
    desk.clock.advance(5)
    assert ring.changed() is True
    ring.refresh()
    assert ring.resolve(token) is not None


def test_a_store_that_is_busy_is_no_reason_to_let_anybody_in(desk: Desk) -> None:
    store = TroubledStore(clock=desk.clock)
    desk.store = store
    _, token = desk.issue()
    ring = desk.ring()
    store.trouble = StoreUnwritable("the disk failed", hint="check it")
    ring.refresh()
    assert ring.resolve(token) is None


def test_a_key_is_shown_without_its_hash(desk: Desk) -> None:
    key, token = desk.issue()
    assert isinstance(key, ValetKey)
    assert repr(key.digest) not in repr(live(desk.ring(), token).key)
