"""What other tools call when they want a credential: one module for each tool's own protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valetkey.errors import UnknownProvider

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["usual"]


def usual(broker: Broker, tool: str) -> str:
    """Give the provider that a tool means where none is named: the first whose declaration names the tool.

    Raises: UnknownProvider.
    """
    for provider in broker.catalogue.all():
        if tool in provider.tools:
            return provider.id
    raise UnknownProvider(f"no provider is declared for {tool}", hint="name one")
