"""`store`: new keys, another key source, backup and restore."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from valetkey.cli.frame import State, command, group, stop
from valetkey.credential import Secret
from valetkey.errors import StoreLocked, UsageError

__all__ = ["read_passphrase", "store"]

_KINDS = ("keychain", "passphrase", "key-file", "command")


@group("store", short_help="New keys, key source, backup, restore.")
def store(state: State) -> None:
    """Look after the store: its keys, where they lie, and backups."""


@command("rekey", short_help="Give the store new keys.")
def rekey(state: State) -> None:
    """Seal everything under new keys and forget the old ones. Stopped at any point, all records stay readable."""
    from valetkey.stores.rekey import rekey as rekey_store

    damaged = rekey_store(state.store)
    state.audit.tell("store", detail={"what": "rekey"})
    state.emit({"rekeyed": True, "key_source": state.store.source_kind(), "damaged": damaged})
    state.say("The store has new keys.", fg="green")
    for name in damaged:
        state.note(f"{name} could not be opened and is left as it is: log in again to replace it")
    stop(1 if damaged else 0)


@command("source", short_help="Show or change where the store's key lies.")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.option("--passphrase-file", metavar="FILE", help="The new passphrase: the first line of a file; - is stdin.")
def source(state: State, *, kind: str | None, passphrase_file: str | None) -> None:
    """Show where the key lies that opens the store, or put it elsewhere.

    `command` is the program that `store.key_command` in config.toml names.
    """
    from valetkey.stores.passphrase import Passphrase
    from valetkey.stores.rekey import change_source

    if kind is not None:
        state.store.keys.ready()
        if kind == "passphrase":
            new = read_passphrase(state, passphrase_file, "New passphrase of the store")
            change_source(state.store, Passphrase(lambda: new))
        else:
            change_source(state.store, kind)
        state.audit.tell("store", detail={"what": "source", "source": kind})
    found = state.store.source_kind()
    notice = state.store.notice()
    state.emit({"key_source": found, "notice": notice})
    state.say(f"The key of the store is in: {found or 'nothing yet, before the first login'}")
    if notice and not state.json:
        state.note(notice)


@command("backup", short_help="Write the store to one file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--passphrase-file", metavar="FILE", help="The backup's passphrase: a file's first line; - is stdin.")
def backup(state: State, *, file: Path, passphrase_file: str | None) -> None:
    """Write the whole store to a new file that a passphrase opens, on any machine."""
    from valetkey.stores.backup import backup as write

    state.audit.append("store", detail={"what": "backup"})
    write(state.store, file, read_passphrase(state, passphrase_file, "Passphrase of the backup"))
    state.emit({"file": str(file)})
    state.say(f"Written to {file}. Without the passphrase nobody opens it, you neither.")


@command("restore", short_help="Put a backup in place.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--passphrase-file", metavar="FILE", help="The backup's passphrase: a file's first line; - is stdin.")
@click.option("--force", is_flag=True, help="Put a store that is there aside.")
def restore(state: State, *, file: Path, passphrase_file: str | None, force: bool) -> None:
    """Put a backup in place. A store that is there is kept beside it, and only put aside with --force."""
    from valetkey.stores.backup import restore as put_back
    from valetkey.stores.keysource import sources

    aside = put_back(
        state.paths,
        file,
        read_passphrase(state, passphrase_file, "Passphrase of the backup", new=False),
        clock=state.clock,
        sources=sources(
            state.paths,
            kind=state.config.text("store.key_source") or "auto",
            command=state.config.words("store.key_command"),
            environ=state.environ,
        ),
        force=force,
    )
    state.audit.tell("store", detail={"what": "restore"})
    accounts = state.store.accounts()
    count = len(accounts)
    # A backup holds no declarations: they are files, and may name hosts that this machine should not trust unseen.
    undeclared = sorted({a.ref.provider for a in accounts} - set(state.catalogue.ids()))
    state.emit(
        {
            "file": str(file),
            "accounts": count,
            "aside": None if aside is None else str(aside),
            "undeclared": undeclared,
        }
    )
    state.say(f"Restored {count} account{'' if count == 1 else 's'} from {file}.", fg="green")
    if aside is not None:
        state.say(f"The store that was there is now {aside}")
    if undeclared:
        state.note(
            f"not declared here: {', '.join(undeclared)}; copy their files into {state.paths.providers}, "
            "or add them with `valetkey providers add`"
        )


def read_passphrase(state: State, path: str | None, label: str, *, new: bool = True) -> Secret:
    """Read it from a file or standard input, or ask; a new one is typed twice. Raises: UsageError, StoreLocked."""
    if path == "-":
        text = "" if sys.stdin is None else sys.stdin.readline()
    elif path is not None:
        with open(path, encoding="utf-8") as file:
            text = file.readline()
    elif not state.interactive:
        raise UsageError(f"{label.lower()} is needed", hint="add --passphrase-file FILE, or - for standard input")
    else:
        text = click.prompt(label, hide_input=True, confirmation_prompt=new, err=True)
    if not text.strip("\r\n"):
        raise StoreLocked("the passphrase is empty", hint="give one of some length")
    return Secret(text.strip("\r\n"))


for _command in (rekey, source, backup, restore):
    store.add_command(_command)
