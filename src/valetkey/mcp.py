"""MCP servers as they are configured, and what a message between one and its client may be: JSON-RPC 2.0, looked into.

Pure. The gateway asks it about each message that it relays (gateway/mcp.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from valetkey.config import Config, Given
from valetkey.credential import CredentialRef
from valetkey.errors import ConfigError, InvalidName, UsageError

__all__ = [
    "NAME",
    "Answered",
    "Local",
    "Pass",
    "Relayed",
    "Rules",
    "Server",
    "Tool",
    "Transport",
    "Unclear",
    "chosen",
    "filtered",
    "look_at",
    "refusal_of",
    "servers",
]

Transport = Literal["http", "sse"]
Tool = dict[str, Any]

# --- configured ------------------------------------------------------------------------------

# It is a part of an address, of other programs' settings, and of a document's id.
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}\Z")


@dataclass(frozen=True, kw_only=True)
class Relayed:
    """A server that the gateway relays, with the credential of `grant` put in.

    `tools` are patterns (`*` is anything); None lets all through.
    """

    name: str
    url: str
    grant: CredentialRef
    transport: Transport = "http"
    tools: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Local:
    """A server that an agent starts itself, inside of its run, and talks to by stdio. Nobody looks into that."""

    name: str
    command: tuple[str, ...]


Server = Relayed | Local


def servers(config: Config) -> dict[str, Server]:
    """Give the configured servers, by name. Raises: ConfigError."""
    return {name: _server(name, given) for name, given in config.tables("mcp", "servers").items()}


def chosen(config: Config, names: Sequence[str] | None) -> tuple[Server, ...]:
    """Give the servers of a run: the named ones, for None those of `runs.mcp`. Raises: ConfigError, UsageError."""
    wanted = dict.fromkeys(config.words("runs.mcp") if names is None else names)
    if not wanted:
        return ()
    known = servers(config)
    for name in wanted:
        if name not in known:
            there = ", ".join(known) or "none"
            raise UsageError(
                f"there is no MCP server {name[:40]!r}; configured: {there}",
                hint="add it: `valetkey mcp add NAME URL --grant PROVIDER`",
            )
    return tuple(known[name] for name in wanted)


def _server(name: str, given: dict[str, Given]) -> Server:
    place = next(iter(given.values())).origin
    values = {key: one.value for key, one in given.items()}

    def wrong(what: str, hint: str) -> ConfigError:
        return ConfigError(f"{place}: mcp.servers.{name[:40]} {what}", hint=hint)

    if not NAME.match(name):
        raise wrong("has a name that cannot be used", "use a-z, 0-9, - and _, at most 40 of them")
    url, command, grant = values.get("url"), values.get("command"), values.get("grant")
    if (url is None) == (command is None):
        raise wrong("needs either url or command", 'write url = "https://…" and grant, or command = ["program", …]')
    if command is not None:
        beside = sorted(values.keys() - {"command"})
        if not command:
            raise wrong("has an empty command", 'write command = ["program", "argument"]')
        if beside:
            # An allow-list that nobody holds it to would be worse than none.
            raise wrong(
                f"has {beside[0]} beside its command",
                "take it out: what an agent starts inside of its run is not looked into, and gets no credential",
            )
        return Local(name=name, command=cast("tuple[str, ...]", command))
    if not isinstance(grant, str):
        raise wrong("has no grant", 'name the account whose credential goes in: grant = "PROVIDER"')
    parts = urlsplit(str(url))
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username is not None or parts.fragment:
        raise wrong("has a url that cannot be used", "write https://HOST/PATH, without a user, password or fragment")
    try:
        ref = _ref(grant)
    except InvalidName:
        raise wrong("has a grant that cannot be used", "write PROVIDER or PROVIDER@ACCOUNT") from None
    return Relayed(
        name=name,
        url=str(url),
        grant=ref,
        transport=cast("Transport", values.get("transport", "http")),
        tools=cast("tuple[str, ...] | None", values.get("tools")),
    )


def _ref(text: str) -> CredentialRef:
    provider, at, account = text.partition("@")
    return CredentialRef(provider=provider, account=account) if at else CredentialRef(provider=provider)


# --- what a client says ----------------------------------------------------------------------

# JSON-RPC 2.0 section 5.1 leaves -32000 to -32099 to the server; MCP itself uses the ends of that.
_REFUSED = -32050
_INVALID_PARAMS = -32602
_MEMBERS = frozenset(("jsonrpc", "id", "method", "params", "result", "error"))
_CALL = "tools/call"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds for the tools of one server. `withheld` are those whose description has changed."""

    server: str
    tools: tuple[str, ...] | None = None
    withheld: frozenset[str] = frozenset()

    def allows(self, tool: str) -> bool:
        """Say whether the allow-list has it."""
        return self.tools is None or any(fnmatchcase(tool, pattern) for pattern in self.tools)

    def why_not(self, tool: str) -> str | None:
        """Say which rule keeps this tool back, and what to ask for; None where none does."""
        shown = f"the tool {tool[:100]!r} of the MCP server {self.server}"
        if not self.allows(tool):
            patterns = ", ".join(self.tools or ()) or "nothing"
            return (
                f"{shown} is refused: mcp.servers.{self.server}.tools allows {patterns}."
                " If it is needed, ask whoever started this run to add it there and to start a new run."
            )
        if tool in self.withheld:
            return (
                f"{shown} is withheld: what the server says of it has changed since it was first seen."
                f" If it is needed, ask whoever started this run to read `valetkey mcp check {self.server}`"
                f" and to say `valetkey mcp approve {self.server}`."
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Send this, which says what the client said and nothing that another reader could read otherwise.

    `method` and `name` (of a tool) are those of a single message, for headers that have to say the same.
    """

    body: bytes
    method: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Send nothing, and answer this: one message, or an array of them."""

    body: bytes


@dataclass(frozen=True, kw_only=True)
class Unclear:
    """Send nothing: nobody knows what it would do."""

    reason: str


def look_at(body: bytes, rules: Rules) -> Pass | Answered | Unclear:
    """Decide on what a client posts: one message, or an array of them, of which all go out or none."""
    try:
        found = _read(body)
    except ValueError as error:
        return Unclear(reason=str(error))
    messages = found if isinstance(found, list) else [found]
    if not messages:
        return Unclear(reason="it is an empty array")
    refused: dict[int, tuple[int, str]] = {}
    for at, message in enumerate(messages):
        reason = _wrong(message)
        if reason is not None:
            return Unclear(reason=reason)
        told = _refused(message, rules)
        if told is not None:
            refused[at] = told
    if refused:
        other = (_REFUSED, "nothing of this batch was sent: another message of it is refused.")
        answers = [
            _error(message.get("id"), *refused.get(at, other))
            for at, message in enumerate(messages)
            if at in refused or ("method" in message and "id" in message)
        ]
        return Answered(body=_written(answers if isinstance(found, list) else answers[0]))
    single = {} if isinstance(found, list) else found
    params = single.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    try:
        written = _written(found)
    except ValueError as error:
        return Unclear(reason=str(error))
    return Pass(body=written, method=single.get("method"), name=name if isinstance(name, str) else None)


def refusal_of(reason: str) -> bytes:
    """Write the answer to what is no message, without an id: nobody knows it."""
    return _written(_error(None, -32600, reason))


def _wrong(message: object) -> str | None:
    """Say why this is no message; None where it is one."""
    if not isinstance(message, dict):
        return "it is no object"
    if not message.keys() <= _MEMBERS:
        # A reader that takes Method for method would see another message.
        return "it has a member that JSON-RPC has not"
    if message.get("jsonrpc") != "2.0":
        return 'it has no "jsonrpc": "2.0"'
    answers = message.keys() & {"result", "error"}
    if ("method" in message) == bool(answers) or len(answers) > 1:
        return "it is neither a request nor an answer"
    if "method" in message and not isinstance(message["method"], str):
        return "its method is no text"
    if "id" in message and (isinstance(message["id"], bool) or not isinstance(message["id"], str | int | None)):
        return "its id is neither a text nor a whole number"
    if "params" in message and not isinstance(message["params"], dict | list):
        return "its params are no object"
    return None


def _refused(message: dict[str, Any], rules: Rules) -> tuple[int, str] | None:
    method = message.get("method")
    if not isinstance(method, str) or method.strip().casefold() != _CALL:
        return None
    params = message.get("params")
    if method != _CALL or not isinstance(params, dict) or not isinstance(params.get("name"), str):
        return _INVALID_PARAMS, "a call of a tool has to name it in params."
    if len({key.casefold() for key in params}) != len(params):
        return _INVALID_PARAMS, "the params of a call have one member twice."
    why = rules.why_not(params["name"])
    return None if why is None else (_REFUSED, why)


def _error(id: object, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, "data": {"by": "valetkey"}}}


