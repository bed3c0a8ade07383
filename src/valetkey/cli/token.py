"""`valetkey token NAME`, whole: renews, asks for what opens the store, explains. `fast.py` answers the simple case."""

from __future__ import annotations

import click

from valetkey import serving
from valetkey.access import sole_secret
from valetkey.cli.frame import State, command
from valetkey.credential import expires_at_of
from valetkey.errors import GatewayDown, NotLoggedIn, StoreLocked, WrongKey

__all__ = ["token"]


@command("token", short_help="Print a fresh credential.")
@click.argument("name", metavar="PROVIDER[@ACCOUNT]")
def token(state: State, *, name: str) -> None:
    """Print a fresh credential, for a program that asks before each request."""
    if (told := _from_gateway(state, name)) is not None:
        state.emit(told)
        if not state.json:
            click.echo(told["token"])
        return
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


def _from_gateway(state: State, name: str) -> dict[str, object] | None:
    """Give what the running gateway gives, where it holds a key that this process would have to ask for.

    None where there is no gateway, or where it has nothing stored: the environment may have. Raises: what it raised.
    """
    home = str(state.paths.home)
    if serving.running(home) is None or state.store.source_kind() in (None, "key-file"):
        return None
    # By its account: which one serves is for this folder to say.
    name = str(state.broker.resolve(name))
    try:
        return serving.ask(home, "POST", "/token", {"name": name})
    except (GatewayDown, NotLoggedIn):
        return None
    except (StoreLocked, WrongKey):
        if not state.interactive and not state.environ.get("VALETKEY_PASSPHRASE_FILE"):
            raise  # it says how to unlock it; here nobody could be asked
        return None
