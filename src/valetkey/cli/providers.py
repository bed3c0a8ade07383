"""`providers`: list, show, add, remove, check, accept."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from valetkey.address import is_here
from valetkey.cli.frame import State, command, group, stop
from valetkey.credential import Health, Secret
from valetkey.errors import InvalidBaseUrl, TransportError

if TYPE_CHECKING:
    from valetkey.account_state import AccountState
    from valetkey.own_providers import Change
    from valetkey.provider import AuthMethod, Provider

__all__ = ["add_by_asking", "providers"]

_DIALECTS = ("openai-chat", "openai-responses", "anthropic-messages", "gemini")
_KEY_HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_ASK_SECONDS = 10.0


@group("providers", short_help="Show, add, remove and check providers.")
def providers(state: State) -> None:
    """Show which providers there are; add, check and remove servers of your own."""


# --- list, show ------------------------------------------------------------------------------


@command("list", short_help="Show the providers that there are.")
@click.option("--custom", is_flag=True, help="Your own alone.")
def list_providers(state: State, *, custom: bool) -> None:
    """Show the providers that there are, how to log in to them, and which files cannot be used."""
    found = state.catalogue.custom() if custom else state.catalogue.all()
    problems = state.catalogue.problems
    state.emit(
        {
            "providers": [_as_dict(p) for p in found],
            "problems": [{"path": p.path, "error": p.error.as_dict()} for p in problems],
        }
    )
    if found:
        state.table(
            ("ID", "NAME", "DIALECT", "LOGIN", "FROM"),
            [(p.id, p.name, p.api.dialect, ", ".join(m.id for m in p.auth) or "none", _origin(p)) for p in found],
        )
    else:
        state.say("None of your own. Add one with `valetkey providers add NAME --base-url URL`.")
    for problem in problems:
        state.note(f"not used: {problem.error.message}; {problem.error.hint}")


def _origin(provider: Provider) -> str:
    marks: list[str] = [provider.origin]
    if provider.override:
        marks.append("in place of the built-in one")
    plain = provider.api.allow_http and not is_here(urlsplit(provider.api.base_url).hostname or "")
    if plain and provider.origin != "built-in":
        marks.append("key over plain http")
    return ", ".join(marks)


def _as_dict(provider: Provider) -> dict[str, Any]:
    checked = provider.checked
    return {
        "id": provider.id,
        "name": provider.name,
        "origin": provider.origin,
        "path": provider.path,
        "override": provider.override,
        "aliases": list(provider.aliases),
        "dialect": provider.api.dialect,
        "base_url": provider.api.base_url,
        "hosts": list(provider.api.hosts),
        "allow_http": provider.api.allow_http,
        "default_model": provider.default_model,
        "checked": None if checked is None else {"on": checked.on.isoformat(), "at": checked.at, "live": checked.live},
        "methods": [_method_as_dict(m) for m in provider.auth],
    }


def _method_as_dict(method: AuthMethod) -> dict[str, Any]:
    return {
        "id": method.id,
        "kind": method.kind,
        "label": method.label,
        "standing": method.standing,
        "notice": method.notice,
        "environment": list(method.environment),
        "keys_url": method.keys_url,
        "parameters": [
            {"key": p.key, "label": p.label, "required": p.required, "default": p.default} for p in method.parameters
        ],
    }


@command("show", short_help="Show one provider.")
@click.argument("id")
def show(state: State, *, id: str) -> None:
    """Show what is declared for one provider: where its API is, and how to log in."""
    provider = state.catalogue.get(id)
    state.emit(_as_dict(provider))
    state.say(f"{provider.name} ({provider.id})", bold=True)
    rows = [
        ("base URL", provider.api.base_url),
        ("dialect", provider.api.dialect),
        ("hosts", ", ".join(provider.api.hosts)),
        ("model", provider.default_model or "-"),
        ("from", f"{_origin(provider)}, {provider.path}"),
    ]
    if provider.checked is not None:
        live = "run live" if provider.checked.live else "never run live"
        rows.append(("facts of", f"{provider.checked.on}, to hold against {provider.checked.at}; {live}"))
    for name, value in rows:
        state.say(f"  {name:<9} {value}")
    state.say("Ways to log in:" if provider.auth else "No login is needed.")
    for method in provider.auth:
        standing = ", restricted by its provider" if method.standing == "restricted" else ""
        state.say(f"  --method {method.id:<12} {method.label or method.kind}{standing}")
        if method.environment:
            state.say(f"    environment: {', '.join(method.environment)}")
        for parameter in method.parameters:
            need = "required" if parameter.required and parameter.default is None else f"default {parameter.default}"
            state.say(f"    --param {parameter.key}=…  {parameter.label}, {need}")
        if method.notice:
            state.say(f"    {method.notice}")


# --- add, remove -----------------------------------------------------------------------------


@command("add", short_help="Add a server of your own.")
@click.argument("name")
@click.option("--base-url", metavar="URL", help="Where its API is, with or without /v1.")
@click.option("--dialect", type=click.Choice(_DIALECTS), help="What it speaks; without it the server is asked.")
@click.option("--like", metavar="PROVIDER", help="Copy this provider but for its address.")
@click.option("--model", help="The model that is asked when none is named.")
@click.option("--key", metavar="-", help="Read its key from standard input; `-` is the only value.")
@click.option("--file", "key_file", type=click.Path(), help="Read its key from a file.")
@click.option("--key-header", type=click.Choice(_KEY_HEADERS), help="The header that takes the key.")
@click.option("--allow-http", is_flag=True, help="Send a key to it over plain http, readable on the way.")
@click.option("--no-verify", is_flag=True, help="Do not ask the server whether it is there.")
def add(
    state: State,
    *,
    name: str,
    base_url: str | None,
    dialect: str | None,
    like: str | None,
    model: str | None,
    key: str | None,
    key_file: str | None,
    key_header: str | None,
    allow_http: bool,
    no_verify: bool,
) -> None:
    """Add a server of your own: anything that speaks the OpenAI, Anthropic or Gemini API."""
    from valetkey.cli.login import given_key

    secret = given_key(key, key_file)
    if key is not None and secret is None:
        secret = Secret(state.ask("API key", secret=True, instead="pipe it: --key - < FILE"))
    url = base_url or state.ask("Base URL", instead="add --base-url URL")
    _add(
        state,
        name,
        base_url=url,
        dialect=dialect,
        like=like,
        model=model,
        key=None if secret is None else secret.reveal(),
        key_header=key_header,
        allow_http=allow_http,
        verify=not no_verify,
    )


def add_by_asking(state: State, *, dialect: str) -> None:
    """Add a server of this dialect, asking for what it is: the last lines of the login menu."""
    instead = "use `valetkey providers add NAME --base-url URL`"
    _add(
        state,
        state.ask("Name, as you will call it", instead=instead),
        base_url=state.ask("Base URL, with or without /v1", instead=instead),
        dialect=dialect,
        model=state.ask("Model (empty: none is the default)", default="", instead=instead) or None,
        key=state.ask("API key (empty: it wants none)", secret=True, default="", instead=instead) or None,
        allow_http=False,
    )


def _add(state: State, name: str, *, allow_http: bool, **options: Any) -> None:
    from valetkey import sdk

    async def once(*, allowed: bool) -> Provider:
        return await sdk.add_provider(name, allow_http=allowed, broker=state.broker, **options)

    try:
        provider = state.run(once(allowed=allow_http))
    except InvalidBaseUrl as error:
        if allow_http or not state.interactive or not str(options["base_url"]).startswith("http://"):
            raise
        state.note(error.message)
        if not state.confirm("Send it all the same?", yes=False):
            raise
        provider = state.run(once(allowed=True))
    model = _first_model(state, provider)
    account = state.store.account(state.broker.resolve(provider.id))
    state.emit({**_as_dict(provider), "logged_in": account is not None, "default_model_set": model})
    state.say(f"Added {provider.id}: {provider.api.dialect} at {provider.api.base_url}", fg="green")
    state.say(f"  written to {provider.path}")
    if model:
        state.say(f"  default model is now {model}")
    if account is None and not all(m.optional for m in provider.auth):
        state.say(f"Next: valetkey login {provider.id}")
    else:
        state.say(f"Next: valetkey ask -m {provider.id}/{provider.default_model or 'MODEL'} hello")


def _first_model(state: State, provider: Provider) -> str | None:
    """Make its model the default one, where there is none and it can be asked."""
    from valetkey.chat.models import Chosen, default_model, set_default_model

    if provider.default_model is None or default_model(state.store) is not None:
        return None
    usable = all(m.optional for m in provider.auth) or state.store.account(state.broker.resolve(provider.id))
    if not usable:
        return None
    chosen = Chosen(name=provider.id, model=provider.default_model)
    set_default_model(state.store, chosen)
    return str(chosen)


@command("remove", short_help="Remove a provider of your own.")
@click.argument("id")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(state: State, *, id: str, yes: bool) -> None:
    """Remove a provider of your own, with its accounts; a built-in one stays."""
    from valetkey import sdk
    from valetkey.chat.models import default_model

    accounts = [str(a.ref) for a in state.store.accounts(provider=_named(id))]
    chosen = default_model(state.store)
    its_model = str(chosen) if chosen is not None and chosen.provider == id else None
    if any(path.stem == id for path in state.catalogue.files()):
        goes = [*(f"the account {a}" for a in accounts), *([f"the default model {its_model}"] if its_model else [])]
        what = f", and with it {', '.join(goes)}" if goes else ""
        if not state.confirm(f"Remove the provider {id}{what}?", yes=yes):
            state.say("Nothing was changed.")
            return
    gone = state.run(sdk.remove_provider(id, broker=state.broker))
    state.emit({"provider": id, "accounts": [str(ref) for ref in gone], "default_model": its_model})
    state.say(f"Removed {id}" + (f" and {', '.join(map(str, gone))}" if gone else "") + ".")


def _named(id: str) -> str:
    from valetkey.credential import CredentialRef

    return CredentialRef(provider=id).provider


# --- check, accept ---------------------------------------------------------------------------


@command("check", short_help="Ask providers whether they are there and take the credential.")
@click.argument("ids", metavar="[PROVIDER]…", nargs=-1)
@click.option("--all", "check_all", is_flag=True, help="All of them, also those without an account.")
def check(state: State, *, ids: tuple[str, ...], check_all: bool) -> None:
    """Say which providers can be reached and whether the credential is good; without a name, those that you use.

    Exit status 3 when one of them needs a login, else 1 when one cannot be reached.
    """
    chosen = [state.catalogue.get(name) for name in ids] if ids else _in_use(state, everything=check_all)
    found = state.run(_check_all(state, chosen))
    state.progress("")
    state.emit({"providers": found})
    rows = [
        (
            f["id"],
            f["base_url"],
            "yes" if f["reachable"] else f["problem"],
            ", ".join(f"{a['account']}: {a['health']}" for a in f["accounts"]) or "-",
        )
        for f in found
    ]
    if rows:
        state.table(("ID", "BASE URL", "REACHABLE", "CREDENTIAL"), rows)
    else:
        state.say("No provider is in use. Name one, or log in: `valetkey login`.")
    healths = {a["health"] for f in found for a in f["accounts"]}
    if healths & {Health.NEEDS_LOGIN.value, Health.EXPIRED.value}:
        stop(3)
    stop(1 if not all(f["reachable"] for f in found) else 0)


def _in_use(state: State, *, everything: bool) -> list[Provider]:
    from valetkey import sdk

    if everything:
        return state.catalogue.all()
    used = {a.ref.provider for a in sdk.accounts(limit=1000, broker=state.broker)}
    used |= {p.id for p in state.catalogue.custom()}
    return [p for p in state.catalogue.all() if p.id in used]


async def _check_all(state: State, chosen: list[Provider]) -> list[dict[str, Any]]:
    limit = asyncio.Semaphore(8)
    done = 0

    async def one(provider: Provider) -> dict[str, Any]:
        nonlocal done
        async with limit:
            found = await _check(state, provider)
        done += 1
        state.progress(f"asked {done} of {len(chosen)}")
        return found

    return list(await asyncio.gather(*map(one, chosen)))


async def _check(state: State, provider: Provider) -> dict[str, Any]:
    from valetkey import sdk

    known = sdk.accounts(provider.id, limit=100, broker=state.broker)
    names = [str(a.ref) for a in known if a.source == "stored"]
    names += [provider.id for a in known if a.source == "environment" and not a.shadowed]
    states: list[AccountState] = [await sdk.check(name, broker=state.broker) for name in names]
    base_url = provider.api.base_url
    problem = "" if "{" not in base_url or states else "log in first: its address has parameters"
    if "{" not in base_url:
        try:
            await state.http.request("GET", base_url, timeout_seconds=_ASK_SECONDS)
        except TransportError as error:
            problem = error.message
    return {
        "id": provider.id,
        "base_url": base_url,
        "reachable": not problem,
        "problem": problem,
        "accounts": [a.as_dict() for a in states],
    }


@command("accept", short_help="Let logins go to the hosts that a declaration names now.")
@click.argument("id")
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept(state: State, *, id: str, yes: bool) -> None:
    """Let stored logins go to the hosts that the declaration names now.

    Each login is bound to the hosts of its day. When a declaration changes, nothing is sent to new ones before this.
    """
    from valetkey import own_providers

    provider = state.catalogue.get(id)
    changes = own_providers.changes_of(state.broker, provider)
    for change in changes:
        state.say(_described(change))
    if not changes:
        state.say(f"Every login of {provider.id} knows the declared hosts.")
    elif state.confirm(f"Let these logins of {provider.id} go there?", yes=yes):
        for change in changes:
            own_providers.accept(state.broker, change)
        state.say("Accepted.")
    else:
        state.say("Nothing was changed.")
        changes = []
    state.emit(
        {
            "provider": provider.id,
            "accepted": [{"account": c.ref.account, "added": c.added, "removed": c.removed} for c in changes],
        }
    )


def _described(change: Change) -> str:
    parts = [f"new: {', '.join(change.added)}"] if change.added else []
    parts += [f"gone: {', '.join(change.removed)}"] if change.removed else []
    return f"{change.ref}: {'; '.join(parts) or 'base URL ' + urlsplit(change.base_url).netloc}"


for _command in (list_providers, show, add, remove, check, accept):
    providers.add_command(_command)
