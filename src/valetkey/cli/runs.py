"""`runs`: what is kept of them: list, show, logs, trace, resume, stop, remove; join is in join.py."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from valetkey import serving
from valetkey.audit.recorder import person
from valetkey.cli.frame import State, command, group
from valetkey.cli.join import join_run
from valetkey.cli.output import ago
from valetkey.errors import GatewayError, RunError

if TYPE_CHECKING:
    from valetkey.runs.record import Records, Run

__all__ = ["records_of", "remove_run", "runs"]

_STOP_SECONDS = 15.0


@group("runs", short_help="List, show, stop and remove runs.")
def runs(state: State) -> None:
    """See what ran, what it said, how it ended; stop what goes on; remove what is kept."""


@command("list", short_help="List runs.")
def list_runs(state: State) -> None:
    """List the runs, the last begun first."""
    records, now = records_of(state), state.clock.now()
    found = records.all()
    state.emit({"runs": [_as_dict(records, one) for one in found]})
    if not found:
        state.say("Nothing has run yet. Begin with `valetkey run claude`, or `valetkey run --grant PROVIDER -- CMD`.")
        return
    state.table(
        ["ID", "STATE", "BEGUN", "GRANTS", "COMMAND"],
        [
            (one.id, _in_words(records, one), ago(one.created_at, now), ", ".join(one.grants) or "-", _line(one))
            for one in found
        ],
        colors={"running": "green", "lost": "red"},
    )


@command("show", short_help="Show one run.")
@click.argument("id", metavar="RUN")
def show(state: State, *, id: str) -> None:
    """Show a run: what it was, what it was granted, how it ended, where its files are."""
    records = records_of(state)
    one = records.find(id)
    state.emit(_as_dict(records, one))
    for name, text in _shown(records, one, state.clock.now()):
        if text:
            state.say(f"{name:<11} {text}")
    _say_waiting(state, one)


def _shown(records: Records, one: Run, now: datetime) -> list[tuple[str, str]]:
    """Give what `show` prints of it; what a run has not is empty."""
    limits = [f"{name}={number}" for name, number in asdict(one.limits).items() if number is not None]
    return [
        ("id", one.id),
        ("state", _in_words(records, one)),
        ("command", _line(one)),
        ("agent", one.agent or ""),
        ("account", f"{one.account} ({one.method})" if one.method else one.account or ""),
        ("grants", " ".join(one.grants) or "none"),
        ("allow", " ".join(one.allow)),
        ("policy", one.policy_file),
        ("mcp", " ".join(one.mcp)),
        ("workspace", f"{one.workspace}{' (read-only)' if one.read_only else ''}"),
        ("mounts", " ".join(f"{mount.target}{'' if mount.read_only else ':rw'}" for mount in one.mounts)),
        ("variables", " ".join(one.variables)),
        ("limits", " ".join(limits)),
        ("sandbox", f"{one.sandbox} {one.image}" if one.image else one.sandbox),
        ("home of", one.home_of or ""),
        ("begun", _time(one.created_at, now)),
        ("ended", "" if one.ended_at is None else _time(one.ended_at, now)),
        ("folder", str(records.at(one))),
    ]


def _time(then: datetime, now: datetime) -> str:
    return f"{then.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {ago(then, now)}"


def _say_waiting(state: State, one: Run) -> None:
    """Say what of a run waits for a person; nothing where no gateway runs."""
    with suppress(GatewayError):
        waiting = serving.ask(str(state.paths.home), "GET", "/approvals")["approvals"]
        mine = [asked for asked in waiting if asked["client"] == f"run:{one.id}"]
        if mine and not state.json:
            logins = dict.fromkeys(asked["account"] for asked in mine if asked["kind"] == "login")
            what = f"a login for {', '.join(logins)}" if logins else "a decision"
            state.say(f"waits for   {what} ({len(mine)}; `valetkey approvals list`)", fg="yellow")


@command("logs", short_help="Print what a run said.")
@click.argument("id", metavar="RUN")
def logs(state: State, *, id: str) -> None:
    """Print what a run wrote to its terminal, or to stdout and stderr, as it came."""
    from valetkey.runs.record import OUTPUT

    records = records_of(state)
    path = records.at(records.find(id)) / OUTPUT
    content = path.read_bytes() if path.exists() else b""
    if state.json:
        state.emit({"output": content.decode(errors="replace")})
    else:
        # On a terminal what it wrote may do to this one whatever it likes; control characters are shown instead.
        # (Its own terminal ended lines by CR LF.)
        text = content.decode(errors="replace").replace("\r\n", "\n").removesuffix("\n")
        state.say(text) if state.on_terminal else click.echo(content, nl=False)


@command("trace", short_help="Show what a run asked for.")
@click.argument("id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on with new requests until Ctrl-C.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=50, help="How many (default: 50).")
def trace_run(state: State, *, id: str, follow: bool, limit: int) -> None:
    """Show the newest requests of a run, as `valetkey trace` does."""
    from valetkey.cli.trace import show as show_trace

    one = records_of(state).find(id)
    show_trace(state, follow=follow, client=f"run:{one.id}", account=None, limit=limit, since=None)


@command("resume", short_help="Go on with an agent's run.", context_settings={"allow_interspersed_args": False})
@click.argument("id", metavar="RUN")
@click.argument("argv", metavar="[-- ARG…]", nargs=-1, type=click.UNPROCESSED)
def resume_run(state: State, *, id: str, argv: tuple[str, ...]) -> None:
    """Go on with the last session of an agent's run: a new run, with its home, workspace, grants and policy."""
    from valetkey.cli import agents

    earlier = records_of(state).find(id)
    agents.go_on_with(state, earlier, argv)