# --- what a server says ----------------------------------------------------------------------


def filtered(body: bytes, let_through: Callable[[list[Tool]], list[Tool]]) -> bytes:
    """Give what a server said, with its lists of tools as `let_through` leaves them; else byte for byte.

    Whatever has a `result` with `tools` in it is such a list: which request it answers may be known to nobody here (a
    stream that was resumed). Raises: ValueError, where it could be read in two ways or is no JSON.
    """
    found = _read(body)
    changed = False
    for message in found if isinstance(found, list) else [found]:
        result = _member(message, "result")
        tools = _member(result, "tools")
        if not isinstance(tools, list):
            continue
        kept = let_through([tool for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str)])
        if kept != tools:
            result["tools"], changed = kept, True
    return _written(found) if changed else body


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        return None
    if any(key != name and key.casefold() == name for key in value):
        raise ValueError(f"it has {name} in another spelling")
    return value.get(name)


# --- JSON that has one reading ---------------------------------------------------------------


# A quarter of a second to read; 16 MiB of nothing but empty arrays would hold up all that the gateway serves for 4 s.
_MOST_PARTS = 250_000


def _read(body: bytes) -> Any:
    """Read JSON (RFC 8259) as nobody can read it otherwise. Raises: ValueError with a reason, and no word of it."""
    if body.count(b"[") + body.count(b"{") > _MOST_PARTS:
        raise ValueError("it has too many arrays and objects")
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_int=_whole,
        )
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("it is not JSON") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python reads 4,300 digits
        raise ValueError("it has a number that is too large") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # RFC 8259 section 4: one reader takes the first, another the last.
        raise ValueError("it has a member twice")
    return found


def _no_constant(_: str) -> None:
    raise ValueError("it is not JSON")


def _written(value: Any) -> bytes:
    # In ASCII: half a surrogate pair stays what it was. A number such as 1e400 would become what no JSON has.
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise ValueError("it has a number that is too large") from None
