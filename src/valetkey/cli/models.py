"""`valetkey models`: which models there are, and which one is asked."""

from __future__ import annotations

from collections.abc import Sequence

import click

from valetkey.chat.models import (
    Chosen,
    ModelList,
    choose,
    default_model,
    fetched,
    fetched_lists,
    known,
    set_default_model,
)
from valetkey.cli.frame import State, command
from valetkey.cli.output import ago
from valetkey.errors import CredentialError, LoginError, NotLoggedIn, ProviderError, TransportError, ValetkeyError

# What may go wrong with one account without keeping the others' lists from being shown.
_ONE_ACCOUNT = (CredentialError, LoginError, ProviderError, TransportError)


@command("models")
@click.argument("names", nargs=-1, metavar="[PROVIDER[@ACCOUNT]] | use PROVIDER/MODEL")
@click.option("--refresh", is_flag=True, help="Ask the provider again.")
def models(state: State, *, names: tuple[str, ...], refresh: bool) -> None:
    """List the models of a provider, or of all logins. `models use PROVIDER/MODEL` sets the default one.

    Lists are kept, and shown with their age; --refresh asks again.
    """
    match names:
        case ("use", text):
            _use(state, text)
        case ("use",):
            raise click.UsageError("`models use` needs PROVIDER/MODEL")
        case ():
            _show(state, _names(state), refresh=refresh, one=False)
        case (name,):
            _show(state, [name], refresh=refresh, one=True)
        case _:
            raise click.UsageError("`models` takes one provider")


def _use(state: State, text: str) -> None:
    chosen = choose(text, provider_of=state.catalogue.get, lists=lambda: fetched_lists(state.store))
    state.broker.resolve(chosen.name)
    set_default_model(state.store, chosen)
    state.emit({"default_model": str(chosen)})
    state.say(f"{chosen} is the default model")


def _names(state: State) -> list[str]:
    """Give what can be asked: every login, and what was listed before (local servers, keys in the environment)."""
    logins = {str(a.ref) if not a.is_default else a.ref.provider for a in state.store.accounts()}
    names = sorted(logins | {kept.name for kept in fetched_lists(state.store)})
    if not names:
        raise NotLoggedIn("there is no login yet", hint="run `valetkey login`, or name a provider")
    return names


def _show(state: State, names: Sequence[str], *, refresh: bool, one: bool) -> None:
    lists: list[ModelList] = []
    problems: list[tuple[str, ValetkeyError]] = []
    for name in names:
        try:
            lists.append(_list_of(state, name, refresh=refresh))
        except _ONE_ACCOUNT as error:
            kept = fetched(state.store, name)
            if one and kept is None:
                raise
            problems.append((name, error))
            lists += [] if kept is None else [kept]
    default = default_model(state.store)
    now = state.clock.now()
    _emit(state, lists, problems, default)
    rows = [
        [f"{kept.name}/{m.id}", m.name, ago(kept.fetched_at, now), "default" if _is(default, kept, m.id) else ""]
        for kept in lists
        for m in kept.models
    ]
    if rows:
        state.table(["MODEL", "NAME", "FETCHED", ""], rows, colors={"default": "green"})
    for name, problem in problems:
        state.note(f"{name}: {problem.message}; {problem.hint}")


def _list_of(state: State, name: str, *, refresh: bool) -> ModelList:
    provider = state.catalogue.get(name.partition("@")[0])
    kept = None if refresh else fetched(state.store, name)
    if kept is not None:
        return kept
    call = provider.api.models
    if call is not None and call.get is None and (named := known(provider)):
        # The declaration is the list: there is nobody to ask, and no login is needed to read it.
        return ModelList(name=name, models=tuple(named), fetched_at=state.clock.now())
    from valetkey import sdk

    found = state.run(sdk.models(name, broker=state.broker))
    return ModelList(name=name, models=tuple(found), fetched_at=state.clock.now())


def _is(default: Chosen | None, kept: ModelList, model: str) -> bool:
    return default is not None and (default.name, default.model) == (kept.name, model)


def _emit(
    state: State,
    lists: Sequence[ModelList],
    problems: Sequence[tuple[str, ValetkeyError]],
    default: Chosen | None,
) -> None:
    state.emit(
        {
            "default_model": None if default is None else str(default),
            "providers": [
                {
                    "name": kept.name,
                    "fetched_at": kept.fetched_at,
                    "models": [{"id": m.id, "name": m.name or None} for m in kept.models],
                }
                for kept in lists
            ],
            "problems": [{"name": name, "error": error.as_dict()} for name, error in problems],
        }
    )
