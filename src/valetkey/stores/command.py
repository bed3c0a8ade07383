"""A command as key source: a KMS, a password manager, anything that prints a secret."""

from __future__ import annotations

import binascii
import hashlib
import subprocess
from collections.abc import Sequence
from typing import Literal

from valetkey.errors import StoreLocked
from valetkey.stores.seal import KEY_BYTES, unwrap, wrap

__all__ = ["Command"]

_LIMIT_SECONDS = 20.0
# Text that is no 256-bit key is hashed to one; the prefix keeps it apart from other uses of the same text.
_CONTEXT = b"valetkey key command 1\x00"


class Command:
    """A KeySource: what the command prints is the key; run again in each process that opens the store.

    32 bytes in base64 are taken as they are. Any other text, without the white space around it, is hashed by SHA-256:
    it has to be random, because nothing slows down guessing it. Its stderr is the user's.
    """

    kind: Literal["command"] = "command"

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)

    def notice(self) -> str:
        """Say nothing: this is what it was chosen for."""
        return ""

    def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key."""
        return wrap(self._key(), data_key, key_id)

    def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open one."""
        return unwrap(self._key(), wrapped, key_id)

    def renew(self) -> None:
        """Do nothing: the key is the command's own affair."""

    def retire(self) -> None:
        """Do nothing: the key is the command's own affair."""

    def discard(self) -> None:
        """Do nothing: the key is the command's own affair."""

    def _key(self) -> bytes:
        if not self._argv:
            raise StoreLocked(
                "the store's key comes from a command, and none is set",
                hint="set `store.key_command` in config.toml to the command that prints the key",
            )
        name = self._argv[0]
        try:
            done = subprocess.run(  # noqa: S603 - the user's own words, without a shell
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_LIMIT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise _locked(name, f"did not end within {_LIMIT_SECONDS:.0f} s") from None  # its cause holds the output
        except (OSError, ValueError) as error:
            raise _locked(name, "cannot be started") from error
        if done.returncode != 0:
            raise _locked(name, f"ended with status {done.returncode}")
        text = done.stdout.strip()
        if not text:
            raise _locked(name, "printed nothing")
        return _key_of(text)


def _key_of(text: bytes) -> bytes:
    try:
        key = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        key = b""
    return key if len(key) == KEY_BYTES else hashlib.sha256(_CONTEXT + text).digest()


def _locked(name: str, what: str) -> StoreLocked:
    return StoreLocked(f"the key command {name!r} {what}", hint="run it by hand, log in to what it asks, and try again")
