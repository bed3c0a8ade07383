"""An MCP server of the SDK, over TLS and behind a Bearer, by streamable HTTP and by the older SSE; and what it takes
to have the SDK inside of a sandbox.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer

from tests.support.command_line import CommandLine

__all__ = ["Notes", "bring_sdk", "interpreter", "notes_server"]

_PATIENCE_SECONDS = 60
_DECLARATION = """
[api]
base_url = "{url}"
dialect = "none"
hosts = ["{host}"]
[[auth]]
id = "api-key"
kind = "api-key"
inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
sandbox = {{ environment = {{ NOTES_KEY = "{{placeholder}}" }}, placeholder = "sk-notes" }}
"""


@dataclass
class Notes:
    """The server. `asked` has method, path and body of each request that had the key; `refused` counts the others."""

    port: int = 0
    key: str = field(default_factory=lambda: "sk-mcp-canary" + secrets.token_hex(20), repr=False)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    refused: int = 0
    called: list[str] = field(default_factory=list)
    server: MCPServer = field(default_factory=lambda: MCPServer("notes"))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://127.0.0.1:{self.port}"

    def offer(self, name: str, description: str) -> None:
        """Offer a tool of this name, in place of the one that was there."""

        def tool(text: str) -> str:
            self.called.append(name)
            return f"{name} of {text}"

        with contextlib.suppress(Exception):
            self.server.remove_tool(name)
        self.server.add_tool(tool, name=name, description=description)

    def declare(self, line: CommandLine) -> None:
        """Declare it as a provider, and log in there."""
        line.declare("notes", _DECLARATION.format(url=self.url, host=f"127.0.0.1:{self.port}"))
        done = line("login", "notes", "--key", "-", "--no-verify", "--yes", stdin=self.key)
        assert done.status == 0, done.err

    def add(self, line: CommandLine, name: str = "notes", *words: str, path: str = "/mcp") -> None:
        """Name it as an MCP server for runs."""
        done = line("mcp", "add", name, self.url + path, "--grant", "notes", *words)
        assert done.status == 0, done.err

    def methods(self) -> list[str]:
        """Give the methods of all messages that came."""
        return [json.loads(body).get("method", "") for method, _, body in self.asked if method == "POST" and body]


@contextlib.contextmanager
def notes_server(tls: ssl.SSLContext) -> Iterator[Notes]:
    """Run it with three tools: `read_note`, `read_all` and `delete_note`."""
    notes = Notes()
    for name in ("read_note", "read_all", "delete_note"):
        notes.offer(name, f"Does {name}.")
    config = uvicorn.Config(
        _guarded(notes), host="127.0.0.1", port=0, log_level="error", ws="none", timeout_graceful_shutdown=1
    )
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + _PATIENCE_SECONDS
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end, "the MCP server did not start"
        threading.Event().wait(0.01)
    notes.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield notes
    finally:
        server.should_exit = True
        thread.join(_PATIENCE_SECONDS)


def _guarded(notes: Notes) -> Callable[..., Any]:
    streamable, older = notes.server.streamable_http_app(), notes.server.sse_app()

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "lifespan":
            await streamable(scope, receive, send)
            return
        if (b"authorization", f"Bearer {notes.key}".encode()) not in scope["headers"]:
            notes.refused += 1
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        at = len(notes.asked)
        notes.asked.append((scope["method"], scope["path"], b""))

        async def kept() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                method, path, body = notes.asked[at]
                notes.asked[at] = method, path, body + message.get("body", b"")
            return message

        await (streamable if scope["path"] == "/mcp" else older)(scope, kept, send)

    return app


# --- the SDK inside --------------------------------------------------------------------------

_NEEDED = """
import sys
from pathlib import Path
import mcp, mcp.client.sse, mcp.client.stdio, mcp.client.streamable_http, mcp.server.mcpserver, anyio._backends._asyncio
from mcp.shared._httpx_utils import create_mcp_http_client
create_mcp_http_client()  # what it needs is imported by then
site = Path(mcp.__file__).parents[1]
tops = set()
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and Path(file).is_relative_to(site):
        tops.add(Path(file).relative_to(site).parts[0])
print(site, *tops, sep="\\n")
"""


def bring_sdk(folder: Path) -> None:
    """Put the SDK, and what it needs, below a folder for PYTHONPATH: the tests' own venv may lie where none may go."""
    done = subprocess.run([sys.executable, "-c", _NEEDED], capture_output=True, text=True, check=True)
    site, *tops = done.stdout.splitlines()
    folder.mkdir()
    # Its packages ask for their own versions.
    for entry in Path(site).iterdir():
        if entry.name in tops or (entry.suffix == ".dist-info" and entry.name.partition("-")[0] in _plain(tops)):
            copy = shutil.copytree if entry.is_dir() else shutil.copy2
            copy(entry, folder / entry.name)


def _plain(tops: list[str]) -> set[str]:
    return {top.partition(".")[0] for top in tops}


def interpreter() -> tuple[list[str], str]:
    """Give the options of `valetkey run` that bring this Python into a sandbox, and its path there."""
    base = Path(sys.base_prefix).resolve()
    program = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return ([] if base.is_relative_to("/usr") else ["--mount", str(base)]), str(program)
