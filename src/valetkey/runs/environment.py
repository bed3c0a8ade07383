"""What a run's command finds in its environment and files: the way out, whom to believe, placeholders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from valetkey.agent import McpServer
from valetkey.mcp import Local, Relayed, Server
from valetkey.sandbox import ADDRESS, AGENT_HOME

__all__ = [
    "ADDRESS",
    "BUNDLE",
    "CERTIFICATE",
    "MCP",
    "PATH",
    "divided",
    "environment",
    "files",
    "mcp_file",
    "mcp_servers",
]

CERTIFICATE, BUNDLE = "/etc/valetkey/ca.pem", "/etc/valetkey/ca-bundle.pem"
# The servers in the form that most clients of MCP read, for what is no agent that we know.
MCP = "/etc/valetkey/mcp.json"
# What they would say of this machine and person is nothing that a credential hangs on.
_KEPT = ("TERM", "COLORTERM", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "NO_COLOR")
PATH = "/usr/local/bin:/usr/bin:/bin"
# In a path that an account declares: in the home, and behind what another account has there.
_IN_HOME, _ADDED = "~/", "+"
# Programs that read a bundle of authorities in place of the system's.
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CODEX_CA_CERTIFICATE",
)


def environment(
    host: Mapping[str, str], *, placeholders: Mapping[str, str], asked: Mapping[str, str]
) -> dict[str, str]:
    """Give all variables of a run: none of the host's but a few of its terminal and language.

    `placeholders` stand where credentials would. `asked` are those that the person named; they win over all but the
    way out.
    """
    ours = {name: host[name] for name in _KEPT if name in host}
    ours |= {"PATH": PATH, "HOME": AGENT_HOME, "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/sh"}
    ours |= {**placeholders, **asked}
    ours |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), ADDRESS)
    ours |= dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1")
    return ours | dict.fromkeys(_BUNDLE_VARIABLES, BUNDLE) | {"NODE_EXTRA_CA_CERTS": CERTIFICATE}


def files(certificate: bytes, system: bytes) -> dict[str, bytes]:
    """Give the files that those variables name: the run's authority alone, and with the system's."""
    return {CERTIFICATE: certificate, BUNDLE: system.rstrip() + b"\n" + certificate}


def divided(wanted: Iterable[Mapping[str, str]]) -> tuple[dict[str, str], dict[str, bytes]]:
    """Give the files for the home, by their paths in it, and those for the sandbox, out of what each account declares.

    The first one counts, and behind it what is added (a path that ends in `+`).
    """
    texts: dict[str, str] = {}
    for declarations in wanted:
        for declared, text in declarations.items():
            path = declared.removesuffix(_ADDED)
            if path not in texts:
                texts[path] = text
            elif path != declared:
                texts[path] += f"\n{text}"
    in_home = {path.removeprefix(_IN_HOME): text for path, text in texts.items() if path.startswith(_IN_HOME)}
    return in_home, {path: text.encode() for path, text in texts.items() if not path.startswith(_IN_HOME)}


def mcp_servers(servers: Sequence[Server]) -> tuple[McpServer, ...]:
    """Give MCP servers as they are found inside."""
    return tuple(map(_inside, servers))


def _inside(server: Server) -> McpServer:
    match server:
        case Relayed():
            return McpServer(name=server.name, url=f"{ADDRESS}/mcp/{server.name}", transport=server.transport)
        case Local():
            return McpServer(name=server.name, command=server.command)
    assert_never(server)


def mcp_file(servers: Sequence[McpServer]) -> dict[str, bytes]:
    """Give the file that names them; none where there are none."""
    if not servers:
        return {}
    table = {
        server.name: {"type": "stdio", "command": server.command[0], "args": [*server.command[1:]]}
        if server.url is None
        else {"type": server.transport, "url": server.url}
        for server in servers
    }
    return {MCP: json.dumps({"mcpServers": table}, indent=1).encode() + b"\n"}
