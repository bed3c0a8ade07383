"""Sealing: what was sealed opens, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.errors import RecordDamaged, WrongKey
from valetkey.stores.seal import KEY_BYTES, associated_data, new_key, seal, unseal, unwrap, wrap

BOUND = associated_data("account", "acme", "default", 7, "ab12")


@given(plaintext=st.binary(max_size=500), bound=st.binary(max_size=50))
def test_what_was_sealed_opens(plaintext: bytes, bound: bytes) -> None:
    key = new_key()
    assert unseal(key, seal(key, plaintext, bound), bound) == plaintext


def test_the_associated_data_is_table_provider_account_generation_and_key_id() -> None:
    assert BOUND == b"account|acme|default|7|ab12"


@pytest.mark.parametrize("part", range(5))
def test_a_name_cannot_pass_for_two(part: int) -> None:
    names: list[str] = ["t", "p", "a", "k"]
    if part < 4:
        names[part] = "x|y"
        with pytest.raises(RecordDamaged):
            associated_data(names[0], names[1], names[2], 1, names[3])


def test_any_flipped_bit_is_seen() -> None:
    key = new_key()
    sealed = seal(key, b"the secret", BOUND)
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordDamaged):
            unseal(key, bytes(flipped), BOUND)


def test_any_cut_is_seen() -> None:
    key = new_key()
    sealed = seal(key, b"the secret", BOUND)
    for end in range(len(sealed)):
        with pytest.raises(RecordDamaged):
            unseal(key, sealed[:end], BOUND)
    with pytest.raises(RecordDamaged):
        unseal(key, sealed + b"\x00", BOUND)


@pytest.mark.parametrize(
    "other",
    [
        associated_data("document-body", "acme", "default", 7, "ab12"),
        associated_data("account", "acme2", "default", 7, "ab12"),
        associated_data("account", "acme", "work", 7, "ab12"),
        associated_data("account", "acme", "default", 8, "ab12"),
        associated_data("account", "acme", "default", 7, "ab13"),
    ],
)
def test_a_record_opens_under_no_other_label(other: bytes) -> None:
    key = new_key()
    with pytest.raises(RecordDamaged):
        unseal(key, seal(key, b"the secret", BOUND), other)


def test_the_same_text_is_never_sealed_the_same_way() -> None:
    key = new_key()
    assert len({seal(key, b"the secret", BOUND) for _ in range(100)}) == 100


def test_a_data_key_opens_only_with_its_key_and_under_its_id() -> None:
    outer, data_key = new_key(), new_key()
    wrapped = wrap(outer, data_key, "ab12")
    assert unwrap(outer, wrapped, "ab12") == data_key
    assert len(data_key) == KEY_BYTES
    with pytest.raises(WrongKey):
        unwrap(new_key(), wrapped, "ab12")
    with pytest.raises(WrongKey):
        unwrap(outer, wrapped, "ab13")


def test_errors_do_not_carry_what_was_sealed() -> None:
    key = new_key()
    sealed = seal(key, b"canary-" * 5, BOUND)
    with pytest.raises(RecordDamaged) as caught:
        unseal(key, sealed[:-1], BOUND)
    assert "canary" not in repr(caught.value) + caught.value.message + caught.value.hint
