"""The dialler: what it refuses, what it verifies, and how it gets through a proxy; on both event loops."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.connect_proxy import ConnectProxy
from tests.support.echo import Echo
from tests.support.tls import CertificateAuthority
from valetkey.errors import (
    AddressRefused,
    ConfigError,
    ConnectTimeout,
    NameNotResolved,
    TlsFailed,
    Unreachable,
)
from valetkey.gateway.dial import Dialler, system_resolver
from valetkey.gateway.trust import client_context, system_bundle
from valetkey.gateway.tunnel import Tunnels, proxy_of

HOST = "api.acme.test"
PASSWORD = "pass" + "/w%rd" * 3


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


pytestmark = pytest.mark.anyio


class Client(asyncio.Protocol):
    """Keeps what came, and what was called."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = b""
        self.calls: list[str] = []
        self.spoken = asyncio.Event()
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        assert self.calls
        self.received += data
        self.spoken.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.calls.append("lost")
        if not self.ended.done():
            self.ended.set_result(None)


def resolver(*answers: Sequence[str]) -> Callable[[str], Any]:
    """Give one answer after the other; the last stays."""
    left = list(answers)

    async def resolve(host: str) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def dialler(ca: CertificateAuthority | None = None, *, environ: dict[str, str] | None = None, **more: Any) -> Dialler:
    return Dialler(ca_file=None if ca is None else str(ca.ca_file), environ=environ or {}, **more)


async def ask(
    dial: Dialler, port: int, *, host: str = HOST, scheme: str = "https", near_allowed: bool = True
) -> tuple[Client, str]:
    """Connect and ask for one answer; give it."""
    transport, client = await dial.dial(Client, scheme=scheme, host=host, port=port, near_allowed=near_allowed)
    assert client.transport is transport
    assert client.calls == ["made"]
    transport.write(f"GET /seen HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    await asyncio.wait_for(client.ended, 20)
    assert client.received.startswith(b"HTTP/1.1 200")
    return client, client.received.decode()


@pytest.fixture
def named(certificate_authority: CertificateAuthority) -> Iterator[Echo]:
    with Echo(tls=certificate_authority.context(HOST)) as server:
        yield server


# --- which addresses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "[::1]", "10.0.0.1", "192.168.0.1", "100.64.0.1", "::ffff:127.0.0.1", "[fd12::1]"],
)
async def test_a_near_address_is_refused_where_no_login_is_for_it(host: str) -> None:
    for scheme in ("https", "http"):
        with pytest.raises(AddressRefused, match="private network"):
            await dialler().dial(Client, scheme=scheme, host=host, port=9, near_allowed=False)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "fd00:ec2::254",
        "0.0.0.0",
        "224.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::127.0.0.1",
        "metadata.google.internal",
        "2130706433",
        "0x7f.1",
        "127.1",
    ],
)
@pytest.mark.parametrize("near_allowed", [False, True])
async def test_a_special_address_is_refused_always(host: str, near_allowed: bool) -> None:
    with pytest.raises(AddressRefused, match="never gets a request"):
        await dialler().dial(Client, scheme="https", host=host, port=9, near_allowed=near_allowed)


@pytest.mark.parametrize(
    ("addresses", "near_allowed", "refused"),
    [
        (["127.0.0.1"], False, "private network"),
        (["10.0.0.1", "127.0.0.1"], False, "private network"),
        (["169.254.169.254"], True, "never gets"),
        (["::ffff:169.254.169.254", "fe80::1%2"], True, "never gets"),
    ],
)
async def test_a_name_is_judged_by_what_it_resolves_to(
    addresses: list[str], near_allowed: bool, refused: str, named: Echo
) -> None:
    dial = dialler(resolve=resolver(addresses))
    with pytest.raises(AddressRefused, match=refused) as caught:
        await dial.dial(Client, scheme="https", host=HOST, port=named.port, near_allowed=near_allowed)
    assert not re.search(r"\d+\.\d+|::", caught.value.message)
    assert named.requests == []


async def test_of_several_addresses_only_those_that_pass_are_dialled(
    certificate_authority: CertificateAuthority, named: Echo
) -> None:
    with closing(socket.create_server(("127.0.0.2", named.port))):
        dial = dialler(certificate_authority, resolve=resolver(["169.254.169.254", "0.0.0.0", "127.0.0.1"]))
        await ask(dial, named.port)
    assert len(named.requests) == 1


