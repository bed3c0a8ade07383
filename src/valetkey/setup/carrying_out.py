"""Carries a setup out and takes it back. Knows no tool: files, records and consent are the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from valetkey.clock import Clock
from valetkey.config import Paths
from valetkey.errors import SetupRefused
from valetkey.setup import files, records
from valetkey.setup.diff import unified
from valetkey.setup.plan import Plan, Tool
from valetkey.setup.records import Entry
from valetkey.setup.taking_back import taken_back

__all__ = ["Undo", "carry_out", "diff_of", "same_file", "undo", "undo_of"]


@dataclass(frozen=True, kw_only=True)
class Undo:
    """How a setup is taken back. `target` is what the file will be, None: none. `lost` is what a force overwrites."""

    entry: Entry
    now: bytes | None
    target: bytes | None
    lost: bytes | None = None

    @property
    def diff(self) -> str:
        """The change that it makes."""
        return unified(self.entry.path, self.now, self.target)


def diff_of(plan: Plan) -> str:
    """Give the change that a plan makes; empty where there is nothing to change."""
    return unified(plan.path, plan.before, plan.after)


def carry_out(plan: Plan, *, tool: str, paths: Paths, clock: Clock, key_id: str | None = None) -> Path:
    """Write the file, and before it the record that takes it back; give the record.

    Raises: SetupRefused, StoreError.
    """
    folders = tuple(parent for parent in reversed((plan.path.parent, *plan.path.parent.parents)) if not parent.exists())
    entry = Entry(
        tool=tool,
        path=plan.path,
        before=plan.before,
        after=plan.after,
        made_at=clock.now(),
        folders=folders,
        key_id=key_id,
    )
    # First: a machine that stops in between leaves a record of nothing, which undo sees and drops.
    record = records.keep(paths, entry)
    try:
        files.replace(plan.path, plan.after, expected=plan.before)
    except SetupRefused:
        records.drop(record)
        raise
    return record


def undo_of(name: str, tool: Tool, *, paths: Paths, force: bool) -> Undo | None:
    """Say how the last setup of this tool is taken back; None where there is none.

    What was changed elsewhere in the file since stays. Raises: SetupRefused where a change since would be lost.
    """
    entry = records.newest(paths, name)
    if entry is None:
        return None
    now = files.read(entry.path)
    if now == entry.after:
        return Undo(entry=entry, now=now, target=entry.before)
    if now in (entry.before, None):
        # Somebody took it back already, or threw the file away.
        return Undo(entry=entry, now=now, target=now)
    merged = _merged(entry, tool, now)
    if merged is not None:
        return Undo(entry=entry, now=now, target=merged)
    if force:
        return Undo(entry=entry, now=now, target=entry.before, lost=now)
    raise SetupRefused(
        f"{entry.path} was changed since, in the lines that the setup wrote or beside them",
        hint=f"take them out by hand, or run `valetkey setup {name} --undo --force`: it puts back the file as it was "
        "before the setup, and keeps the present one aside",
    )


def undo(wanted: Undo, *, paths: Paths, revoke: Callable[[str], None]) -> Path | None:
    """Take it back, and the valet key that it wrote with it; give where lost changes are kept."""
    entry = wanted.entry
    aside = records.put_aside(paths, entry, wanted.lost) if wanted.lost is not None else None
    if wanted.target != wanted.now and wanted.now is not None:
        if wanted.target is None:
            files.remove(entry.path, expected=wanted.now, folders=entry.folders)
        else:
            files.replace(entry.path, wanted.target, expected=wanted.now)
    if entry.key_id is not None:
        revoke(entry.key_id)
    records.drop(entry.file)
    return aside


def _merged(entry: Entry, tool: Tool, now: bytes) -> bytes | None:
    found = taken_back(entry.before or b"", entry.after, now, facts_of=tool.facts)
    # Where nothing would be left of a file that the setup made, the rest is somebody's to decide on.
    return found or None


def same_file(plan: Plan, again: Plan) -> Plan:
    """Give the second plan if it is for the file that was shown with the first. Raises: SetupRefused."""
    if (again.path, again.before) != (plan.path, plan.before):
        raise SetupRefused(f"{plan.path} was changed just now by something else", hint="try again")
    return again
