"""The environment variables of an account: which a tool reads it from, and os.environ set and put back exactly."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from valetkey.credential import CredentialRef, Secret
from valetkey.errors import UsageError
from valetkey.frames import DroppedFrames
from valetkey.inject import fill, variables_of
from valetkey.provider import AuthMethod, Provider
from valetkey.waiting import wait_for

if TYPE_CHECKING:
    from valetkey.access import Access
    from valetkey.broker import Broker

__all__ = ["Environment", "Variables", "changed", "changes", "known_variables", "variables_for"]


@dataclass(frozen=True, kw_only=True)
class Variables:
    """What a tool finds in its environment to use `ref`. `set` is what there is, `unset` what must not be there."""

    ref: CredentialRef
    source: str
    set: Mapping[str, Secret]
    unset: frozenset[str]


def variables_for(access: Access) -> Variables:
    """Give the variables of one account.

    Those that its login exports, or its first variable with the secret, and each parameter's first variable. Every
    other variable of the same provider is unset, so that no second account is found.
    Raises: UsageError when the declaration names no variable.
    """
    method, credential = access.method, access.credential
    filled: dict[str, Secret] = {}
    if credential is not None:
        values = variables_of(credential, account_id=access.identity.account_id)
        values.setdefault("base_url", access.base_url)
        templates = _templates(method)
        # A template that names what this login does not have (an optional session token) is left out.
        texts = {name: fill(t, values) for name, t in templates.items() if _has_all(t, values)}
        filled = {name: Secret(text) for name, text in texts.items() if text}
        if not filled:
            raise UsageError(
                f"no environment variable is declared for {method.label or method.id} of {access.provider.id}",
                hint=f'add `exports = {{ NAME = "{{key}}" }}` to its declaration, '
                f"or use `valetkey token {access.ref}` where the tool can call it",
            )
    return Variables(
        ref=access.ref,
        source=access.source,
        set=filled,
        unset=known_variables(access.provider) - filled.keys(),
    )


def _templates(method: AuthMethod) -> dict[str, str]:
    templates = {p.environment[0]: f"{{{p.key}}}" for p in method.parameters if p.environment}
    if method.exports:
        return templates | dict(method.exports)
    if method.secrets:
        return templates | {s.environment[0]: f"{{{s.key}}}" for s in method.secrets if s.environment}
    if method.environment:
        tokens = method.kind in ("authorization-code", "device")
        # What a package's flow ends in is for its declaration to say: `exports` where this is not enough.
        tokens |= method.built_in_kind is None and method.token_endpoint is not None
        secret = "access_token" if tokens else "key"
        templates[method.environment[0]] = f"{{{secret}}}"
    return templates


def _has_all(template: str, values: Mapping[str, str]) -> bool:
    rest = template
    for name in values:
        rest = rest.replace(f"{{{name}}}", "")
    return "{" not in rest


def known_variables(provider: Provider) -> frozenset[str]:
    """Give every variable in which tools look for an account of this provider."""
    names: set[str] = set()
    for method in provider.auth:
        names.update(method.environment, method.exports)
        for parameter in (*method.parameters, *method.secrets):
            names.update(parameter.environment)
    return frozenset(names)


def changes(chosen: Sequence[Variables]) -> dict[str, str | None]:
    """Give what becomes of each variable (None: taken away). Raises: UsageError when two accounts want the same."""
    wanted: dict[str, str | None] = {name: None for variables in chosen for name in variables.unset}
    owner: dict[str, CredentialRef] = {}
    for variables in chosen:
        for name, secret in variables.set.items():
            other = owner.setdefault(name, variables.ref)
            if other != variables.ref:
                raise UsageError(
                    f"{other} and {variables.ref} both go into {name}",
                    hint="name one of them, and run the command twice",
                )
            wanted[name] = secret.reveal()
    return wanted


def changed(environ: Mapping[str, str], wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Give `environ` after these changes."""
    kept = {name: value for name, value in environ.items() if name not in wanted}
    return kept | {name: value for name, value in wanted.items() if value is not None}


# --- os.environ, for a while ------------------------------------------------------------------


@dataclass(eq=False)
class _Layer:
    """What one context wants a variable to be; None: absent. Compared by identity: two contexts may want the same."""

    value: str | None


class _Overlay:
    """The layers over each variable of os.environ, and what was there before the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: dict[str, str | None] = {}
        self._layers: dict[str, list[_Layer]] = {}

    def put(self, wanted: Mapping[str, str | None]) -> dict[str, _Layer]:
        """Lay a layer over each variable."""
        with self._lock:
            placed: dict[str, _Layer] = {}
            for name, value in wanted.items():
                if name not in self._layers:
                    self._before[name] = os.environ.get(name)
                    self._layers[name] = []
                placed[name] = _Layer(value)
                self._layers[name].append(placed[name])
                _set(name, value)
            return placed

    def take(self, placed: Mapping[str, _Layer]) -> None:
        """Take these layers away. What shows is the newest that is left, or what was there before the first."""
        with self._lock:
            for name, layer in placed.items():
                layers = self._layers[name]
                on_top = layers[-1] is layer
                layers.remove(layer)
                if not layers:
                    del self._layers[name]
                    _set(name, self._before.pop(name))
                elif on_top:
                    _set(name, layers[-1].value)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


# os.environ belongs to the process, and so does what lies over it.
_overlay = _Overlay()


class Environment:
    """Accounts' variables in os.environ while a `with` or `async with` lasts; afterwards it is as it was.

    Contexts may overlap and end in any order, in threads and tasks: the newest that is still open shows. One object
    may be entered many times.
    """

    def __init__(self, names: Sequence[str], *, broker: Broker) -> None:
        self._names = tuple(names)
        self._broker = broker
        self._entered: list[dict[str, _Layer]] = []

    def __repr__(self) -> str:
        return f"Environment({', '.join(map(repr, self._names))})"

    def __enter__(self) -> Self:
        """Set the variables. Raises what `Broker.access` raises, with nothing set."""
        self._put(wait_for(self._variables()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _overlay.take(self._entered.pop())

    async def __aenter__(self) -> Self:
        """Do what `__enter__` does, in an event loop."""
        self._put(await self._variables())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        _overlay.take(self._entered.pop())

    async def _variables(self) -> list[Variables]:
        with DroppedFrames():
            return [variables_for(await self._broker.access(name, use="exec")) for name in self._names]

    def _put(self, chosen: Sequence[Variables]) -> None:
        self._entered.append(_overlay.put(changes(chosen)))
