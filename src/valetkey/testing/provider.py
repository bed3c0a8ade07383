"""A provider of the test's own: a real server on loopback with an API that wants a credential, and logins to get one.

with FakeProvider().with_device_login().expiring_in(60) as provider:
    provider.declare(valetkey_home)                 # the file that a user would write
    …                                               # `valetkey login fake`, ask, let time pass
    assert provider.refreshes == 1
"""

from __future__ import annotations

import json as json_module
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from valetkey.clock import Clock, SystemClock
from valetkey.provider import AuthMethod, DialectId, Provider
from valetkey.testing.declaration import declaration_of, redirected
from valetkey.testing.local_server import LocalServer, Received, Reply
from valetkey.testing.provider_api import Api
from valetkey.testing.provider_logins import Logins

__all__ = ["FakeProvider", "Fault", "RunningProvider"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What the API says in place of its own answer.

    `path` is as the server sees it, such as `/v1/models`; None is any. `times` is how often; None is for ever.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str | None = None
    times: int | None = None


@dataclass(frozen=True, kw_only=True)
class FakeProvider:
    """What a fake provider will be; each `with_…` gives another value. `with` starts it and gives a RunningProvider.

    Without a login of its own, its API takes anybody.
    """

    id: str = "fake"
    dialect: DialectId = "openai-chat"
    api_key: str | None = field(default=None, repr=False)
    logins: tuple[Literal["device", "authorization-code"], ...] = ()
    life_seconds: int = 3600
    refuses_refresh: bool = False
    rotates: bool = True
    waits: bool = False
    clock: Clock = field(default_factory=SystemClock)
    faults: tuple[Fault, ...] = ()
    held_by: threading.Event | None = None
    declared: Provider | None = None
    _running: list[RunningProvider] = field(default_factory=list, init=False, repr=False, compare=False)

    def named(self, id: str) -> FakeProvider:
        """Give it another id."""
        return replace(self, id=id)

    def speaking(self, dialect: DialectId) -> FakeProvider:
        """Declare another dialect; it answers questions in `openai-chat` alone."""
        return replace(self, dialect=dialect)

    def with_api_key(self, key: str) -> FakeProvider:
        """Take this key; it never expires."""
        return replace(self, api_key=key)

    def with_device_login(self) -> FakeProvider:
        """Offer a login with a code (RFC 8628), approved at once."""
        return self._with("device")

    def with_browser_login(self) -> FakeProvider:
        """Offer a login in the browser (RFC 6749 section 4.1, RFC 7636), approved by opening the page."""
        return self._with("authorization-code")

    def waiting_for_approval(self) -> FakeProvider:
        """Approve a login with a code only when the test calls `approve()`."""
        return replace(self.with_device_login(), waits=True)

    def expiring_in(self, seconds: int) -> FakeProvider:
        """Let each access token live so long. Without a login with tokens there is one with a code."""
        return replace(self._with_tokens(), life_seconds=seconds)

    def refusing_refresh(self) -> FakeProvider:
        """Answer each renewal with `invalid_grant` (RFC 6749 section 5.2)."""
        return replace(self._with_tokens(), refuses_refresh=True)

    def without_rotation(self) -> FakeProvider:
        """Leave a refresh token as it is; without this, a renewal spends it and gives the next one."""
        return replace(self._with_tokens(), rotates=False)

    def at(self, clock: Clock) -> FakeProvider:
        """Let its tokens expire by this clock."""
        return replace(self, clock=clock)

    def answering(
        self,
        *,
        status: int,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        path: str | None = None,
        times: int | None = None,
    ) -> FakeProvider:
        """Answer so in place of what the API would say. Of several the first that fits and is not used up counts."""
        body = b"" if json is None else json_module.dumps(json).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        return replace(
            self, faults=(*self.faults, Fault(status=status, body=body, headers=sent, path=path, times=times))
        )

    def slow(self, until: threading.Event) -> FakeProvider:
        """Hold each answer of the API back until this is set."""
        return replace(self, held_by=until)

    def declared_by(self, provider: Provider) -> FakeProvider:
        """Stand in for this provider: `as_declaration` is its own declaration, with this server's address in it.

        Its logins by key, with a code and in the browser are kept, those of other kinds and its probe's whole
        addresses elsewhere are not.
        """
        return replace(self, id=provider.id, dialect=provider.api.dialect, declared=provider)

    def _with(self, login: Literal["device", "authorization-code"]) -> FakeProvider:
        return self if login in self.logins else replace(self, logins=(*self.logins, login))

    def _with_tokens(self) -> FakeProvider:
        return self if self.logins else self.with_device_login()

    def start(self) -> RunningProvider:
        """Give it, running; `stop()` ends it."""
        return RunningProvider(self).__enter__()

    def __enter__(self) -> RunningProvider:
        self._running.append(self.start())
        return self._running[-1]

    def __exit__(self, *_: object) -> None:
        self._running.pop().stop()


class RunningProvider(LocalServer):
    """A provider that runs. `requests` are all that it got, `url` is where it is."""

    def __init__(self, asked: FakeProvider) -> None:
        super().__init__(self._answer)
        self.id = asked.id
        self.api_key = asked.api_key
        self._asked = asked
        self._logins = Logins(
            clock=asked.clock,
            life_seconds=asked.life_seconds,
            refuses_refresh=asked.refuses_refresh,
            rotates=asked.rotates,
            waits=asked.waits,
        )
        wants = asked.api_key is not None or bool(asked.logins)
        self._api = Api(
            takes=self._takes if wants else lambda _: True,
            faults=[(fault, fault.times) for fault in asked.faults],
            held_by=asked.held_by,
            stopping=self._stopping,
        )

    # --- what it saw ----------------------------------------------------------------------------

    @property
    def api_requests(self) -> list[Received]:
        """Give those for its API, oldest first."""
        return [request for request in list(self.requests) if not Logins.is_for(request)]

    @property
    def refused(self) -> int:
        """How many of them came without a credential that is good."""
        return self._api.refused

    @property
    def refreshes(self) -> int:
        """How many renewals were asked for, granted or not."""
        return self._logins.refreshes

    @property
    def secrets(self) -> list[str]:
        """Give every credential that it takes or ever gave out: none of them may show anywhere."""
        return [*([] if self.api_key is None else [self.api_key]), *self._logins.secrets]

    # --- what the test does ---------------------------------------------------------------------

    def approve(self) -> None:
        """Approve logins with a code: as a person would on the page."""
        self._logins.approve()

    def expire(self) -> None:
        """Let each access token be over now, whatever was said of its life; renewals go on."""
        self._logins.expire()

    def end_logins(self) -> None:
        """Forget every token that was given out, as when a person takes back the access."""
        self._logins.end()

    def as_declaration(self) -> Provider:
        """Give the declaration of this provider, at its address."""
        asked = self._asked
        if asked.declared is not None:
            return redirected(asked.declared, self.url)
        return declaration_of(asked.id, self.url, dialect=asked.dialect, key=asked.api_key, logins=asked.logins)

    def as_toml(self) -> str:
        """Give it as the text of the file that a user writes."""
        # What reads and writes declarations takes longer to import than a server to start.
        from valetkey.providers.writer import dumps

        return dumps(self.as_declaration())

    def declare(self, home: Path) -> Path:
        """Write that file into a VALETKEY_HOME."""
        folder = home / "providers"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{self.id}.toml"
        path.write_text(self.as_toml())
        return path

    def method(self, id: str) -> AuthMethod:
        """Give one of its ways to log in."""
        found = self.as_declaration().method(id)
        if found is None:
            raise LookupError(f"the provider {self.id} has no login {id}")
        return found

    def _takes(self, shown: str) -> bool:
        return (self.api_key is not None and self.api_key in shown) or self._logins.takes(shown)

    def _answer(self, request: Received) -> Reply:
        return self._logins.answer(request) if Logins.is_for(request) else self._api.answer(request)
