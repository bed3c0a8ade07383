"""`login`: which provider, which way, what the user gives, and what is told afterwards."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

from valetkey.cli.frame import State, command, stop
from valetkey.cli.output import until
from valetkey.credential import DEFAULT_ACCOUNT, CredentialRef, Secret
from valetkey.errors import NotLoggedIn, UsageError

if TYPE_CHECKING:
    from valetkey.method_choice import Choice
    from valetkey.provider import AuthMethod, Provider
    from valetkey.store import Account

__all__ = ["Wanted", "given_key", "log_in_now", "log_in_to_one", "login", "or_log_in"]

T = TypeVar("T")
# Larger than any secret; what is longer is the wrong file.
_MAX_KEY_BYTES = 64 * 1024
_TYPED = frozenset({"api-key", "cloud", "custom"})
# The last two lines of the menu: servers of the user's own, by the dialect that they speak.
_OWN = {"openai-compatible": "openai-chat", "anthropic-compatible": "anthropic-messages"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the options say about a login. `given` is a secret, or the lines of several, that came without a prompt."""

    ref: CredentialRef
    parameters: Mapping[str, str]
    given: Secret | None
    from_environment: bool
    choice: Choice
    verify: bool
    timeout_seconds: float


@command("login", short_help="Log in to a provider.")
@click.argument("provider", metavar="[PROVIDER[@ACCOUNT]]", required=False)
@click.option("--account", help=f"A name for the account (default: {DEFAULT_ACCOUNT}).")
@click.option("--method", "method_id", help="The way to log in, as `providers show` names it.")
@click.option("--no-browser", is_flag=True, help="Open no browser: a code for another device, else paste.")
@click.option("--key", metavar="-", help="Read the key from standard input; `-` is the only value.")
@click.option("--file", "key_file", type=click.Path(), help="Read the key from a file.")
@click.option("--env", "from_environment", is_flag=True, help="Take over the key from the provider's variable.")
@click.option("--param", "parameters", metavar="KEY=VALUE", multiple=True, help="A parameter; repeatable.")
@click.option("--yes", is_flag=True, help="Say yes to the provider's notice.")
@click.option("--no-verify", is_flag=True, help="Store without asking the provider whether it is good.")
@click.option("--timeout", type=click.FloatRange(1, 86400), metavar="SECONDS", help="How long to wait for you.")
def login(
    state: State,
    *,
    provider: str | None,
    account: str | None,
    method_id: str | None,
    no_browser: bool,
    key: str | None,
    key_file: str | None,
    from_environment: bool,
    parameters: tuple[str, ...],
    yes: bool,
    no_verify: bool,
    timeout: float | None,
) -> None:
    """Log in to a provider; without one, choose from a menu.

    The key is asked for, or comes by `--key -` (standard input) or `--file`; it is never an argument.
    """
    given = given_key(key, key_file)
    name = provider or _provider_from_menu(state)
    if name in _OWN:
        from valetkey.cli.providers import add_by_asking

        add_by_asking(state, dialect=_OWN[name])
        return
    name, _, named = name.partition("@")
    declared = state.catalogue.get(name)
    ref = CredentialRef(provider=declared.id, account=account or named or DEFAULT_ACCOUNT)
    choice = _choice(
        state, declared, method_id, given=given, keyed=given is not None or from_environment, no_browser=no_browser
    )
    _agree(state, declared, choice.method, yes=yes)
    wanted = Wanted(
        ref=ref,
        choice=choice,
        parameters=_parameters(parameters),
        given=given,
        from_environment=from_environment,
        verify=not no_verify,
        timeout_seconds=timeout or state.config.seconds("login.timeout_seconds"),
    )
    first = state.store.source_kind() is None

    from valetkey.cli.ways import go

    _tell(state, state.run(go(state, declared, wanted)), declared, wanted, first=first)


def or_log_in(state: State, name: str, ask: Callable[[str], Awaitable[T]]) -> T:
    """Give what `ask(name)` gives; where nobody is logged in, offer to log in on a terminal, and go on."""

    async def asked() -> T:
        return await ask(name)

    try:
        return state.run(asked())
    except NotLoggedIn as missing:
        log_in_now(state, missing, [name])
    return state.run(asked())


