"""What is wrong with a declaration, and at which key; the reader adds file and line."""

from __future__ import annotations

__all__ = ["Fault", "Key"]

# Names of tables and keys, and positions in lists: ("auth", 1, "token_endpoint").
Key = tuple[str | int, ...]


class Fault(Exception):  # never leaves providers/: the reader turns it into InvalidProvider
    """`message` goes on after the key ("is missing"); `hint` says what to write instead."""

    def __init__(self, key: Key, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message
        self.hint = hint
