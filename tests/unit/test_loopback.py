"""The port that waits for the browser, its strangers and its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from valetkey.errors import LoginTimeout, PortsBusy
from valetkey.flows import listen
from valetkey.flows.loopback import listen as listen_for
from valetkey.provider import Loopback

STATE = "st-" + "s" * 40


async def ask(port: int, request: str) -> bytes:
    """Send these bytes and give all that comes back until the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode("latin-1"))
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def get(target: str, host: str, *, verb: str = "GET", extra: str = "") -> str:
    return f"{verb} {target} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@contextlib.contextmanager
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield held.getsockname()[1]


@pytest.mark.anyio
async def test_the_answer_is_heard_and_the_port_closed() -> None:
    async with listen(Loopback(path="/callback")) as listener:
        listener.expect(STATE)
        assert listener.redirect_uri == f"http://127.0.0.1:{listener.port}/callback"
        assert listener.answer is None
        answer = await ask(
            listener.port, get(f"/callback?code=abc&state={STATE}&scope=x&iss=i", f"127.0.0.1:{listener.port}")
        )
        assert await listener.wait() == {"code": "abc", "state": STATE, "iss": "i"} == listener.answer
        port = listener.port
    assert status(answer) == 200
    head = answer.split(b"\r\n\r\n")[0].decode()
    for line in (
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Content-Security-Policy: default-src 'none'",
    ):
        assert line in head
    assert STATE.encode() not in answer
    with pytest.raises(ConnectionRefusedError):
        await ask(port, "")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "request_text",
    [
        get("/callback?code=abc&state=other", "{host}"),
        get("/callback?code=abc", "{host}"),
        get("/callback?code=abc&code=b&state={state}", "{host}"),
        get("/callback?state={state}", "{host}"),
        get("/other?code=abc&state={state}", "{host}"),
        get("/callback/?code=abc&state={state}", "{host}"),
        get("/favicon.ico", "{host}"),
        get("/callback?code=abc&state={state}", "evil.example"),
        get("/callback?code=abc&state={state}", "evil.example:{port}"),
        get("/callback?code=abc&state={state}", "127.0.0.1"),
        get("/callback?code=abc&state={state}", "{host}", extra="Host: evil.example\r\n"),
        get("/callback?code=abc&state={state}", "{host}", verb="POST"),
        get("/callback?code=abc&state={state}", "{host}", verb="HEAD"),
        get("/callback?code=abc&state={state}", "{host}", verb="OPTIONS"),
        get("http://evil.example/callback?code=abc&state={state}", "{host}"),
        "GET /callback?code=abc&state={state} HTTP/1.1\r\n\r\n",
        "GET /callback?code=abc&state={state}\r\n\r\n",
        "rubbish\r\n\r\n",
        "\xff\xfe\r\n\r\n",
        "\r\n\r\n",
    ],
)
async def test_a_stray_request_is_answered_400_and_waited_past(request_text: str) -> None:
    async with listen(Loopback(path="/callback")) as listener:
        listener.expect(STATE)
        host = f"127.0.0.1:{listener.port}"
        stray = request_text.replace("{host}", host).replace("{state}", STATE).replace("{port}", str(listener.port))
        assert status(await ask(listener.port, stray)) == 400
        assert listener.answer is None
        assert status(await ask(listener.port, get(f"/callback?code=abc&state={STATE}", host))) == 200
        assert (await listener.wait())["code"] == "abc"


@pytest.mark.anyio
async def test_before_it_knows_its_state_everybody_is_a_stranger() -> None:
    async with listen(Loopback()) as listener:
        host = f"127.0.0.1:{listener.port}"
        assert status(await ask(listener.port, get("/callback?code=abc&state=", host))) == 400


@pytest.mark.anyio
async def test_only_the_first_answer_counts() -> None:
    """A connection that is open already may still speak; the port itself takes no more."""
    async with listen(Loopback()) as listener:
        listener.expect(STATE)
        host = f"localhost:{listener.port}"
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert status(await ask(listener.port, get(f"/callback?code=first&state={STATE}", host))) == 200
        writer.write(get(f"/callback?code=second&state={STATE}", host).encode())
        assert status(await reader.read()) == 400
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await ask(listener.port, "")
        assert (await listener.wait())["code"] == "first"


@pytest.mark.anyio
async def test_the_port_is_closed_in_time() -> None:
    async with listen_for(Loopback(), limit_seconds=0) as listener:
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await ask(listener.port, "")


@pytest.mark.anyio
async def test_a_refusal_is_shown_as_text() -> None:
    async with listen(Loopback()) as listener:
        listener.expect(STATE)
        asked = f"/callback?error=access_denied&error_description=%3Cscript%3Ealert(1)%3C/script%3E&state={STATE}"
        answer = await ask(listener.port, get(asked, f"127.0.0.1:{listener.port}"))
        assert status(answer) == 403
        assert b"<script>" not in answer
        assert b"&lt;script&gt;" in answer
        assert (await listener.wait())["error"] == "access_denied"


@pytest.mark.anyio
async def test_idle_and_endless_connections_hold_up_nobody() -> None:
    async with listen(Loopback()) as listener:
        listener.expect(STATE)
        idle = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(5)]
        flood = "GET /" + "x" * 100_000
        with contextlib.suppress(ConnectionError):
            await ask(listener.port, flood)
        host = f"127.0.0.1:{listener.port}"
        assert status(await ask(listener.port, get(f"/callback?code=abc&state={STATE}", host))) == 200
    for _, writer in idle:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.anyio
async def test_a_busy_port_gives_way_to_the_next() -> None:
    with taken() as busy, taken() as free_soon:
        pass
    with taken() as busy:
        async with listen(Loopback(host="localhost", ports=(busy, free_soon), path="/auth/callback")) as listener:
            assert listener.redirect_uri == f"http://localhost:{free_soon}/auth/callback"


@pytest.mark.anyio
async def test_when_all_ports_are_busy_there_is_still_paste() -> None:
    with taken() as one, taken() as other:
        with pytest.raises(PortsBusy) as caught:
            async with listen(Loopback(ports=(one, other))):
                raise AssertionError("not reached")
        assert "--no-browser" in caught.value.hint
        assert f"{one}, {other}" in caught.value.message


@pytest.mark.anyio
async def test_nobody_waits_for_ever() -> None:
    async with listen(Loopback()) as listener:
        with pytest.raises(LoginTimeout):
            await listener.wait(limit_seconds=0)


@pytest.mark.anyio
async def test_a_cancelled_wait_closes_the_port() -> None:
    ports: list[int] = []
    open_now = asyncio.Event()

    async def wait() -> None:
        async with listen(Loopback()) as listener:
            ports.append(listener.port)
            open_now.set()
            await listener.wait()

    task = asyncio.create_task(wait())
    await open_now.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        await ask(ports[0], "")
