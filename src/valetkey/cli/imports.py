"""`import`: takes over the logins of other tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from valetkey.cli.frame import State, command, stop
from valetkey.credential import DEFAULT_ACCOUNT
from valetkey.errors import ValetkeyError
from valetkey.imports import TOOLS

if TYPE_CHECKING:
    from valetkey.imports import Found, Reading

__all__ = ["import_logins"]


@command("import", short_help="Take over the logins of another tool.")
@click.argument("tool", type=click.Choice(TOOLS), required=False)
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--account", default=DEFAULT_ACCOUNT, help="A name for the accounts.")
@click.option("--dry-run", is_flag=True, help="Say what is there, and store nothing.")
@click.option("--replace", is_flag=True, help="Replace accounts that are there.")
@click.option("--yes", is_flag=True, help="Say yes to the providers' notices.")
@click.option("--no-verify", is_flag=True, help="Store without asking the providers.")
def import_logins(
    state: State,
    *,
    tool: str | None,
    path: Path | None,
    account: str,
    dry_run: bool,
    replace: bool,
    yes: bool,
    no_verify: bool,
) -> None:
    """Take over the logins of another tool. Its file is read and left as it is.

    Without TOOL: which tools have logins here. Exit status 1 when something could not be taken over.
    """
    from valetkey.imports import source

    if tool is None:
        _list_tools(state)
        return
    reader = source(tool)
    reading = reader.read(
        path or reader.default_path(state.environ),
        find=state.catalogue.get,
        now=state.clock.now(),
        home=Path(state.environ.get("HOME") or Path.home()),
        uid=os.geteuid(),
    )
    for warning in reading.warnings:
        state.note(warning)
    results = [
        _take(state, found, account=account, dry_run=dry_run, replace=replace, yes=yes, verify=not no_verify)
        for found in reading.logins
    ]
    state.emit({"tool": tool, "path": str(reading.path), "warnings": list(reading.warnings), "logins": results})
    _show(state, reading, results)
    stop(1 if any(r["result"] == "failed" for r in results) else 0)


def _list_tools(state: State) -> None:
    from valetkey.imports import source

    places = [(tool, source(tool).default_path(state.environ)) for tool in TOOLS]
    state.emit({"tools": [{"tool": t, "path": str(p), "found": p.is_file()} for t, p in places]})
    state.table(("TOOL", "FILE", "THERE"), [(t, str(p), "yes" if p.is_file() else "no") for t, p in places])


def _take(
    state: State, found: Found, *, account: str, dry_run: bool, replace: bool, yes: bool, verify: bool
) -> dict[str, Any]:
    from valetkey.imports.taking_over import take_over

    result: dict[str, Any] = {"id": found.id, "provider": found.provider, "account": None, "error": None}
    if found.credential is None:
        return {**result, "result": "failed", "error": {"message": f"{found.id} {found.problem}", "hint": found.hint}}
    if dry_run:
        return {**result, "account": account, "result": "found"}
    try:
        if found.restricted and not _agreed(state, found, yes=yes):
            return {**result, "result": "skipped"}
        saved, renewed = state.run(
            take_over(state.broker, found, account=account, replace_existing=replace, verify=verify)
        )
    except ValetkeyError as error:
        return {**result, "result": "failed", "error": {"message": error.message, "hint": error.hint}}
    return {**result, "account": saved.ref.account, "result": "renewed" if renewed else "stored"}


def _agreed(state: State, found: Found, *, yes: bool) -> bool:
    provider = state.catalogue.get(found.provider or "")
    method = None if found.credential is None else provider.method(found.credential.method)
    if method is not None and method.notice and not state.json:
        click.echo(f"{provider.name}: {method.notice}", err=True)
    return state.confirm(f"{provider.name} restricts this login to its own tools. Take it over?", yes=yes)


def _show(state: State, reading: Reading, results: list[dict[str, Any]]) -> None:
    said = {
        "found": "would be stored",
        "stored": "stored",
        "renewed": "stored; its token was renewed, so log in to the other tool again",
        "skipped": "skipped",
        "failed": "not taken over",
    }
    if not results:
        state.say(f"{reading.path} holds no login.")
        return
    state.table(
        ("LOGIN", "ACCOUNT", "RESULT"),
        [
            (r["id"], f"{r['provider']}@{r['account']}" if r["account"] else r["provider"] or "-", said[r["result"]])
            for r in results
        ],
    )
    for result in results:
        if result["error"] is not None and not state.json:
            state.note(f"{result['error']['message']}; {result['error']['hint']}")
