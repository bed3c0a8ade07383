"""The servers that live in the test's own process do what the tests of everything else rely on."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.echo import Echo
from tests.support.gateway_process import until
from tests.support.tls import CertificateAuthority
from valetkey.errors import TlsFailed, Unreachable
from valetkey.http import HttpClient, Response
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.local_server import Answer, LocalServer


@pytest.fixture
def client() -> HttpClient:
    return HttpClient(timeout_seconds=60)


def test_answers_come_in_order_and_the_last_one_repeats(client: HttpClient) -> None:
    with AuthorizationServer() as server:
        server.answers("/token", status=400, json={"error": "slow_down"})
        server.answers("/token", form={"access_token": "a"})
        got = [client.send("POST", f"{server.url}/token", body=b"grant_type=x&b=") for _ in range(3)]
        client.close()
    assert [(a.status, a.body) for a in got] == [
        (400, b'{"error": "slow_down"}'),
        (200, b"access_token=a"),
        (200, b"access_token=a"),
    ]
    assert [call.form for call in server.calls("/token")] == [{"grant_type": "x", "b": ""}] * 3


def test_bodies_can_be_compressed_and_long(client: HttpClient) -> None:
    with AuthorizationServer() as server:
        server.answers("/token", text="<html>" * 1000, gzip=True)
        answer = client.send("GET", f"{server.url}/token")
        client.close()
    assert answer.body == b"<html>" * 1000


def test_a_dropped_connection_is_no_answer(client: HttpClient) -> None:
    with AuthorizationServer() as server:
        server.drops("/token")
        with pytest.raises(Unreachable):
            client.send("POST", f"{server.url}/token")
        client.close()


def test_a_request_that_hangs_ends_when_the_server_stops(client: HttpClient) -> None:
    failures: list[Exception] = []

    def ask(url: str) -> None:
        try:
            client.send("POST", url)
        except Unreachable as error:
            failures.append(error)

    with AuthorizationServer() as server:
        server.hangs("/token")
        asker = threading.Thread(target=ask, args=(f"{server.url}/token",))
        asker.start()
        server.wait_for(1)
    asker.join()
    client.close()
    assert len(failures) == 1


def test_the_echo_tells_what_reached_it_over_tls(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    with Echo(tls=authority.context()) as echo:
        client = HttpClient(ca_file=str(authority.ca_file))
        answer: Response = client.send("PUT", f"{echo.url}/a?b=c", headers={"x-one": "1"}, body=b"hello")
        client.close()
    body = answer.json()
    assert isinstance(body, dict)
    assert (body["method"], body["path"], body["query"], body["body"]) == ("PUT", "/a", {"b": "c"}, "hello")
    assert body["headers"]["x-one"] == "1"
    assert len(echo.requests) == 1


def test_a_client_that_does_not_know_the_authority_refuses(tmp_path: Path, client: HttpClient) -> None:
    with Echo(tls=CertificateAuthority(tmp_path).context()) as echo, pytest.raises(TlsFailed):
        client.send("GET", echo.url)
    client.close()
    assert echo.requests == []


def test_a_connection_that_comes_as_the_server_stops_does_not_hold_it_up() -> None:
    taken = threading.Event()

    class Late(ssl.SSLContext):
        """Is not done with a connection before the server has cut all that it knows."""

        def wrap_socket(self, sock: socket.socket, **_: Any) -> Any:  # type: ignore[override]  # as it is called
            taken.set()
            until(lambda: server._server.socket.fileno() == -1)
            return sock

    server = LocalServer(lambda _: Answer(), tls=Late(ssl.PROTOCOL_TLS_SERVER))
    server.__enter__()
    with socket.create_connection(("127.0.0.1", server.port)):
        assert taken.wait(60)
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive()
