"""A flow whose renewals do what a test wrote down, and that counts them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from valetkey.credential import Credential, Identity, OAuthToken, Secret
from valetkey.errors import PollFailed
from valetkey.flow import PendingAuthorization
from valetkey.testing.clock import FakeClock

__all__ = ["ScriptedFlow"]

Step = Callable[[Credential], Credential]


@dataclass(kw_only=True)
class ScriptedFlow:
    """Renews with `steps` in turn, then with tokens that live `life`. `gate` holds an answer back until it is set."""

    clock: FakeClock
    life: timedelta = timedelta(hours=1)
    steps: list[Step] = field(default_factory=list)
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    spent: list[str] = field(default_factory=list)
    kind: str = "device"

    @property
    def refreshes(self) -> int:
        """How many requests a server would have seen."""
        return len(self.spent)

    async def refresh(self, credential: Credential) -> Credential:
        assert isinstance(credential, OAuthToken)
        assert credential.refresh_token is not None
        self.spent.append(credential.refresh_token.reveal())
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(60)
        if self.steps:
            return self.steps.pop(0)(credential)
        return self.next_token(credential)

    def next_token(self, credential: OAuthToken) -> OAuthToken:
        """Give the token after this one: access-2 after access-1."""
        number = len(self.spent) + 1
        now = self.clock.now()
        return replace(
            credential,
            access_token=Secret(f"access-{number}"),
            refresh_token=Secret(f"refresh-{number}"),
            issued_at=now,
            expires_at=now + self.life,
        )

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        raise PollFailed("not scripted", hint="script it")

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        raise PollFailed("not scripted", hint="script it")

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        raise PollFailed("not scripted", hint="script it")

    async def validate(self, credential: Credential) -> Identity:
        return Identity()
