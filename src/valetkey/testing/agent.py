"""A small agent, for what is around agents: its settings are one file, and each of its sessions is another."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valetkey.agent import McpServer, Prepared, Served, Session
from valetkey.agents import home as homes
from valetkey.errors import HomeUnusable
from valetkey.provider import DialectId

__all__ = ["FakeAgent"]

_SETTINGS = ".fake-agent.json"
_SESSIONS = ".fake-agent"
_SESSION = re.compile(r"([A-Za-z0-9-]+)\.session")


@dataclass(frozen=True, kw_only=True)
class FakeAgent:
    """A valetkey.agent.Agent that is called `PROGRAM [--session ID] [ARG]…`.

    Inside it finds FAKE_AGENT_BASE_URL and FAKE_AGENT_KEY. Its sessions are the files `~/.fake-agent/ID.session`.
    """

    id: str = "fake-agent"
    program: str = "fake-agent"
    install: str = "put a program of this name on PATH"
    dialects: Sequence[DialectId] = ("openai-chat",)
    providers: Sequence[str] = ("mistral",)

    def prepare(self, home: Path, served: Served) -> Prepared:
        """See Agent. What its settings hold already is kept."""
        content = homes.read(home, _SETTINGS)
        try:
            settings = dict(json.loads(content or b"{}"))
        except (ValueError, TypeError, RecursionError) as error:
            raise HomeUnusable(
                f"{home / _SETTINGS} cannot be read", hint="begin a new run, without --resume"
            ) from error
        homes.put_servers(settings, {server.name: _mcp(server) for server in served.mcp_servers})
        homes.write(home, _SETTINGS, json.dumps(settings | {"asks": False}).encode())
        return Prepared(environment={"FAKE_AGENT_BASE_URL": served.base_url, "FAKE_AGENT_KEY": served.placeholder})

    def command(self, program: Sequence[str], arguments: Sequence[str], session: str | None) -> tuple[str, ...]:
        """See Agent."""
        return (*program, *(() if session is None else ("--session", session)), *arguments)

    def sessions(self, home: Path) -> list[Session]:
        """See Agent."""
        return homes.sessions(home, _SESSIONS, _SESSION)


def _mcp(server: McpServer) -> dict[str, Any]:
    return {"command": [*server.command]} if server.url is None else {"type": server.transport, "url": server.url}
