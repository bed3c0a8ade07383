"""Makes what a TLS server needs to be a host: its certificate, by whichever authority, in a context of its own."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from valetkey.address import check_url
from valetkey.errors import InvalidBaseUrl
from valetkey.gateway.certificates import leaf_certificate
from valetkey.gateway.contexts import Minted

__all__ = ["minted", "pem", "plain"]


def minted(
    host: str,
    *,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    leaf_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    folder: Path | None,
) -> Minted:
    """Give the context of a host (`plain`). It takes no ClientHello that names another one.

    `folder` is for what can be read from a file only. Raises: InvalidBaseUrl, where no host of that name may get one.
    """
    if check_url(f"https://[{host}]" if ":" in host else f"https://{host}") != host:
        raise InvalidBaseUrl(f"{host[:60]!r} is not a host name", hint="ask for a name, or for an address")
    certificate = leaf_certificate(host, leaf_key.public_key(), authority=authority, key=key, now=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # One is enough to resume a handshake by. It is sealed and the client keeps it: nothing is stored here.
    context.num_tickets = 1
    _load_chain(context, pem(leaf_key) + certificate.public_bytes(Encoding.PEM), folder)
    context.sni_callback = _only(host)
    return Minted(context=context, begins=certificate.not_valid_before_utc, ends=certificate.not_valid_after_utc)


def plain(host: str) -> str:
    """Give a host as certificates have it: in lower case, an address without brackets."""
    return host.lower().removesuffix(".").removeprefix("[").removesuffix("]")


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Give a key in the open, for a file of mode 0600 or a sealed document."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _only(host: str) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], int | None]:
    """Give what refuses a ClientHello for another host (RFC 6066 section 3): CONNECT said which one it is."""

    def check(_connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
        if name is None or plain(name) == host:
            return None
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    return check


def _load_chain(context: ssl.SSLContext, content: bytes, folder: Path | None) -> None:
    # Python reads a key from files only. Linux has files that no disk knows.
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("valetkey-leaf", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix="leaf-") as file:  # 0600, in a folder of 0700 or a sticky one
        file.write(content)
        file.flush()
        context.load_cert_chain(file.name)
