"""The doors and the search for secrets, on which the tests of client programs rely."""

from __future__ import annotations

import base64
import hashlib
import http.client
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.front import Door, Target, guarded
from valetkey.testing.canary import holding, holds
from valetkey.testing.local_server import Answer, LocalServer, Received, Stream

BASIC = "Basic " + base64.b64encode(b"x-access-token:k").decode()


def ask(
    server: LocalServer, method: str = "GET", body: bytes | Iterable[bytes] | None = None, *headers: tuple[str, str]
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port, timeout=60)
    connection.putrequest(method, "/a?b=%2F")
    for name, value in headers:
        connection.putheader(name, value)
    if body is not None and not isinstance(body, bytes):
        connection.putheader("transfer-encoding", "chunked")
        connection.endheaders(body, encode_chunked=True)
    else:
        connection.endheaders()
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, read


@pytest.mark.parametrize(
    ("door", "headers", "status"),
    [
        (Door(key="k"), [("Authorization", "Bearer k")], 200),
        (Door(key="k"), [("Authorization", "Bearer vk_k")], 401),
        (Door(key="k"), [("Authorization", "Bearer vk_k"), ("Authorization", "Bearer k")], 401),
        (Door(key="k"), [("Authorization", "Bearer k"), ("X-Api-Key", "vk_k")], 401),
        (Door(key="k"), [("Authorization", "Bearer k"), ("Proxy-Authorization", "Basic eDp4")], 401),
        (Door(key="k"), [], 401),
        (Door(header="x-api-key", form="{key}", key="k"), [("x-api-key", "k")], 200),
        (Door(header="x-api-key", form="{key}", key="k"), [("Authorization", "Bearer k")], 401),
        (Door(user="x-access-token", key="k"), [("Authorization", BASIC)], 200),
        (Door(user="x-access-token", key="k"), [("Authorization", "Bearer k")], 401),
    ],
)
def test_a_door_opens_for_one_credential_alone(door: Door, headers: list[tuple[str, str]], status: int) -> None:
    with LocalServer(guarded(door, lambda _: Answer())) as server:
        assert ask(server, "GET", None, *headers)[0] == status


def test_what_a_door_lets_in_goes_on_with_the_targets_own_credential() -> None:
    def digest(request: Received) -> Answer:
        return Answer(status=201, body=hashlib.sha256(request.body).digest())

    door = Door()
    with LocalServer(digest) as behind:
        target = Target(behind.url, {"x-api-key": "of the target"})
        with LocalServer(guarded(door, target)) as server:
            pieces = [b"one", b"two" * 50_000]
            answer = ask(server, "POST", pieces, ("authorization", door.value), ("x-other", "kept"))
    assert answer == (201, hashlib.sha256(b"".join(pieces)).digest())
    request = behind.requests[0]
    assert (request.method, request.path, dict(request.query)) == ("POST", "/a", {"b": "/"})
    assert (request.headers["x-api-key"], request.headers["x-other"]) == ("of the target", "kept")
    assert "authorization" not in request.headers


def test_pieces_of_a_stream_are_sent_as_they_come() -> None:
    more = threading.Event()

    def pieces() -> Iterable[bytes]:
        yield b"one"
        assert more.wait(60)
        yield b"two"

    with LocalServer(lambda _: Stream(pieces=pieces())) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.read(3) == b"one"
        more.set()
        assert answer.read() == b"two"
        connection.close()


def test_a_secret_is_found_as_it_is_and_in_base64(tmp_path: Path) -> None:
    secret = "sk-canary-" + "0f" * 12
    for user in ("", "x", "xy", "x-access-token"):
        assert holds(secret, base64.b64encode(f"{user}:{secret}@".encode()))
    assert holds(secret, b"a" + secret.encode())
    assert not holds(secret, secret[:-1].encode())
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text(f"a {secret} b")
    (tmp_path / "other").write_text("nothing")
    assert holding(secret, tmp_path.rglob("*")) == [str(tmp_path / "deep" / "file")]
