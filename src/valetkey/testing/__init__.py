"""For tests of what is built on Valetkey: fakes that work, suites that hold what others wrote to a protocol, fixtures.

    from valetkey.testing import FakeProvider
    from valetkey.testing.suites import ProviderSuite

docs/testing.md shows it. Nothing is imported before it is used: the pytest plugin passes here. It needs no more than
Valetkey itself, and pytest for `suites` and `plugin`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valetkey.testing.agent import FakeAgent as FakeAgent
    from valetkey.testing.authorization_server import AuthorizationServer as AuthorizationServer
    from valetkey.testing.canary import assert_no_canary as assert_no_canary
    from valetkey.testing.clock import FakeClock as FakeClock
    from valetkey.testing.clock import SteppedClock as SteppedClock
    from valetkey.testing.command_line import CommandLine as CommandLine
    from valetkey.testing.gateway import GatewayProcess as GatewayProcess
    from valetkey.testing.gateway import serving as serving
    from valetkey.testing.granting import FakeGranting as FakeGranting
    from valetkey.testing.memory_store import MemoryStore as MemoryStore
    from valetkey.testing.provider import FakeProvider as FakeProvider
    from valetkey.testing.provider import RunningProvider as RunningProvider
    from valetkey.testing.sandbox import FakeSandbox as FakeSandbox

# Where each name lives.
_PLACES = {
    "AuthorizationServer": "authorization_server",
    "CommandLine": "command_line",
    "FakeAgent": "agent",
    "FakeClock": "clock",
    "FakeGranting": "granting",
    "FakeProvider": "provider",
    "FakeSandbox": "sandbox",
    "GatewayProcess": "gateway",
    "MemoryStore": "memory_store",
    "RunningProvider": "provider",
    "SteppedClock": "clock",
    "assert_no_canary": "canary",
    "serving": "gateway",
}

__all__ = [
    "AuthorizationServer",
    "CommandLine",
    "FakeAgent",
    "FakeClock",
    "FakeGranting",
    "FakeProvider",
    "FakeSandbox",
    "GatewayProcess",
    "MemoryStore",
    "RunningProvider",
    "SteppedClock",
    "assert_no_canary",
    "serving",
]


if not TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name: str) -> object:
        """Import what is asked for."""
        if name not in _PLACES:
            raise AttributeError(f"module 'valetkey.testing' has no attribute {name!r}")
        return getattr(importlib.import_module(f"valetkey.testing.{_PLACES[name]}"), name)
