"""`mcp`: the MCP servers of runs, and what they have said of their tools."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from valetkey.cli.frame import State, command, group
from valetkey.cli.output import ago
from valetkey.errors import ConfigError, UsageError
from valetkey.mcp import NAME, Relayed, Server, servers

if TYPE_CHECKING:
    from valetkey.mcp_pins import Pin, Pins, Seen

__all__ = ["mcp"]

_PLAIN = re.compile(r"[\w./-]{1,100}\Z", re.ASCII)
_UNSEEN_CHANGE = (
    "its title, parameters or annotations have changed, or what lies behind the beginning of its description"
)


@group("mcp", short_help="Name MCP servers for runs, and see what they say of their tools.")
def mcp(state: State) -> None:
    """Name MCP servers that runs may use (`valetkey run --mcp NAME`), and see what they have said of their tools."""


@command("list", short_help="List the servers.")
def list_servers(state: State) -> None:
    """List the servers of config.toml, with the tools that the gateway has seen of each."""
    found = servers(state.config)
    pins = {name: _pins_of(state, server) for name, server in found.items()}
    state.emit({"servers": [_as_dict(server, pins[name]) for name, server in found.items()]})
    if not found:
        state.say("There is no MCP server. Add one: `valetkey mcp add NAME URL --grant PROVIDER`.")
        return
    rows = [
        (name, _where(server), str(server.grant) if isinstance(server, Relayed) else "-", _tools(server, pins[name]))
        for name, server in found.items()
    ]
    state.table(["NAME", "SERVER", "GRANT", "TOOLS"], rows)


@command("add", short_help="Add a server.")
@click.argument("name")
@click.argument("words", metavar="URL | -- CMD [ARG]…", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("--grant", metavar="PROVIDER[@ACCOUNT]", help="The account whose credential is put in.")
@click.option("--transport", type=click.Choice(["http", "sse"]), help="How it is spoken to (default: http).")
@click.option("--tool", "tools", metavar="PATTERN", multiple=True, help="A tool that may be used; repeatable.")
def add(
    state: State,
    *,
    name: str,
    words: tuple[str, ...],
    grant: str | None,
    transport: str | None,
    tools: tuple[str, ...],
) -> None:
    """Add a server to config.toml: one at an address, which the gateway relays, or a command for inside of a run."""
    if not NAME.match(name):
        raise UsageError(f"{name[:40]!r} cannot be the name of an MCP server", hint="use a-z, 0-9, - and _, at most 40")
    if name in servers(state.config):
        raise UsageError(f"there is an MCP server {name[:40]} already", hint=f"run `valetkey mcp remove {name}` first")
    entry: dict[str, Any] = {}
    if len(words) == 1 and "://" in words[0]:
        entry["url"] = words[0]
    else:
        entry["command"] = list(words)
    given = {"grant": grant, "transport": transport, "tools": list(tools) or None}
    entry |= {key: value for key, value in given.items() if value is not None}
    if grant is None and "url" in entry:
        raise UsageError(
            "no account is named whose credential goes in", hint="add it: `--grant PROVIDER`; see docs/mcp.md"
        )
    if grant is not None:
        state.broker.resolve(grant)
    added = _write(state, name, entry)[name]
    state.emit(_as_dict(added, {}))
    state.say(f"The MCP server {name} is added. Use it: `valetkey run --mcp {name} …`")


@command("remove", short_help="Remove a server.")
@click.argument("name")
def remove(state: State, *, name: str) -> None:
    """Remove a server from config.toml, and forget what it said of its tools."""
    _find(state, name)
    _write(state, name, None)
    _pins(state).forget(name)
    state.emit({"removed": name})
    state.say(f"The MCP server {name} is removed.")


@command("check", short_help="See whether what a server says of its tools has changed.")
@click.argument("name", required=False)
def check(state: State, *, name: str | None) -> None:
    """Show what has changed in what servers say of their tools, as runs have seen it. Exit status 1 if anything has."""

    found = servers(state.config) if name is None else {name: _find(state, name)}
    pins = {key: _pins_of(state, server) for key, server in found.items() if isinstance(server, Relayed)}
    changed = [(key, tool, pin) for key, of in pins.items() for tool, pin in of.items() if pin.changed is not None]
    state.emit({"changed": [_change(key, tool, pin) for key, tool, pin in changed]})
    now = state.clock.now()
    for key, tool, pin in changed:
        if pin.changed is not None:
            state.say(f"{key}  {_shown(tool)}  changed {ago(pin.changed.at, now)}, withheld until approved", bold=True)
            _say_change(state, pin.first, pin.changed)
    if changed:
        state.say(f"If that is right, say `valetkey mcp approve {changed[0][0]}`.")
        raise SystemExit(1)
    for key, of in pins.items():
        state.say(
            f"{key}: {len(of)} tools seen, none has changed." if of else f"{key}: no run has listed its tools yet."
        )


@command("approve", short_help="Take what a server says of its tools now.")
@click.argument("name")
@click.argument("tools", metavar="[TOOL]…", nargs=-1)
@click.option("--again", is_flag=True, help="Forget all that is known of it: the next list of tools is the first.")
def approve(state: State, *, name: str, tools: tuple[str, ...], again: bool) -> None:
    """Let changed tools of a server through again: all that have changed, or those that are named."""
    server = _find(state, name)
    if not isinstance(server, Relayed):
        raise UsageError(f"the MCP server {name} is not relayed, so nothing of it is known", hint="see docs/mcp.md")
    if again:
        _pins(state).forget(name)
        approved: list[str] = []
    else:
        before = _pins_of(state, server)
        approved = _pins(state).approve(name, server.url, tools)
        missing = [tool for tool in tools if tool not in approved]
        if missing:
            raise UsageError(f"{missing[0][:100]!r} has not changed", hint=f"see `valetkey mcp check {name}`")
    if approved or again:
        detail = {"server": name, "tools": approved, "again": again}
        state.audit.append("mcp-tools-approved", account=str(server.grant), detail=detail)
    state.emit({"name": name, "approved": approved, "again": again})
    if again:
        state.say(f"What was known of {name} is forgotten.")
        return
    if not approved:
        state.say(f"No tool of {name} has changed.")
    # A server may have said something else again since whoever approves it has looked.
    after = _pins_of(state, server)
    for tool in approved:
        state.say(f"Approved: {_shown(tool)}")
        _say_change(state, before[tool].first, after[tool].first)


def _shown(tool: str) -> str:
    """Give a tool's name as nobody takes it for another one, or for what we say."""
    return tool if _PLAIN.match(tool) else ascii(tool)


