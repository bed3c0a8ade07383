"""Which models there are: fetched lists, kept with their age, and the name that a user gives a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from valetkey.access import Access
from valetkey.chat.ask import cleaned
from valetkey.dialect import Model
from valetkey.dialects import dialect_of, models_in
from valetkey.dialects.reading import error_in
from valetkey.errors import (
    ConfigError,
    KeyForbidden,
    NeedsLogin,
    ProviderError,
    ProviderFault,
    RecordDamaged,
    UnclearAnswer,
    UnknownModel,
    UsageError,
)
from valetkey.http import HttpClient, Response
from valetkey.inject import fill
from valetkey.log import holds_secret
from valetkey.provider import Provider
from valetkey.store import Document, Store

__all__ = [
    "DEFAULT_MODEL",
    "Chosen",
    "ModelList",
    "choose",
    "default_model",
    "fetch",
    "fetched",
    "fetched_lists",
    "fixed",
    "keep",
    "known",
    "set_default_model",
]

KIND = "models"
# The setting that `models use` writes and the first login may set.
DEFAULT_MODEL = "default_model"
_FORMAT = 1
_KEYS = {"format", "models", "fetched_at"}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A model as it is asked for: `name` is `provider` or `provider@account`."""

    name: str
    model: str

    @property
    def provider(self) -> str:
        """Give the provider's id."""
        return self.name.partition("@")[0]

    def __str__(self) -> str:
        return f"{self.name}/{self.model}"


@dataclass(frozen=True, kw_only=True)
class ModelList:
    """What `name` (`provider` or `provider@account`) listed at that time; None: the declaration itself names them."""

    name: str
    models: tuple[Model, ...]
    fetched_at: datetime | None = None


# --- lists -----------------------------------------------------------------------------------


def known(provider: Provider, parameters: Mapping[str, str]) -> list[Model]:
    """Give the models that the declaration itself names; such a name may hold the login's {parameters}."""
    call = provider.api.models
    return [] if call is None else [Model(id=fill(name, parameters)) for name in call.known]


def fixed(provider: Provider) -> list[Model]:
    """Give the declared models where they are the whole list and the same for every login; else none."""
    call = provider.api.models
    if call is None or call.get is not None or any("{" in name for name in call.known):
        return []
    return known(provider, {})


def fetch(access: Access, *, http: HttpClient) -> list[Model]:
    """Ask the provider for its list, as the declaration says; what it names itself comes first.

    Raises: NeedsLogin (401), KeyForbidden (403), ProviderFault, UnclearAnswer, TransportError, ProviderError when the
    provider has no models.
    """
    provider, parameters = access.provider, {} if access.credential is None else access.credential.parameters
    first = known(provider, parameters)
    call = provider.api.models
    if call is not None and call.get is None and first:
        return first
    headers = dict(call.headers) if call is not None else {}
    path = fill(call.get, parameters) if call is not None and call.get is not None else None
    if path is None or provider.api.dialect != "none":
        dialect = dialect_of(provider, "")
        path, headers = path or dialect.models(), {**dialect.headers, **headers}
    url = access.url(path)
    answer = http.send("GET", access.placed(url), headers=access.headers(url, headers))
    if answer.status != 200:
        raise _refused(access, answer)
    ids = {m.id for m in first}
    told = (m for m in models_in(provider, answer.json()) if m.id not in ids)
    # No model is called by the key; the list is shown and kept.
    return [*first, *(m for m in told if not holds_secret(f"{m.id}\n{m.name}", access.credential))]


def _refused(access: Access, answer: Response) -> NeedsLogin | KeyForbidden | ProviderFault | UnclearAnswer:
    provider, status = access.provider.id, answer.status
    try:
        part = error_in(json.loads(answer.body))
    except (ValueError, RecursionError):
        part = None
    said = cleaned(part.message, access.credential) if part is not None else ""
    why = f" (HTTP {status})" + (f": {said}" if said else "")
    if status == 401:
        hint = f"log in again: `valetkey login {provider}`"
        return NeedsLogin(f"{provider} does not accept the credential{why}", hint=hint, provider=provider)
    if status == 403:
        hint = "ask for a model by its name with -m; the list is not open to this login"
        return KeyForbidden(f"{access.ref} may not list the models of {provider}{why}", hint=hint, provider=provider)
    if status == 429 or status >= 500:
        return ProviderFault(f"{provider} gave no list of models{why}", hint="try again later", provider=provider)
    hint = f"check base_url with `valetkey providers show {provider}`; a model can be named with -m all the same"
    return UnclearAnswer(f"{provider} has no list of models{why}", hint=hint, provider=provider)


