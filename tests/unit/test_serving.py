"""How the running gateway is found and asked: what is told where there is none, a dead one, or somebody else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forking import start_child, wait_for
from valetkey import serving
from valetkey.errors import GatewayDown, NeedsLogin, ValetkeyError, WrongMode

NOBODY = 65534
SAID = {"version": "1", "pid": 1234, "url": "http://127.0.0.1:4380", "locked": False}


def say(home: Path, **more: object) -> None:
    """Write what a gateway of this home would say of itself."""
    run = home / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    (run / serving.LOCK).touch(mode=0o600)
    about = {**SAID, "control": str(run / serving.CONTROL), **more}
    (run / serving.ABOUT).write_text(json.dumps(about))


@contextlib.contextmanager
def alive(home: Path) -> Iterator[None]:
    """Hold the lock that a gateway of this home would hold."""
    with open(home / "run" / serving.LOCK, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def listening(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen()
    return server


@contextlib.contextmanager
def answering(home: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer one request on the control socket, and give what came."""
    say(home)
    received: list[bytes] = []
    with listening(str(home / "run" / serving.CONTROL)) as server:

        def answer_one() -> None:
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=answer_one)
        thread.start()
        yield received
        thread.join(60)


def of_json(value: object, status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n\r\n".encode() + json.dumps(value).encode()


def test_where_no_gateway_ever_ran_there_is_none(home: Path) -> None:
    assert serving.running(str(home)) is None
    assert serving.running(str(home / "not-there")) is None
    assert not serving.is_alive(str(home))
    with pytest.raises(GatewayDown, match="does not run") as caught:
        serving.ask(str(home), "GET", "/status")
    assert "valetkey up" in caught.value.hint
    with pytest.raises(GatewayDown):
        serving.base_url(str(home))
    serving.poke(str(home))  # says nothing


def test_one_that_lives_is_found_by_its_lock(home: Path) -> None:
    say(home)
    with alive(home):
        found = serving.running(str(home))
        assert found is not None
        assert found["pid"] == 1234
        assert serving.base_url(str(home)) == "http://127.0.0.1:4380"


def test_what_a_killed_one_left_is_seen_as_such_at_once(home: Path) -> None:
    say(home)
    listening(str(home / "run" / serving.CONTROL)).close()
    assert serving.about(str(home)) is not None
    assert serving.running(str(home)) is None
    with pytest.raises(GatewayDown, match="does not run"):
        serving.ask(str(home), "GET", "/status")


def test_those_who_ask_at_once_do_not_take_each_other_for_it(home: Path) -> None:
    say(home)
    with open(home / "run" / serving.LOCK, "rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not serving.is_alive(str(home))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"control": 1}'])
def test_what_nobody_can_read_says_nothing(home: Path, content: str) -> None:
    say(home)
    (home / "run" / serving.ABOUT).write_text(content)
    with alive(home):
        assert serving.running(str(home)) is None


def test_a_home_that_others_can_write_is_not_believed(home: Path) -> None:
    say(home)
    home.chmod(0o777)
    with pytest.raises(WrongMode):
        serving.ask(str(home), "POST", "/unlock", {"passphrase": "x"})


def test_an_answer_is_the_json_that_was_sent(home: Path) -> None:
    with answering(home, of_json({"token": "é"})) as received:
        assert serving.ask(str(home), "POST", "/token", {"name": "acme"}) == {"token": "é"}
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /token HTTP/1.1\r\nhost: valetkey\r\n")
    assert json.loads(body) == {"name": "acme"}
    assert f"content-length: {len(body)}".encode() in head


def test_an_error_comes_out_as_the_class_that_it_was(home: Path) -> None:
    error = NeedsLogin("acme@default needs a new login", hint="run `valetkey login acme`", provider="acme")
    with answering(home, of_json({"error": error.as_dict()}, 409)), pytest.raises(NeedsLogin) as caught:
        serving.ask(str(home), "POST", "/token", {"name": "acme"})
    assert caught.value.as_dict() == error.as_dict()
    assert caught.value.exit_status == 3


def test_an_error_of_a_newer_gateway_is_one_of_ours_all_the_same(home: Path) -> None:
    told = {"code": "of_the_future", "message": "no", "hint": "wait"}
    with answering(home, of_json({"error": told}, 409)), pytest.raises(ValetkeyError, match="no") as caught:
        serving.ask(str(home), "POST", "/token")
    assert (type(caught.value), caught.value.hint) == (ValetkeyError, "wait")


@pytest.mark.parametrize("answer", [b"", b"garbage", b"HTTP/1.1 200 OK\r\n\r\n{", b"HTTP/1.1 x OK\r\n\r\n{}"])
def test_an_answer_that_is_none_is_told(home: Path, answer: bytes) -> None:
    with answering(home, answer), pytest.raises(GatewayDown, match="no answer that can be read"):
        serving.ask(str(home), "GET", "/status")


def test_one_that_is_stopped_is_given_up_and_named(home: Path) -> None:
    say(home)
    # It takes connections, and nobody reads them.
    with (
        listening(str(home / "run" / serving.CONTROL)),
        pytest.raises(GatewayDown, match=r"process 1234.* does not answer"),
    ):
        serving.ask(str(home), "GET", "/status", patience_seconds=0.01)


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert serving.peer_uid(ours) == os.geteuid()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that every user may use, as the test's own one may not be."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def test_another_user_who_listens_there_hears_nothing(home: Path, open_folder: Path) -> None:
    """Only root can play the other user; for anybody else the two are the same, and it gets its answer."""
    path, ready, heard = str(open_folder / "s"), os.pipe(), os.pipe()
    say(home, control=path)

    def listen_as_nobody() -> None:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        with listening(path) as server:
            os.write(ready[1], b"!")
            connection, _ = server.accept()
            with connection:
                os.write(heard[1], connection.recv(65536) or b"-")
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(of_json({}))

    child = start_child(listen_as_nobody)
    os.read(ready[0], 1)
    if os.geteuid() == 0:
        with pytest.raises(GatewayDown, match="another user listens"):
            serving.ask(str(home), "POST", "/unlock", {"passphrase": "x"})
    else:
        assert serving.ask(str(home), "POST", "/unlock", {"passphrase": "x"}) == {}
    assert wait_for(child) == 0
    assert (os.read(heard[0], 65536) == b"-") == (os.geteuid() == 0)
    for descriptor in (*ready, *heard):
        os.close(descriptor)


def test_it_brings_next_to_nothing_with_it(home: Path) -> None:
    code = "import sys, valetkey.serving; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"click", "asyncio", "httpx2", "dataclasses", "logging", "socket", "cryptography", "sqlite3", "http.client"}
    assert heavy & set(done.stdout.split()) == set()
