"""Where a credential goes: header, Basic, query, cookie, path, body; and a valet key that would reach the provider."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.gateway import KEY, RunningGateway, acme, running_gateway
from tests.support.upstream import Upstream, Whole
from valetkey.provider import Api, AuthMethod, Inject, Provider


def placed(base_url: str, **inject: object) -> Provider:
    """Give a provider that wants its key so."""
    host = base_url.split("/")[2]
    method = AuthMethod(id="api-key", kind="api-key", inject=(Inject(**inject),))  # type: ignore[arg-type]  # a test's
    return Provider(id="acme", name="Acme", api=Api(base_url=base_url, hosts=(host,)), auth=(method,), origin="user")


def sent(gateway: RunningGateway, upstream: Upstream, request: str, body: bytes = b"") -> tuple[int, Whole]:
    with gateway.raw() as client:
        status, _, _ = client.send(request.encode() + body).answer()
    return status, upstream.requests[-1]


def asked(gateway: RunningGateway, target: str, *headers: str) -> str:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: gateway", *headers, "", ""])


def test_a_key_goes_into_the_header_that_is_declared_and_into_no_other(tmp_path: Path) -> None:
    with Upstream() as upstream:
        provider = placed(upstream.url, set={"x-goog-api-key": "{key}"}, remove=("x-other",))
        with running_gateway(provider, home=tmp_path) as gateway:
            token = gateway.key()
            headers = f"Authorization: Bearer {token}", "X-Other: a", "api-key: b", "Cookie: c=d"
            status, request = sent(gateway, upstream, asked(gateway, "/acme/x", *headers))
    assert status == 200
    assert request.header("x-goog-api-key") == KEY
    assert [request.header(name) for name in ("authorization", "x-other", "api-key", "cookie")] == [None] * 4


def test_a_pair_goes_into_basic(tmp_path: Path) -> None:
    with Upstream() as upstream, running_gateway(placed(upstream.url, basic="git:{key}"), home=tmp_path) as gateway:
        pair = base64.b64encode(f"anybody:{gateway.key()}".encode()).decode()
        _, request = sent(gateway, upstream, asked(gateway, "/acme/x", f"Authorization: Basic {pair}"))
    assert request.header("authorization") == "Basic " + base64.b64encode(f"git:{KEY}".encode()).decode()


def test_a_key_goes_into_the_query_in_place_of_the_clients(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        running_gateway(placed(upstream.url, query={"key": "{key}"}), home=tmp_path) as gateway,
    ):
        token = gateway.key()
        _, by_query = sent(gateway, upstream, asked(gateway, f"/acme/x?a=1&key={token}&b=2"))
        _, by_header = sent(gateway, upstream, asked(gateway, "/acme/x?key=other", f"x-api-key: {token}"))
    assert by_query.target == f"/x?a=1&b=2&key={quote(KEY, safe='')}"
    assert by_header.target == f"/x?key={quote(KEY, safe='')}"


def test_a_key_goes_into_a_cookie_and_the_clients_cookies_go_nowhere(tmp_path: Path) -> None:
    with Upstream() as upstream, running_gateway(placed(upstream.url, cookie={"s": "{key}"}), home=tmp_path) as gateway:
        headers = f"Authorization: Bearer {gateway.key()}", "Cookie: s=mine; t=mine"
        _, request = sent(gateway, upstream, asked(gateway, "/acme/x", *headers))
    assert request.header("cookie") == f"s={KEY}"


def test_a_key_goes_into_the_path_where_the_client_wrote_its_own(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        running_gateway(placed(upstream.url, replace={"path": "{key}"}), home=tmp_path) as gateway,
    ):
        status, request = sent(gateway, upstream, asked(gateway, f"/acme/bot{gateway.key()}/getMe"))
    assert status == 200
    assert request.target == f"/bot{KEY}/getMe"
    assert request.header("authorization") is None


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_key_goes_into_the_body_where_the_client_wrote_its_own(tmp_path: Path, framing: str) -> None:
    with (
        Upstream() as upstream,
        running_gateway(placed(upstream.url, replace={"body": "{key}"}), home=tmp_path) as gateway,
    ):
        token = gateway.key()
        body = f'{{"key": "{token}", "text": "{"x" * 100_000}"}}'.encode()
        head = f"POST /acme/x HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n"
        if framing == "length":
            whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        else:
            whole = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        with gateway.raw() as client:
            assert client.send(whole[:300], whole[300:]).answer()[0] == 200
            # And once more on the same connection.
            assert client.send(whole).answer()[0] == 200
    first, again = upstream.requests
    assert first.body == again.body == body.replace(token.encode(), KEY.encode())
    assert first.header("content-length") == str(len(first.body))


def test_a_body_that_is_to_get_a_key_is_not_endless(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        running_gateway(placed(upstream.url, replace={"body": "{key}"}), home=tmp_path) as gateway,
    ):
        head = f"POST /acme/x HTTP/1.1\r\nHost: g\r\nx-api-key: {gateway.key()}\r\nContent-Length: 3000000\r\n\r\n"
        with gateway.raw() as client:
            client.send(head, b"x" * 1_100_000)
            assert client.head()[0] == 413
    assert upstream.requests == []


@pytest.mark.parametrize("where", ["path", "query", "header"])
def test_a_valet_key_that_would_reach_the_provider_is_refused(tmp_path: Path, where: str) -> None:
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        token = gateway.key()
        shown = f"Authorization: Bearer {token}"
        request = {
            "path": asked(gateway, f"/acme/bot{token}/x", shown),
            "query": asked(gateway, f"/acme/x?key={token}", shown),
            "header": asked(gateway, "/acme/x", shown, f"X-Copy: {token}"),
        }[where]
        with gateway.raw() as client:
            status, _, body = client.send(request).answer()
    assert status == 400
    assert b"key_in_request" in body
    assert upstream.requests == []


def test_the_key_of_one_account_is_not_put_in_for_another_host(tmp_path: Path) -> None:
    with (
        Upstream() as one,
        Upstream() as other,
        running_gateway(acme(one.url, id="one"), acme(other.url, id="other"), home=tmp_path) as gateway,
    ):
        token = gateway.key("one")
        with gateway.raw() as client:
            status, _, body = client.send(asked(gateway, "/other/x", f"x-api-key: {token}")).answer()
    assert status == 404
    assert b"unknown_provider" in body
    assert other.requests == []


def test_the_valet_key_of_somebody_else_reaches_no_provider_either(tmp_path: Path) -> None:
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        shown, other = f"Authorization: Bearer {gateway.key()}", f"!Authorization: Bearer {gateway.key()}"
        with gateway.raw() as client:
            assert client.send(asked(gateway, "/acme/x", shown, other)).answer()[0] == 400
    assert upstream.requests == []


def test_a_key_that_stands_twice_in_a_body_is_put_in_nowhere(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        running_gateway(placed(upstream.url, replace={"body": "{key}"}), home=tmp_path) as gateway,
    ):
        token = gateway.key()
        body = f'{{"key": "{token}", "hook": "https://elsewhere.example/?k={token}"}}'
        head = f"POST /acme/x HTTP/1.1\r\nHost: g\r\nx-api-key: {token}\r\nContent-Length: {len(body)}\r\n\r\n"
        with gateway.raw() as client:
            assert client.send(head + body).answer()[0] == 400
    assert upstream.requests == []