def keep(store: Store, name: str, models: Sequence[Model], *, now: datetime) -> ModelList:
    """Keep a list in place of an older one. Raises: StoreError."""
    body = json.dumps({"format": _FORMAT, "models": [[m.id, m.name] for m in models], "fetched_at": now.isoformat()})
    store.put_document(Document(kind=KIND, id=name, title=f"{len(models)} models", body=body, updated_at=now))
    return ModelList(name=name, models=tuple(models), fetched_at=now)


def fetched(store: Store, name: str) -> ModelList | None:
    """Give the list that was kept last. Raises: RecordDamaged."""
    document = store.document(KIND, name)
    return None if document is None else _read(document)


def fetched_lists(store: Store) -> list[ModelList]:
    """Give all lists that were kept, by name."""
    found = (fetched(store, name) for name, _, _ in store.documents(KIND, limit=1000))
    return sorted((m for m in found if m is not None), key=lambda m: m.name)


def _read(document: Document) -> ModelList:
    try:
        value = json.loads(document.body)
        if not isinstance(value, dict) or set(value) != _KEYS or value["format"] != _FORMAT:
            raise ValueError
        pairs = [(str(model), str(label)) for model, label in value["models"]]
        when = datetime.fromisoformat(value["fetched_at"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RecordDamaged(
            f"the list of models of {document.id} cannot be read",
            hint=f"fetch it again: `valetkey models {document.id} --refresh`",
        ) from None
    return ModelList(name=document.id, models=tuple(Model(id=i, name=n) for i, n in pairs), fetched_at=when)


# --- names -----------------------------------------------------------------------------------


def choose(text: str, *, provider_of: Callable[[str], Provider], lists: Callable[[], Sequence[ModelList]]) -> Chosen:
    """Read `provider[@account]/model`, where the model may hold slashes, colons and @ of its own.

    Without a slash it is a model of one of the fetched lists, or a provider that declares its default model.
    Raises: UnknownProvider, UnknownModel, UsageError when several providers have it.
    """
    name, slash, model = text.strip().partition("/")
    if slash:
        if not name or not model.strip():
            raise UsageError(f"{text[:60]!r} names no model", hint="write PROVIDER/MODEL, such as openai/gpt-5-mini")
        provider_of(name.partition("@")[0])
        return Chosen(name=name, model=model)
    if not name:
        raise UsageError("the model's name is empty", hint="write PROVIDER/MODEL")
    owners = [kept.name for kept in lists() if any(m.id == name for m in kept.models)]
    if len(owners) == 1:
        return Chosen(name=owners[0], model=name)
    if owners:
        several = " or ".join(f"-m {owner}/{name}" for owner in owners)
        raise UsageError(f"more than one account has {name!r}", hint=f"say which: {several}")
    return _default_of(name, provider_of, lists)


def _default_of(name: str, provider_of: Callable[[str], Provider], lists: Callable[[], Sequence[ModelList]]) -> Chosen:
    try:
        default = provider_of(name.partition("@")[0]).default_model
    except ProviderError:
        default = None
    if default is not None:
        return Chosen(name=name, model=default)
    near = [f"{kept.name}/{m.id}" for kept in lists() for m in kept.models if name in m.id]
    hint = f"did you mean -m {near[0]}?" if near else "write PROVIDER/MODEL; `valetkey models PROVIDER` lists them"
    raise UnknownModel(f"no fetched list has a model {name!r}", hint=hint)


def default_model(store: Store, *, setting: str | None = None) -> Chosen | None:
    """Give the model that is asked when none is named: `default_model` of the settings, else the one that was set.

    Raises: ConfigError for a setting of another form.
    """
    if setting and not all(setting.partition("/")):
        raise ConfigError(
            f"default_model is {setting[:60]!r}, which names no model", hint="write PROVIDER/MODEL in config.toml"
        )
    name, slash, model = (setting or store.setting(DEFAULT_MODEL) or "").partition("/")
    return Chosen(name=name, model=model) if slash else None


def set_default_model(store: Store, chosen: Chosen | None) -> None:
    """Make it the model that is asked when none is named; None takes it back."""
    store.set_setting(DEFAULT_MODEL, None if chosen is None else str(chosen))
