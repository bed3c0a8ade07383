"""The loopback end of a browser login (RFC 8252 section 7.3): hears one answer and closes.

Bound to 127.0.0.1 whatever the redirect_uri calls it. A request that is not the answer (a prefetch, another tab,
another program) gets 400 and is waited past; nothing that it says is believed before its `state` is ours.
"""

from __future__ import annotations

import asyncio
import errno
import html
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlsplit

from valetkey.errors import LoginTimeout, PortsBusy
from valetkey.flows.authorization_code import RESPONSE_FIELDS, same
from valetkey.provider import Loopback

__all__ = ["Listener", "listen"]

# As other command lines have it: longer than a password manager takes, shorter than a forgotten terminal.
LIMIT_SECONDS = 300.0
MAX_HEAD_BYTES = 16 * 1024
# A browser opens connections that it may never use; each is let go after this.
HEAD_SECONDS = 10.0
MAX_CONNECTIONS = 32
PAGE_SECONDS = 1.0
_TEXT = {
    200: ("Done", "You are logged in. You can close this page and go back to the terminal."),
    400: ("Not the answer", "This is not the login that Valetkey waits for. It goes on waiting."),
    403: ("Not logged in", "The provider did not grant the login. You can close this page."),
}
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden"}
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Valetkey: {title}</title></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""


class Listener:
    """An open port. `redirect_uri` is what the authorization URL must name."""

    def __init__(self, loopback: Loopback, port: int, *, close_port: Callable[[], None]) -> None:
        self.port = port
        self._close_port = close_port
        self.redirect_uri = f"http://{loopback.host}:{port}{loopback.path}"
        self._path = loopback.path
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", loopback.host)}
        self._state: str | None = None
        self._answered: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._connections: set[asyncio.Task[None]] = set()
        self._responding: set[asyncio.Task[None]] = set()

    @property
    def answer(self) -> dict[str, str] | None:
        """Give what came, None so far."""
        return self._answered.result() if self._answered.done() and not self._answered.cancelled() else None

    def expect(self, state: str) -> None:
        """Say which login this is for; before that, every request is a stranger's."""
        self._state = state

    async def wait(self, *, limit_seconds: float = LIMIT_SECONDS) -> dict[str, str]:
        """Wait for the answer. Raises: LoginTimeout."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._answered), limit_seconds)
        except TimeoutError as error:
            raise LoginTimeout(
                f"no answer came from the browser within {limit_seconds:.0f} s",
                hint="run the login again, with --no-browser to paste the address",
            ) from error

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection in a task of its own."""
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # it runs in one
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
            self._responding.add(task)
            writer.write(self._respond(head))
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            # Whoever it was said nothing that we can answer.
            return
        finally:
            self._responding.discard(task)
            writer.close()

    async def close(self) -> None:
        """Let the page that says how it ended reach the browser, and drop the other connections."""
        if self._responding:
            await asyncio.wait(self._responding, timeout=PAGE_SECONDS)
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _respond(self, head: bytes) -> bytes:
        found = self._read(head)
        if found is None or self._answered.done():
            return _page(400)
        self._answered.set_result(found)
        self._close_port()
        return _page(403 if "error" in found else 200, found.get("error_description") or found.get("error") or "")

    def _read(self, head: bytes) -> dict[str, str] | None:
        """Give the answer in a request's head; None for anything that is not the browser with our state."""
        try:
            request, *lines = head.decode("ascii").rstrip("\r\n").split("\r\n")
            verb, target, version = request.split(" ")
            parts = urlsplit(target)
        except ValueError:
            return None
        hosts = [line.partition(":")[2].strip().lower() for line in lines if line.lower().startswith("host:")]
        # The Host header is checked against DNS rebinding: a page of a foreign name must not reach this.
        if verb != "GET" or not version.startswith("HTTP/1.") or len(hosts) != 1 or hosts[0] not in self._hosts:
            return None
        if parts.path != self._path or parts.netloc:
            return None
        pairs = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True)]
        return self._ours([(name, value) for name, value in pairs if name in RESPONSE_FIELDS])

    def _ours(self, pairs: list[tuple[str, str]]) -> dict[str, str] | None:
        found: Mapping[str, str] = dict(pairs)
        if len(found) != len(pairs) or self._state is None or not same(found.get("state", ""), self._state):
            return None
        return dict(found) if found.get("code") or found.get("error") else None


@asynccontextmanager
async def listen(loopback: Loopback, *, limit_seconds: float = LIMIT_SECONDS) -> AsyncIterator[Listener]:
    """Open the first free port of the declared ones, or any.

    It is closed after the answer, after `limit_seconds`, or when the block is left, whichever comes first.
    Raises: PortsBusy, so that the caller lets the user paste.
    """
    listener: list[Listener] = []
    server = await _bind(loopback, lambda reader, writer: listener[0].connected(reader, writer))
    listener.append(Listener(loopback, server.sockets[0].getsockname()[1], close_port=server.close))
    limit = asyncio.get_running_loop().call_later(limit_seconds, server.close)
    try:
        await server.start_serving()
        yield listener[0]
    finally:
        limit.cancel()
        server.close()
        await listener[0].close()


async def _bind(
    loopback: Loopback, connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
) -> asyncio.Server:
    for port in loopback.ports or (0,):
        try:
            return await asyncio.start_server(connected, "127.0.0.1", port, limit=MAX_HEAD_BYTES, start_serving=False)
        except OSError as error:
            # EACCES: some systems keep port ranges for themselves.
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    ports = ", ".join(map(str, loopback.ports)) or "any"
    raise PortsBusy(
        f"the ports that this login may use ({ports}) are taken",
        hint="end the program that holds them, or run the login again with --no-browser and paste the address",
    )


def _page(status: int, detail: str = "") -> bytes:
    title, text = _TEXT[status]
    if detail:
        # The text is the provider's, or anybody's who knows the state: cut, and never markup.
        text = f"{text} It said: {html.escape(detail[:200])}"
    body = _PAGE.format(title=title, text=text).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        # A kept connection would stall the next login on this port.
        "Connection: close\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n"
        "Referrer-Policy: no-referrer\r\n\r\n"
    )
    return head.encode("ascii") + body
