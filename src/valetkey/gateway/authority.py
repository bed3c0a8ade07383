"""Our certificate authority."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import tempfile
from collections import OrderedDict
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from valetkey.clock import Clock
from valetkey.config import Paths

__all__ = ["Authority"]


class Authority:
    """Mints leafs."""

    def __init__(self, paths: Paths, clock: Clock) -> None:
        self._folder = paths.home / "ca"
        self._clock = clock
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()

    def _ca(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_file, pem = self._folder / "ca.key", self._folder / "ca.pem"
        if not key_file.exists():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Valetkey CA")])
            now = self._clock.now()
            made = (
                x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
                .not_valid_after(now + timedelta(days=730))
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
                .sign(key, hashes.SHA256())
            )
            fd = os.open(key_file, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            os.close(fd)
            pem.write_bytes(made.public_bytes(Encoding.PEM))
        loaded = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        return loaded, x509.load_pem_x509_certificate(pem.read_bytes())

    async def context(self, host: str) -> ssl.SSLContext:
        """Give the server context."""
        if host not in self._contexts:
            self._contexts[host] = await asyncio.to_thread(self._mint, host)
        return self._contexts[host]

    def _mint(self, host: str) -> ssl.SSLContext:
        ca_key, ca = self._ca()
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock.now()
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        leaf = (
            x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(ca.subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=24))
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        with tempfile.NamedTemporaryFile() as file:
            file.write(leaf.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            context.load_cert_chain(file.name)
        return context
