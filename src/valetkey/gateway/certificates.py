"""What our certificates say: the authority's own, and the leaf of a host. Values in, certificates out; no files."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "AUTHORITY_LIFE",
    "LEAF_LIFE",
    "authority_certificate",
    "authority_name",
    "fingerprint",
    "leaf_certificate",
    "only_for",
]

AUTHORITY_LIFE = timedelta(days=730)
# In all, with what it is dated back: the clocks of containers and of their hosts do not agree to the second.
LEAF_LIFE = timedelta(hours=24)
_BACKDATED = timedelta(hours=1)
_PORT = re.compile(r"(?<=[^:]):(?:[0-9]{1,5}|\*)\Z|(?<=\]):(?:[0-9]{1,5}|\*)\Z")


def authority_name() -> str:
    """Give the name by which a person finds it in a list of authorities: whose, and of which machine."""
    # RFC 5280 appendix A.1: a common name has 64 characters at most.
    return f"Valetkey CA ({_plain(_user())}@{_plain(socket.gethostname())})"


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's made-up user
        return str(os.geteuid())


def _plain(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)[:24] or "-"


def fingerprint(certificate: x509.Certificate) -> str:
    """Give its SHA-256 as openssl and browsers show it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def authority_certificate(
    key: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    called: str = "",
    life: timedelta = AUTHORITY_LIFE,
    constraints: x509.NameConstraints | None = None,
) -> x509.Certificate:
    """Give an authority that vouches for servers and for nothing else, and makes no other authority."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, called or authority_name())])
    builder = _builder(name, name, key.public_key(), key.public_key())
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return (
        builder.not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        # RFC 5280 section 4.2.1.12 does not say it of authorities, but those who verify hold them to it: put into a
        # system's store it cannot vouch for programs, mail or users.
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def only_for(hosts: Iterable[str]) -> x509.NameConstraints | None:
    """Give what holds an authority to these hosts (RFC 5280 section 4.2.1.10); None where one of them is any host.

    They are as declarations have them: with or without a port, `*.example.com`, an address. A name takes what is below
    it too, and of one with a star inside counts what is behind the star's own part, for a constraint knows no better.
    """
    permitted: list[x509.GeneralName] = []
    for text in dict.fromkeys(hosts):
        host = _PORT.sub("", text.lower()).removesuffix(".").removeprefix("[").removesuffix("]")
        try:
            permitted.append(x509.IPAddress(ipaddress.ip_network(host)))
            continue
        except ValueError:
            pass
        labels = host.split(".")
        starred = [at for at, label in enumerate(labels) if "*" in label]
        name = ".".join(labels[starred[-1] + 1 :] if starred else labels)
        if not name:
            return None
        permitted.append(x509.DNSName(name))
    # A kind of name that is not mentioned is free: what there is none of is shut out as a whole.
    if not any(isinstance(name, x509.DNSName) for name in permitted):
        permitted.append(x509.DNSName("invalid"))  # RFC 6761 section 6.4: nobody's
    closed = None
    if not any(isinstance(name, x509.IPAddress) for name in permitted):
        closed = [x509.IPAddress(ipaddress.ip_network(every)) for every in ("0.0.0.0/0", "::/0")]
    return x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=closed)


def leaf_certificate(
    host: str,
    leaf: ec.EllipticCurvePublicKey,
    *,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    """Give the certificate of a host: a name in lower case, or an address without brackets."""
    return (
        # Without a subject: names longer than 64 characters do not fit into one, and nobody looks there any more.
        _builder(x509.Name([]), authority.subject, leaf, key.public_key())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(min(now - _BACKDATED + LEAF_LIFE, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        # After a rotation two authorities have one name; this tells which is meant.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
