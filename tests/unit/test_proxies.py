"""Which proxies of an environment are a gateway, and that control traffic goes past it and through all others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.connect_proxy import ConnectProxy
from tests.support.echo import Echo
from tests.support.tls import CertificateAuthority
from valetkey.errors import NameNotResolved, Unreachable
from valetkey.http import HttpClient
from valetkey.proxies import leads_to_gateway, variables_of_gateway, without_gateway

VALET = "vk_" + os.urandom(6).hex() + "_" + os.urandom(32).hex()
ESCAPED = VALET.replace("_", "%5F")
HOST = "api.acme.test"


@pytest.mark.parametrize(
    ("url", "leads"),
    [
        (f"http://x:{VALET}@127.0.0.1:4380", True),
        (f"http://{VALET}@127.0.0.1:4380/", True),
        (f"http://{VALET}:@gateway.test", True),
        (f" https://x:{VALET}@gateway.test", True),
        (f"x:{VALET}@127.0.0.1:4380", True),
        (f"{VALET}@127.0.0.1:4380", True),
        (f"http://x:{ESCAPED}@127.0.0.1:4380", True),
        (f"http://x:{VALET}@127.0.0.1:99999", True),
        ("http://127.0.0.1:4380", False),
        ("http://me:word@company.test:3128", False),
        ("http://me:my_vk_word@company.test:3128", False),
        ("http://vk_company.test:3128", False),
        ("http://company.test:3128/?a=x:vk_@b", False),
        ("", False),
    ],
    ids=lambda value: str(value).replace(VALET, "KEY").replace(ESCAPED, "ESCAPED"),
)
def test_a_gateway_is_known_by_the_valet_key_that_it_is_shown(url: str, leads: bool) -> None:
    assert leads_to_gateway(url) is leads


def test_such_variables_go_and_all_others_stay() -> None:
    at = f"http://x:{VALET}@127.0.0.1:4380"
    stays = {
        "PATH": "/bin",
        "NO_PROXY": "127.0.0.1",
        "HTTP_PROXY": "http://company.test:3128",
        "OPENAI_API_KEY": VALET,
        "x": at,
    }
    environ = {**stays, "HTTPS_PROXY": at, "https_proxy": at, "All_Proxy": at}
    assert sorted(variables_of_gateway(environ)) == ["All_Proxy", "HTTPS_PROXY", "https_proxy"]
    assert without_gateway(environ) == stays


@pytest.fixture
def named(certificate_authority: CertificateAuthority) -> Iterator[Echo]:
    with Echo(tls=certificate_authority.context("localhost", HOST)) as server:
        yield server


def status(certificate_authority: CertificateAuthority, server: Echo, host: str = "localhost") -> int:
    client = HttpClient(timeout_seconds=60, ca_file=str(certificate_authority.ca_file))
    try:
        return client.send("GET", f"https://{host}:{server.port}/").status
    finally:
        client.close()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_control_traffic_goes_past_the_gateway(
    name: str, certificate_authority: CertificateAuthority, named: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy({}, answer=b"HTTP/1.1 407 no\r\n\r\n") as gateway:
        monkeypatch.setenv(name, f"http://x:{VALET}@127.0.0.1:{gateway.port}")
        assert status(certificate_authority, named) == 200
        assert gateway.heads == []
        # Another proxy is still what it was.
        monkeypatch.setenv(name, f"http://me:word@127.0.0.1:{gateway.port}")
        with pytest.raises(Unreachable):
            status(certificate_authority, named)
        assert len(gateway.heads) == 1


@pytest.mark.parametrize(
    "others",
    [
        {"https_proxy": "gateway", "HTTPS_PROXY": "company"},
        {"HTTPS_PROXY": "gateway", "ALL_PROXY": "company"},
        {"HTTPS_PROXY": "company", "ALL_PROXY": "gateway", "HTTP_PROXY": "gateway"},
    ],
    ids=str,
)
def test_the_proxy_beside_it_is_used_and_exceptions_hold(
    others: dict[str, str],
    certificate_authority: CertificateAuthority,
    named: Echo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ConnectProxy({f"{HOST}:{named.port}": named.port}) as company, ConnectProxy({}) as gateway:
        urls = {
            "company": f"http://127.0.0.1:{company.port}",
            "gateway": f"http://x:{VALET}@127.0.0.1:{gateway.port}",
        }
        for name, which in others.items():
            monkeypatch.setenv(name, urls[which])
        assert status(certificate_authority, named, HOST) == 200
        assert len(company.heads) == 1
        monkeypatch.setenv("NO_PROXY", "localhost,acme.test")
        assert status(certificate_authority, named) == 200
        with pytest.raises(NameNotResolved):
            status(certificate_authority, named, HOST)
        assert (len(company.heads), gateway.heads) == (1, [])
