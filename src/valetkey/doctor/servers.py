"""The layers between this machine and the providers, asked directly: names, TLS, connection, clock, account."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from valetkey.credential import Health, login_command
from valetkey.doctor.finding import ASK_SECONDS, Finding, Parts, looked
from valetkey.errors import ConfigError, NameNotResolved, TlsFailed, TransportError, ValetkeyError

if TYPE_CHECKING:
    from valetkey.doctor.trial import Trial
    from valetkey.http import Response
    from valetkey.provider import Provider

__all__ = ["accounts", "authorities", "reached"]

# Servers date tokens by their own clock and allow a minute or two (RFC 7519 section 4.1.4: "a few minutes").
_MOST_SKEW = timedelta(seconds=60)
_MOST_ACCOUNTS = 1000


def authorities(parts: Parts) -> Iterator[Finding]:
    """Read the certificates that servers are believed by."""
    from valetkey.gateway.trust import client_context

    def read() -> str:
        file = parts.config.text("network.ca_file")
        client_context(ca_file=file, environ=parts.environ)
        return f"the system's, and those of {file}" if file else "the system's"

    yield looked("tls", "certificate authorities", read)


def reached(parts: Parts, trial: Trial) -> Iterator[Finding]:
    """Ask the server of each provider that is used for anything at all."""
    from valetkey import sdk

    trial.accounts = sdk.accounts(limit=_MOST_ACCOUNTS, broker=parts.broker)
    used = {a.ref.provider for a in trial.accounts} | {p.id for p in parts.catalogue.custom()}
    for provider in parts.catalogue.all():
        # The address of one with parameters is its accounts' own.
        if provider.id in used and "{" not in provider.api.base_url:
            found = list(_server(parts, provider))
            if any(f.error is not None and f.layer != "clock" for f in found):
                trial.unreachable.add(provider.id)
            yield from found


def _server(parts: Parts, provider: Provider) -> Iterator[Finding]:
    base_url = provider.api.base_url
    try:
        answer = parts.http.send("GET", base_url, timeout_seconds=ASK_SECONDS)
    except NameNotResolved as error:
        yield Finding(layer="name resolution", subject=base_url, error=error)
    except TlsFailed as error:
        yield Finding(layer="tls", subject=base_url, error=error)
    except TransportError as error:
        yield Finding(layer="connection", subject=base_url, error=error)
    else:
        yield Finding(layer="connection", subject=base_url, detail=f"answers (HTTP {answer.status})")
        skew = _skew(answer, parts.clock.now())
        if skew is not None and abs(skew) > _MOST_SKEW:
            ahead = "behind" if skew > timedelta(0) else "ahead"
            wrong = ConfigError(
                f"this machine's clock is {abs(skew).total_seconds():.0f} s {ahead} of {provider.id}'s",
                hint="set the clock: `sudo timedatectl set-ntp true`",
            )
            yield Finding(layer="clock", subject=base_url, error=wrong)


def _skew(answer: Response, now: datetime) -> timedelta | None:
    try:
        then = parsedate_to_datetime(answer.headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return then.replace(tzinfo=then.tzinfo or UTC) - now


def accounts(parts: Parts, trial: Trial) -> Iterator[Finding]:
    """Ask each provider whether the account is good; what is due is renewed."""
    for one in trial.accounts:
        if one.source == "environment" and one.shadowed:
            continue
        name = str(one.ref) if one.source == "stored" else one.ref.provider
        if one.ref.provider in trial.unreachable:
            yield Finding(layer="account", subject=name, skipped="its server was not reached")
            continue
        found = _account(parts, name)
        if found.error is None and one.source == "stored":
            trial.good.append(one.ref)
        yield found


def _account(parts: Parts, name: str) -> Finding:
    from valetkey import sdk

    try:
        found = asyncio.run(sdk.check(name, broker=parts.broker))
    except ValetkeyError as error:
        return Finding(layer="account", subject=name, error=error)
    if found.health in (Health.OK, Health.EXPIRING):
        return Finding(layer="account", subject=name, detail=found.health.value, notice=found.reason)
    ended = found.health in (Health.NEEDS_LOGIN, Health.EXPIRED)
    problem = ValetkeyError(
        found.reason or f"its health is {found.health.value}",
        hint=f"run `{login_command(found.ref)}`" if ended else "try again later; `valetkey status` asks again",
        provider=found.ref.provider,
    )
    return Finding(layer="account", subject=name, detail=found.health.value, error=problem)
