"""`approvals`: what waits for a person: what a policy holds, what runs ask for, logins that are missing."""

from __future__ import annotations

import os
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from valetkey import serving
from valetkey.cli.frame import State, command, group, stop
from valetkey.cli.output import ago, until, width_of
from valetkey.credential import CredentialRef, login_command
from valetkey.errors import ConfigError, UnknownApproval, UsageError

__all__ = ["approvals"]


@group("approvals", short_help="Decide on what policies hold and what runs ask for.")
def approvals(state: State) -> None:
    """Decide on requests that a policy holds (`ask`; each waits 180 seconds), and on what runs ask to be let do."""


@command("list", short_help="Show what waits for a decision.")
@click.option("--settled", is_flag=True, help="Show what was decided, and by whom, since the gateway runs.")
def list_approvals(state: State, *, settled: bool) -> None:
    """Show what waits for a person, the oldest first; with --settled what became of others."""
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
        asked = f"asked {ago(_time(a['since']), now)}"
        if a["until"] is not None:
            asked += f", ends {until(_time(a['until']), now)}"
        state.say(f"{a['id']}  {a['client_name'] or a['client']}  {a['account'] or '-'}  {asked}", bold=True)
        for line in _lines(a):
            state.say(f"  {line}")


def _lines(pending: dict[str, Any]) -> list[str]:
    """Give what a person has to know. The words of a run are marked as such: they are not ours."""
    lines = [f"{pending['method']} {pending['url']}"] if pending["url"] else []
    reason = pending["reason"]
    match pending["kind"]:
        case "access":
            lines += [f"asks for: {pending['allows']}"]
            if pending["allows"].startswith("CONNECT "):
                lines += ["  (a tunnel: whatever goes through it, unseen and without a credential)"]
            lines += _quoted(reason)
        case "login":
            provider, _, account = pending["account"].partition("@")
            command = login_command(CredentialRef(provider=provider, account=account))
            lines += [f"waits for a login: {reason}", f"run `{command}`, and it goes on"]
        case _:
            lines += [reason] if reason else []
    return lines


def _quoted(reason: str) -> list[str]:
    """Give a run's words so that none of them stands where ours begin: no terminal breaks these lines by itself."""
    words = " ".join(reason.split())
    quoted = f'"{words}"' if words else ""
    lines = textwrap.wrap(quoted, 60 if width_of(quoted) == len(quoted) else 30, break_on_hyphens=False)
    return [f"it says: {line}" for line in lines]


def _say_settled(state: State, settled: list[dict[str, Any]]) -> None:
    if not settled:
        state.say("Nothing was decided since the gateway runs.")
        return
    now = state.clock.now()
    for s in settled:
        asked, by = s["pending"], f" by {s['by']}" if s["by"] else ""
        who = asked["client_name"] or asked["client"]
        state.say(f"{asked['id']}  {who}  {s['outcome']}{by} {ago(_time(s['at']), now)}", bold=True)
        state.say(f"  {asked['method']} {asked['url']}" if asked["url"] else f"  {asked['allows']}")


@command("approve", short_help="Let a request through.")
@click.argument("id")
@click.option("--once", "how", flag_value="once", help="This one request, or the next one like it.")
@click.option("--for-run", "how", flag_value="run", help="All requests like it, for as long as the run lives.")
@click.option("--always", "how", flag_value="always", help="As --for-run, and say how later runs get it too.")
@click.option(
    "--policy", "file", type=click.Path(path_type=Path), help="With --always: write the rule into this policy."
)
@click.option("--yes", is_flag=True, help="Do not ask before the policy is changed.")
def approve(state: State, *, id: str, how: str | None, file: Path | None, yes: bool) -> None:
    """Let a request through. What a policy holds goes on once, what a run asks for is allowed while it lives.

    What a provider keeps off limits can be allowed by a policy alone (`allow_off_limits`), never here.
    """
    if file is not None and how != "always":
        raise UsageError("--policy is for what is to be allowed always", hint="add --always")
    asked = _waiting(state, id)
    changed = None if file is None else _changed(state, asked, file, yes=yes)
    told = _settle(state, id, approved=True, scope="run" if how == "always" else how)
    if file is not None and changed is not None:
        _write(state, file, changed)
    if how == "always" and file is None:
        state.say(f"For later runs: {_later(asked)}")
    state.emit(told)


def _waiting(state: State, id: str) -> dict[str, Any]:
    waiting: list[dict[str, Any]] = serving.ask(str(state.paths.home), "GET", "/approvals")["approvals"]
    found = next((one for one in waiting if one["id"] == id), None)
    if found is None:
        raise UnknownApproval(
            "no request of this id waits for a decision (any more)", hint="see `valetkey approvals list`"
        )
    return found


def _later(asked: dict[str, Any]) -> str:
    allows: str = asked["allows"]
    if allows.startswith("--grant "):
        return f"begin them with `{allows}`"
    rule = f'[[rule]]\n  allow = "{allows}"'
    if allows.startswith("CONNECT "):
        host = allows.removeprefix("CONNECT ").removesuffix("/**")
        return f"begin them with `--allow {host}`, or put before the other rules of their policy:\n  {rule}"
    return f"put before the other rules of their policy:\n  {rule}"


def _changed(state: State, asked: dict[str, Any], file: Path, *, yes: bool) -> str:
    """Give the text of a policy with the rule before its others, after a yes."""
    from valetkey.gateway import policy as policies

    if asked["kind"] == "login" or not asked["allows"] or asked["allows"].startswith("--grant "):
        raise UsageError("a policy cannot say this", hint="leave --policy out")
    text = policies.text_of(file)
    policies.read(text, file=str(file))
    changed = policies.with_rule(text, f'allow = "{asked["allows"]}"')
    policies.read(changed, file=str(file))
    if not state.confirm(f'Put `allow = "{asked["allows"]}"` before the other rules of {file}?', yes=yes):
        stop(1)
    return changed


def _write(state: State, file: Path, text: str) -> None:
    mode = file.stat().st_mode & 0o777
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(mode)
        os.replace(fresh, file)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {(error.strerror or 'unknown error').lower()}", hint="check the path"
        ) from error
    state.note(f"{file} is changed")


@command("deny", short_help="Refuse a request.")
@click.argument("id")
def deny(state: State, *, id: str) -> None:
    """Refuse a request. A run that asked for access is told so, and may not ask for the same again."""
    state.emit(_settle(state, id, approved=False))


def _settle(state: State, id: str, *, approved: bool, scope: str | None = None) -> dict[str, Any]:
    path = f"/approvals/{quote(id, safe='')}"
    body: dict[str, object] = {"approve": approved} | ({"scope": scope} if scope else {})
    told: dict[str, Any] = serving.ask(str(state.paths.home), "POST", path, body)
    how = {"once": ", once", "run": " for the run"}.get(told["scope"] or "", "")
    state.say(f"{id} is approved{how}." if approved else f"{id} is denied.")
    return told


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


for _command in (list_approvals, approve, deny):
    approvals.add_command(_command)