async def test_dns_that_changes_its_answer_changes_nothing(
    certificate_authority: CertificateAuthority, named: Echo
) -> None:
    # The name is known to no other resolver, so whoever asks again ends elsewhere or nowhere.
    dial = dialler(certificate_authority, resolve=resolver(["127.0.0.1"], ["169.254.169.254"]))
    await ask(dial, named.port)
    with pytest.raises(AddressRefused):
        await ask(dial, named.port)
    assert len(named.requests) == 1


async def test_plain_http_goes_near_and_nowhere_else(echo: Echo) -> None:
    _, answer = await ask(dialler(resolve=resolver(["127.0.0.1"])), echo.port, scheme="http")
    assert answer
    with pytest.raises(AddressRefused, match="plain http"):
        await ask(dialler(resolve=resolver(["8.8.8.8"])), echo.port, scheme="http")
    with pytest.raises(AddressRefused, match="plain http"):
        await ask(dialler(), echo.port, scheme="http", host="8.8.8.8", near_allowed=False)


async def test_the_system_s_resolver_gives_numbers() -> None:
    found = await system_resolver("localhost")
    assert found
    assert set(found) <= {"127.0.0.1", "::1"}


async def test_a_name_without_an_address_is_told() -> None:
    with pytest.raises(NameNotResolved) as caught:
        await ask(dialler(resolve=resolver([])), 9)
    assert caught.value.sent is False
    for host in ("nowhere.invalid", "a" * 70 + ".invalid"):
        with pytest.raises(NameNotResolved):
            await ask(dialler(), 9, host=host)


# --- several addresses, time -----------------------------------------------------------------


async def test_the_next_address_is_tried_where_one_is_closed(
    certificate_authority: CertificateAuthority, named: Echo
) -> None:
    dial = dialler(certificate_authority, resolve=resolver(["::1", "127.0.0.9", "127.0.0.1"]))
    await ask(dial, named.port)
    assert len(named.requests) == 1


async def test_where_none_answers_it_is_unreachable() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        await ask(dialler(resolve=resolver(["127.0.0.1", "127.0.0.2"])), port)
    assert caught.value.sent is False


async def test_a_silent_address_does_not_use_up_the_others_time(
    certificate_authority: CertificateAuthority, named: Echo
) -> None:
    # It takes the connection and never begins TLS.
    with closing(socket.create_server(("127.0.0.2", named.port))):
        dial = dialler(certificate_authority, resolve=resolver(["127.0.0.2", "127.0.0.1"]), timeout_seconds=8)
        await ask(dial, named.port)


async def test_an_upstream_that_never_finishes_is_given_up() -> None:
    async def never(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectTimeout):
            await ask(dialler(resolve=resolver(["127.0.0.1"]), timeout_seconds=0.2), port)
        with pytest.raises(ConnectTimeout):
            await ask(dialler(resolve=never, timeout_seconds=0.2), port)


@pytest.mark.parametrize("way", ["straight", "proxy", "proxy over TLS", "silent proxy"])
async def test_a_connection_that_is_given_up_is_closed(way: str, certificate_authority: CertificateAuthority) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        tls = certificate_authority.context() if way == "proxy over TLS" else None
        with ConnectProxy({f"{HOST}:{port}": port}, tls=tls) as proxy:
            through = port if way == "silent proxy" else proxy.port
            environ = {} if way == "straight" else {"HTTPS_PROXY": f"http{'s' if tls else ''}://127.0.0.1:{through}"}
            dial = dialler(certificate_authority, environ=environ, resolve=resolver(["127.0.0.1"]), timeout_seconds=2)
            with pytest.raises(ConnectTimeout):
                await dial.dial(Client, scheme="https", host=HOST, port=port, near_allowed=way == "straight")
            connection, _ = silent.accept()
            with connection:
                # It ends by itself: nobody else closes it.
                ended = await asyncio.wait_for(asyncio.to_thread(drained, connection), 60)
    assert ended


def drained(connection: socket.socket) -> bool:
    while True:
        try:
            if not connection.recv(65536):
                return True
        except ConnectionResetError:
            return True


# --- TLS -------------------------------------------------------------------------------------


