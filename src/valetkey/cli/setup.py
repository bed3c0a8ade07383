"""`setup`: writes other tools' own settings, with consent, and takes them back."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from valetkey.cli.frame import State, command
from valetkey.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from valetkey.setup.carrying_out import Undo
    from valetkey.setup.plan import Plan, Tool, Wish

__all__ = ["setup"]


@command("setup", short_help="Let another tool ask Valetkey for its credentials.")
@click.argument("name", metavar="TOOL")
@click.argument("accounts", metavar="[PROVIDER[@ACCOUNT]]…", nargs=-1)
@click.option("--gateway", is_flag=True, help="Send the tool through the gateway, with a valet key.")
@click.option("--gateway-url", metavar="URL", help="The gateway's address, where it is not the usual one.")
@click.option("--profile", metavar="NAME", help="aws: the profile that gets the keys (default: valetkey).")
@click.option("--undo", "take_back", is_flag=True, help="Take the last setup of this tool back.")
@click.option("--force", is_flag=True, help="With --undo: also where changes made since are lost.")
@click.option("--yes", is_flag=True, help="Yes to the change.")
def setup(
    state: State,
    *,
    name: str,
    accounts: tuple[str, ...],
    gateway: bool,
    gateway_url: str | None,
    profile: str | None,
    take_back: bool,
    force: bool,
    yes: bool,
) -> None:
    """Change the settings of TOOL (git, claude, aws, codex, docker) so that it asks Valetkey.

    Shows the change and asks first. --undo puts the file back as it was.
    """
    from valetkey.setup import tool

    chosen = tool(name)
    if take_back:
        _undo(state, name, chosen, force=force, yes=yes)
        return
    if force:
        raise UsageError("--force goes with --undo", hint="leave it out")
    through = gateway or gateway_url is not None or chosen.NEEDS_GATEWAY
    wish = _wish(state, accounts, (gateway_url or state.gateway_url) if through else None, profile)
    _carry_out(state, name, chosen, wish, yes=yes)
    if through and gateway_url is None:
        state.hint_at_gateway()


def _wish(state: State, accounts: tuple[str, ...], gateway: str | None, profile: str | None) -> Wish:
    from valetkey.address import check_url
    from valetkey.setup.plan import Wish

    if gateway is not None:
        check_url(gateway)
    return Wish(
        broker=state.broker,
        program=_program(state.environ),
        accounts=accounts,
        environ=state.environ,
        gateway=None if gateway is None else gateway.rstrip("/"),
        profile=profile,
    )


def _program(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Give the words that call us from anywhere: the bare name where PATH has it, else the whole path.

    A virtual environment that is active here is not on the tool's PATH tomorrow.
    """
    script = Path(sys.executable).with_name("valetkey")
    found = shutil.which("valetkey", path=environ.get("PATH", ""))
    if found is not None and (sys.prefix == sys.base_prefix or Path(found) != script):
        return ("valetkey",)
    return (str(script),) if script.is_file() else (sys.executable, "-m", "valetkey")


# --- there -----------------------------------------------------------------------------------


def _carry_out(state: State, name: str, chosen: Tool, wish: Wish, *, yes: bool) -> None:
    from valetkey.setup import files
    from valetkey.setup.carrying_out import carry_out, diff_of

    plan = state.run(chosen.plan(wish, files.read))
    for note in plan.notes:
        state.note(note)
    diff = diff_of(plan)
    if plan.after == plan.before:
        _tell(state, name, plan.path, "unchanged", "", plan)
        state.say(f"{plan.path} says so already.")
        return
    state.say(diff)
    if not state.confirm(f"Change {plan.path} like this?", yes=yes):
        _tell(state, name, plan.path, "declined", diff, plan)
        state.say("Nothing was changed.")
        return
    key_id = None
    if plan.grants:
        key_id, plan = _with_key(state, name, chosen, wish, plan)
    try:
        carry_out(plan, tool=name, paths=state.paths, clock=state.clock, key_id=key_id)
    except BaseException:
        if key_id is not None:
            _revoke(state, key_id)
        raise
    _tell(state, name, plan.path, "changed", diff, plan, key_id)
    state.say(f"{plan.path} was changed. `valetkey setup {name} --undo` takes it back.")
    if key_id is not None:
        state.say(f"Valet key {key_id} is in it; taking it back revokes that.")


def _with_key(state: State, name: str, chosen: Tool, wish: Wish, plan: Plan) -> tuple[str, Plan]:
    """Make the valet key that the plan wants, now that there is a yes, and write it in."""
    from valetkey.gateway.keys import Keys
    from valetkey.setup import files
    from valetkey.setup.carrying_out import same_file

    keys = Keys(state.store, state.clock, state.audit)
    named = f"{name} setup"
    key, token = keys.issue(
        grants=[state.broker.resolve(grant) for grant in plan.grants],
        catalogue=state.catalogue,
        environ=state.environ,
        name="" if any(k.name == named and k.state(state.clock.now()) == "live" for k in keys.all()) else named,
    )
    try:
        again = state.run(chosen.plan(replace(wish, key=token), files.read))
        return key.id, same_file(plan, again)
    except BaseException:
        keys.revoke(key.id)
        raise


# --- and back --------------------------------------------------------------------------------


def _undo(state: State, name: str, chosen: Tool, *, force: bool, yes: bool) -> None:
    from valetkey.setup.carrying_out import undo, undo_of

    wanted = undo_of(name, chosen, paths=state.paths, force=force)
    if wanted is None:
        raise UsageError(f"no setup of {name} is there to take back", hint=f"`valetkey setup {name}` makes one")
    path = wanted.entry.path
    if wanted.now == wanted.target:
        undo(wanted, paths=state.paths, revoke=lambda key_id: _revoke(state, key_id))
        _tell(state, name, path, "unchanged", "")
        state.say(f"{path} was put back already; the setup is forgotten.")
        return
    state.say(wanted.diff)
    if not state.confirm(_question(wanted), yes=yes):
        _tell(state, name, path, "declined", wanted.diff)
        state.say("Nothing was changed.")
        return
    aside = undo(wanted, paths=state.paths, revoke=lambda key_id: _revoke(state, key_id))
    _tell(state, name, path, "removed" if wanted.target is None else "taken back", wanted.diff)
    state.say(f"{path} was {'removed' if wanted.target is None else 'put back'}.")
    if aside is not None:
        state.note(f"what it said until now is in {aside}")


def _question(wanted: Undo) -> str:
    if wanted.target is None:
        return f"Remove {wanted.entry.path}, which the setup made?"
    return f"Change {wanted.entry.path} back like this?"


def _revoke(state: State, key_id: str) -> None:
    from valetkey.errors import UnknownKey
    from valetkey.gateway.keys import Keys

    try:
        Keys(state.store, state.clock, state.audit).revoke(key_id)
    except UnknownKey:
        return  # it ended long ago


def _tell(
    state: State, name: str, path: Path, action: str, diff: str, plan: Plan | None = None, key_id: str | None = None
) -> None:
    state.emit(
        {
            "tool": name,
            "file": str(path),
            "action": action,
            "diff": diff,
            "key": key_id,
            "notes": [] if plan is None else list(plan.notes),
        }
    )
