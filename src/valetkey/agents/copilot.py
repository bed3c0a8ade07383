"""GitHub Copilot CLI."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valetkey.agent import McpServer, Prepared, Served, Session
from valetkey.agents import home as homes
from valetkey.provider import DialectId
from valetkey.sandbox import WORKSPACE

__all__ = ["Copilot"]

_STATE = ".copilot/config.json"
_SERVERS = ".copilot/mcp-config.json"
_SESSIONS = ".copilot/session-state"
_SESSION = re.compile(rf"({homes.UUID})/events\.jsonl")
_TOKEN = "COPILOT_GITHUB_TOKEN"  # a variable's name
# Where none of these is set, it asks GitHub which models there are. With both it takes this server.
_SERVER = (
    "COPILOT_PROVIDER_BASE_URL", "COPILOT_PROVIDER_TYPE", "COPILOT_PROVIDER_WIRE_API", "COPILOT_PROVIDER_API_KEY",
    "COPILOT_PROVIDER_API_KEY_COMMAND", "COPILOT_PROVIDER_BEARER_TOKEN", "COPILOT_MODEL",
)  # fmt: skip
# How it calls what a server speaks.
_SPOKEN: Mapping[DialectId, Mapping[str, str]] = {
    "openai-chat": {"COPILOT_PROVIDER_TYPE": "openai", "COPILOT_PROVIDER_WIRE_API": "completions"},
    "openai-responses": {"COPILOT_PROVIDER_TYPE": "openai", "COPILOT_PROVIDER_WIRE_API": "responses"},
    "anthropic-messages": {"COPILOT_PROVIDER_TYPE": "anthropic"},
}
# It unpacks 235 MB of itself at its first start. In the home that would be kept with each run.
_QUIET = {"COPILOT_AUTO_UPDATE": "false", "COPILOT_PKG_CACHE_HOME": "/tmp/copilot"}  # noqa: S108  # inside


class Copilot:
    """Copilot CLI, by a GitHub login for Copilot, or with any server's own models."""

    id = "copilot"
    program = "copilot"
    install = "run `npm install -g @github/copilot`, or name its program as agents.copilot.program in config.toml"
    dialects: tuple[DialectId, ...] = tuple(_SPOKEN)
    providers = ("github-copilot", "openai", "anthropic")

    def prepare(self, home: Path, served: Served) -> Prepared:
        """See Agent. An account whose declaration wants Copilot's own variable is one of GitHub's."""
        state: dict[str, Any] = homes.state(home, _STATE)
        state["trustedFolders"] = sorted({WORKSPACE, *_texts(state.get("trustedFolders"))})
        servers = homes.state(home, _SERVERS)
        homes.put_servers(servers, {server.name: _mcp(server) for server in served.mcp_servers})
        homes.write(home, _STATE, json.dumps(state).encode())
        homes.write(home, _SERVERS, json.dumps(servers).encode())
        without = frozenset({_TOKEN, *_SERVER})
        if _TOKEN in served.variables:
            return Prepared(environment={**_QUIET, _TOKEN: served.variables[_TOKEN]}, without=without)
        server = {
            "COPILOT_PROVIDER_BASE_URL": served.base_url,
            "COPILOT_PROVIDER_API_KEY": served.placeholder,
            **_SPOKEN.get(served.dialect, {}),
            # It refuses to start without one, and asks no server for its list.
            **({} if served.model is None else {"COPILOT_MODEL": served.model}),
            # It has no login at GitHub then, and would look for one.
            "COPILOT_OFFLINE": "true",
        }
        return Prepared(environment={**_QUIET, **server}, without=without)

    def command(self, program: Sequence[str], arguments: Sequence[str], session: str | None) -> tuple[str, ...]:
        """See Agent."""
        return (*program, *(() if session is None else ("--resume", session)), *arguments)

    def sessions(self, home: Path) -> list[Session]:
        """See Agent."""
        return homes.sessions(home, _SESSIONS, _SESSION)


def _mcp(server: McpServer) -> dict[str, Any]:
    if server.url is not None:
        return {"type": server.transport, "url": server.url, "tools": ["*"]}
    return {"type": "local", "command": server.command[0], "args": [*server.command[1:]], "tools": ["*"]}


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