def log_in_now(state: State, missing: NotLoggedIn, names: Sequence[str]) -> None:
    """Offer to log in at each of these. Raises: NotLoggedIn, the one given, without a terminal or a yes."""
    if not state.interactive:
        raise missing
    state.note(missing.message)
    for name in names:
        if not click.confirm(f"Log in to {name} now?", default=True, err=True):
            raise missing
        _log_in(state, name)


def log_in_to_one(state: State, missing: NotLoggedIn, providers: Sequence[Provider]) -> CredentialRef:
    """Offer to log in at one of these, and give its account. Raises: as `log_in_now`."""
    from valetkey.cli.menu import Entry, choose

    if len(providers) == 1 or not state.interactive:
        log_in_now(state, missing, [providers[0].id])
        return state.broker.resolve(providers[0].id)
    state.note(missing.message)
    chosen = choose("Log in to", [Entry(id=provider.id, label=provider.name) for provider in providers])
    _log_in(state, chosen)
    return state.broker.resolve(chosen)


def _log_in(state: State, name: str) -> None:
    login.main(args=[name], prog_name="valetkey login", standalone_mode=False, obj=state)


# --- which one -------------------------------------------------------------------------------


def _provider_from_menu(state: State) -> str:
    from valetkey import sdk
    from valetkey.cli.menu import Entry, choose

    if not state.interactive:
        raise UsageError(
            "no provider is named", hint="write `valetkey login PROVIDER`; `valetkey providers list` names them"
        )
    connected = {a.ref.provider for a in sdk.accounts(limit=1000, broker=state.broker) if a.source == "stored"}
    entries = [
        Entry(id=p.id, label=p.name, note="(connected)" if p.id in connected else "") for p in state.catalogue.all()
    ]
    entries += [Entry(id=name, label=name, note="a server of your own") for name in _OWN]
    return choose("Log in to", entries)


def _choice(
    state: State, provider: Provider, method_id: str | None, *, given: Secret | None, keyed: bool, no_browser: bool
) -> Choice:
    """Choose the way: the one named, one that takes the key that came, what suits the place, or what the user says."""
    from valetkey.method_choice import choose_method, has_browser, in_container

    never = no_browser or state.config.text("login.browser") == "never"
    browser = not never and has_browser(state.environ, container=in_container())
    if method_id is None and keyed:
        method_id = _keyed(provider, given).id
    best = choose_method(provider, browser=browser, method=method_id)
    # Ways that differ only in where the browser is need no question.
    if method_id is not None or len(provider.auth) == 1 or not any(m.kind in _TYPED for m in provider.auth):
        return best
    if not state.interactive:
        raise UsageError(
            f"{provider.id} has several ways to log in, and there is no terminal to ask on",
            hint=f"pipe a key: `valetkey login {provider.id} --key -`, or name a --method: "
            + ", ".join(m.id for m in provider.auth),
            provider=provider.id,
        )
    chosen = _method_from_menu(provider, [best.method, *(m for m in provider.auth if m is not best.method)])
    return choose_method(provider, browser=browser, method=chosen)


def _keyed(provider: Provider, given: Secret | None) -> AuthMethod:
    fitting = [m for m in provider.auth if m.kind in _TYPED and m.source is None]
    several = given is not None and "\n" in given.reveal() and "=" in given.reveal()
    fitting.sort(key=lambda m: (m.standing == "restricted", bool(m.secrets) != several))
    if not fitting:
        raise UsageError(
            f"{provider.id} takes no key", hint=f"run `valetkey login {provider.id}`", provider=provider.id
        )
    return fitting[0]


def _method_from_menu(provider: Provider, methods: list[AuthMethod]) -> str:
    from valetkey.cli.menu import Entry, choose

    entries = [
        Entry(
            id=m.id,
            label=m.label or ("API key" if m.kind == "api-key" else m.id),
            note="(restricted by its provider)" if m.standing == "restricted" else "",
        )
        for m in methods
    ]
    return choose(f"How to log in to {provider.name}", entries)


