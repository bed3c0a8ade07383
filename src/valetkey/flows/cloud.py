"""A cloud's key, or a pointer to what this machine is logged in with already, with parameters in the URL."""

from __future__ import annotations

from collections.abc import Mapping

from valetkey.credential import Ambient, Credential, Identity
from valetkey.errors import PollFailed, RefreshNotSupported
from valetkey.flow import EnterFields, PendingAuthorization
from valetkey.flows import form, probe, source
from valetkey.flows.context import Context
from valetkey.flows.pending import pending

__all__ = ["CloudFlow"]


class CloudFlow:
    """An AuthFlow that ends in an ApiKey, in Fields, or in an Ambient where the declaration has a source."""

    kind = "cloud"

    def __init__(self, context: Context) -> None:
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Ask for the parameters, and for the key where there is no source."""
        context = self._context
        ambient = context.method.source is not None
        action = EnterFields(
            label=context.method.label or context.provider.name,
            description=f"Get a key at {context.method.keys_url}" if context.method.keys_url and not ambient else "",
            purpose="cloud",
            fields=(*await form.inputs(context), *(() if ambient else form.secret_inputs(context))),
        )
        return pending(context, action, parameters=context.parameters)

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Refuse: there is nobody to ask."""
        raise PollFailed(
            "a cloud login has nothing to wait for", hint="complete it with the fields", provider=self._context.id
        )

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """Take the filled-in form; a source is read at once, to see that it gives something."""
        context = self._context
        if context.method.source is None:
            return await form.keyed(context, answer)
        form.check_known(answer, [p.key for p in context.method.parameters], context)
        parameters = await form.resolve(context, {**context.parameters, **answer})
        return await source.read(context, context.method.source, parameters)

    async def refresh(self, credential: Credential) -> Credential:
        """Read the source again. Raises: SourceFailed; RefreshNotSupported for a key."""
        context = self._context
        if isinstance(credential, Ambient) and context.method.source is not None:
            return await source.read(context, context.method.source, credential.parameters)
        raise RefreshNotSupported(
            f"the key of {context.id} cannot be renewed",
            hint=f"run `{context.login}` with a new key",
            provider=context.id,
        )

    async def validate(self, credential: Credential) -> Identity:
        """Ask the probe; a bare pointer is read first."""
        if isinstance(credential, Ambient) and not credential.values:
            credential = await self._read(credential)
        return await probe.validate(self._context, credential)

    async def _read(self, credential: Ambient) -> Ambient:
        declared = self._context.method.source
        return credential if declared is None else await source.read(self._context, declared, credential.parameters)
