"""`valetkey token NAME`, whole: renews, asks for what opens the store, explains. `fast.py` answers the simple case."""

from __future__ import annotations

import click

from valetkey.access import sole_secret
from valetkey.cli.frame import State, command
from valetkey.credential import expires_at_of

__all__ = ["token"]


@command("token", short_help="Print a fresh credential.")
@click.argument("name", metavar="PROVIDER[@ACCOUNT]")
def token(state: State, *, name: str) -> None:
    """Print a fresh credential, for a program that asks before each request."""
    access = state.run(state.broker.access(name, use="token"))
    value = sole_secret(access).reveal()
    if state.json:
        ends = None if access.credential is None else expires_at_of(access.credential)
        state.emit(
            {
                "provider": access.ref.provider,
                "account": access.ref.account,
                "source": access.source,
                "token": value,
                "expires_at": ends,
            }
        )
        return
    click.echo(value)
