"""The control API: what the command line asks the running gateway, as JSON over a Unix socket that is ours alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from valetkey.clock import written
from valetkey.credential import Secret
from valetkey.errors import (
    NotLoggedIn,
    StoreLocked,
    UnknownApproval,
    UnknownProvider,
    UsageError,
    ValetkeyError,
    WrongKey,
)
from valetkey.gateway.access_requests import Scope
from valetkey.serving import peer_uid

__all__ = ["Asked", "Control", "application"]

# A name, a passphrase: whatever is longer was not meant for us.
_MAX_BODY_BYTES = 1 << 16
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

log = logging.getLogger(__name__)


class Asked(Protocol):
    """What the control API asks. Every call may raise a ValetkeyError."""

    def heard(self) -> None:
        """Note that somebody asks: a gateway that is asked is not idle."""
        ...

    def status(self) -> dict[str, object]:
        """Give how the gateway is, and its accounts."""
        ...

    def metrics(self) -> bytes:
        """Give the counters as Prometheus reads them."""
        ...

    def refresh(self) -> None:
        """Read keys and accounts anew now."""
        ...

    async def token(self, name: str) -> dict[str, object]:
        """Give a stored account's fresh secret."""
        ...

    async def unrecovered(self, run: str) -> list[dict[str, object]]:
        """Give the accounts whose last answer to a run was 401 or 403."""
        ...

    def withheld(self, run: str) -> list[dict[str, str]]:
        """Give the tools of MCP servers that a run was not shown."""
        ...

    def lock(self) -> None:
        """Forget the store's key."""
        ...

    async def unlock(self, passphrase: Secret | None) -> None:
        """Open the store."""
        ...

    def stop(self, *, now: bool) -> None:
        """End, after what is under way or at once."""
        ...

    def pending(self) -> list[dict[str, object]]:
        """Give what waits for a person."""
        ...

    def settled(self) -> list[dict[str, object]]:
        """Give what waits no more."""
        ...

    def settle(self, id: str, *, approved: bool, by: str, scope: Scope | None = None) -> Scope:
        """Decide on one of them, for once or for the run; say which it was. Raises: UnknownApproval, UsageError."""
        ...


