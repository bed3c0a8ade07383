"""The user gives a key, or the several named secrets that a provider wants."""

from __future__ import annotations

from collections.abc import Mapping

from valetkey.credential import Credential, Identity
from valetkey.errors import PollFailed, RefreshNotSupported
from valetkey.flow import EnterFields, PendingAuthorization
from valetkey.flows import form, probe
from valetkey.flows.context import Context
from valetkey.flows.pending import pending

__all__ = ["ApiKeyFlow"]


class ApiKeyFlow:
    """An AuthFlow that ends in an ApiKey or Fields."""

    kind = "api-key"

    def __init__(self, context: Context) -> None:
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Ask for the key and the declared parameters."""
        context = self._context
        where = f"Get one at {context.method.keys_url}" if context.method.keys_url else ""
        action = EnterFields(
            label=context.method.label or f"{context.provider.name} API key",
            description=where,
            purpose="key",
            fields=(*form.secret_inputs(context), *await form.inputs(context)),
        )
        return pending(context, action, parameters=context.parameters)

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Refuse: there is nobody to ask."""
        raise PollFailed(
            "a login by API key has nothing to wait for", hint="complete it with the key", provider=self._context.id
        )

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """Take the filled-in form."""
        return await form.keyed(self._context, answer)

    async def refresh(self, credential: Credential) -> Credential:
        """Refuse: a key has no renewal."""
        raise RefreshNotSupported(
            f"the key of {self._context.id} cannot be renewed",
            hint=f"run `{self._context.login}` with a new key",
            provider=self._context.id,
        )

    async def validate(self, credential: Credential) -> Identity:
        """Ask the probe."""
        return await probe.validate(self._context, credential)