def _say_change(state: State, before: Seen, after: Seen) -> None:
    import difflib

    old, new = (seen.description.splitlines() for seen in (before, after))
    for line in [*difflib.unified_diff(old, new, lineterm="", n=3)][2:] or [_UNSEEN_CHANGE]:
        state.say(f"  {line}")


for _one in (list_servers, add, remove, check, approve):
    mcp.add_command(_one)


def _find(state: State, name: str) -> Server:
    found = servers(state.config).get(name)
    if found is None:
        raise UsageError(f"there is no MCP server {name[:40]!r}", hint="see `valetkey mcp list`")
    return found


def _pins(state: State) -> Pins:
    from valetkey.mcp_pins import Pins

    return Pins(state.store, state.clock)


def _pins_of(state: State, server: Server) -> dict[str, Pin]:
    return _pins(state).of(server.name, server.url) if isinstance(server, Relayed) else {}


def _where(server: Server) -> str:
    import shlex

    return server.url if isinstance(server, Relayed) else shlex.join(server.command)


def _tools(server: Server, pins: dict[str, Pin]) -> str:
    if not isinstance(server, Relayed):
        return "not looked into"
    allowed = "all" if server.tools is None else " ".join(server.tools) or "none"
    changed = sum(pin.changed is not None for pin in pins.values())
    return f"{allowed}; {len(pins)} seen" + (f", {changed} changed" if changed else "")


def _as_dict(server: Server, pins: dict[str, Pin]) -> dict[str, Any]:
    relayed = server if isinstance(server, Relayed) else None
    return {
        "name": server.name,
        "url": None if relayed is None else relayed.url,
        "command": [*server.command] if not isinstance(server, Relayed) else None,
        "grant": None if relayed is None else str(relayed.grant),
        "transport": "stdio" if relayed is None else relayed.transport,
        "tools": None if relayed is None or relayed.tools is None else [*relayed.tools],
        "seen": sorted(pins),
        "changed": sorted(tool for tool, pin in pins.items() if pin.changed is not None),
    }


def _change(server: str, tool: str, pin: Pin) -> dict[str, Any]:
    assert pin.changed is not None  # noqa: S101 - the caller's filter
    return {
        "server": server,
        "tool": tool,
        "first": {"hash": pin.first.hash, "description": pin.first.description, "at": pin.first.at},
        "changed": {"hash": pin.changed.hash, "description": pin.changed.description, "at": pin.changed.at},
    }


# --- config.toml -----------------------------------------------------------------------------


def _write(state: State, name: str, entry: dict[str, Any] | None) -> dict[str, Server]:
    """Put a server's table at the end of config.toml, or take it out, and give what it has then; all else stays.

    Raises: ConfigError, where the file cannot be used then or would not say what it should; SetupRefused.
    """
    import tomllib

    from valetkey.config import loaded
    from valetkey.setup import files

    path, before = state.paths.config, files.read(state.paths.config)
    text = (before or b"").decode()
    made = _without(text, name) if entry is None else _with(text, name, entry)
    wanted = tomllib.loads(text)
    table = wanted.setdefault("mcp", {}).setdefault("servers", {})
    table.pop(name, None)
    if entry is not None:
        table[name] = entry
    try:
        is_right = _filled(tomllib.loads(made)) == _filled(wanted)
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise ConfigError(
            f"{path} is written in a way that this command does not change",
            hint=f"edit it yourself: the table is [mcp.servers.{name}]; see docs/mcp.md",
        )
    # What is wrong with it is said before it is written.
    found = servers(loaded(made.encode(), state.environ))
    files.replace(path, made.encode(), expected=before)
    return found


def _with(text: str, name: str, entry: dict[str, Any]) -> str:
    from valetkey.setup.sections import newline_of, with_section

    # JSON's texts and lists of them are TOML's too.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    newline = newline_of(text)
    return with_section(text, newline.join([f"[mcp.servers.{name}]", *lines, ""]))


def _without(text: str, name: str) -> str:
    lines = text.splitlines(keepends=True)
    header = f"[mcp.servers.{name}]"
    at = next((i for i, line in enumerate(lines) if line.split("#")[0].strip() == header), None)
    if at is None:
        return text
    end = next((i for i in range(at + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    # A comment in front of what follows is about that.
    while end > at + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    # The empty line that stands before it was made with it.
    start = at - 1 if at > 0 and not lines[at - 1].strip() else at
    return "".join([*lines[:start], *lines[end:]])


def _filled(tables: dict[str, Any]) -> dict[str, Any]:
    """Leave out tables that have nothing in them: where none is written there is none."""
    found = {key: _filled(value) if isinstance(value, dict) else value for key, value in tables.items()}
    return {key: value for key, value in found.items() if value != {}}
