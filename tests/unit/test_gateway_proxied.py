"""A running gateway behind the proxy of its environment: which accounts go through it, and that it never is its own."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.connect_proxy import ConnectProxy
from tests.support.gateway import KEY, RunningGateway, acme, running_gateway
from tests.support.tls import CertificateAuthority
from tests.support.upstream import Upstream
from valetkey.gateway.dial import Dialler

HOST = "api.acme.test"
VALET = "vk_" + os.urandom(6).hex() + "_" + os.urandom(32).hex()


def resolver(**answers: list[str]) -> Callable[[str], Any]:
    """Know these names, with `_` for a dot, and no others."""

    async def resolve(host: str) -> Sequence[str]:
        return answers.get(host.replace(".", "_"), [])

    return resolve


@pytest.fixture
def upstream(certificate_authority: CertificateAuthority) -> Iterator[Upstream]:
    with Upstream(tls=certificate_authority.context(HOST)) as server:
        yield server


def asked(gateway: RunningGateway) -> tuple[int, bytes]:
    with gateway.raw() as client:
        client.send(f"GET /acme/v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: {gateway.key()}\r\n\r\n")
        status, _, body = client.answer()
    return status, body


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


# --- which accounts go through it ------------------------------------------------------------


@pytest.mark.parametrize("origin", ["built-in", "user", "plugin"])
def test_a_public_host_is_reached_through_the_proxy_whoever_declared_it(
    origin: Literal["built-in", "user", "plugin"],
    certificate_authority: CertificateAuthority,
    upstream: Upstream,
    tmp_path: Path,
) -> None:
    provider = dataclasses.replace(acme(f"https://{HOST}:{upstream.port}/v1"), origin=origin)
    with ConnectProxy({f"{HOST}:{upstream.port}": upstream.port}) as proxy:
        # The name is the proxy's to resolve: nobody here knows it.
        dialler = Dialler(
            ca_file=str(certificate_authority.ca_file),
            environ={"HTTPS_PROXY": f"http://me:word@127.0.0.1:{proxy.port}"},
            resolve=resolver(),
        )
        with running_gateway(provider, home=tmp_path, dialler=dialler) as gateway:
            assert asked(gateway)[0] == 200
    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith(f"CONNECT {HOST}:{upstream.port} HTTP/1.1\r\n".encode())
    assert KEY.encode() not in proxy.heads[0]
    assert [r.header("authorization") for r in upstream.requests] == [f"Bearer {KEY}"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "box.local", "100.64.0.7"])
def test_an_own_host_that_is_near_is_never_asked_for_at_the_proxy(
    host: str, certificate_authority: CertificateAuthority, tmp_path: Path
) -> None:
    with Upstream(tls=certificate_authority.context(*([] if host[0] != "b" else [host]))) as upstream:
        with ConnectProxy({f"{host}:{upstream.port}": upstream.port}) as proxy:
            dialler = Dialler(
                ca_file=str(certificate_authority.ca_file),
                environ={"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"},
                resolve=resolver(localhost=["127.0.0.1"], box_local=["127.0.0.1"]),
                timeout_seconds=5,
            )
            provider = acme(f"https://{host}:{upstream.port}/v1")
            with running_gateway(provider, home=tmp_path, dialler=dialler) as gateway:
                status, _ = asked(gateway)
        assert proxy.heads == []
        # Nobody is at the number of the shared network; that it was tried by itself is enough.
        assert (status == 200) == (host != "100.64.0.7")


def test_an_own_host_that_no_proxy_names_may_be_anywhere_near(
    certificate_authority: CertificateAuthority, upstream: Upstream, tmp_path: Path
) -> None:
    provider = acme(f"https://{HOST}:{upstream.port}/v1")
    own, others = [
        Dialler(
            ca_file=str(certificate_authority.ca_file),
            environ={"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "acme.test"},
            resolve=resolver(api_acme_test=["127.0.0.1"]),
        )
        for _ in range(2)
    ]
    with running_gateway(provider, home=tmp_path, dialler=own) as gateway:
        assert asked(gateway)[0] == 200
    built_in = dataclasses.replace(provider, origin="built-in")
    with running_gateway(built_in, home=tmp_path, dialler=others) as gateway:
        status, body = asked(gateway)
    assert (status, json.loads(body)["error"]["type"]) == (403, "valetkey_address_refused")
    assert len(upstream.requests) == 1


def test_plain_http_never_goes_to_the_proxy(tmp_path: Path) -> None:
    with Upstream() as upstream, ConnectProxy({}) as proxy:
        at = f"http://127.0.0.1:{proxy.port}"
        dialler = Dialler(ca_file=None, environ={"HTTPS_PROXY": at, "HTTP_PROXY": at, "ALL_PROXY": at})
        with running_gateway(acme(f"{upstream.url}/v1"), home=tmp_path, dialler=dialler) as gateway:
            assert asked(gateway)[0] == 200
        assert proxy.heads == []


# --- never its own ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "mybox.test", "0.0.0.0", "[::ffff:127.0.0.1]", "127.1"])
@pytest.mark.parametrize("credentials", ["", f"x:{VALET}@", "me:word@"], ids=["none", "valet", "word"])
def test_a_gateway_is_never_its_own_proxy(
    name: str,
    credentials: str,
    certificate_authority: CertificateAuthority,
    upstream: Upstream,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    resolve = resolver(
        api_acme_test=["127.0.0.1"],
        localhost=["::1", "127.0.0.1"],
        mybox_test=["127.0.0.1"],
        **{"127_1": ["127.0.0.1"]},
    )
    dialler = Dialler(
        ca_file=str(certificate_authority.ca_file),
        environ={"HTTPS_PROXY": f"http://{credentials}{name}:{port}"},
        resolve=resolve,
    )
    provider = acme(f"https://{HOST}:{upstream.port}/v1")
    with running_gateway(provider, home=tmp_path, dialler=dialler, port=port) as gateway:
        assert asked(gateway)[0] == 200
        assert len(gateway.wait_for_rows(1)) == 1
    assert len(upstream.requests) == 1
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "PROXY" in r.getMessage()]
    assert len(warned) == 1
    assert "HTTPS_PROXY" in warned[0]
    assert VALET not in caplog.text


@pytest.mark.parametrize("proxy_at", ["127.0.0.2", "otherbox.test"])
def test_another_proxy_on_the_same_port_number_is_one(
    proxy_at: str, certificate_authority: CertificateAuthority, upstream: Upstream, tmp_path: Path
) -> None:
    port = free_port()
    resolve = resolver(api_acme_test=["127.0.0.1"], otherbox_test=["127.0.0.2"])
    dialler = Dialler(
        ca_file=str(certificate_authority.ca_file),
        environ={"HTTPS_PROXY": f"http://{proxy_at}:{port}"},
        resolve=resolve,
    )
    provider = acme(f"https://{HOST}:{upstream.port}/v1")
    with running_gateway(provider, home=tmp_path, dialler=dialler, port=port) as gateway:
        # Nobody listens there, and nothing goes past it.
        assert asked(gateway)[0] == 502
    assert upstream.requests == []
