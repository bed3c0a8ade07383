"""Sealing: AES-256-GCM under a data key, and the data key under a key-encryption key.

A sealed text is one version byte, a random 96-bit nonce, the ciphertext and its 128-bit tag. What it belongs to is its
associated data, so that it opens nowhere else.

This module is on the path of `valetkey token`: it imports next to nothing.
"""

import os

from valetkey.errors import RecordDamaged, WrongKey

try:
    # The public module imports every cipher there is: 20 ms that `valetkey token` does not have.
    from cryptography.hazmat.bindings._rust import openssl

    AESGCM = openssl.aead.AESGCM
except (ImportError, AttributeError):  # pragma: no cover - another version of cryptography
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KEY_BYTES", "associated_data", "new_key", "seal", "unseal", "unwrap", "wrap"]

KEY_BYTES = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12  # NIST SP 800-38D section 8.2.2: a random nonce, for at most 2^32 records under one key
_TAG_BYTES = 16


def new_key() -> bytes:
    """Give 256 random bits."""
    return os.urandom(KEY_BYTES)


def associated_data(table: str, provider: str, account: str, generation: int, key_id: str) -> bytes:
    """Give what a record is bound to: `table|provider|account|generation|key id`.

    Raises: RecordDamaged when a part holds a `|`: no name may, so somebody wrote in the database.
    """
    parts = [str(part) for part in (table, provider, account, generation, key_id)]
    if any("|" in part for part in parts):
        raise _damaged()
    return "|".join(parts).encode()


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Seal it under a data key."""
    nonce = os.urandom(_NONCE_BYTES)
    sealed: bytes = AESGCM(key).encrypt(nonce, plaintext, _VERSION + associated)
    return _VERSION + nonce + sealed


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Open it. Raises: RecordDamaged when one bit of it, or what it belongs to, is another than at sealing."""
    # A damaged database may give any type.
    if isinstance(sealed, bytes) and sealed[:1] == _VERSION and len(sealed) >= 1 + _NONCE_BYTES + _TAG_BYTES:
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            plaintext: bytes = AESGCM(key).decrypt(nonce, body, _VERSION + associated)
        except Exception as error:
            if type(error).__name__ != "InvalidTag":  # its module would cost an import
                raise
        else:
            return plaintext
    raise _damaged()


def wrap(key_encryption_key: bytes, data_key: bytes, key_id: str) -> bytes:
    """Seal a data key, bound to its id."""
    return seal(key_encryption_key, data_key, _wrapping(key_id))


def unwrap(key_encryption_key: bytes, wrapped: bytes, key_id: str) -> bytes:
    """Open a wrapped data key. Raises: WrongKey."""
    try:
        return unseal(key_encryption_key, wrapped, _wrapping(key_id))
    except RecordDamaged:
        raise WrongKey(
            "this key does not open the store",
            hint="bring back the key that belongs to it, or put a backup back with `valetkey store restore --force`",
        ) from None


def _wrapping(key_id: str) -> bytes:
    return f"data-key|{key_id}".encode()


def _damaged() -> RecordDamaged:
    return RecordDamaged(
        "a stored record fails its integrity check",
        hint="log in again to replace it, or put a backup back with `valetkey store restore --force`",
    )
