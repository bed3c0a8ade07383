"""What is typed on a terminal: keys, one by one."""

from __future__ import annotations

import pytest

from valetkey.cli.menu import Entry, Place, moved
from valetkey.cli.terminal import split


@pytest.mark.parametrize(
    ("read", "keys"),
    [
        ("3", ["3"]),
        ("33\r", ["3", "3", "\r"]),  # a paste, or a fast typist
        ("\x1b[A", ["\x1b[A"]),
        ("\x1b", ["\x1b"]),
        ("\x10", ["\x10"]),
        ("openai\r", [*"openai", "\r"]),
    ],
)
def test_what_one_read_brings_is_taken_key_by_key(read: str, keys: list[str]) -> None:
    assert split(read) == keys


def at(*keys: str) -> int:
    place = Place()
    for key in keys:
        place = moved(ENTRIES, place, key)
    return place.at


ENTRIES = [Entry(id=f"id-{n}", label=name) for n, name in enumerate(["Alpha", "Beta", "Gamma", *"hijklmnopqrst"])]


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (["\x1b[B"], 1),
        (["\x1b[A"], len(ENTRIES) - 1),
        (["3"], 2),
        (["1", "2"], 11),
        (["1", "2", "\x7f"], 0),
        (["9", "9"], 8),
        (["g", "a"], 2),
        (["g", "b"], 1),
        (["\x00"], 0),
        (["0"], 0),
    ],
)
def test_keys_lead_through_the_list(keys: list[str], place: int) -> None:
    assert at(*keys) == place
