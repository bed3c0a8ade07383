"""What whoever keeps one of our protocols has to hold: classes to subclass, each with one fixture.

They are tests of pytest: `from valetkey.testing.suites import StoreSuite`.
"""

from valetkey.testing.suites.agents import AgentSuite
from valetkey.testing.suites.flows import FlowCase, FlowSuite
from valetkey.testing.suites.providers import ProviderSuite
from valetkey.testing.suites.sandboxes import SandboxSuite
from valetkey.testing.suites.stores import StoreSuite

__all__ = ["AgentSuite", "FlowCase", "FlowSuite", "ProviderSuite", "SandboxSuite", "StoreSuite"]
