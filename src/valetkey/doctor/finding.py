"""What one look at a layer gives, the layers that there are, and what they are looked at with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from valetkey.errors import ValetkeyError

if TYPE_CHECKING:
    from valetkey.broker import Broker
    from valetkey.clock import Clock
    from valetkey.config import Config, Paths
    from valetkey.http import HttpClient
    from valetkey.providers import Catalogue
    from valetkey.stores.sqlite import SqliteStore

__all__ = ["ASK_SECONDS", "LAYERS", "Finding", "Parts", "looked"]

# In the order in which a credential goes through them; the number is the exit status where it is the first that fails.
LAYERS = {
    "home": 10,
    "settings": 11,
    "providers": 12,
    "store": 13,
    "key": 14,
    "audit": 21,
    "name resolution": 15,
    "tls": 16,
    "connection": 17,
    "clock": 18,
    "account": 19,
    "gateway": 20,
    "policy": 23,
    "through gateway": 22,
    "sandbox": 24,
    "inside sandbox": 25,
}
# For one question to one server.
ASK_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one look at a layer gave: with an `error` it failed, with a `notice` the user should know something.

    `skipped` says why it was not looked at.
    """

    layer: str
    subject: str
    detail: str = ""
    notice: str = ""
    skipped: str = ""
    error: ValetkeyError | None = None

    def as_dict(self) -> dict[str, object]:
        """Give the JSON form."""
        return {
            "layer": self.layer,
            "subject": self.subject,
            "ok": self.error is None,
            "skipped": self.skipped,
            "detail": self.detail,
            "notice": self.notice,
            "error": None if self.error is None else self.error.as_dict(),
        }


def looked(layer: str, subject: str, look: Callable[[], str]) -> Finding:
    """Look, and give what came of it: a detail, or what was raised."""
    try:
        return Finding(layer=layer, subject=subject, detail=look())
    except ValetkeyError as error:
        return Finding(layer=layer, subject=subject, error=error)


class Parts(Protocol):
    """What is looked at. Each is made when it is first asked for, and may raise a ValetkeyError then."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment."""
        ...

    @property
    def paths(self) -> Paths:
        """Where things are."""
        ...

    @property
    def config(self) -> Config:
        """The settings."""
        ...

    @property
    def clock(self) -> Clock:
        """The machine's clock."""
        ...

    @property
    def http(self) -> HttpClient:
        """The client for control traffic."""
        ...

    @property
    def catalogue(self) -> Catalogue:
        """The providers there are."""
        ...

    @property
    def store(self) -> SqliteStore:
        """The records; nobody is asked for a passphrase."""
        ...

    @property
    def broker(self) -> Broker:
        """What gives fresh credentials."""
        ...
