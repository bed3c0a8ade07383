"""Claude Code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from valetkey.agent import McpServer, Prepared, Served, Session
from valetkey.agents import home as homes
from valetkey.provider import DialectId
from valetkey.sandbox import WORKSPACE

__all__ = ["Claude"]

_STATE = ".claude.json"
# It names the folder of a project by its path, with `-` for whatever is no letter or digit.
_SESSIONS = f".claude/projects/{re.sub('[^A-Za-z0-9]', '-', WORKSPACE)}"
_SESSION = re.compile(rf"({homes.UUID})\.jsonl")
# With two of them it takes the API key, whatever was meant.
_CREDENTIALS = frozenset({"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"})
_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
}
# It asks about a key that it has not seen before, and knows it again by this much of its end.
_KNOWN_END = 20


class Claude:
    """Claude Code, by API key or with a Claude subscription."""

    id = "claude"
    program = "claude"
    install = (
        "run `npm install -g @anthropic-ai/claude-code`, or name its program as agents.claude.program in config.toml"
    )
    dialects: tuple[DialectId, ...] = ("anthropic-messages",)
    providers = ("anthropic",)

    def prepare(self, home: Path, served: Served) -> Prepared:
        """See Agent. What a person would be asked at the first start is answered in ~/.claude.json."""
        shown = {name: value for name, value in served.variables.items() if name in _CREDENTIALS}
        shown = shown or {"ANTHROPIC_AUTH_TOKEN": served.placeholder}
        state = homes.state(home, _STATE)
        state |= {"hasCompletedOnboarding": True, "theme": state.get("theme", "dark")}
        projects = homes.table(state, "projects")
        homes.table(projects, WORKSPACE)["hasTrustDialogAccepted"] = True
        if "ANTHROPIC_API_KEY" in shown:
            state["customApiKeyResponses"] = {"approved": [shown["ANTHROPIC_API_KEY"][-_KNOWN_END:]], "rejected": []}
        homes.put_servers(state, {server.name: _mcp(server) for server in served.mcp_servers})
        homes.write(home, _STATE, json.dumps(state).encode())
        return Prepared(environment={**_QUIET, "ANTHROPIC_BASE_URL": served.base_url, **shown}, without=_CREDENTIALS)

    def command(self, program: Sequence[str], arguments: Sequence[str], session: str | None) -> tuple[str, ...]:
        """See Agent."""
        return (*program, *(() if session is None else ("--resume", session)), *arguments)

    def sessions(self, home: Path) -> list[Session]:
        """See Agent."""
        return homes.sessions(home, _SESSIONS, _SESSION)


def _mcp(server: McpServer) -> dict[str, Any]:
    if server.url is not None:
        return {"type": server.transport, "url": server.url}
    return {"type": "stdio", "command": server.command[0], "args": [*server.command[1:]], "env": {}}