def _agree(state: State, provider: Provider, method: AuthMethod, *, yes: bool) -> None:
    if method.notice and not state.json:
        click.echo(f"{provider.name}: {method.notice}", err=True)
    if method.standing == "restricted" and not state.confirm(
        f"{provider.name} restricts this login to its own tools. Log in all the same?", yes=yes
    ):
        state.say("Nothing was changed.")
        stop(1)


# --- what was given --------------------------------------------------------------------------


def given_key(key: str | None, path: str | None) -> Secret | None:
    """Read what `--key -` or `--file` gives; None: neither is there, or a terminal is to ask. Raises: UsageError."""
    if key is not None and path is not None:
        raise UsageError("--key and --file both give a key", hint="use one of them")
    if key is not None and key != "-":
        # Not repeated here: it may be a key, and is in the shell's history already.
        raise UsageError(
            "a key on the command line can be read by every program, and stays in the shell's history",
            hint="pipe it: `valetkey login PROVIDER --key - < FILE`; and make a new key, this one was seen",
        )
    if key == "-":
        if sys.stdin is None or sys.stdin.isatty():
            return None
        return _secret(sys.stdin.buffer.read(_MAX_KEY_BYTES + 1), "standard input")
    if path is not None:
        with open(path, "rb") as file:
            return _secret(file.read(_MAX_KEY_BYTES + 1), path)
    return None


def _secret(content: bytes, where: str) -> Secret:
    if len(content) > _MAX_KEY_BYTES:
        raise UsageError(f"{where} is longer than {_MAX_KEY_BYTES} bytes: that is no key", hint="give the key alone")
    try:
        text = content.decode().strip("\r\n\ufeff \t")
    except UnicodeDecodeError:
        raise UsageError(f"{where} is no text", hint="give the key alone") from None
    if not text:
        raise UsageError(f"{where} is empty", hint="pipe the key: `valetkey login PROVIDER --key - < FILE`")
    return Secret(text)


def _parameters(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError("a --param has no `=`", hint="write --param KEY=VALUE")
        found[name.strip()] = value
    return found


# --- what is told ----------------------------------------------------------------------------


def _tell(state: State, account: Account, provider: Provider, wanted: Wanted, *, first: bool) -> None:
    from valetkey.account_state import state_of

    now = state.clock.now()
    model = _first_model(state, provider, account)
    notice = state.store.notice() if first else ""
    shown = state_of(account, now).as_dict()
    source = state.store.source_kind()
    verified = wanted.verify and not _taken_as_it_is(provider, account)
    state.emit(
        {
            **shown,
            "verified": verified,
            "store": str(state.paths.database),
            "key_source": source,
            "notice": notice,
            "default_model": model,
        }
    )
    identity = account.identity
    who = identity.email or identity.name or identity.account_id
    state.say(f"Logged in to {account.ref}.", fg="green")
    if who:
        state.say(f"  account  {who}" + (f" ({identity.plan})" if identity.plan else ""))
    elif identity.plan:
        state.say(f"  plan     {identity.plan}")
    if account.expires_at is not None:
        state.say(f"  expires  {until(account.expires_at, now)}")
    state.say(f"  stored   {state.paths.database}, sealed; the key is in: {source}")
    if not wanted.verify:
        state.say("  not verified: the provider was not asked whether it is good")
    elif not verified:
        state.say(f"  not verified: nothing is declared by which {account.ref.provider} could be asked (`probe`)")
    if model:
        state.say(f"  default model is now {model}")
    if notice:
        state.note(notice)


def _taken_as_it_is(provider: Provider, account: Account) -> bool:
    """Whether a key was stored that no probe could be asked about; of tokens it is known who gave them out."""
    method = provider.method(account.method)
    probe = (method.probe if method else None) or provider.api.probe
    return account.kind == "api-key" and (probe is None or (probe.get is None and probe.post is None))


def _first_model(state: State, provider: Provider, account: Account) -> str | None:
    """Make a model of the first login the default one, where the declaration names it. Gives it if it was set now."""
    from valetkey.chat.models import Chosen, default_model, set_default_model

    if provider.default_model is None or provider.api.dialect == "none" or default_model(state.store) is not None:
        return None
    name = provider.id if account.is_default else str(account.ref)
    chosen = Chosen(name=name, model=provider.default_model)
    set_default_model(state.store, chosen)
    return str(chosen)
