"""`helper`: what git, AWS's tools, Claude Code and docker call for a credential."""

from __future__ import annotations

import json
import sys

import click

from valetkey.cli.frame import State, command, group
from valetkey.credential import expires_at_of
from valetkey.errors import UsageError, ValetkeyError

__all__ = ["helper"]


@group("helper", short_help="Answer git, AWS's tools, Claude Code or docker.")
def helper(state: State) -> None:
    """Answer another tool in its own protocol; `valetkey setup TOOL` tells the tool to ask."""


def _stdin(most_bytes: int) -> bytes:
    return sys.stdin.buffer.read(most_bytes + 1)


@command("git", short_help="Be git's credential helper.")
@click.argument("operation", metavar="get|store|erase")
def git(state: State, *, operation: str) -> None:
    """Give git user and password of the account that is for the host; nothing for a host that no account is for.

    `store` keeps nothing, `erase` renews a login that the server refused. Other operations are left alone, as
    gitcredentials(7) wants it.
    """
    from valetkey.helpers import git as protocol

    if operation not in ("get", "erase"):
        _drain()
        state.emit(_as_dict(None))
        return
    wanted = protocol.parse(_stdin(protocol.MOST_BYTES))
    if operation == "erase":
        state.run(protocol.refused(state.broker, wanted))
        state.emit(_as_dict(None))
        return
    found = state.run(protocol.answer(state.broker, wanted))
    state.emit(_as_dict(found))
    if found is not None and not state.json:
        click.echo(found.lines(), nl=False)


def _as_dict(found: object) -> dict[str, object]:
    from valetkey.helpers.git import Answer

    if not isinstance(found, Answer):
        return dict.fromkeys(("provider", "account", "username", "password", "expires_at"))
    return {
        "provider": found.candidate.ref.provider,
        "account": found.candidate.ref.account,
        "username": found.pair.user,
        "password": found.pair.password.reveal(),
        "expires_at": found.expires_at,
    }


def _drain() -> None:
    """Read what nobody wants: its writer would be ended by a pipe that closes early."""
    while sys.stdin.buffer.read(65536):
        pass


@command("aws", short_help="Be AWS's credential_process.")
@click.argument("name", metavar="PROVIDER[@ACCOUNT]")
def aws(state: State, *, name: str) -> None:
    """Print the keys of an account as AWS's SDKs read them."""
    from valetkey.helpers import aws as protocol

    document = state.run(protocol.answer(state.broker, name))
    click.echo(json.dumps(document))


@command("claude", short_help="Be Claude Code's apiKeyHelper.")
@click.argument("name", metavar="[PROVIDER[@ACCOUNT]]", required=False)
def claude(state: State, *, name: str | None) -> None:
    """Print a key that lives 6 minutes at least."""
    from valetkey import helpers
    from valetkey.helpers import claude as protocol

    access, secret = state.run(protocol.answer(state.broker, name or helpers.usual(state.broker, "claude")))
    if not state.json:
        click.echo(secret.reveal())
        return
    state.emit(
        {
            "provider": access.ref.provider,
            "account": access.ref.account,
            "source": access.source,
            "key": secret.reveal(),
            "expires_at": None if access.credential is None else expires_at_of(access.credential),
        }
    )


@command("docker", short_help="Be docker's credential helper.")
@click.argument("operation", metavar="get|store|erase|list|version")
def docker(state: State, *, operation: str) -> None:
    """Give docker user and password of the account that is for the registry. Nothing is stored or erased."""
    try:
        click.echo(_docker(state, operation), nl=bool(operation != "store" or state.json))
    except ValetkeyError as error:
        if not state.json:
            # docker shows, and compares, what stands on standard output.
            click.echo(error.message)
        raise


def _docker(state: State, operation: str) -> str:
    from valetkey.helpers import docker as protocol

    match operation:
        case "get":
            return json.dumps(state.run(protocol.answer(state.broker, _stdin(protocol.MOST_BYTES))))
        case "list":
            return json.dumps(protocol.listing(state.broker))
        case "version":
            from importlib.metadata import version

            return f"docker-credential-valetkey (valetkey) {version('valetkey')}"
        case "store":
            state.run(protocol.store(state.broker, _stdin(protocol.MOST_BYTES)))
            return "{}" if state.json else ""
        case "erase":
            _drain()
            raise protocol.NotKept(operation)
        case _:
            raise UsageError(f"docker has no operation {operation[:40]!r}", hint="use get, store, erase or list")


for each in (git, aws, claude, docker):
    helper.add_command(each)
