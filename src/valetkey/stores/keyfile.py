"""The key file: the keys that open the store, newest first, where nothing better is to be had.

This module is on the path of `valetkey token`: it imports next to nothing.
"""

import binascii
import os

from valetkey.errors import StoreLocked, WrongKey
from valetkey.stores import modes
from valetkey.stores.seal import KEY_BYTES, new_key, unwrap, wrap

TYPE_CHECKING = False  # as in typing, which costs milliseconds
if TYPE_CHECKING:
    from typing import Literal

__all__ = ["KeyFile", "as_text", "from_text", "read_keys", "unwrap_with", "write_keys"]

_HEAD = "# Valetkey store key. Whoever has this file and valetkey.db has your credentials.\n"
_MAX_BYTES = 1 << 16
# Each `rekey` that was killed leaves one more until the next that ends.
MAX_KEYS = 100


def read_keys(path: str) -> list[bytes]:
    """Give its keys, newest first. Raises: StoreLocked when it is missing, WrongMode, WrongKey for another content."""
    if not modes.check_file(path):
        raise StoreLocked(
            f"the key file {path} is missing",
            hint="bring it back, or run `valetkey store restore --force` with a backup",
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            return from_text(file.read(_MAX_BYTES).decode("ascii"))
    except OSError as error:
        raise StoreLocked(f"the key file {path} cannot be read", hint="check the disk and its permissions") from error
    except ValueError as error:
        raise WrongKey(
            f"{path} is not a Valetkey key file",
            hint="bring the right one back, or move it away and run `valetkey store restore --force` with a backup",
        ) from error


def write_keys(path: str, keys: list[bytes]) -> None:
    """Put these keys in place of what is there, atomically, 0600, durable on return."""
    fresh = f"{path}.new"
    if os.path.lexists(fresh):
        os.unlink(fresh)  # left by a writer that was killed; nothing has used it yet
    modes.create_file(fresh, (_HEAD + as_text(keys)).encode())
    os.replace(fresh, path)
    modes.sync_folder(os.path.dirname(path))


def as_text(keys: list[bytes]) -> str:
    """Give keys as lines of base64."""
    return "".join(binascii.b2a_base64(key).decode() for key in keys)


def from_text(text: str) -> list[bytes]:
    """Read lines of base64. Raises: ValueError when there is no key, or something that is none."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    keys = [binascii.a2b_base64(line.encode("ascii"), strict_mode=True) for line in lines]
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise ValueError("no key, or one of another length")
    return keys


def unwrap_with(keys: list[bytes], wrapped: bytes, key_id: str) -> bytes:
    """Open a data key with whichever of the keys fits. Raises: WrongKey."""
    for key in keys[:-1]:
        try:
            return unwrap(key, wrapped, key_id)
        except WrongKey:
            continue
    return unwrap(keys[-1], wrapped, key_id)


class KeyFile:
    """A KeySource: a file of mode 0600 beside the database. It keeps out other users, and nobody who is this one."""

    kind: "Literal['key-file']" = "key-file"

    def __init__(self, path: str) -> None:
        self._path = path

    def notice(self) -> str:
        """Say that the key lies beside what it opens."""
        return f"the store's key lies in the file {self._path}: whoever can read your files can read your credentials"

    def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key under the newest key; makes the file where it is missing."""
        if not modes.check_file(self._path):
            write_keys(self._path, [new_key()])
        return wrap(read_keys(self._path)[0], data_key, key_id)

    def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open one."""
        return unwrap_with(read_keys(self._path), wrapped, key_id)

    def renew(self) -> None:
        """Put a new key before the old one."""
        write_keys(self._path, [new_key(), *read_keys(self._path)][:MAX_KEYS])

    def retire(self) -> None:
        """Keep the newest only."""
        write_keys(self._path, read_keys(self._path)[:1])

    def discard(self) -> None:
        """Remove the file."""
        if modes.check_file(self._path):
            os.unlink(self._path)
            modes.sync_folder(os.path.dirname(self._path))
