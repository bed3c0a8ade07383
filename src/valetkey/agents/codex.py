"""Codex."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from valetkey.agent import McpServer, Prepared, Served, Session
from valetkey.agents import home as homes
from valetkey.errors import McpServerUnusable
from valetkey.provider import DialectId
from valetkey.sandbox import WORKSPACE

__all__ = ["Codex"]

_SESSIONS = ".codex/sessions"
_SESSION = re.compile(rf"(?:[0-9]+/)*rollout-[0-9T-]+-({homes.UUID})\.jsonl")
_KEY = "CODEX_API_KEY"
# The system's settings: what the agent writes into its own wins over them, and it cannot change these.
_SETTINGS = "/etc/codex/config.toml"
# Its own sandbox cannot be made in ours. A model list that it looks for would be asked for at chatgpt.com.
_TEXT = """\
model_provider = "valetkey"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
analytics.enabled = false
feedback.enabled = false
features.plugins = false
features.api_key_model_discovery = false
shell_environment_policy.inherit = "all"

[model_providers.valetkey]
name = {name}
base_url = {base_url}
wire_api = "responses"
env_key = "{key}"

[projects."{workspace}"]
trust_level = "trusted"
"""


class Codex:
    """Codex, by API key or with a ChatGPT login: the gateway puts in either at the account's own base URL."""

    id = "codex"
    program = "codex"
    install = "run `npm install -g @openai/codex`, or name its program as agents.codex.program in config.toml"
    dialects: tuple[DialectId, ...] = ("openai-responses",)
    # Who has logged in with ChatGPT has done it for this.
    providers = ("chatgpt", "openai")

    def prepare(self, home: Path, served: Served) -> Prepared:
        """See Agent. Nothing is written into its home."""
        text = _TEXT.format(
            name=json.dumps(served.ref.provider), base_url=json.dumps(served.base_url), key=_KEY, workspace=WORKSPACE
        )
        text += "".join(map(_mcp, served.mcp_servers))
        return Prepared(environment={_KEY: served.placeholder}, files={_SETTINGS: text.encode()})

    def command(self, program: Sequence[str], arguments: Sequence[str], session: str | None) -> tuple[str, ...]:
        """See Agent. `exec` refuses a folder that is no git repository unless it is told not to."""
        on = () if session is None else ("resume", session)
        if tuple(arguments[:1]) == ("exec",):
            return (*program, "exec", "--skip-git-repo-check", *on, *arguments[1:])
        return (*program, *on, *arguments)

    def sessions(self, home: Path) -> list[Session]:
        """See Agent."""
        return homes.sessions(home, _SESSIONS, _SESSION)


def _mcp(server: McpServer) -> str:
    if server.url is not None and server.transport != "http":
        raise McpServerUnusable(
            f"codex speaks to MCP servers by streamable HTTP alone, and {server.name} is configured for sse",
            hint="leave that one out: name those that it is to have with `--mcp`",
        )
    if server.url is not None:
        return f"\n[mcp_servers.{server.name}]\nurl = {json.dumps(server.url)}\n"
    program, *arguments = server.command
    return f"\n[mcp_servers.{server.name}]\ncommand = {json.dumps(program)}\nargs = {json.dumps(arguments)}\n"
