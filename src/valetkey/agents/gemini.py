"""Gemini CLI."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valetkey.agent import McpServer, Prepared, Served, Session
from valetkey.agents import home as homes
from valetkey.provider import DialectId

__all__ = ["Gemini"]

# The system's own settings would win over these, but they count only where they belong to root: nobody is, inside.
_SETTINGS = ".gemini/settings.json"
_SESSIONS = ".gemini/tmp"
# Below it a folder for each project. The name has the beginning of the id alone.
_SESSION = re.compile(r"[^/]+/chats/session-[0-9T-]+-([0-9a-f]{8})\.jsonl")
_ID = re.compile(homes.UUID)
_KEY, _BASE_URL = "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"
# Any of them would choose another login or another server.
_OTHERS = frozenset({
    _KEY, _BASE_URL, "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_GCA", "GOOGLE_CLOUD_ACCESS_TOKEN"
})  # fmt: skip


class Gemini:
    """Gemini CLI, by API key."""

    id = "gemini"
    program = "gemini"
    install = "run `npm install -g @google/gemini-cli`, or name its program as agents.gemini.program in config.toml"
    dialects: tuple[DialectId, ...] = ("gemini",)
    providers = ("google",)

    def prepare(self, home: Path, served: Served) -> Prepared:
        """See Agent. What it would ask a person at the first start, and what it would tell, is settled here.

        With an address in the environment and no login chosen it takes the address for a login that it then refuses.
        """
        settings = homes.state(home, _SETTINGS)
        security, general = homes.table(settings, "security"), homes.table(settings, "general")
        homes.table(security, "auth")["selectedType"] = "gemini-api-key"
        homes.table(security, "folderTrust")["enabled"] = False
        # Sessions of a home stay as long as the home does.
        homes.table(general, "sessionRetention")["enabled"] = False
        general |= {"enableAutoUpdate": False, "enableAutoUpdateNotification": False}
        homes.table(settings, "privacy")["usageStatisticsEnabled"] = False
        homes.table(settings, "telemetry")["enabled"] = False
        homes.put_servers(settings, {server.name: _mcp(server) for server in served.mcp_servers})
        homes.write(home, _SETTINGS, json.dumps(settings).encode())
        return Prepared(environment={_KEY: served.placeholder, _BASE_URL: served.base_url}, without=_OTHERS)

    def command(self, program: Sequence[str], arguments: Sequence[str], session: str | None) -> tuple[str, ...]:
        """See Agent."""
        return (*program, *(() if session is None else ("--resume", session)), *arguments)

    def sessions(self, home: Path) -> list[Session]:
        """See Agent."""
        return homes.sessions(home, _SESSIONS, _SESSION, id_in=_id_in)


def _mcp(server: McpServer) -> dict[str, Any]:
    if server.url is not None:
        return {"type": server.transport, "url": server.url}
    return {"command": server.command[0], "args": [*server.command[1:]]}


def _id_in(line: bytes) -> str | None:
    """Give the id of a session; those of its subagents are none to go on with."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    session = found.get("sessionId") if isinstance(found, dict) and found.get("kind") != "subagent" else None
    return session if isinstance(session, str) and _ID.fullmatch(session) else None
