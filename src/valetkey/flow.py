"""The AuthFlow protocol, PendingAuthorization and what the user has to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from valetkey.credential import Credential, Identity

__all__ = ["Action", "AuthFlow", "EnterFields", "EnterUserCode", "Input", "OpenBrowser", "PendingAuthorization"]


@dataclass(frozen=True, kw_only=True)
class OpenBrowser:
    """Send the user to `authorization_url`; the answer comes by the loopback or is pasted.

    `redirect_uri` is what the URL names; `paste` says that the page itself shows the code.
    """

    authorization_url: str
    redirect_uri: str
    paste: bool = False
    kind: Literal["open-browser"] = "open-browser"


@dataclass(frozen=True, kw_only=True)
class EnterUserCode:
    """Show the code and where to type it (RFC 8628 section 3.3). `interval` is in seconds."""

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_in: int
    interval: int
    kind: Literal["enter-user-code"] = "enter-user-code"


@dataclass(frozen=True, kw_only=True)
class Input:
    """One field of a form: what a CLI prompt or a page needs to ask for it."""

    key: str
    label: str
    description: str = ""
    default: str | None = None
    required: bool = True
    secret: bool = False
    pattern: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EnterFields:
    """Ask for these fields."""

    label: str
    description: str
    purpose: Literal["key", "cloud", "custom"]
    fields: tuple[Input, ...]
    dialect: str | None = None
    kind: Literal["enter-fields"] = "enter-fields"


Action = OpenBrowser | EnterUserCode | EnterFields


@dataclass(frozen=True, kw_only=True)
class PendingAuthorization:
    """A login under way. `action` is all that a CLI or a page needs, and is JSON; `private` stays in the process."""

    id: str
    provider: str
    method: str
    action: Action
    expires_at: datetime
    parameters: Mapping[str, str] = field(default_factory=dict)
    # code_verifier, device_code, state: never shown, never stored.
    private: Mapping[str, str] = field(default_factory=dict, repr=False)


class AuthFlow(Protocol):
    """A way to get and renew a credential for one provider. Stateless; stores nothing.

    Built by `flows.flow_for(provider, method, parameters=…, http=…, clock=…, environ=…, account=…)`.
    """

    kind: str

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Begin; say what the user has to do.

        Raises: InitiationFailed; MissingParameter or InvalidParameter for the parameters that came with the flow.
        """
        ...

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Ask once whether it is done: the credential, or what is pending (maybe with a longer interval).

        Raises: LoginExpired, LoginDenied; PollFailed for a kind that has nothing to poll; TransportError to be retried.
        """
        ...

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """End it with the user's answer: `{"code": …, "state": …}`, `{"pasted": …}`, or the fields asked for.

        Raises: MissingParameter, InvalidParameter, LoginDenied, LoginExpired, CompletionFailed.
        """
        ...

    async def refresh(self, credential: Credential) -> Credential:
        """Renew it. The caller saves before it uses.

        Raises: RefreshRejected (only a new login helps), RefreshFailed (try later), RefreshNotSupported, SourceFailed.
        """
        ...

    async def validate(self, credential: Credential) -> Identity:
        """Ask the provider's probe whether the credential is good, at most 10 s.

        Raises: KeyRejected (401), KeyForbidden (403), ConnectTimeout, TlsFailed, NameNotResolved, Unreachable,
        ProviderFault, ValidationFailed.
        """
        ...