async def test_the_host_s_name_is_what_the_server_is_asked_for(
    certificate_authority: CertificateAuthority, named: Echo
) -> None:
    client, _ = await ask(dialler(certificate_authority, resolve=resolver(["127.0.0.1"])), named.port)
    assert client.transport is not None
    assert client.transport.get_extra_info("cipher") is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
async def test_an_address_is_verified_as_one(
    host: str, certificate_authority: CertificateAuthority, echo_tls: Echo
) -> None:
    if "::1" in host:
        with closing(socket.socket(socket.AF_INET6)) as listener:
            listener.bind(("::1", echo_tls.port))
            listener.listen()
            thread = threading.Thread(target=one_answer, args=(listener, certificate_authority.context()))
            thread.start()
            await ask(dialler(certificate_authority), echo_tls.port, host=host)
            thread.join()
    else:
        await ask(dialler(certificate_authority), echo_tls.port, host=host)


def one_answer(listener: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listener.accept()
    with context.wrap_socket(connection, server_side=True) as secure:
        secure.recv(65536)
        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@dataclass(frozen=True, kw_only=True)
class Wrong:
    expired: bool = False
    hosts: tuple[str, ...] = (HOST,)
    ours: bool = True


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Wrong(expired=True), "expired"),
        (Wrong(hosts=("other.acme.test",)), "mismatch"),
        (Wrong(hosts=("acme.test",)), "mismatch"),
        (Wrong(ours=False), "local issuer|self-signed"),
    ],
    ids=["expired", "another name", "parent's name", "unknown issuer"],
)
async def test_a_wrong_certificate_is_refused(
    wrong: Wrong, reason: str, certificate_authority: CertificateAuthority, tmp_path: Path
) -> None:
    signer = certificate_authority if wrong.ours else CertificateAuthority(tmp_path)
    with Echo(tls=signer.context(*wrong.hosts, expired=wrong.expired)) as server:
        # The second address would be another try; a wrong certificate ends it.
        dial = dialler(certificate_authority, resolve=resolver(["127.0.0.1", "127.0.0.1"]))
        with pytest.raises(TlsFailed, match=reason):
            await ask(dial, server.port)
        with pytest.raises(TlsFailed):
            await ask(dialler(certificate_authority), server.port, host="127.0.0.1")
    assert server.requests == []


async def test_old_tls_and_what_is_no_tls_are_refused(certificate_authority: CertificateAuthority, echo: Echo) -> None:
    context = certificate_authority.context(HOST)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    dial = dialler(certificate_authority, resolve=resolver(["127.0.0.1"]))
    with Echo(tls=context) as old, pytest.raises(TlsFailed):
        await ask(dial, old.port)
    with pytest.raises(TlsFailed):
        await ask(dial, echo.port)


async def test_http_1_alone_is_offered(certificate_authority: CertificateAuthority) -> None:
    context = certificate_authority.context(HOST)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with Echo(tls=context) as server:
        client, _ = await ask(dialler(certificate_authority, resolve=resolver(["127.0.0.1"])), server.port)
    assert client.transport is not None
    assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


def test_session_keys_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert client_context(ca_file=None, environ={}).keylog_filename is None


def test_the_system_s_authorities_are_believed_and_the_file_beside_them(
    certificate_authority: CertificateAuthority,
) -> None:
    alone = client_context(ca_file=None, environ={"SSL_CERT_FILE": str(certificate_authority.ca_file)})
    assert len(alone.get_ca_certs()) == 1
    assert system_bundle({"SSL_CERT_FILE": str(certificate_authority.ca_file)}).startswith(b"-----BEGIN")
    assert system_bundle({}).count(b"BEGIN CERTIFICATE") > 50
    beside = client_context(ca_file=str(certificate_authority.ca_file), environ={})
    assert any("Valetkey test CA" in str(found["subject"]) for found in beside.get_ca_certs())


