"""Makes the value that a login under way is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta

from valetkey.errors import LoginExpired
from valetkey.flow import Action, PendingAuthorization
from valetkey.flows.context import Context

__all__ = ["LIFE_SECONDS", "check_alive", "pending"]

# Where the server gives no expires_in.
LIFE_SECONDS = 600.0


def pending(
    context: Context,
    action: Action,
    *,
    parameters: Mapping[str, str],
    private: Mapping[str, str] | None = None,
    life_seconds: float = LIFE_SECONDS,
) -> PendingAuthorization:
    """Give a login under way, with an id that nobody guesses."""
    return PendingAuthorization(
        id=secrets.token_urlsafe(16),
        provider=context.id,
        method=context.method.id,
        action=action,
        expires_at=context.clock.now() + timedelta(seconds=life_seconds),
        parameters=parameters,
        private=private or {},
    )


def check_alive(context: Context, pending: PendingAuthorization) -> None:
    """Refuse a login that lay too long. Raises: LoginExpired."""
    if context.clock.now() >= pending.expires_at:
        raise LoginExpired(
            f"the login at {context.id} was not finished in time",
            hint=f"run `{context.login}` again",
            provider=context.id,
        )
