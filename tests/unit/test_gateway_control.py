"""The control API: what it takes, what it answers, and to whom."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from valetkey.credential import Secret
from valetkey.errors import NeedsLogin, NotLoggedIn, UnknownApproval, WrongKey
from valetkey.gateway.access_requests import Scope
from valetkey.gateway.control import Control

pytestmark = pytest.mark.anyio


@dataclass
class Scripted:
    """Answers in place of a gateway, and keeps what it was asked."""

    asked: list[object] = field(default_factory=list)
    heard_times: int = 0

    def heard(self) -> None:
        self.heard_times += 1

    def status(self) -> dict[str, object]:
        return {"locked": False, "started_at": datetime(2026, 11, 22, tzinfo=UTC)}

    def metrics(self) -> bytes:
        return b"requests_total 1\n"

    def refresh(self) -> None:
        self.asked.append("refresh")

    async def token(self, name: str) -> dict[str, object]:
        match name:
            case "gone":
                raise NotLoggedIn("no credential is stored for gone@default", hint="run `valetkey login gone`")
            case "ended":
                raise NeedsLogin("ended@default needs a new login", hint="run `valetkey login ended`")
            case "broken":
                raise RuntimeError("holds " + "a-secret")
        return {"provider": name, "token": "the-token"}

    async def unrecovered(self, run: str) -> list[dict[str, object]]:
        return [{"account": "acme@default", "status": 401, "hint": f"of {run}"}]

    def withheld(self, run: str) -> list[dict[str, str]]:
        return [{"server": "linear", "tool": run}]

    def lock(self) -> None:
        self.asked.append("lock")

    async def unlock(self, passphrase: Secret | None) -> None:
        self.asked.append(None if passphrase is None else passphrase.reveal())
        if passphrase == Secret("wrong"):
            raise WrongKey("this passphrase does not open the store", hint="try again")

    def stop(self, *, now: bool) -> None:
        self.asked.append(("stop", now))

    def settled(self) -> list[dict[str, object]]:
        return []

    def pending(self) -> list[dict[str, object]]:
        return [{"id": "1a2b", "since": datetime(2026, 11, 22, tzinfo=UTC)}]

    def settle(self, id: str, *, approved: bool, by: str, scope: Scope | None = None) -> Scope:
        if id != "1a2b":
            raise UnknownApproval("no request of this id waits", hint="see `valetkey approvals list`")
        self.asked.append((id, approved, by, scope))
        return scope or "once"


@asynccontextmanager
async def served(path: Path, *, allowed_uid: int | None = None) -> AsyncIterator[Scripted]:
    asked = Scripted()
    control = Control(asked, allowed_uid=allowed_uid)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    await control.start(listening)
    try:
        yield asked
    finally:
        await control.close()


async def call(path: Path, method: str, url: str, **sent: Any) -> httpx2.Response:
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with httpx2.AsyncClient(transport=transport, base_url="http://whoever.example") as client:
        return await client.request(method, url, **sent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


WAITING = {"id": "1a2b", "since": "2026-11-22T00:00:00Z"}


@pytest.mark.parametrize(
    ("method", "url", "body", "answer", "asked"),
    [
        ("GET", "/status", None, {"locked": False, "started_at": "2026-11-22T00:00:00Z"}, []),
        ("POST", "/refresh", None, {"refreshed": True}, ["refresh"]),
        ("POST", "/token", {"name": "acme"}, {"provider": "acme", "token": "the-token"}, []),
        ("POST", "/lock", None, {"locked": True}, ["lock"]),
        ("POST", "/unlock", {}, {"locked": False}, [None]),
        ("POST", "/unlock", {"passphrase": "right"}, {"locked": False}, ["right"]),
        ("POST", "/stop", None, {"stopping": True, "pid": os.getpid()}, [("stop", False)]),
        ("POST", "/stop", {"now": True}, {"stopping": True, "pid": os.getpid()}, [("stop", True)]),
        (
            "GET",
            "/approvals",
            None,
            {"approvals": [{"id": "1a2b", "since": "2026-11-22T00:00:00Z"}], "settled": []},
            [],
        ),
    ],
)
async def test_each_call_does_its_one_thing(
    path: Path, method: str, url: str, body: object, answer: object, asked: list[object]
) -> None:
    async with served(path) as gateway:
        told = await call(path, method, url, json=body) if body is not None else await call(path, method, url)
        assert (told.status_code, told.json(), gateway.asked) == (200, answer, asked)
        assert gateway.heard_times == 1


@pytest.mark.parametrize("approve", [True, False])
async def test_a_decision_is_kept_with_who_made_it(path: Path, approve: bool) -> None:
    import pwd

    user = pwd.getpwuid(os.geteuid()).pw_name
    async with served(path) as gateway:
        told = await call(path, "POST", "/approvals/1a2b", json={"approve": approve, "by": "somebody else"})
        assert told.json() == {"id": "1a2b", "approved": approve, "scope": "once" if approve else None, "by": user}
        assert gateway.asked == [("1a2b", approve, user, None)]


async def test_metrics_are_text_as_prometheus_reads_it(path: Path) -> None:
    async with served(path) as gateway:
        told = await call(path, "GET", "/metrics")
        assert (told.text, gateway.heard_times) == ("requests_total 1\n", 1)
        assert told.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    ("url", "sent", "status", "code"),
    [
        ("/token", {"json": {"name": "gone"}}, 404, "not_logged_in"),
        ("/token", {"json": {"name": "ended"}}, 409, "needs_login"),
        ("/token", {"json": {"name": ""}}, 400, "usage_error"),
        ("/token", {"json": {"name": 1}}, 400, "usage_error"),
        ("/token", {"json": ["acme"]}, 400, "usage_error"),
        ("/token", {"content": b"{"}, 400, "usage_error"),
        ("/token", {"content": b"[" * 60000}, 400, "usage_error"),
        ("/token", {"content": b"x" * 70000}, 400, "usage_error"),
        ("/unlock", {"json": {"passphrase": 1}}, 400, "usage_error"),
        ("/unlock", {"json": {"passphrase": "wrong"}}, 423, "wrong_key"),
        ("/approvals/ffff", {"json": {"approve": True}}, 404, "unknown_approval"),
        ("/approvals/1a2b", {"json": {"approve": "yes"}}, 400, "usage_error"),
        ("/approvals/1a2b", {}, 400, "usage_error"),
        ("/status", {}, 405, "usage_error"),
        ("/nonsense", {}, 404, "usage_error"),
    ],
)
async def test_what_is_wrong_is_told_as_everywhere(
    path: Path, url: str, sent: dict[str, Any], status: int, code: str
) -> None:
    async with served(path) as gateway:
        told = await call(path, "POST", url, **sent)
        error = told.json()["error"]
        assert (told.status_code, error["code"]) == (status, code)
        assert list(error) == ["code", "message", "hint", "provider", "retryable"]
        assert [entry for entry in gateway.asked if entry != "wrong"] == []


async def test_a_body_that_is_too_long_is_not_read_to_its_end(path: Path) -> None:
    async with served(path):
        told = await call(path, "POST", "/token", json={"name": "a" * 70000})
        assert (told.status_code, told.json()["error"]["message"]) == (400, "the body is too long")


async def test_a_fault_of_ours_says_where_to_look_and_nothing_else(path: Path) -> None:
    async with served(path):
        told = await call(path, "POST", "/token", json={"name": "broken"})
    assert told.status_code == 500
    assert "RuntimeError" in told.json()["error"]["message"]
    assert "a-secret" not in told.text


async def test_another_user_gets_no_answer(path: Path) -> None:
    async with served(path, allowed_uid=os.geteuid() + 1) as gateway:
        with pytest.raises(httpx2.TransportError):
            await call(path, "POST", "/lock")
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b""
        writer.close()
        assert (gateway.asked, gateway.heard_times) == ([], 0)


async def test_its_signals_are_left_to_the_process(path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    async with served(path):
        assert signal.getsignal(signal.SIGTERM) is before
