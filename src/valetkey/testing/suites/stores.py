"""What every store promises."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta, timezone

import pytest

from valetkey.credential import (
    Ambient,
    ApiKey,
    Credential,
    CredentialRef,
    ExchangedKey,
    Fields,
    Health,
    Identity,
    OAuthToken,
    Secret,
)
from valetkey.errors import GenerationConflict, InvalidName, NotLoggedIn
from valetkey.store import Document, Intent, Record, Retry, Store
from valetkey.testing.clock import START, FakeClock

__all__ = ["Reopen", "StoreSuite"]

Reopen = Callable[[], Store]
REF = CredentialRef(provider="acme")
WORK = CredentialRef(provider="acme", account="work")
OTHER = CredentialRef(provider="zenith", account="a.b+c-d_1")
NOW = START


def _token(refresh: str = "r" * 20) -> OAuthToken:
    return OAuthToken(
        method="device",
        access_token=Secret("at-" + "a" * 30),
        refresh_token=Secret(refresh),
        id_token=Secret("id." * 9),
        issued_at=NOW,
        expires_at=NOW + timedelta(hours=1),
        scope=("read", "write"),
        parameters={"domain": "example.org"},
    )


CREDENTIALS: list[Credential] = [
    ApiKey(method="api-key", key=Secret("sk-" + "x" * 40)),
    ApiKey(method="api-key", key=Secret(""), parameters={"ä": "ö|\x00"}),
    ApiKey(method="api-key", key=Secret("k" * 1_000_000)),
    _token(),
    replace(_token(), refresh_token=None, id_token=None, expires_at=None, scope=()),
    ExchangedKey(
        method="device",
        key=Secret("bought-" + "k" * 20),
        grant=_token(),
        issued_at=NOW,
        expires_at=NOW + timedelta(minutes=30),
        refresh_at=NOW + timedelta(minutes=20),
        base_url="https://api.example.org",
    ),
    ExchangedKey(method="device", key=Secret("k"), grant=_token(), issued_at=NOW),
    Fields(method="keys", values={"access_key_id": Secret("AKIA" + "Z" * 16), "secret": Secret("s" * 40)}),
    Fields(method="keys", values={}),
    Ambient(method="gh", parameters={"host": "example.org"}),
]


def _changes(ref: CredentialRef) -> list[tuple[str, Callable[[Store], object]]]:
    record = Record(ref=ref, credential=CREDENTIALS[0])
    document = Document(kind="valet-key", id="1", title="t", body="{}", updated_at=NOW)
    intent = Intent(generation=1, started_at=NOW, refresh_token_hash="00")
    return [
        ("save", lambda store: store.save(record)),
        ("mark", lambda store: store.mark(ref, generation=1, health=Health.NEEDS_LOGIN)),
        ("begin_intent", lambda store: store.begin_intent(ref, intent)),
        ("clear_intent", lambda store: store.clear_intent(ref, generation=1)),
        ("set_default_account", lambda store: store.set_default_account(ref)),
        ("set_setting", lambda store: store.set_setting("default_model", "acme/small")),
        ("put_document", lambda store: store.put_document(document)),
        ("delete_document", lambda store: store.delete_document("valet-key", "1")),
        ("delete", lambda store: store.delete(ref)),
    ]


class StoreSuite:
    """Subclass it with a fixture `reopen`, which takes `valetkey_clock` and gives a function that opens the store.

    Each call opens the same store again, as the next process would, with that clock; a store that lives in this process
    gives the same object again.
    """

    @pytest.fixture
    def store(self, reopen: Reopen) -> Store:
        """Give the store, opened."""
        return reopen()

    @pytest.mark.parametrize("credential", CREDENTIALS, ids=lambda c: type(c).__name__)
    def test_what_is_saved_is_loaded_by_the_next_process(self, reopen: Reopen, credential: Credential) -> None:
        record = Record(
            ref=WORK,
            credential=credential,
            identity=Identity(account_id="7", name="Ä. Muster", email="a@example.org", plan="pro"),
            hosts=("api.example.org", "*.example.net"),
            endpoints=("login.example.org",),
            base_url="https://api.example.org/v1",
            restricted=True,
            health=Health.EXPIRING,
            reason="soon",
        )
        saved = reopen().save(record)
        assert saved == replace(record, generation=1, created_at=NOW, updated_at=NOW)
        assert reopen().load(WORK) == saved

    def test_what_is_no_character_does_no_harm(self, store: Store) -> None:
        key = Secret("sk-" + "\ud800" * 20)
        store.save(Record(ref=REF, credential=ApiKey(method="api-key", key=key), identity=Identity(name="\ud800")))
        record = store.load(REF)
        assert record is not None
        assert record.credential == ApiKey(method="api-key", key=key)

    def test_an_account_that_is_not_there_is_none(self, store: Store) -> None:
        assert store.load(REF) is None
        assert store.account(REF) is None
        assert store.default_account("acme") is None
        assert store.accounts() == []
        assert store.delete(REF) is False
        with pytest.raises(NotLoggedIn):
            store.set_default_account(REF)

    def test_what_an_ambient_source_gave_is_not_kept(self, store: Store) -> None:
        given = Ambient(method="gh", values={"access_token": Secret("gho" * 9)}, issued_at=NOW, expires_at=NOW)
        store.save(Record(ref=REF, credential=given))
        record, account = store.load(REF), store.account(REF)
        assert record is not None
        assert account is not None
        assert isinstance(record.credential, Ambient)
        assert (record.credential.values, record.credential.issued_at, record.credential.expires_at) == ({}, None, None)
        assert (account.hint, account.issued_at, account.expires_at) == ("", None, None)

    def test_a_record_remembers_when_it_was_made_and_when_it_was_renewed(
        self, store: Store, valetkey_clock: FakeClock
    ) -> None:
        first = store.save(Record(ref=REF, credential=_token()))
        valetkey_clock.advance(60)
        second = store.save(first)
        assert (second.created_at, second.updated_at, second.generation) == (NOW, NOW + timedelta(minutes=1), 2)

    def test_times_of_another_zone_are_the_same_moments(self, store: Store) -> None:
        zone = timezone(timedelta(hours=2))
        store.save(Record(ref=REF, credential=replace(_token(), issued_at=NOW.astimezone(zone))))
        record = store.load(REF)
        assert record is not None
        assert isinstance(record.credential, OAuthToken)
        assert record.credential.issued_at == NOW

    def test_an_older_generation_never_lands_on_a_newer_one(self, store: Store) -> None:
        first = store.save(Record(ref=REF, credential=_token("first" * 4)))
        second = store.save(replace(first, credential=_token("second" * 4)))
        for stale in (first, replace(first, generation=0), replace(first, generation=3), replace(first, generation=-1)):
            with pytest.raises(GenerationConflict):
                store.save(stale)
        assert store.load(REF) == second

    def test_a_writer_from_before_a_logout_never_lands_on_the_next_login(self, store: Store) -> None:
        before = store.save(Record(ref=REF, credential=_token("old" * 6)))
        assert store.delete(REF)
        with pytest.raises(GenerationConflict):
            store.save(before)
        after = store.save(Record(ref=REF, credential=_token("new" * 6)))
        assert after.generation > before.generation
        with pytest.raises(GenerationConflict):
            store.save(before)
        assert store.mark(REF, generation=before.generation, health=Health.NEEDS_LOGIN) is False
        assert store.load(REF) == after

    def test_a_new_login_replaces_by_the_public_generation(self, store: Store) -> None:
        store.save(Record(ref=REF, credential=_token()))
        account = store.account(REF)
        assert account is not None
        key = ApiKey(method="api-key", key=Secret("n" * 20))
        store.save(Record(ref=REF, credential=key, generation=account.generation))
        record = store.load(REF)
        assert record is not None
        assert record.credential == key

    def test_health_and_retry_are_marked_on_the_newest_generation_only(self, store: Store) -> None:
        saved = store.save(Record(ref=REF, credential=_token()))
        retry = Retry(failures=3, not_before=NOW + timedelta(seconds=8))
        assert store.mark(REF, generation=1, health=Health.UNREACHABLE, reason="no answer", retry=retry)
        assert store.load(REF) == replace(saved, health=Health.UNREACHABLE, reason="no answer", retry=retry)
        account = store.account(REF)
        assert account is not None
        assert (account.health, account.reason, account.generation) == (Health.UNREACHABLE, "no answer", 1)
        assert store.mark(REF, generation=2, health=Health.OK) is False
        assert store.mark(WORK, generation=1, health=Health.OK) is False
        assert store.mark(REF, generation=1, health=Health.OK)
        assert store.load(REF) == saved

    def test_saving_clears_intent_and_retry(self, store: Store) -> None:
        saved = store.save(Record(ref=REF, credential=_token()))
        store.mark(REF, generation=1, health=Health.UNREACHABLE, retry=Retry(failures=1, not_before=NOW))
        store.begin_intent(REF, Intent(generation=1, started_at=NOW, refresh_token_hash="ab" * 32))
        store.save(replace(saved, retry=Retry(failures=9, not_before=NOW)))
        record = store.load(REF)
        assert record is not None
        assert record.retry is None
        assert store.intent(REF) is None

    def test_an_intent_is_there_until_it_is_cleared_for_its_generation(self, reopen: Reopen) -> None:
        intent = Intent(generation=4, started_at=NOW, refresh_token_hash="cd" * 32)
        store = reopen()
        assert store.intent(REF) is None
        store.begin_intent(REF, replace(intent, generation=3))
        store.begin_intent(REF, intent)
        assert reopen().intent(REF) == intent
        store.clear_intent(REF, generation=3)
        assert store.intent(REF) == intent
        store.clear_intent(REF, generation=4)
        assert store.intent(REF) is None

    def test_deleting_takes_intent_and_default_with_it(self, store: Store) -> None:
        store.save(Record(ref=REF, credential=_token()))
        store.begin_intent(REF, Intent(generation=1, started_at=NOW, refresh_token_hash="ab" * 32))
        assert store.delete(REF) is True
        assert store.delete(REF) is False
        assert store.load(REF) is None
        assert store.intent(REF) is None
        assert store.default_account("acme") is None

    def test_the_first_account_is_the_default_until_another_is_chosen(self, store: Store) -> None:
        for ref in (WORK, REF, OTHER):
            store.save(Record(ref=ref, credential=_token()))
        assert (store.default_account("acme"), store.default_account("zenith")) == ("work", OTHER.account)
        store.set_default_account(REF)
        assert store.default_account("acme") == "default"
        assert [account.ref for account in store.accounts() if account.is_default] == [REF, OTHER]
        store.delete(REF)
        assert store.default_account("acme") is None
        store.save(Record(ref=REF, credential=_token()))
        assert store.default_account("acme") == "default"

    def test_accounts_come_in_pages_in_order(self, store: Store) -> None:
        refs = [
            CredentialRef(provider=p, account=a) for p in ("a", "a-b", "b") for a in ("A", "_", "a", "a.b", "default")
        ]
        for ref in reversed(refs):
            store.save(Record(ref=ref, credential=ApiKey(method="api-key", key=Secret("k" * 20))))
        assert [account.ref for account in store.accounts()] == sorted(refs)
        paged: list[CredentialRef] = []
        while page := store.accounts(after=paged[-1] if paged else None, limit=4):
            assert len(page) <= 4
            paged += [account.ref for account in page]
        assert paged == sorted(refs)
        assert [account.ref for account in store.accounts(provider="a-b", after=refs[6])] == refs[7:10]
        assert store.accounts(provider="nobody") == []
        assert store.accounts(limit=0) == []

    def test_the_public_columns_tell_the_end_of_a_key_and_nothing_of_a_token(self, store: Store) -> None:
        store.save(Record(ref=REF, credential=ApiKey(method="api-key", key=Secret("k" * 20 + "wxyz"))))
        store.save(Record(ref=OTHER, credential=replace(_token(), access_token=Secret("a" * 20 + "wxyz"))))
        # A token's end would be another after each renewal, and tell nobody who it is.
        assert {account.ref: account.hint for account in store.accounts()} == {REF: "wxyz", OTHER: ""}

    def test_the_public_columns_tell_the_kind_and_the_times(self, store: Store) -> None:
        credential = _token()
        store.save(Record(ref=REF, credential=credential, identity=Identity(plan="pro")))
        (account,) = store.accounts()
        assert (account.kind, account.method) == ("oauth-token", "device")
        assert (account.issued_at, account.expires_at) == (credential.issued_at, credential.expires_at)
        assert (account.identity, account.health, account.created_at) == (Identity(plan="pro"), Health.OK, NOW)
        assert account == store.account(REF)

    @pytest.mark.parametrize("name", ["acme@default", "", "../../etc/passwd", "a/b", "nul\x00", "ü" * 10_000, "\ud800"])
    def test_a_lock_excludes_all_others_until_it_is_released(self, reopen: Reopen, name: str) -> None:
        first, second = reopen(), reopen()
        lock = first.try_lock(name)
        assert lock is not None
        assert first.try_lock(name) is None
        assert second.try_lock(name) is None
        other = second.try_lock(name + "x")
        assert other is not None
        lock.release()
        again = second.try_lock(name)
        assert again is not None
        lock.release()
        assert first.try_lock(name) is None
        again.release()
        other.release()

    def test_a_lock_excludes_threads(self, store: Store) -> None:
        held: list[int] = []
        most: list[int] = []

        def work() -> None:
            for _ in range(30):
                while (lock := store.try_lock("one")) is None:
                    os.sched_yield()
                held.append(1)
                most.append(len(held))
                held.pop()
                lock.release()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1
        assert len(most) == 120

    def test_threads_that_count_by_compare_and_swap_lose_nothing(self, store: Store) -> None:
        store.save(Record(ref=REF, credential=ApiKey(method="api-key", key=Secret("0"))))

        def count() -> None:
            done = 0
            while done < 10:
                record = store.load(REF)
                assert record is not None
                assert isinstance(record.credential, ApiKey)
                key = Secret(str(int(record.credential.key.reveal()) + 1))
                try:
                    store.save(replace(record, credential=replace(record.credential, key=key)))
                except GenerationConflict:
                    continue
                done += 1

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        record = store.load(REF)
        assert record is not None
        assert record.credential == ApiKey(method="api-key", key=Secret("40"))
        assert record.generation == 41

    def test_settings_are_kept_until_they_are_removed(self, reopen: Reopen) -> None:
        store = reopen()
        assert store.setting("default_model") is None
        store.set_setting("default_model", "acme/small")
        store.set_setting("default_model", "acme/large")
        assert reopen().setting("default_model") == "acme/large"
        store.set_setting("default_model", None)
        store.set_setting("default_model", None)
        assert store.setting("default_model") is None

    def test_documents_are_kept_and_listed_newest_first(self, reopen: Reopen) -> None:
        store = reopen()
        old = Document(kind="conversation", id="a@b/c", title="Ä first", body="{}", updated_at=NOW)
        new = Document(
            kind="conversation", id="2", title="second", body="x" * 100_000, updated_at=NOW + timedelta(days=1)
        )
        for document in (old, new, replace(old, kind="models", title="elsewhere")):
            store.put_document(document)
        other = reopen()
        assert other.document("conversation", "a@b/c") == old
        assert other.document("conversation", "2") == new
        assert other.document("conversation", "3") is None
        assert other.documents("conversation") == [("2", "second", new.updated_at), ("a@b/c", "Ä first", NOW)]
        assert other.documents("conversation", limit=1) == [("2", "second", new.updated_at)]
        newest = replace(old, body="[]", title="again", updated_at=NOW + timedelta(days=2))
        store.put_document(newest)
        assert store.document("conversation", "a@b/c") == newest
        assert [name for name, _, _ in store.documents("conversation")] == ["a@b/c", "2"]
        assert store.delete_document("conversation", "2") is True
        assert store.delete_document("conversation", "2") is False
        assert store.documents("models") == [("a@b/c", "elsewhere", NOW)]

    def test_a_watch_sees_each_change_by_itself_and_by_others_once(self, reopen: Reopen) -> None:
        mine, other = reopen(), reopen()
        mine.save(Record(ref=REF, credential=CREDENTIALS[0]))
        watch = mine.watch()
        seen = watch()
        for store, ref in ((mine, WORK), (other, OTHER)):
            for name, change in _changes(ref):
                change(store)
                assert watch(thorough=False) != seen, name
                seen = watch()
                assert watch() == watch(thorough=False) == seen, name

    def test_reading_is_no_change_and_two_watches_are_apart(self, reopen: Reopen) -> None:
        store = reopen()
        store.save(Record(ref=REF, credential=CREDENTIALS[0]))
        first, second = store.watch(), reopen().watch()
        seen = first(), second()
        store.load(REF), store.accounts(), store.documents("valet-key"), store.setting("default_model")
        assert (first(), second()) == seen
        store.set_setting("default_model", "acme/small")
        assert first() != seen[0]
        assert second() != seen[1]

    @pytest.mark.parametrize(
        ("kind", "id"),
        [("", "a"), ("A", "a"), ("a|b", "a"), ("a", ""), ("a", "b|c"), ("a", "\x00"), ("a", "x" * 10_000)],
    )
    def test_names_of_documents_that_could_be_mistaken_are_refused(self, store: Store, kind: str, id: str) -> None:
        with pytest.raises(InvalidName):
            store.put_document(Document(kind=kind, id=id, title="", body="", updated_at=NOW))
        with pytest.raises(InvalidName):
            store.document(kind, id)
