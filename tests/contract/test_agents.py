"""What every agent promises (valetkey.testing.suites.agents), whichever it is."""

from __future__ import annotations

import pytest

from valetkey.agent import Agent
from valetkey.agents import BUILT_IN, agent_for
from valetkey.testing import FakeAgent
from valetkey.testing.suites.agents import AgentSuite


class TestAgents(AgentSuite):
    """Each of ours."""

    @pytest.fixture(params=sorted(BUILT_IN))
    def agent(self, request: pytest.FixtureRequest) -> Agent:
        found = agent_for(request.param)
        assert found is not None
        assert found.id == request.param
        return found


class TestFakeAgent(AgentSuite):
    """The one that the kit has for tests of what is around agents."""

    @pytest.fixture
    def agent(self) -> Agent:
        return FakeAgent()
