"""The agents there are: those of the table, and what packages bring under the entry point group `valetkey.agents`."""

from __future__ import annotations

from collections.abc import Sequence

from valetkey.agent import Agent, Login
from valetkey.errors import BrokenAgent
from valetkey.packages import Group

__all__ = ["BROUGHT", "BUILT_IN", "agent_for", "chosen"]

BROUGHT = Group(name="valetkey.agents", what="agent", broken=BrokenAgent)
# Imported when it is asked for: most commands are about no agent.
BUILT_IN = {
    "claude": "valetkey.agents.claude:Claude",
    "codex": "valetkey.agents.codex:Codex",
    "copilot": "valetkey.agents.copilot:Copilot",
    "gemini": "valetkey.agents.gemini:Gemini",
}


def agent_for(id: str) -> Agent | None:
    """Give the agent of this id, None where there is none. Raises: BrokenAgent for one of a package."""
    found: Agent | None = BROUGHT.made(id, BUILT_IN)
    return found


def chosen(agent: Agent, logins: Sequence[Login]) -> tuple[Login | None, int]:
    """Give the login that an agent uses, None where it can use none of them, and how many it could.

    First comes one that is for this agent alone (a person has made it for nothing else), then the agent's own
    providers in its order, then what was named first.
    """
    usable = [login for login in logins if login.dialect in agent.dialects or login.ref.provider in agent.providers]
    order = [*agent.providers]

    def rank(login: Login) -> tuple[bool, int]:
        provider = login.ref.provider
        return agent.id not in login.for_agents, order.index(provider) if provider in order else len(order)

    return min(usable, key=rank, default=None), len(usable)