def test_a_file_of_certificates_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    for name in ("none.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=r"network\.ca_file"):
            Dialler(ca_file=str(tmp_path / name), environ={})
        with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
            Dialler(ca_file=None, environ={"SSL_CERT_FILE": str(tmp_path / name)})
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        system_bundle({"SSL_CERT_FILE": str(tmp_path / "missing.pem")})


# --- the proxy -------------------------------------------------------------------------------


async def through(
    ca: CertificateAuthority, proxy: ConnectProxy, server: Echo, *, url: str | None = None, host: str = HOST
) -> tuple[Client, str]:
    environ = {"HTTPS_PROXY": url or f"http://127.0.0.1:{proxy.port}"}
    dial = dialler(ca, environ=environ, resolve=resolver([]))
    return await ask(dial, server.port, host=host, near_allowed=False)


async def test_a_proxy_is_asked_for_the_name_and_tls_is_with_the_host(
    certificate_authority: CertificateAuthority, named: Echo
) -> None:
    with ConnectProxy({f"{HOST}:{named.port}": named.port}) as proxy:
        await through(certificate_authority, proxy, named)
    assert proxy.heads == [f"CONNECT {HOST}:{named.port} HTTP/1.1\r\nHost: {HOST}:{named.port}\r\n\r\n".encode()]
    assert len(named.requests) == 1


async def test_a_proxy_over_tls_has_tls_inside(certificate_authority: CertificateAuthority, named: Echo) -> None:
    ports = {f"{HOST}:{named.port}": named.port}
    with ConnectProxy(ports, tls=certificate_authority.context()) as proxy:
        await through(certificate_authority, proxy, named, url=f"https://127.0.0.1:{proxy.port}")
    assert len(named.requests) == 1


async def test_a_proxy_gets_its_password_and_nobody_else_sees_it(
    certificate_authority: CertificateAuthority, named: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ports = {f"{HOST}:{named.port}": named.port}
    with ConnectProxy(ports) as proxy:
        url = f"http://me%40work:{quote(PASSWORD, safe='')}@127.0.0.1:{proxy.port}"
        _, answer = await through(certificate_authority, proxy, named, url=url)
    wanted = base64.b64encode(f"me@work:{PASSWORD}".encode())
    assert b"\r\nProxy-Authorization: Basic " + wanted + b"\r\n" in proxy.heads[0]
    assert wanted.decode() not in answer + caplog.text
    assert PASSWORD not in caplog.text + repr(proxy_of({"HTTPS_PROXY": url}))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nConnection: close\r\n\r\n", "407"),
        (b"HTTP/1.1 403 go away\r\n\r\n", "403"),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "502"),
        (b"HTTP/1.1 301 x\r\nLocation: http://other/\r\n\r\n", "301"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer as"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "nobody asked for"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20000, "does not answer|nobody asked|closes"),
        (b"x" * 20000, "does not answer as"),
    ],
    ids=["407", "403", "502", "301", "ssh", "speaks on", "long head", "no line"],
)
async def test_a_proxy_that_refuses_is_told(
    answer: bytes, said: str, certificate_authority: CertificateAuthority, named: Echo
) -> None:
    with ConnectProxy({}, answer=answer) as proxy, pytest.raises(Unreachable, match=said) as caught:
        await through(
            certificate_authority, proxy, named, url=f"http://u:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{proxy.port}"
        )
    assert f"the proxy 127.0.0.1:{proxy.port}" in caught.value.message
    assert "HTTPS_PROXY" in caught.value.hint
    assert PASSWORD[:6] not in caught.value.message + caught.value.hint
    assert "go away" not in caught.value.message


async def test_behind_a_proxy_the_host_is_verified_all_the_same(certificate_authority: CertificateAuthority) -> None:
    with Echo(tls=certificate_authority.context("other.acme.test")) as server:
        ports = {f"{HOST}:{server.port}": server.port}
        with ConnectProxy(ports) as proxy, pytest.raises(TlsFailed, match="mismatch"):
            await through(certificate_authority, proxy, server)
    assert server.requests == []


async def test_a_proxy_that_is_not_there_or_not_trusted_is_named(
    certificate_authority: CertificateAuthority, named: Echo, tmp_path: Path
) -> None:
    with ConnectProxy({}) as proxy:
        port = proxy.port
    gone = {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}
    with pytest.raises(Unreachable, match=f"the proxy 127.0.0.1:{port} cannot be reached"):
        await ask(dialler(certificate_authority, environ=gone), named.port, near_allowed=False)
    other = CertificateAuthority(tmp_path)
    with (
        ConnectProxy({}, tls=other.context()) as proxy,
        pytest.raises(TlsFailed, match=f"the proxy 127.0.0.1:{proxy.port}"),
    ):
        await through(certificate_authority, proxy, named, url=f"https://127.0.0.1:{proxy.port}")