def application(asked: Asked) -> Starlette:
    """Give the control API as an ASGI application."""

    async def status(_: Request) -> Mapping[str, object]:
        return asked.status()

    async def refresh(_: Request) -> Mapping[str, object]:
        asked.refresh()
        return {"refreshed": True}

    async def token(request: Request) -> Mapping[str, object]:
        name = (await _body(request)).get("name")
        if not isinstance(name, str) or not name:
            raise UsageError("the body names no account", hint='send {"name": "provider@account"}')
        return await asked.token(name)

    async def unrecovered(request: Request) -> Mapping[str, object]:
        run = request.path_params["id"]
        return {"accounts": await asked.unrecovered(run), "withheld": asked.withheld(run)}

    async def lock(_: Request) -> Mapping[str, object]:
        asked.lock()
        return {"locked": True}

    async def unlock(request: Request) -> Mapping[str, object]:
        given = (await _body(request)).get("passphrase")
        if given is not None and not isinstance(given, str):
            raise UsageError("the passphrase is no text", hint='send {"passphrase": "…"}')
        await asked.unlock(None if given is None else Secret(given))
        return {"locked": False}

    async def stop(request: Request) -> Mapping[str, object]:
        now = (await _body(request)).get("now") is True
        asked.stop(now=now)
        return {"stopping": True, "pid": os.getpid()}

    async def approvals(_: Request) -> Mapping[str, object]:
        return {"approvals": asked.pending(), "settled": asked.settled()}

    async def settle(request: Request) -> Mapping[str, object]:
        body = await _body(request)
        approved, scope = body.get("approve"), body.get("scope")
        if not isinstance(approved, bool):
            raise UsageError("the body says neither yes nor no", hint='send {"approve": true} or {"approve": false}')
        if scope not in (None, "once", "run"):
            raise UsageError("the scope is none that there is", hint='send "once" or "run"')
        which, by = request.path_params["id"], _user()
        counts = asked.settle(which, approved=approved, by=by, scope=scope)
        return {"id": which, "approved": approved, "scope": counts if approved else None, "by": by}

    async def metrics(_: Request) -> Response:
        asked.heard()
        return Response(asked.metrics(), media_type=_PROMETHEUS)

    def at(path: str, method: str, answer: Callable[[Request], Awaitable[Mapping[str, object]]]) -> Route:
        async def answered(request: Request) -> Response:
            asked.heard()
            return _json(await answer(request))

        return Route(path, answered, methods=[method])

    return Starlette(
        routes=[
            at("/status", "GET", status),
            at("/refresh", "POST", refresh),
            at("/token", "POST", token),
            at("/runs/{id}/unrecovered", "GET", unrecovered),
            at("/lock", "POST", lock),
            at("/unlock", "POST", unlock),
            at("/stop", "POST", stop),
            at("/approvals", "GET", approvals),
            at("/approvals/{id}", "POST", settle),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={ValetkeyError: _told, HTTPException: _no_such, Exception: _unexpected},
    )


# --- answers ---------------------------------------------------------------------------------


async def _body(request: Request) -> dict[str, Any]:
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _MAX_BODY_BYTES:
            raise UsageError("the body is too long", hint=f"send at most {_MAX_BODY_BYTES} bytes")
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("the body is no JSON object", hint="send one")
    return found


def _json(value: Mapping[str, object], status: int = 200) -> Response:
    # `default` is for datetimes.
    content = json.dumps(value, ensure_ascii=False, default=written)
    return Response(content, status_code=status, media_type="application/json")


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValetkeyError)  # noqa: S101  # what it is registered for
    match error:
        case UsageError():
            status = 400
        case UnknownApproval() | NotLoggedIn() | UnknownProvider():
            status = 404
        case StoreLocked() | WrongKey():
            status = 423
        case _:
            status = 409
    return _json({"error": error.as_dict()}, status)


async def _no_such(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    wrong = UsageError("the control API has no such call", hint="see docs/serve.md for those that there are")
    return _json({"error": wrong.as_dict()}, status)


async def _unexpected(_: Request, error: Exception) -> Response:
    # Its text stays unsaid: it may hold anything. The log has it, without secrets.
    wrong = ValetkeyError(
        f"something went wrong inside the gateway: {type(error).__name__}", hint="see what it logged, in run/serve.log"
    )
    return _json({"error": wrong.as_dict()}, 500)


def _user() -> str:
    """Name who asks: the peer's user is this process's own."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


# --- the server ------------------------------------------------------------------------------


class Control:
    """Serves the control API on a socket, to processes of this user alone."""

    def __init__(self, asked: Asked, *, allowed_uid: int | None = None) -> None:
        self._config = uvicorn.Config(
            application(asked),
            http=_protocol(os.geteuid() if allowed_uid is None else allowed_uid),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(self._config)
        self._listening: socket.socket | None = None

    async def start(self, listening: socket.socket) -> None:
        """Begin to answer. `Server.serve` would take the signals, and wake up ten times a second."""
        self._config.load()
        self._server.lifespan = self._config.lifespan_class(self._config)
        await self._server.startup(sockets=[listening])
        self._listening = listening

    async def close(self) -> None:
        """Finish the answers under way and end."""
        if self._listening is not None:
            await self._server.shutdown(sockets=[self._listening])
            self._listening = None


def _protocol(allowed_uid: int) -> type[HttpToolsProtocol]:
    class OwnUserOnly(HttpToolsProtocol):
        """Hangs up on other users before a byte is read. The folder keeps them out; this holds where it does not."""

        _foreign = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if peer_uid(transport.get_extra_info("socket")) != allowed_uid:
                self._foreign = True
                log.warning("another user tried to reach the control socket")
                transport.abort()
                return
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self._foreign:
                super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            if not self._foreign:
                super().connection_lost(exc)

    return OwnUserOnly
