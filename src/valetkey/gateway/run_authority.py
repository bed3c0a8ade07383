"""The certificate authority of one run: nobody else believes it, and it may vouch for the run's own hosts alone."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from valetkey.clock import Clock
from valetkey.credential import Secret
from valetkey.gateway.certificates import authority_certificate, only_for
from valetkey.gateway.contexts import Contexts, Minted
from valetkey.gateway.leafs import minted, pem, plain

__all__ = ["RUN_AUTHORITY_LIFE", "RunAuthority", "made"]

# Longer than any run; a rotation would be one of files inside a sandbox.
RUN_AUTHORITY_LIFE = timedelta(days=90)
# A run talks to few hosts. A context takes some 20 kB.
_CONTEXTS = 32


def made(run: str, hosts: Iterable[str], now: datetime) -> tuple[Secret, str]:
    """Give the key and the certificate, both as PEM, of an authority for these hosts of a run."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority_certificate(
        key, now=now, called=f"Valetkey run {run}", life=RUN_AUTHORITY_LIFE, constraints=only_for(hosts)
    )
    return Secret(pem(key).decode()), certificate.public_bytes(Encoding.PEM).decode()


class RunAuthority:
    """Gives the contexts of a run's hosts. Its key was read from the run's document, and no file holds it."""

    def __init__(self, key: Secret, certificate: str, clock: Clock) -> None:
        """Take what `made` gave. Raises: ValueError."""
        self._key = cast("ec.EllipticCurvePrivateKey", load_pem_private_key(key.reveal().encode(), None))
        self._certificate = x509.load_pem_x509_certificate(certificate.encode())
        if self._certificate.public_key() != self._key.public_key():
            raise ValueError("the certificate is of another key")
        self._leaf_key: ec.EllipticCurvePrivateKey | None = None
        self._clock = clock
        self._contexts = Contexts(self._mint, clock, limit=_CONTEXTS)

    async def context(self, host: str) -> ssl.SSLContext:
        """Give the server's context for a host, as `Authority.context` does. Raises: InvalidBaseUrl."""
        return await self._contexts.obtain(plain(host))

    def close(self) -> None:
        """Let go of what was made, and of the thread that makes it."""
        self._contexts.forget()
        self._contexts.close()

    def _mint(self, host: str) -> Minted:
        if self._leaf_key is None:
            self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        return minted(
            host,
            authority=self._certificate,
            key=self._key,
            leaf_key=self._leaf_key,
            now=self._clock.now(),
            folder=None,
        )
