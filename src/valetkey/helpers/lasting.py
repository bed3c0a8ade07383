"""A credential that lives long enough for a tool that keeps what it was given."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from valetkey.credential import expires_at_of, login_command
from valetkey.errors import CredentialExpired

if TYPE_CHECKING:
    from valetkey.access import Access
    from valetkey.broker import Broker

__all__ = ["lasting"]


async def lasting(broker: Broker, name: str, *, least: timedelta) -> Access:
    """Give what serves `name` and lives at least that long, renewed first where it does not.

    Raises: CredentialExpired when even the renewed one ends sooner; what `Broker.access` raises.
    """
    access = await broker.access(name, use="helper")
    if _lasts(broker, access, least):
        return access
    try:
        # The broker renews in the background what still lives a little. Named as refused, it is waited for.
        access = await broker.access(name, use="helper", rejected=access.credential)
    except CredentialExpired:
        raise _too_short(access, least) from None
    if not _lasts(broker, access, least):
        raise _too_short(access, least)
    return access


def _lasts(broker: Broker, access: Access, least: timedelta) -> bool:
    ends = None if access.credential is None else expires_at_of(access.credential)
    return ends is None or ends - broker.clock.now() >= least


def _too_short(access: Access, least: timedelta) -> CredentialExpired:
    return CredentialExpired(
        f"the credential of {access.ref} ends in less than {least.total_seconds() / 60:.0f} minutes, too soon for a "
        "tool that keeps it, and no longer one is to be had",
        provider=access.ref.provider,
        hint=f"log in anew: `{login_command(access.ref)}`",
    )
