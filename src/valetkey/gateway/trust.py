"""Whom an upstream's certificate is believed from: the system's authorities, and the one file beside them."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping

from valetkey.errors import ConfigError

__all__ = ["client_context", "system_bundle"]

# Where OpenSSL was built to look is not always where the system keeps them.
_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


def client_context(*, ca_file: str | None, environ: Mapping[str, str]) -> ssl.SSLContext:
    """Give what verifies an upstream: TLS 1.2 or newer, the host's name, HTTP/1.1 alone (RFC 7301).

    SSL_CERT_FILE and SSL_CERT_DIR of `environ` take the place of the system's authorities, as in other programs.
    Raises: ConfigError.
    """
    # Not ssl.create_default_context(): that one writes session keys to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if file:
        _load(context, "SSL_CERT_FILE", file=file)
    if folder:
        _load(context, "SSL_CERT_DIR", folder=folder)
    if not file and not folder:
        _load_system(context)
    if ca_file is not None:
        _load(context, "network.ca_file", file=ca_file)
    return context


def system_bundle(environ: Mapping[str, str]) -> bytes:
    """Give the certificates of the system's authorities as PEM. Raises: ConfigError, where there is no such file."""
    file = environ.get("SSL_CERT_FILE") or next(iter(_system_files()), None)
    if file is None:
        raise ConfigError(
            "the system has no file of certificate authorities", hint="install ca-certificates, or set SSL_CERT_FILE"
        )
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise _unreadable("SSL_CERT_FILE", file, error) from error


def _load_system(context: ssl.SSLContext) -> None:
    # A folder alone will do where it has the names that OpenSSL looks for; it is read when it is needed.
    folder = ssl.get_default_verify_paths().openssl_capath
    if os.path.isdir(folder) and any(map(_HASHED.fullmatch, os.listdir(folder))):
        context.load_verify_locations(capath=folder)
    elif files := _system_files():
        context.load_verify_locations(cafile=files[0])


def _system_files() -> list[str]:
    built_in = ssl.get_default_verify_paths().openssl_cafile
    return [file for file in (built_in, *_FILES) if os.path.isfile(file)]


def _load(context: ssl.SSLContext, name: str, *, file: str | None = None, folder: str | None = None) -> None:
    try:
        context.load_verify_locations(cafile=file, capath=folder)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        raise _unreadable(name, file or folder or "", error) from error


def _unreadable(name: str, path: str, error: OSError | ValueError) -> ConfigError:
    reason = (
        "it holds no certificate" if isinstance(error, ssl.SSLError | ValueError) else (error.strerror or "").lower()
    )
    return ConfigError(f"{name}: {path} cannot be used: {reason}", hint="name a PEM file of certificate authorities")