async def test_a_host_that_speaks_before_it_is_asked_is_left(certificate_authority: CertificateAuthority) -> None:
    context = certificate_authority.context(HOST)
    # Up to TLS 1.2 the server has the last word of the handshake, so its next one can come with it.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=speak_at_once, args=(listener, context))
        thread.start()
        with ConnectProxy({f"{HOST}:{port}": port}) as proxy:
            environ = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
            dial = dialler(certificate_authority, environ=environ)
            client = None
            with contextlib.suppress(Unreachable):
                transport, client = await dial.dial(Client, scheme="https", host=HOST, port=port, near_allowed=False)
            if client is not None:
                # uvloop gives the words later: to the protocol, which has its transport by then and can refuse them.
                await client.spoken.wait()
                assert client.calls == ["made"]
                transport.abort()
        thread.join()


def speak_at_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listener.accept()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = context.wrap_bio(incoming, outgoing, server_side=True)
    with connection:
        while True:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))
            else:
                break
        secure.write(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.sendall(outgoing.read())
        while connection.recv(65536):
            continue


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "169.254.169.254", "::1", "localhost", "a.localhost", "db.internal", "metadata", "127.1"]
)
async def test_what_can_be_told_from_the_name_is_refused_before_the_proxy(
    host: str, certificate_authority: CertificateAuthority, named: Echo
) -> None:
    with ConnectProxy({f"{host}:{named.port}": named.port}) as proxy:
        with pytest.raises(AddressRefused):
            await through(certificate_authority, proxy, named, host=host)
        assert proxy.heads == []


async def test_near_hosts_plain_http_and_excepted_hosts_go_past_the_proxy(
    certificate_authority: CertificateAuthority, named: Echo, echo: Echo, echo_tls: Echo
) -> None:
    with ConnectProxy({}) as proxy:
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}", "HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"}
        here = resolver(["127.0.0.1"])
        for near in ("localhost", "127.0.0.1"):
            await ask(dialler(certificate_authority, environ=environ), echo_tls.port, host=near)
        await ask(dialler(environ=environ, resolve=here), echo.port, scheme="http")
        environ["NO_PROXY"] = "other.test, .acme.test"
        # It is on its own then, so it is resolved and refused.
        with pytest.raises(AddressRefused):
            await ask(dialler(environ=environ, resolve=here), named.port, near_allowed=False)
        assert proxy.heads == []


@pytest.mark.parametrize("near_allowed", [False, True])
async def test_a_name_that_may_be_near_is_the_proxy_s_to_resolve_as_others_are(
    near_allowed: bool, certificate_authority: CertificateAuthority, named: Echo
) -> None:
    with ConnectProxy({f"{HOST}:{named.port}": named.port}) as proxy:
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
        dial = dialler(certificate_authority, environ=environ, resolve=resolver(["127.0.0.1"]))
        await ask(dial, named.port, near_allowed=near_allowed)
    assert len(proxy.heads) == 1


async def test_a_silent_proxy_is_given_up(certificate_authority: CertificateAuthority) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with pytest.raises(ConnectTimeout):
            await ask(dialler(certificate_authority, environ=environ, timeout_seconds=0.2), 443, near_allowed=False)


# --- which proxy -----------------------------------------------------------------------------


