"""`valetkey token NAME`, whole: renews, asks for what opens the store, explains. `fast.py` answers the simple case."""

from __future__ import annotations

import click

from valetkey.cli.frame import State, command
from valetkey.credential import expires_at_of, secrets_of
from valetkey.errors import NotForThisUse, NotLoggedIn

__all__ = ["token"]


@command("token", short_help="Print a fresh credential.")
@click.argument("name", metavar="PROVIDER[@ACCOUNT]")
def token(state: State, *, name: str) -> None:
    """Print a fresh credential, for a program that asks before each request."""
    access = state.run(state.broker.access(name, use="token"))
    if access.credential is None:
        raise NotLoggedIn(
            f"{access.ref.provider} is used without a key",
            provider=access.ref.provider,
            hint=f"`valetkey login {access.ref.provider}` stores one if your server wants it",
        )
    secrets = secrets_of(access.credential)
    if len(secrets) != 1:
        raise NotForThisUse(
            f"{access.ref} has {len(secrets)} named secrets, not one",
            provider=access.ref.provider,
            hint=f"use `valetkey exec -p {access.ref} -- CMD` or `valetkey env {access.ref}`",
        )
    value = next(iter(secrets.values())).reveal()
    if state.json:
        ends = expires_at_of(access.credential)
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
