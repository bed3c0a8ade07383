"""`approvals`: requests that a policy holds until a person has decided."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click

from valetkey import serving
from valetkey.cli.frame import State, command, group
from valetkey.cli.output import ago, until

__all__ = ["approvals"]


@group("approvals", short_help="Decide on requests that a policy holds.")
def approvals(state: State) -> None:
    """Decide on requests that a policy holds (`ask`). Each waits 180 seconds, then it is refused."""


@command("list", short_help="Show what waits for a decision.")
@click.option("--settled", is_flag=True, help="Show what was decided, and by whom, since the gateway runs.")
def list_approvals(state: State, *, settled: bool) -> None:
    """Show the requests that wait for a decision, the oldest first; with --settled what became of others."""
    told = serving.ask(str(state.paths.home), "GET", "/approvals")
    found = told["approvals"]
    state.emit({"approvals": found, "settled": told["settled"]})
    if settled:
        _say_settled(state, told["settled"])
        return
    if not found:
        state.say("Nothing waits for a decision.")
        return
    now = state.clock.now()
    for a in found:
        # Nothing of it is cut, however narrow the terminal: a person is to decide on it.
        since, end = ago(_time(a["since"]), now), until(_time(a["until"]), now)
        state.say(
            f"{a['id']}  {a['client_name'] or a['client']}  {a['account'] or '-'}  asked {since}, ends {end}", bold=True
        )
        state.say(f"  {a['method']} {a['url']}")
        if a["reason"]:
            state.say(f"  {a['reason']}")


def _say_settled(state: State, settled: list[dict[str, Any]]) -> None:
    if not settled:
        state.say("Nothing was decided since the gateway runs.")
        return
    now = state.clock.now()
    for s in settled:
        asked, by = s["pending"], f" by {s['by']}" if s["by"] else ""
        who = asked["client_name"] or asked["client"]
        state.say(f"{asked['id']}  {who}  {s['outcome']}{by} {ago(_time(s['at']), now)}", bold=True)
        state.say(f"  {asked['method']} {asked['url']}")


@command("approve", short_help="Let a request through.")
@click.argument("id")
def approve(state: State, *, id: str) -> None:
    """Let a request through, once."""
    _settle(state, id, approved=True)


@command("deny", short_help="Refuse a request.")
@click.argument("id")
def deny(state: State, *, id: str) -> None:
    """Refuse a request."""
    _settle(state, id, approved=False)


def _settle(state: State, id: str, *, approved: bool) -> None:
    path = f"/approvals/{quote(id, safe='')}"
    state.emit(serving.ask(str(state.paths.home), "POST", path, {"approve": approved}))
    state.say(f"{id} is approved." if approved else f"{id} is denied.")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


for _command in (list_approvals, approve, deny):
    approvals.add_command(_command)
