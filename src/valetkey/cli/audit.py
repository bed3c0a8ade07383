"""`audit`: what was done with the accounts, and whether the record of it is whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from valetkey.audit.recorder import KINDS
from valetkey.cli.frame import State, command, group
from valetkey.cli.output import since as time_of
from valetkey.errors import UsageError

if TYPE_CHECKING:
    from valetkey.audit.verify import Verified

__all__ = ["audit"]


@group("audit", short_help="Show, verify and export what was done.")
def audit(state: State) -> None:
    """Show what was done with the accounts, see that nobody changed the record, write it to a file."""


@command("show", short_help="Show what was done.")
@click.option("--since", metavar="TIME", help="Only newer entries: 30m, 1h, 2d, or a date and time.")
@click.option("--client", metavar="KEY|RUN", help="Only those of, or about, this valet key, run, command or person.")
@click.option("--account", metavar="PROVIDER[@ACCOUNT]", help="Only those of this account.")
@click.option("--kind", type=click.Choice(KINDS), help="Only those of this kind.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=50, help="How many (default: 50).")
@click.option("--key", "only_key", is_flag=True, help="Print the public key alone: keep it elsewhere, for `verify`.")
def show(
    state: State,
    *,
    since: str | None,
    client: str | None,
    account: str | None,
    kind: str | None,
    limit: int,
    only_key: bool,
) -> None:
    """Show the newest entries, the newest last. Nothing in them is secret."""
    from valetkey.audit.reader import newest

    if only_key:
        key = _own_key(state)
        state.emit({"key": key})
        state.say(key)
        return
    begin = None if since is None else time_of(since, state.clock.now())
    found = newest(state.paths.audit, limit, wanted=_wanted(since=begin, client=client, account=account, kind=kind))
    state.emit({"entries": [{name: value for name, value in e.items() if name != "salt"} for e in found]})
    if not found:
        state.note("no such entry is recorded")
        return
    state.table(
        ["ENTRY", "TIME", "WHAT", "WHO", "ACCOUNT", "DETAIL"],
        [
            (
                str(e["seq"]),
                datetime.fromisoformat(e["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                e["kind"],
                e["who"],
                e["account"] or "-",
                _in_words(e["detail"]),
            )
            for e in found
        ],
        colors={"denial": "yellow", "reveal": "red"},
    )


def _wanted(
    *, since: datetime | None, client: str | None, account: str | None, kind: str | None
) -> Callable[[Mapping[str, Any]], bool]:
    from valetkey.audit.reader import is_about

    clients = [] if client is None else [client, f"key:{client}", f"run:{client}"]

    def wanted(entry: Mapping[str, Any]) -> bool:
        return (
            (since is None or datetime.fromisoformat(entry["at"]) >= since)
            and (not clients or any(is_about(entry, name) for name in clients))
            and (account is None or account in (entry["account"], entry["account"].partition("@")[0]))
            and (kind is None or entry["kind"] == kind)
        )

    return wanted


def _in_words(detail: Mapping[str, Any]) -> str:
    told = [(name, value) for name, value in detail.items() if value not in (None, "", [], {})]
    return " ".join(f"{name}={_short(value)}" for name, value in told) or "-"


def _short(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ",".join(map(_short, value))
        case dict():
            return ",".join(f"{name}:{_short(one)}" for name, one in value.items() if one is not None) or "-"
    return str(value)


# --- whether it is whole ---------------------------------------------------------------------


@command("verify", short_help="See whether the record is whole.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--key", metavar="FILE|HEX", help="The public key, as `audit show --key` printed it.")
@click.option("--anchor", metavar="SEQ:HASH", help="What an earlier `verify` or `export` printed.")
def verify(state: State, *, file: Path | None, key: str | None, anchor: str | None) -> None:
    """Go through the record, or through an export, and name the first entry that is not as it was written.

    Exit status 1 where it is broken. Entries that were cut off at the end show only against an anchor from before.
    """
    from valetkey.audit.reader import lines
    from valetkey.audit.verify import Anchor, lines_of
    from valetkey.audit.verify import verify as check

    wanted = None if anchor is None else Anchor.read(anchor)
    if file is None:
        found = check(lines(state.paths.audit), key=_key(state, key, needed=False), anchor=wanted, whole=False)
    else:
        with open(file, "rb") as given:
            found = check(lines_of(given), key=_key(state, key, needed=True), anchor=wanted, whole=True)
    state.emit({"verified": True, **_as_dict(found), "anchored": wanted is not None})
    _say(state, found)
    if wanted is None:
        state.say("Entries cut off at the end are not noticed without an --anchor from before.")


def _key(state: State, given: str | None, *, needed: bool) -> str | None:
    """Give the public key to check with: the one named, else the one that this home has pinned. Raises: UsageError."""
    from valetkey.audit.signing import pinned_key

    found = pinned_key(state.paths) if given is None else given
    if given is not None and Path(given).is_file():
        found = Path(given).read_text(encoding="ascii", errors="replace").strip()
    if found is None and needed:
        raise UsageError(
            "there is no public key here to verify with",
            hint="name it: --key FILE or --key HEX, as `valetkey audit show --key` prints it",
        )
    if found is not None and (len(found) != 64 or not set(found) <= set("0123456789abcdef")):
        raise UsageError("the public key is not 64 hex digits", hint="give it as `valetkey audit show --key` prints it")
    return found


def _own_key(state: State) -> str:
    from valetkey.audit.signing import pinned_key, public_key, signing_key

    return pinned_key(state.paths) or public_key(signing_key(state.store, state.paths, state.clock))


def _as_dict(found: Verified) -> dict[str, object]:
    return {
        "entries": found.entries,
        "hidden": found.hidden,
        "checkpoints": found.checkpoints,
        "signed": found.signed,
        "anchor": None if found.end is None else str(found.end),
    }


def _say(state: State, found: Verified) -> None:
    hidden = f" ({found.hidden} of them bare hashes)" if found.hidden else ""
    state.say(f"{found.entries} entries{hidden}, none changed, removed, put in or moved.", fg="green")
    state.say(f"Signed up to entry {found.signed}, by {found.checkpoints} checkpoints.")
    if found.signed < found.entries:
        state.say(f"  {found.entries - found.signed} entries behind it are not signed yet: `audit export` signs them")
    if found.end is not None:
        state.say(f"Anchor, to keep elsewhere: {found.end}")


@command("export", short_help="Write the record to a file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", metavar="ID", help="Only this run's entries; those of others as bare hashes.")
@click.option("--client", metavar="KEY", help="Only this valet key's entries; those of others as bare hashes.")
def export(state: State, *, file: Path, run: str | None, client: str | None) -> None:
    """Sign the record and write it to a new file, which verifies by itself (docs/verify_audit.py needs no Valetkey)."""
    from valetkey.audit.export import export as write
    from valetkey.audit.signing import public_key, sign, signing_key

    if run is not None and client is not None:
        raise UsageError("--run and --client both name whose entries are wanted", hint="use one of them")
    wanted = f"run:{run}" if run is not None else _client(client)
    key = public_key(signing_key(state.store, state.paths, state.clock))
    sign(state.audit, state.store, state.paths, state.clock)
    found = write(state.paths.audit, file, client=wanted, key=key)
    state.emit({"file": str(file), **_as_dict(found), "key": key})
    _say(state, found)
    state.say(f"Written to {file}. Its key: {key}")


def _client(name: str | None) -> str | None:
    from valetkey.audit.recorder import who_of

    return None if name is None else who_of(name)


for _command in (show, verify, export):
    audit.add_command(_command)
