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
    fixed,
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
            _show(state, names_of(state), refresh=refresh, one=False)
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
    stronger = state.config.text("default_model")
    if stronger and stronger != str(chosen):
        state.note(f"but the settings say {stronger}, and they win: see `valetkey config show`")


def _show(state: State, names: Sequence[str], *, refresh: bool, one: bool) -> None:
    lists, problems = lists_of(state, names, refresh=refresh)
    if one and not lists:
        raise problems[0][1]
    default = default_model(state.store, setting=state.config.text("default_model"))
    now = state.clock.now()
    _emit(state, lists, problems, default)
    rows = [
        [
            f"{kept.name}/{m.id}",
            m.name,
            "declared" if kept.fetched_at is None else ago(kept.fetched_at, now),
            "default" if _is(default, kept, m.id) else "",
        ]
        for kept in lists
        for m in kept.models
    ]
    if rows:
        state.table(["MODEL", "NAME", "FETCHED", ""], rows, colors={"default": "green"})
    for name, problem in problems:
        state.note(f"{name}: {problem.message}; {problem.hint}")


def names_of(state: State) -> list[str]:
    """Give who can be asked: every account, stored or in the environment, and what was listed before (local servers).

    Raises: NotLoggedIn when there is nobody.
    """
    from valetkey import sdk

    accounts = [a for a in sdk.accounts(broker=state.broker) if not a.shadowed]
    names = {a.ref.provider if a.is_default or a.source != "stored" else str(a.ref) for a in accounts}
    names |= {kept.name for kept in fetched_lists(state.store)}
    if not names:
        raise NotLoggedIn("there is no login yet", hint="run `valetkey login`")
    return sorted(name for name in names if _has_models(state, name))


def _has_models(state: State, name: str) -> bool:
    try:
        api = state.catalogue.get(name.partition("@")[0]).api
    except ProviderError:
        return True  # told where its list is read
    return api.dialect != "none" or bool(api.dialects) or api.models is not None


def lists_of(
    state: State, names: Sequence[str], *, refresh: bool = False
) -> tuple[list[ModelList], list[tuple[str, ValetkeyError]]]:
    """Give the lists of these, kept or fetched now, and what went wrong; an older list stands in for a new one."""
    lists: list[ModelList] = []
    problems: list[tuple[str, ValetkeyError]] = []
    for name in names:
        try:
            lists.append(_list_of(state, name, refresh=refresh))
        except _ONE_ACCOUNT as error:
            problems.append((name, error))
            kept = fetched(state.store, name)
            lists += [] if kept is None else [kept]
    return lists, problems


def _list_of(state: State, name: str, *, refresh: bool) -> ModelList:
    provider = state.catalogue.get(name.partition("@")[0])
    kept = None if refresh else fetched(state.store, name)
    if kept is not None:
        return kept
    if named := fixed(provider):
        # The declaration is the list: there is nobody to ask, and no login is needed to read it.
        return ModelList(name=name, models=tuple(named))
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
