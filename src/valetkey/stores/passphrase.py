"""A passphrase as key source: its key comes by scrypt (RFC 7914), whose parameters are kept beside what it sealed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from valetkey.credential import Secret
from valetkey.errors import StoreLocked, WrongKey
from valetkey.stores import modes
from valetkey.stores.seal import KEY_BYTES, unwrap, wrap

__all__ = ["LOG_N", "VARIABLE", "Passphrase", "derive", "from_environment"]

# 128 MiB and about half a second for each guess. OWASP's first choice for scrypt.
LOG_N = 17
_R, _P = 8, 1
# Whoever can write the database must not make us take 100 GB.
_MAX_LOG_N = 20
_SALT_BYTES = 16
VARIABLE = "VALETKEY_PASSPHRASE_FILE"


def derive(passphrase: Secret, salt: bytes, log_n: int) -> bytes:
    """Give the key for a passphrase. Raises: WrongKey for a cost that is none."""
    if not 1 <= log_n <= _MAX_LOG_N:
        raise WrongKey("the stored cost of the passphrase is out of bounds", hint="put a backup back")
    return hashlib.scrypt(
        passphrase.reveal().encode("utf-8", "surrogatepass"),
        salt=salt,
        n=1 << log_n,
        r=_R,
        p=_P,
        maxmem=2 * 128 * _R * (1 << log_n),
        dklen=KEY_BYTES,
    )


class Passphrase:
    """A KeySource: nothing on the disk opens the store. Asked once in a process; a wrong one is asked for again."""

    kind: Literal["passphrase"] = "passphrase"

    def __init__(self, ask: Callable[[], Secret], *, log_n: int = LOG_N) -> None:
        self._ask = ask
        self._log_n = log_n
        self._known: Secret | None = None

    def notice(self) -> str:
        """Say nothing: this is what it was chosen for."""
        return ""

    def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key under a key with a new salt."""
        passphrase, salt = self._passphrase(), os.urandom(_SALT_BYTES)
        self._known = passphrase
        return bytes([self._log_n]) + salt + wrap(derive(passphrase, salt, self._log_n), data_key, key_id)

    def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open one."""
        passphrase = self._passphrase()
        try:
            salt = wrapped[1 : 1 + _SALT_BYTES]
            data_key = unwrap(derive(passphrase, salt, wrapped[0]), wrapped[1 + _SALT_BYTES :], key_id)
        except (WrongKey, IndexError, TypeError):
            self._known = None
            raise WrongKey("this passphrase does not open the store", hint="try again") from None
        self._known = passphrase
        return data_key

    def renew(self) -> None:
        """Do nothing: each wrapping takes a new salt and so a new key."""

    def retire(self) -> None:
        """Do nothing: no key is kept."""

    def discard(self) -> None:
        """Forget the passphrase."""
        self._known = None

    def _passphrase(self) -> Secret:
        passphrase = self._known or self._ask()
        if not passphrase:
            raise StoreLocked("the passphrase is empty", hint="type the passphrase of the store")
        return passphrase


def from_environment(environ: Mapping[str, str]) -> Callable[[], Secret]:
    """Give what reads the passphrase from the file that VALETKEY_PASSPHRASE_FILE names (0600; its first line)."""

    def ask() -> Secret:
        path = environ.get(VARIABLE)
        if not path:
            raise StoreLocked(
                "the store is locked by a passphrase",
                hint=f"run this on a terminal, or set {VARIABLE} to a file of mode 0600 that holds it",
            )
        try:
            if not modes.check_file(path):
                raise StoreLocked(f"{path} of {VARIABLE} is missing", hint=f"set {VARIABLE} to a file that is there")
            return Secret(Path(path).read_text(encoding="utf-8").splitlines()[0])
        except (OSError, ValueError, IndexError) as error:
            raise StoreLocked(
                f"{path} of {VARIABLE} holds no passphrase", hint="put the passphrase into its first line"
            ) from error

    return ask
