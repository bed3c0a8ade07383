"""`list`, `status`, `logout` and `auth switch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import click

from valetkey import serving
from valetkey.cli.frame import State, command, stop
from valetkey.cli.output import until
from valetkey.credential import CredentialRef, Health
from valetkey.errors import UsageError, ValetkeyError

if TYPE_CHECKING:
    from valetkey.account_state import AccountState

__all__ = ["list_accounts", "logout", "status", "switch"]

# Longer lists are for `--json --limit --after`, or for grep.
_PAGE = 1000

_COLORS = {
    Health.OK.value: "green",
    Health.EXPIRING.value: "yellow",
    Health.UNCERTAIN.value: "yellow",
    Health.UNREACHABLE.value: "yellow",
    Health.LOCKED.value: "yellow",
    Health.EXPIRED.value: "red",
    Health.NEEDS_LOGIN.value: "red",
}
_HEADINGS = ("PROVIDER", "ACCOUNT", "HOW", "SOURCE", "WHO", "HEALTH", "EXPIRES")


@command("list", short_help="Show the accounts that there are.")
@click.option("--all", "show_all", is_flag=True, help="Show providers without an account too.")
@click.option("--limit", type=click.IntRange(1, 100_000), help="Give at most so many stored accounts.")
@click.option("--after", metavar="PROVIDER@ACCOUNT", help="Begin behind this account (`next` of the page before).")
def list_accounts(state: State, *, show_all: bool, limit: int | None, after: str | None) -> None:
    """Show the accounts that there are: stored ones and those in the environment. Asks nobody, decrypts nothing.

    Of several accounts of a provider, `*` marks the one that is used where none is named.
    """
    from valetkey import sdk

    found = sdk.accounts(after=_ref(after), limit=limit or _PAGE, broker=state.broker)
    if (gateway := serving.running(str(state.paths.home))) is not None and gateway["locked"]:
        found = _locked(found)
    stored = [a for a in found if a.source == "stored"]
    following = str(stored[-1].ref) if len(stored) == (limit or _PAGE) else None
    others = [i for i in state.catalogue.ids() if i not in {a.ref.provider for a in found}] if show_all else []
    database = state.paths.database
    state.emit(
        {
            "accounts": [a.as_dict() for a in found],
            "next": following,
            "store": str(database),
            **({"without_account": others} if show_all else {}),
        }
    )
    if state.json:
        return
    if found or others:
        rows = _rows(found, state.clock.now())
        rows += [(name, "-", "-", "-", "-", "-", "-") for name in others]
        state.table(_HEADINGS, rows, colors=_COLORS)
        state.say()
    else:
        state.say("No accounts yet. Log in with `valetkey login`.")
    if following:
        state.say(f"More with: valetkey list --after {following}")
    state.say(f"Store: {database}")


@command("status", short_help="Ask the providers whether the accounts are good.")
@click.argument("name", metavar="[PROVIDER[@ACCOUNT]]", required=False)
def status(state: State, *, name: str | None) -> None:
    """Ask each provider now whether the account is good, and show who it is, its plan, source, expiry and health.

    Says too whether the gateway runs, and where. While it is locked, nobody is asked.

    Exit status 3 when one of them needs a login, else 1 when one could not be asked.
    """
    gateway = _gateway(state)
    if gateway is not None and gateway["locked"]:
        from valetkey import sdk

        found = _locked(_chosen(sdk.accounts(limit=_PAGE, broker=state.broker), _names(state, name)))
    else:
        found = state.run(_check_all(state, _names(state, name)))
        state.progress("")
    state.emit({"gateway": gateway, "web": None, "accounts": [a.as_dict() for a in found]})
    if found:
        state.table(_HEADINGS, _rows(found, state.clock.now()), colors=_COLORS)
    else:
        state.say("No accounts yet. Log in with `valetkey login`.")
    for account in found:
        if account.reason and not state.json:
            state.say(f"{account.ref}: {account.reason}")
            if account.health in (Health.NEEDS_LOGIN, Health.EXPIRED):
                state.say(f"  run `valetkey login {account.ref.provider} --account {account.ref.account}`")
    _say_gateway(state, gateway)
    stop(_status_of(found))


# --- the gateway -----------------------------------------------------------------------------

# What the gateway says when it is asked; what else it is stands in `run/serve.json`.
_ASKED = ("key_source", "keys", "runs", "problems", "active", "approvals", "trace_dropped")


def _gateway(state: State) -> dict[str, object] | None:
    """Give how the gateway is; what it would have to say itself is None where it does not answer."""
    home = str(state.paths.home)
    if (about := serving.running(home)) is None:
        return None
    try:
        told = serving.ask(home, "GET", "/status", patience_seconds=5.0)
    except ValetkeyError as error:
        state.note(error.message)
        told = {}
    return {**about, "locked": told.get("locked", about["locked"]), **{name: told.get(name) for name in _ASKED}}


def _say_gateway(state: State, gateway: dict[str, object] | None) -> None:
    state.say()
    if gateway is None:
        state.say("Gateway: does not run (`valetkey up` starts it)")
        return
    state.say(f"Gateway: {gateway['url']} (process {gateway['pid']}, version {gateway['version']})")
    if gateway["locked"]:
        state.say("  locked: it refuses every request until `valetkey unlock`", fg="red")
    if gateway["approvals"]:
        state.say(f"  waiting for a person: {gateway['approvals']} (`valetkey approvals list`)", fg="yellow")
    problems = gateway["problems"]
    if isinstance(problems, dict):
        for key, reason in problems.items():
            state.say(f"  the valet key {key} does not count: {reason}", fg="red")


def _locked(found: Sequence[AccountState]) -> list[AccountState]:
    """Give them as they are while the gateway may not open the store; what the environment holds is as it was."""
    reason = "the store is locked: run `valetkey unlock`"
    return [replace(a, health=Health.LOCKED, reason=reason) if a.source == "stored" else a for a in found]


def _chosen(found: Sequence[AccountState], names: Sequence[str]) -> list[AccountState]:
    return [a for a in found if a.source == "stored" and (str(a.ref) in names or a.ref.provider in names)]


def _names(state: State, name: str | None) -> list[str]:
    from valetkey import sdk

    if name is not None and "@" in name:
        return [name]
    known = sdk.accounts(name, limit=_PAGE, broker=state.broker)
    names = [str(a.ref) for a in known if a.source == "stored"]
    names += [a.ref.provider for a in known if a.source == "environment" and not a.shadowed]
    # A provider that has no account at all: let the broker say so, or find that it needs none.
    return names or ([name] if name is not None else [])


async def _check_all(state: State, names: list[str]) -> list[AccountState]:
    import asyncio

    from valetkey import sdk

    # Eight at a time: an account a second is too slow for a person, and a provider may count requests.
    limit = asyncio.Semaphore(8)
    done = 0

    async def check(name: str) -> AccountState:
        nonlocal done
        async with limit:
            found = await sdk.check(name, broker=state.broker)
        done += 1
        state.progress(f"asked {done} of {len(names)}")
        return found

    return list(await asyncio.gather(*map(check, names)))


def _status_of(found: list[AccountState]) -> int:
    healths = {a.health for a in found}
    if healths & {Health.NEEDS_LOGIN, Health.EXPIRED}:
        return 3
    return 1 if healths & {Health.UNREACHABLE, Health.UNKNOWN, Health.LOCKED, Health.UNCERTAIN} else 0


@command("logout", short_help="Revoke a login and delete it here.")
@click.argument("provider")
@click.option("--account", help="The account, where it is not the default one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def logout(state: State, *, provider: str, account: str | None, yes: bool) -> None:
    """Revoke a login at its provider where that can be, and delete it here in any case."""
    from valetkey import sdk

    name = provider if account is None else f"{provider}@{account}"
    if not state.confirm(f"Log out of {name}?", yes=yes):
        state.say("Nothing was changed.")
        return
    gone = state.run(sdk.logout(name, broker=state.broker))
    state.emit({"provider": gone.ref.provider, "account": gone.ref.account, "revocation": gone.revocation})
    match gone.revocation:
        case "revoked":
            state.say(f"Logged out of {gone.ref}; the provider revoked the login.")
        case "failed":
            state.say(f"Logged out of {gone.ref} here. The provider did not revoke the login:")
            state.say("  end it in your account settings there.")
        case "not supported":
            state.say(f"Logged out of {gone.ref} here. This login cannot be revoked from outside:")
            state.say("  delete the key in your account settings there if it should work no more.")


@command("switch", short_help="Make an account its provider's default.")
@click.argument("name", metavar="PROVIDER@ACCOUNT")
def switch(state: State, *, name: str) -> None:
    """Make this account the one that serves where only its provider is named."""
    provider, at, account = name.partition("@")
    if not at:
        raise UsageError(
            f"{name} names no account", hint="write PROVIDER@ACCOUNT; `valetkey list` shows which there are"
        )
    ref = CredentialRef(provider=state.catalogue.get(provider).id, account=account)
    state.store.set_default_account(ref)
    state.audit.tell("default", account=str(ref))
    state.emit({"provider": ref.provider, "account": ref.account})
    state.say(f"{ref.provider} is now {ref}.")


def _ref(text: str | None) -> CredentialRef | None:
    if text is None:
        return None
    provider, at, account = text.partition("@")
    if not at:
        raise UsageError(f"{text[:60]!r} is no account", hint="write PROVIDER@ACCOUNT, as `next` gives it")
    return CredentialRef(provider=provider, account=account)


def _rows(found: list[AccountState], now: datetime) -> list[tuple[str, ...]]:
    """Give the lines of a table. Where a provider has several accounts, a star marks the default one."""
    stored = [a.ref.provider for a in found if a.source == "stored"]
    return [_row(a, now, star=a.is_default and stored.count(a.ref.provider) > 1) for a in found]


def _row(account: AccountState, now: datetime, *, star: bool) -> tuple[str, ...]:
    who = account.identity.email or account.identity.name or account.identity.account_id or ""
    if account.identity.plan:
        who = f"{who} ({account.identity.plan})".strip()
    if not who and account.last_four:
        who = f"…{account.last_four}"
    source = account.source if account.variable is None else f"${account.variable}"
    if account.shadowed:
        source += " (not used)"
    return (
        account.ref.provider,
        account.ref.account + ("*" if star else ""),
        account.method,
        source,
        who or "-",
        account.health.value,
        until(account.expires_at, now),
    )
