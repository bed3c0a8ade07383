"""The flows that Python packages ship under the entry point group `valetkey.flows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from valetkey.credential import Credential, Identity
from valetkey.errors import (
    CompletionFailed,
    InitiationFailed,
    InvalidProvider,
    PollFailed,
    RefreshFailed,
    UnclearAnswer,
    ValetkeyError,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, PendingAuthorization
from valetkey.flows.context import Context
from valetkey.packages import Group
from valetkey.provider import BUILT_IN_KINDS, AuthMethod, Provider

__all__ = ["BROUGHT", "PackageFlow", "problems"]

BROUGHT = Group(name="valetkey.flows", what="flow", broken=InvalidProvider)


class _Unfit(Exception):
    """A package's flow gave something that the protocol does not allow; the text is ours."""


class PackageFlow:
    """An AuthFlow that another package wrote, loaded when it is first used.

    Of what it raises that is no error of ours only the type is told: the text may hold a secret.
    """

    def __init__(self, context: Context) -> None:
        self.kind: str = context.method.kind
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Begin. Raises: InvalidProvider where there is no such flow; what the flow raises."""
        flow = self._made()
        with self._told_as(InitiationFailed):
            pending = self._checked_pending(await flow.initiate(redirect_uri=redirect_uri))
            if redirect_uri is not None and not pending.private.get("state"):
                raise _Unfit("it names no `state`, by which the browser's answer is known")
            return pending

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Ask once."""
        flow = self._made()
        with self._told_as(PollFailed):
            result = await flow.poll(pending)
            if isinstance(result, PendingAuthorization):
                return self._checked_pending(result)
            return self._checked(result)

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """End it with the user's answer."""
        flow = self._made()
        with self._told_as(CompletionFailed):
            return self._checked(await flow.complete(pending, answer))

    async def refresh(self, credential: Credential) -> Credential:
        """Renew it. Raises: RefreshFailed where there is no such flow now; what the flow raises."""
        try:
            flow = self._made()
        except InvalidProvider as error:
            # Nothing was sent: the login is as good as before, and lasts until its token does.
            raise RefreshFailed(error.message, hint=error.hint, provider=error.provider) from error
        # What broke off may have spent the refresh token, as an answer that nobody understands.
        with self._told_as(UnclearAnswer):
            return self._checked(await flow.refresh(credential))

    async def validate(self, credential: Credential) -> Identity:
        """Ask the provider."""
        flow = self._made()
        with self._told_as(ValidationFailed):
            identity = await flow.validate(credential)
            if not isinstance(identity, Identity):
                raise _Unfit("it gave no Identity")
            return identity

    def _made(self) -> AuthFlow:
        context = self._context
        make = _load(context.provider, context.method)
        with self._told_as(InvalidProvider):
            return make(context)

    @contextmanager
    def _told_as(self, kind: type[ValetkeyError]) -> Iterator[None]:
        try:
            yield
        except ValetkeyError:
            raise
        except Exception as error:  # a package is anybody's code: whatever it raises ends only this login
            what = str(error) if isinstance(error, _Unfit) else type(error).__name__
            raise kind(
                f"the flow {self.kind} of {self._context.id} is broken: {what}",
                hint="update or uninstall the package that ships it",
                provider=self._context.id,
            ) from None

    def _checked_pending(self, result: object) -> PendingAuthorization:
        context = self._context
        if isinstance(result, PendingAuthorization) and (result.provider, result.method) == (
            context.id,
            context.method.id,
        ):
            return result
        raise _Unfit("it gave no PendingAuthorization of this login")

    def _checked(self, result: object) -> Credential:
        if isinstance(result, Credential) and result.method == self._context.method.id:
            return result
        raise _Unfit("it gave no credential of this login")


def problems(providers: Iterable[Provider]) -> list[tuple[str, ValetkeyError]]:
    """Give what is wrong with packages' flows: (its name, error). Loads those that a declaration names."""
    found = BROUGHT.taken(BUILT_IN_KINDS)
    for provider in providers:
        for method in provider.auth:
            if method.built_in_kind is None:
                try:
                    _load(provider, method)
                except InvalidProvider as error:
                    found.append((method.kind, error))
    return found


def _load(provider: Provider, method: AuthMethod) -> Callable[[Context], AuthFlow]:
    make = BROUGHT.load(method.kind, provider=provider.id)
    if make is None:
        raise InvalidProvider(
            f"{provider.id}/{method.id} needs the flow {method.kind}, which no installed package ships",
            hint="install the package that ships it beside Valetkey, or correct `kind`",
            provider=provider.id,
        )
    return make