def proxies(environ: dict[str, str]) -> Tunnels:
    return Tunnels(environ, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


ENVIRONS = [
    {},
    {"HTTPS_PROXY": "http://up:1"},
    {"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:1"},
    {"https_proxy": "", "HTTPS_PROXY": "http://up:1"},
    {"HTTPS_PROXY": ""},
    {"Https_Proxy": "http://mixed:1"},
    {"HTTPS_PROXY": "bare:1"},
    {"HTTP_PROXY": "http://plain:1"},
]


@pytest.mark.parametrize("environ", ENVIRONS, ids=str)
def test_the_proxy_is_the_one_that_urllib_takes(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    wanted = urllib.request.getproxies_environment().get("https")
    found = proxy_of(environ)
    assert (None if found is None else str(found)) == (None if wanted is None else wanted.removeprefix("http://"))


def test_all_proxy_is_for_those_that_have_none_of_their_own() -> None:
    assert str(proxy_of({"ALL_PROXY": "http://all:1"})) == "all:1"
    assert str(proxy_of({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://own:1"})) == "own:1"
    found = proxy_of({"all_proxy": "https://[::1]"})
    assert found is not None
    assert (found.variable, found.scheme, str(found)) == ("all_proxy", "https", "[::1]:443")


@pytest.mark.parametrize(
    "excepted",
    [
        "",
        "*",
        "acme.test",
        ".acme.test",
        "api.acme.test",
        "ACME.test ,x",
        "api.acme.test:443",
        "test",
        "cme.test",
        "*.acme.test",
        "10.0.0.1",
        ",",
    ],
)
@pytest.mark.parametrize("host", ["api.acme.test", "acme.test", "10.0.0.1", "evilacme.test"])
def test_the_exceptions_are_those_that_urllib_makes(excepted: str, host: str) -> None:
    named = {"https": "http://up:1", **({"no": excepted} if excepted else {})}
    wanted = bool(urllib.request.proxy_bypass_environment(f"{host}:443", named))  # type: ignore[attr-defined]  # not in typeshed
    chosen = proxies({"HTTPS_PROXY": "http://up:1", "NO_PROXY": excepted}).proxy_for(host, 443)
    assert (chosen is None) == wanted


@pytest.mark.parametrize("excepted", ["::1", "[::1]", "[::1]:443"])
def test_an_ipv6_address_is_excepted_however_it_is_written(excepted: str) -> None:
    environ = {"HTTPS_PROXY": "http://up:1", "NO_PROXY": excepted}
    assert proxies(environ).proxy_for("::1", 443) is None
    assert proxies(environ).proxy_for("::2", 443) is not None


@pytest.mark.parametrize(
    "text",
    ["socks5://u:secret-word@h:1", "http://", "http://h:99999", "http://u:secret-word@", "http://h:0", "ftp://h"],
)
def test_a_proxy_that_cannot_be_used_is_told_and_not_passed_by(text: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        Dialler(ca_file=None, environ={"HTTPS_PROXY": text})
    assert "secret-word" not in caught.value.message + caught.value.hint


VALET = "vk_" + "0" * 12 + "_" + "a1" * 32


@pytest.mark.parametrize("url", [f"http://x:{VALET}@127.0.0.1:4380", f"{VALET}@gateway.test:1", f"socks5://{VALET}@h"])
def test_a_proxy_with_a_valet_key_is_as_good_as_not_set(url: str, caplog: pytest.LogCaptureFixture) -> None:
    assert proxies({"HTTPS_PROXY": url}).proxy_for(HOST, 443) is None
    assert len(caplog.records) == 1
    assert "HTTPS_PROXY" in caplog.text
    assert VALET not in caplog.text
    others = {"https_proxy": url, "ALL_PROXY": url, "HTTPS_PROXY": "http://company.test:3128"}
    assert str(proxies(others).proxy_for(HOST, 443)) == "company.test:3128"
    assert len(caplog.records) == 2


async def test_where_all_addresses_are_ours_each_address_of_this_machine_is() -> None:
    for number, ours in (("127.0.0.9", True), ("::1", True), ("192.0.2.7", False)):
        tunnels = proxies({"HTTPS_PROXY": "http://me:word@box.test:4380"})
        await tunnels.leave_out([("0.0.0.0", 4380), ("::", 4380)], resolver([number]))
        assert (tunnels.proxy_for(HOST, 443) is None) is ours


async def test_the_next_proxy_takes_the_place_of_our_own() -> None:
    tunnels = proxies({"HTTPS_PROXY": "http://127.0.0.1:4380", "ALL_PROXY": "http://company.test:3128"})
    await tunnels.leave_out([("127.0.0.1", 4380)], resolver([]))
    assert str(tunnels.proxy_for(HOST, 443)) == "company.test:3128"


async def test_a_proxy_whose_name_is_not_known_stays() -> None:
    tunnels = proxies({"HTTPS_PROXY": "http://nowhere.invalid:4380"})
    await tunnels.leave_out([("127.0.0.1", 4380)], system_resolver)
    assert tunnels.proxy_for(HOST, 443) is not None