@command("stop", short_help="End a run.")
@click.argument("id", metavar="RUN")
def stop_run(state: State, *, id: str) -> None:
    """End a run: its command is told to, and killed after some seconds."""
    import time

    records = records_of(state)
    one = records.find(id)
    if records.state(one) != "running" or one.pid is None:
        state.emit({"id": one.id, "stopped": False})
        state.say(f"The run {one.id} has ended already.")
        return
    with suppress(ProcessLookupError):
        os.kill(one.pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    while records.state(one) == "running" and records.find(one.id).ended_at is None:
        if time.monotonic() > end:
            raise RunError(f"the run {one.id} does not end", hint=f"run `kill -9 {one.pid}`")
        time.sleep(0.02)
    state.emit({"id": one.id, "stopped": True})
    state.say(f"The run {one.id} has ended.")


@command("remove", short_help="Remove what is kept of a run.")
@click.argument("ids", metavar="RUN…", nargs=-1, required=True)
def remove(state: State, *, ids: tuple[str, ...]) -> None:
    """Remove the record of a run, what it said, and the home that it had."""
    records = records_of(state)
    found = [records.find(name) for name in ids]
    for one in found:
        remove_run(state, records, one)
    state.emit({"removed": [one.id for one in found]})
    for one in found:
        state.say(f"The run {one.id} is removed.")


for _one in (list_runs, show, logs, trace_run, resume_run, join_run, stop_run, remove):
    runs.add_command(_one)


def records_of(state: State) -> Records:
    """Give the records of the runs of this home."""
    from valetkey.runs.record import Records

    return Records(state.paths, state.clock)


def remove_run(state: State, records: Records, one: Run) -> None:
    """Remove what is kept of a run, and say so in the audit. Raises: RunGoesOn."""
    state.audit.append("run-removed", who=f"run:{one.id}", detail={"by": person()})
    records.remove(one)


def _as_dict(records: Records, one: Run) -> dict[str, Any]:
    return {
        **asdict(one),
        "command": list(one.command),
        "grants": list(one.grants),
        "allow": list(one.allow),
        "mcp": list(one.mcp),
        "mounts": [{**asdict(mount), "source": str(mount.source)} for mount in one.mounts],
        "variables": list(one.variables),
        "state": records.state(one),
        "folder": str(records.at(one)),
    }


def _in_words(records: Records, one: Run) -> str:
    state = records.state(one)
    return f"exit {one.exit_status}" if state == "ended" and one.exit_status is not None else state


def _line(one: Run) -> str:
    """Give the command. An agent's is what was typed: its name in place of the paths of program and interpreter."""
    import shlex

    words = list(one.command)
    if one.agent is not None:
        places = [n for n, word in enumerate(words[:2], 1) if word.startswith("/") and word.count("/") > 1]
        words[: max(places, default=0)] = [one.agent]
    return shlex.join(words)
