"""A broker on a store in memory and a catalogue of what a test declares, both with the real methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from valetkey.broker import Broker
from valetkey.errors import UnknownProvider
from valetkey.http import HttpClient
from valetkey.provider import Provider
from valetkey.store import Store
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

__all__ = ["Declared", "broker_of"]


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The part of a Catalogue that answers questions."""

    known: tuple[Provider, ...]

    def get(self, id: str) -> Provider:
        """Give the provider of this id. Raises: UnknownProvider."""
        for provider in self.known:
            if provider.id == id:
                return provider
        raise UnknownProvider(f"there is no provider {id!r}", hint="run `valetkey providers list`")

    def all(self) -> list[Provider]:
        """Give every provider."""
        return list(self.known)


def broker_of(
    *known: Provider,
    store: Store | None = None,
    clock: FakeClock | None = None,
    environ: Mapping[str, str] | None = None,
) -> Broker:
    """Give a broker that knows these providers and, without `store`, holds no account."""
    clock = clock or FakeClock()
    return Broker(
        store=store or MemoryStore(clock=clock),
        catalogue=Declared(known=known),  # type: ignore[arg-type]  # the part of a Catalogue that a broker uses
        http=HttpClient(timeout_seconds=60),
        clock=clock,
        environ=environ or {},
    )
