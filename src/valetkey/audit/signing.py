"""Checkpoints: the chain up to an entry, signed by Ed25519 with a key that the store holds sealed."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from valetkey.audit import chain
from valetkey.audit.recorder import Audit
from valetkey.clock import Clock, written
from valetkey.config import Paths
from valetkey.credential import Secret
from valetkey.errors import AuditUnwritable, ValetkeyError
from valetkey.store import Document, Store
from valetkey.stores import modes
from valetkey.stores.locks import held

__all__ = [
    "good_signature",
    "last_signed",
    "pinned_key",
    "public_key",
    "sign",
    "sign_quietly",
    "signing_key",
]

log = logging.getLogger(__name__)

_KIND, _ID = "audit-key", "signing"
_LOCK = "the audit's key"
# What else the key might sign some day is no checkpoint.
_PURPOSE = b"valetkey audit checkpoint\n"


def signing_key(store: Store, paths: Paths, clock: Clock) -> Ed25519PrivateKey:
    """Give the key that signs; made at the first call, its public half pinned in audit.pub.

    Raises: AuditUnwritable where the store's key is not the pinned one; StoreError.
    """
    with held(paths.locks, _LOCK):
        document = store.document(_KIND, _ID)
        if document is None and modes.check_file(str(paths.audit_key)):
            raise _not_pinned(paths.audit_key)
        if document is None:
            made = Secret(Ed25519PrivateKey.generate().private_bytes_raw().hex())
            document = Document(kind=_KIND, id=_ID, title="", body=made.reveal(), updated_at=clock.now())
            store.put_document(document)
        secret = Secret(document.body)
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret.reveal()))
        if not modes.check_file(str(paths.audit_key)):
            modes.create_file(str(paths.audit_key), public_key(key).encode() + b"\n")
        if pinned_key(paths) != public_key(key):
            raise _not_pinned(paths.audit_key)
        return key


def public_key(key: Ed25519PrivateKey) -> str:
    """Give the public half, in hex."""
    return key.public_key().public_bytes_raw().hex()


def pinned_key(paths: Paths) -> str | None:
    """Give the public key in audit.pub, in hex; None where nothing was signed yet. Raises: WrongMode."""
    if not modes.check_file(str(paths.audit_key)):
        return None
    return paths.audit_key.read_text(encoding="ascii", errors="replace").strip()


def _not_pinned(path: Path) -> AuditUnwritable:
    return AuditUnwritable(
        f"the store's key for the audit is not the one in {path}: another store was put in place, or the file changed",
        hint=f"verify the audit with the old key, then put both aside: `mv {path} {path}.old`, and audit.db likewise",
    )


def good_signature(key: str, body: bytes, signature: str) -> bool:
    """Say whether this public key (hex) signed the checkpoint."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), _PURPOSE + body)
    except (InvalidSignature, ValueError):
        return False
    return True


def sign(audit: Audit, store: Store, paths: Paths, clock: Clock) -> int:
    """Sign what no checkpoint covers yet, and give how many entries are signed now.

    The entries since the last checkpoint are looked through first: a broken chain gets no signature. Raises:
    AuditBroken, AuditUnwritable, StoreError.
    """
    key = signing_key(store, paths, clock)

    def work(connection: sqlite3.Connection) -> int:
        chain.flush(connection, clock.now().timestamp())
        number, signed, last = last_signed(connection, public_key(key))
        seq = signed
        for body, told in connection.execute("SELECT body, hash FROM entry WHERE seq > ? ORDER BY seq", (signed,)):
            seq += 1
            last = chain.link(last, chain.content_hash(body.encode()))
            if last != told:
                raise chain.broken(seq, "it was changed, or one before it is missing")
        (entries,) = connection.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchone()
        if entries != seq:
            raise chain.broken(entries + 1, f"entries are missing: {seq} were signed")
        if seq > signed:
            at = written(clock.now(), timespec="milliseconds")
            body = chain.canonical({"at": at, "hash": last, "number": number + 1, "seq": seq})
            row = (number + 1, seq, body.decode(), key.sign(_PURPOSE + body).hex())
            connection.execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", row)
        return seq

    signed: int = audit.transaction(work)
    audit.wants_signature = False
    return signed


def last_signed(connection: sqlite3.Connection, key: str) -> tuple[int, int, str]:
    """Give the last checkpoint's number, its entry's, and the hash that the chain goes on from. Raises: AuditBroken."""
    row = connection.execute("SELECT number, seq, body, signature FROM checkpoint ORDER BY number DESC").fetchone()
    if row is None:
        return 0, 0, chain.FIRST
    number, seq, body, signature = row
    if not good_signature(key, body.encode(), signature):
        raise chain.broken(seq, "its checkpoint was changed, or signed with another key")
    return number, seq, str(json.loads(body)["hash"])


def sign_quietly(audit: Audit, store: Store, paths: Paths, clock: Clock) -> None:
    """Sign where that can be done now; what stands in the way is logged, and `audit verify` shows what is unsigned."""
    try:
        sign(audit, store, paths, clock)
    except (ValetkeyError, OSError) as error:
        log.warning("the audit could not be signed: %s", error)
