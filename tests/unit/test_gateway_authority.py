"""The certificate authority: its files, its leafs, and what becomes of both when something goes wrong."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import ssl
import stat
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support.forking import in_child, start_child, wait_for
from tests.support.handshakes import handshake
from valetkey.clock import Clock, SystemClock
from valetkey.config import Paths
from valetkey.errors import AuthorityBroken, InvalidBaseUrl, WrongMode
from valetkey.gateway.authority import Authority
from valetkey.gateway.certificates import authority_name
from valetkey.testing.canary import holding
from valetkey.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

HOST = "api.acme.test"


def authority(home: Path, clock: Clock | None = None) -> Authority:
    return Authority(Paths(home=home), clock or SystemClock())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def leaf_of(ours: Authority, host: str) -> x509.Certificate:
    """Give the leaf that a client of this host is shown."""
    named = host.strip("[].").lower()
    shown = handshake(await ours.context(host), ours.certificate(), named).getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


# --- the authority itself --------------------------------------------------------------------


def test_it_is_made_on_first_use_for_its_owner_alone(home: Path, clock: FakeClock) -> None:
    before = os.umask(0)
    try:
        found = authority(home, clock).open()
    finally:
        os.umask(before)
    ca = home / "ca"
    assert [mode(ca), mode(ca / "ca.key"), mode(ca / "ca.pem")] == [0o700, 0o600, 0o644]
    assert sorted(file.name for file in ca.iterdir()) == ["ca.key", "ca.pem"]
    assert found.subject == authority_name()
    assert clock.now() - found.begins == timedelta(hours=1)
    assert found.until - clock.now() == timedelta(days=730)
    assert authority(home, clock).open() == found


def test_it_vouches_for_servers_and_makes_no_other_authority(home: Path) -> None:
    certificate = x509.load_pem_x509_certificate(authority(home).certificate())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(extended.value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)


def test_its_name_fits_into_a_certificate() -> None:
    assert authority_name().startswith("Valetkey CA (")
    assert len(authority_name()) <= 64


def test_six_processes_at_once_make_one(home: Path) -> None:
    folder = home / "said"
    folder.mkdir()

    def say(number: int) -> Callable[[], object]:
        return lambda: (folder / str(number)).write_bytes(authority(home).certificate())

    children = [start_child(say(number)) for number in range(6)]
    assert [wait_for(child) for child in children] == [0] * 6
    assert {file.read_bytes() for file in folder.iterdir()} == {(home / "ca" / "ca.pem").read_bytes()}


def kill_at(number: int) -> None:
    """End this process, as kill -9 does, before the file operation of this number."""
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.chmod", "fcntl.flock"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count)


def test_a_writer_killed_anywhere_leaves_none_or_a_good_one(tmp_path: Path) -> None:
    authority(tmp_path / "warm").open()
    for number in range(200):
        home = tmp_path / str(number)

        def make(home: Path = home, number: int = number) -> None:
            kill_at(number)
            authority(home).open()

        status = in_child(make)
        good(home)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 8


def test_a_rotation_killed_anywhere_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    for number in range(200):
        home = tmp_path / str(number)
        before = authority(home).open()

        def rotate(home: Path = home, number: int = number) -> None:
            ours = authority(home)
            kill_at(number)
            ours.rotate()

        status = in_child(rotate)
        ours = good(home)
        if ours.open() != before:
            assert ours.old() == before
        if status == 0:
            assert ours.open() != before
            break
        assert status == -signal.SIGKILL
    assert number > 8


def good(home: Path) -> Authority:
    ours = authority(home)
    context = asyncio.run(ours.context(HOST))
    handshake(context, (home / "ca" / "ca.pem").read_bytes())
    assert mode(home / "ca" / "ca.key") == 0o600
    return ours


# --- what is damaged -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "wide", "command"),
    [("ca", 0o755, "chmod 700"), ("ca/ca.key", 0o644, "chmod 600"), ("ca/ca.pem", 0o666, "chmod 644")],
)
def test_what_is_open_to_others_is_refused_with_what_mends_it(path: str, wide: int, command: str, home: Path) -> None:
    found = authority(home).open()
    (home / path).chmod(wide)
    with pytest.raises(WrongMode) as caught:
        authority(home).open()
    assert f"`{command} {home / path}`" in caught.value.hint
    assert os.system(caught.value.hint.split("`")[1]) == 0
    assert authority(home).open() == found


def test_a_key_behind_a_link_is_refused(home: Path) -> None:
    authority(home).open()
    (home / "ca" / "ca.key").rename(home / "elsewhere")
    (home / "ca" / "ca.key").symlink_to(home / "elsewhere")
    with pytest.raises(WrongMode, match="symbolic link"):
        authority(home).open()


def damaged(content: bytes) -> list[bytes]:
    return [
        b"",
        content[:100],
        content.replace(b"BEGIN PRIVATE", b"BEGIN OTHER"),
        content[: content.index(b"-----BEGIN C")],
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_damaged_key_is_told_and_not_overwritten(number: int, home: Path) -> None:
    authority(home).open()
    key = home / "ca" / "ca.key"
    key.write_bytes(wrong := damaged(key.read_bytes())[number])
    with pytest.raises(AuthorityBroken) as caught:
        authority(home).open()
    assert "valetkey ca rotate" in caught.value.hint
    assert key.read_bytes() == wrong
    rotated = authority(home).rotate()
    assert authority(home).open() == rotated


def test_a_certificate_of_another_key_is_told(home: Path, tmp_path: Path) -> None:
    authority(home).open()
    other = tmp_path / "other"
    authority(other).open()
    key = (home / "ca" / "ca.key").read_bytes()
    cut = key.index(b"-----BEGIN C")
    (home / "ca" / "ca.key").write_bytes(key[:cut] + (other / "ca" / "ca.pem").read_bytes())
    with pytest.raises(AuthorityBroken, match="another key"):
        authority(home).open()


def test_a_missing_key_is_told_and_no_new_one_made_behind_anybody_s_back(home: Path) -> None:
    authority(home).open()
    (home / "ca" / "ca.key").unlink()
    with pytest.raises(AuthorityBroken, match="missing"):
        authority(home).open()
    assert authority(home).rotate()


@pytest.mark.parametrize("content", [None, b"", b"another"])
def test_a_missing_or_foreign_copy_of_the_certificate_is_written_again(content: bytes | None, home: Path) -> None:
    found = authority(home).open()
    copy = home / "ca" / "ca.pem"
    pem = copy.read_bytes()
    copy.unlink()
    if content is not None:
        copy.write_bytes(content)
    assert authority(home).open() == found
    assert copy.read_bytes() == pem


def test_one_that_has_ended_signs_nothing_more(home: Path, clock: FakeClock) -> None:
    ours = authority(home, clock)
    ours.open()
    clock.advance(730 * 86400 - 1)
    ours.certificate()
    clock.advance(1)
    with pytest.raises(AuthorityBroken, match="ended on"):
        ours.certificate()
    ours.rotate()
    ours.certificate()


async def test_a_leaf_does_not_outlive_its_authority(home: Path, clock: FakeClock) -> None:
    ours = authority(home, clock)
    until = ours.open().until
    clock.advance(730 * 86400 - 3600 * 5)
    minted = ours._mint(HOST)
    assert minted.ends == until


# --- leafs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (HOST, x509.DNSName(HOST)),
        ("API.Acme.test.", x509.DNSName(HOST)),
        ("xn--bcher-kva.test", x509.DNSName("xn--bcher-kva.test")),
        (f"{'long.' * 40}acme.test", x509.DNSName(f"{'long.' * 40}acme.test")),
        ("192.0.2.7", x509.IPAddress(ipaddress.ip_address("192.0.2.7"))),
        ("127.0.0.1", x509.IPAddress(ipaddress.ip_address("127.0.0.1"))),
        ("2001:db8::7", x509.IPAddress(ipaddress.ip_address("2001:db8::7"))),
        ("[2001:db8::7]", x509.IPAddress(ipaddress.ip_address("2001:db8::7"))),
    ],
    ids=str,
)
async def test_a_leaf_is_for_its_host_for_a_day_and_for_servers(host: str, name: x509.GeneralName, home: Path) -> None:
    ours = authority(home)
    leaf = await leaf_of(ours, host)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [name]
    assert names.critical
    assert len(leaf.subject) == 0
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=24)
    age = SystemClock().now() - leaf.not_valid_before_utc
    assert timedelta(hours=1) <= age < timedelta(hours=1, minutes=5)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(ours.certificate()))
    assert await ours.context(host) is await ours.context(host)


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "metadata.google.internal", "2130706433", "a b", "*.acme.test", "a/b", "é.test", "", "x" * 64],
)
async def test_nobody_gets_a_leaf_for_what_is_no_host(host: str, home: Path) -> None:
    ours = authority(home)
    for _ in range(2):
        with pytest.raises(InvalidBaseUrl):
            await ours.context(host)


async def test_leafs_of_one_process_share_a_key_and_have_numbers_of_their_own(home: Path) -> None:
    ours = authority(home)
    one, other = await leaf_of(ours, "a.test"), await leaf_of(ours, "b.test")
    assert one.public_key() == other.public_key()
    assert one.serial_number != other.serial_number
    assert (await leaf_of(authority(home), "a.test")).public_key() != one.public_key()
    assert one.public_key() != x509.load_pem_x509_certificate(ours.certificate()).public_key()


async def test_http_1_alone_is_spoken(home: Path) -> None:
    ours = authority(home)
    side = handshake(await ours.context(HOST), ours.certificate(), alpn=("h2", "http/1.1"))
    assert side.selected_alpn_protocol() == "http/1.1"
    assert side.version() == "TLSv1.3"


async def test_a_clienthello_for_another_host_is_refused(home: Path) -> None:
    ours = authority(home)
    context, ca = await ours.context(HOST), ours.certificate()
    for other in ("evil.test", f"x.{HOST}", "acme.test"):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            handshake(context, ca, sni=other)
    for same in (HOST, HOST.upper(), None):
        handshake(context, ca, sni=same)
    address = await ours.context("127.0.0.1")
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        handshake(address, ca, sni=HOST)
    handshake(address, ca, "127.0.0.1")


async def test_a_context_is_made_anew_by_the_clock(home: Path, clock: FakeClock) -> None:
    ours = authority(home, clock)
    first = await ours.context(HOST)
    clock.advance(22 * 3600 - 1)
    assert await ours.context(HOST) is first
    clock.advance(1)
    assert await ours.context(HOST) is not first


async def test_contexts_are_bounded(home: Path) -> None:
    ours = Authority(Paths(home=home), SystemClock(), limit=3)
    first = [await ours.context(f"h{number}.test") for number in range(5)]
    # Those that are kept are asked for first: each that is made anew takes the place of another.
    kept = {number: await ours.context(f"h{number}.test") is first[number] for number in (2, 3, 4, 0, 1)}
    assert kept == {2: True, 3: True, 4: True, 0: False, 1: False}
    ours.close()


# --- rotation --------------------------------------------------------------------------------


async def test_a_rotation_is_noticed_by_whoever_uses_it(home: Path) -> None:
    serving, rotating = authority(home), authority(home)
    old_ca = serving.certificate()
    before = await serving.context(HOST)
    old = serving.open()
    new = rotating.rotate()
    assert new.fingerprint != old.fingerprint
    assert new.subject == old.subject
    assert rotating.old() == old
    after = await serving.context(HOST)
    assert after is not before
    handshake(after, rotating.certificate())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(after, old_ca)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(before, rotating.certificate())
    # While both are believed, either is found though they have one name.
    for context in (before, after):
        handshake(context, old_ca + rotating.certificate())
        handshake(context, rotating.certificate() + old_ca)


def test_a_bundle_has_the_system_s_authorities_and_of_ours_the_last(home: Path, tmp_path: Path) -> None:
    ours = authority(home)
    first = ours.bundle({})
    assert first.count(b"BEGIN CERTIFICATE") > 50
    assert first.endswith(ours.certificate())
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(first)
    ours.rotate()
    again = ours.bundle({"SSL_CERT_FILE": str(bundle)})
    assert again.count(b"BEGIN CERTIFICATE") == first.count(b"BEGIN CERTIFICATE")
    assert again.endswith(ours.certificate())
    assert len(ssl.create_default_context(cadata=again.decode()).get_ca_certs()) > 50


# --- the key ---------------------------------------------------------------------------------


async def test_the_key_is_in_its_file_and_nowhere_else(home: Path, tmp_path: Path) -> None:
    ours = authority(home)
    await ours.context(HOST)
    ours.rotate()
    await ours.context(HOST)
    told = [repr(ours), repr(vars(ours)), str(ours.open()), str(ours.old())]
    look_for_the_key(home, tmp_path, ours, told)


def look_for_the_key(home: Path, tmp_path: Path, ours: Authority, told: list[str]) -> None:
    (home / "bundle").write_bytes(ours.bundle({}) + ours.certificate())
    content = (home / "ca" / "ca.key").read_text()
    body = content[: content.index("-----END")].splitlines()[1:]
    assert len(body) >= 2
    for line in body:
        assert holding(line, tmp_path.rglob("*")) == [str(home / "ca" / "ca.key")]
        assert not any(line in text for text in told)
