"""A process that forgets the store's key on demand, and gets it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stored import fill, opened, ref, whole
from valetkey.credential import Secret
from valetkey.errors import StoreLocked, WrongKey
from valetkey.stores.keyfile import KeyFile
from valetkey.stores.passphrase import Passphrase
from valetkey.stores.rekey import rekey
from valetkey.stores.sqlite import SqliteStore

RIGHT = Secret("a passphrase of some length")


def asked_in_vain() -> Secret:
    raise StoreLocked("nobody is here to be asked", hint="run `valetkey unlock`")


def with_passphrase(home: Path) -> SqliteStore:
    """Give a store that somebody made with a passphrase, as another process finds it."""
    maker = opened(home, Passphrase(lambda: RIGHT, log_n=4))
    fill(maker, 2)
    maker.close()
    return opened(home, Passphrase(asked_in_vain, log_n=4))


def test_a_locked_store_opens_nothing_though_its_key_lies_there(home: Path) -> None:
    store = opened(home, KeyFile(str(home / "store.key")))
    fill(store, 2)
    assert store.keys.is_open
    store.keys.lock()
    assert not store.keys.is_open
    for call in (lambda: store.load(ref(0)), store.keys.ready, lambda: store.document("note", "0")):
        with pytest.raises(StoreLocked, match="the store is locked") as caught:
            call()
        assert "valetkey unlock" in caught.value.hint
    with pytest.raises(StoreLocked):
        fill(store, 1)
    # What needs no key is told as ever.
    assert len(store.accounts()) == 2
    store.keys.unlock()
    assert store.keys.is_open
    assert whole(store, 2)


def test_a_locked_store_that_is_empty_makes_no_key(home: Path) -> None:
    store = opened(home)
    assert store.keys.is_open
    store.keys.lock()
    assert not store.keys.is_open
    with pytest.raises(StoreLocked):
        fill(store, 1)
    assert store.source_kind() is None
    store.keys.unlock()
    assert store.source_kind() is None  # the first login makes it
    fill(store, 1)


def test_a_passphrase_that_is_given_opens_it_for_good(home: Path) -> None:
    store = with_passphrase(home)
    assert not store.keys.is_open
    with pytest.raises(StoreLocked):
        store.load(ref(0))
    store.keys.unlock(Passphrase(lambda: RIGHT))
    assert store.keys.is_open
    assert whole(store, 2)


def test_what_another_process_seals_anew_is_opened_with_what_was_given(home: Path) -> None:
    store = with_passphrase(home)
    store.keys.unlock(Passphrase(lambda: RIGHT))
    seal_anew(home)
    assert whole(store, 2)


def seal_anew(home: Path) -> None:
    other = opened(home, Passphrase(lambda: RIGHT, log_n=4))
    rekey(other)
    other.close()


def test_a_wrong_passphrase_leaves_it_locked_and_the_right_one_still_opens_it(home: Path) -> None:
    store = with_passphrase(home)
    with pytest.raises(WrongKey):
        store.keys.unlock(Passphrase(lambda: Secret("another one")))
    with pytest.raises(StoreLocked):
        store.load(ref(0))
    store.keys.unlock(Passphrase(lambda: RIGHT))
    assert whole(store, 2)


def test_a_wrong_passphrase_does_not_lock_what_is_open(home: Path) -> None:
    store = with_passphrase(home)
    store.keys.unlock(Passphrase(lambda: RIGHT))
    store.keys.unlock(Passphrase(lambda: Secret("another one")))
    seal_anew(home)  # what opened it is asked again
    assert whole(store, 2)


def test_locking_forgets_the_passphrase(home: Path) -> None:
    store = with_passphrase(home)
    store.keys.unlock(Passphrase(lambda: RIGHT))
    store.keys.lock()
    with pytest.raises(StoreLocked):
        store.keys.unlock()
    assert not store.keys.is_open
