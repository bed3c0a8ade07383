"""The certificate authority of this home, which vouches for the hosts whose connections are opened here.

`ca/ca.key` holds the key and the certificate that belongs to it, so one rename is what makes an authority; `ca/ca.pem`
is a copy of the certificate for others, and is written again wherever it is not. The key leaves this module in no form.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import stat
import threading
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from valetkey.clock import Clock
from valetkey.config import Paths
from valetkey.errors import AuthorityBroken, WrongMode
from valetkey.gateway.certificates import authority_certificate, fingerprint
from valetkey.gateway.contexts import Contexts, Minted
from valetkey.gateway.leafs import minted, pem, plain
from valetkey.gateway.trust import system_bundle
from valetkey.stores import modes
from valetkey.stores.locks import held

__all__ = ["Authority", "Described"]

# A context takes some 20 kB.
_CONTEXTS = 1000
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What may be told of an authority. `fingerprint` is the SHA-256 of its certificate."""

    subject: str
    fingerprint: str
    begins: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    # Which file it was read from: another one means that somebody has rotated it.
    file: tuple[int, int, int]

    def __repr__(self) -> str:
        return "_Pair(…)"


class Authority:
    """Made when it is first needed, by whichever process is first. What another process does to it is noticed."""

    def __init__(self, paths: Paths, clock: Clock, *, limit: int = _CONTEXTS) -> None:
        self.folder = paths.home / "ca"
        self.path = self.folder / "ca.pem"
        self.old_path = self.folder / "ca.old.pem"
        self._key_path = self.folder / "ca.key"
        self._home = paths.home
        self._locks = paths.locks
        self._clock = clock
        self._mutex = threading.Lock()
        self._pair: _Pair | None = None
        self._leaf_key: ec.EllipticCurvePrivateKey | None = None
        self._contexts = Contexts(self._mint, clock, limit=limit)

    # --- what it gives -----------------------------------------------------------------------

    async def context(self, host: str) -> ssl.SSLContext:
        """Give the server's context for a host; the certificate is made in a thread when it has to be.

        An IPv6 address may be in brackets. It takes no ClientHello that names another host. Raises: InvalidBaseUrl (no
        host of that name may get one), AuthorityBroken, WrongMode, StoreUnwritable.
        """
        self._notice_rotation()
        return await self._contexts.obtain(plain(host))

    def open(self) -> Described:
        """Read it, and make it where there is none. Raises: AuthorityBroken, WrongMode, StoreUnwritable."""
        return _described(self._opened().certificate)

    def certificate(self) -> bytes:
        """Give its certificate as PEM."""
        return self._opened().certificate.public_bytes(Encoding.PEM)

    def bundle(self, environ: Mapping[str, str]) -> bytes:
        """Give the system's authorities and this one as PEM. Raises: ConfigError, where the system has no file of them.

        Earlier ones of ours are left out: SSL_CERT_FILE may name a bundle that was made here.
        """
        ours = self._opened().certificate
        name = ours.subject.public_bytes()
        # Looked for in the bytes: some of the system's are so old that they cannot be parsed without a complaint.
        others = (found[0] for found in _BLOCK.finditer(system_bundle(environ)) if name not in b64decode(found[1]))
        return b"\n".join([*others, ours.public_bytes(Encoding.PEM)])

    def old(self) -> Described | None:
        """Tell which one was rotated away last: it should be believed nowhere any more."""
        try:
            return _described(x509.load_pem_x509_certificate(self.old_path.read_bytes()))
        except (OSError, ValueError):
            return None

    def rotate(self) -> Described:
        """Make a new one, damaged or not. The old certificate is kept in `old_path`, its key nowhere.

        Whatever was minted is forgotten, here and in every process that uses this home.
        """
        with self._mutex, self._locked():
            with contextlib.suppress(OSError):
                self._write(self.old_path, self.path.read_bytes())
            self._pair = self._made()
            self._contexts.forget()
            return _described(self._pair.certificate)

    def close(self) -> None:
        """Let go of the thread that mints."""
        self._contexts.close()

    # --- its files ---------------------------------------------------------------------------

    def _notice_rotation(self) -> None:
        pair = self._pair
        if pair is not None and _identity(self._key_path) != pair.file:
            with self._mutex:
                self._pair = None
            self._contexts.forget()

    def _opened(self) -> _Pair:
        with self._mutex:
            pair = self._pair
            if pair is None or _identity(self._key_path) != pair.file:
                pair = self._pair = self._read() or self._first()
            ends = pair.certificate.not_valid_after_utc
            if self._clock.now() >= ends:
                raise AuthorityBroken(
                    f"the certificate authority in {self.folder} ended on {ends:%Y-%m-%d}",
                    hint="run `valetkey ca rotate` and have the new one believed everywhere",
                )
            return pair

    def _first(self) -> _Pair:
        with self._locked():
            # Somebody may have been faster; and what is half written is written to its end.
            found = self._read(mending=True)
            if found is None and self.path.exists():
                raise _broken(self._key_path, "is missing, though its certificate is there")
            return found or self._made()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        for folder in (self._home, self.folder):
            modes.own_folder(str(folder))
        with held(self._locks, "certificate-authority"):
            yield

    def _read(self, *, mending: bool = False) -> _Pair | None:
        """Give what is there. None: nothing, or (without `mending`) a certificate file that does not belong to it."""
        if not modes.check_folder(str(self.folder)) or not modes.check_file(str(self._key_path)):
            return None
        file = _identity(self._key_path)
        content = self._key_path.read_bytes()
        pair = _parsed(content, self._key_path, file)
        _check_public(self.path)
        copy = content[content.index(_CERTIFICATE) :]
        with contextlib.suppress(FileNotFoundError):
            if self.path.read_bytes() == copy:
                return pair
        if not mending:
            return None
        self._write(self.path, copy)
        return pair

    def _made(self) -> _Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority_certificate(key, now=self._clock.now())
        copy = certificate.public_bytes(Encoding.PEM)
        self._write(self._key_path, pem(key) + copy, private=True)
        # Read before the lock goes: a name that is replaced meanwhile would be another one's.
        file = _identity(self._key_path)
        self._write(self.path, copy)
        return _Pair(key=key, certificate=certificate, file=file)

    def _write(self, path: Path, content: bytes, *, private: bool = False) -> None:
        new = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # somebody was killed over it
        modes.create_file(new, content)
        if not private:
            os.chmod(new, 0o644)
        os.replace(new, path)
        modes.sync_folder(str(self.folder))

    # --- leafs -------------------------------------------------------------------------------

    def _mint(self, host: str) -> Minted:
        """Make the context of a host, in the thread for it."""
        pair = self._opened()
        if self._leaf_key is None:
            self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        return minted(
            host,
            authority=pair.certificate,
            key=pair.key,
            leaf_key=self._leaf_key,
            now=self._clock.now(),
            folder=self.folder,
        )


def _parsed(content: bytes, path: Path, file: tuple[int, int, int]) -> _Pair:
    try:
        cut = content.index(_CERTIFICATE)
        key = load_pem_private_key(content[:cut], None)
        certificate = x509.load_pem_x509_certificate(content[cut:])
    except (ValueError, TypeError) as error:
        raise _broken(path, "cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise _broken(path, "holds a certificate of another key")
    return _Pair(key=key, certificate=certificate, file=file)


def _check_public(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_IMODE(os.lstat(path).st_mode) & 0o022:
            raise WrongMode(f"{path} can be written by other users", hint=f"run `chmod 644 {path}`")


def _broken(path: Path, what: str) -> AuthorityBroken:
    return AuthorityBroken(
        f"{path} {what}",
        hint="put it back from a backup, or run `valetkey ca rotate` and have the new one believed everywhere",
    )


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def _described(certificate: x509.Certificate) -> Described:
    return Described(
        subject=certificate.subject.rfc4514_string().removeprefix("CN="),
        fingerprint=fingerprint(certificate),
        begins=certificate.not_valid_before_utc,
        until=certificate.not_valid_after_utc,
    )
