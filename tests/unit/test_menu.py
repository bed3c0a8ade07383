"""The list to choose from: where keys lead."""

from __future__ import annotations

import pytest

from valetkey.cli.menu import split


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
