"""What a coding agent is: how it is made ready for a run, its command line, and the sessions that it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from valetkey.credential import CredentialRef
from valetkey.provider import DialectId

__all__ = ["Agent", "Login", "McpServer", "Prepared", "Served", "Session"]


@dataclass(frozen=True, kw_only=True)
class Login:
    """An account that a run is granted, as far as the choice between several needs it.

    `method` is the id of the login in its declaration; None where the server wants none. `for_agents` are the agents
    that alone may use it, where it is restricted to some. `model` is its provider's usual one.
    """

    ref: CredentialRef
    method: str | None
    dialect: DialectId
    model: str | None = None
    for_agents: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class McpServer:
    """An MCP server as it is found inside: at an address of the gateway, or by a command that the agent starts.

    One of both is there. `transport` is how the address is spoken to: streamable HTTP, or HTTP with SSE.
    """

    name: str
    url: str | None = None
    transport: Literal["http", "sse"] = "http"
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Served:
    """The account that an agent uses, as it is found inside: none of this is a credential.

    `base_url` is where the gateway serves it, `dialect` what is spoken there, `model` the one that its provider names
    where nobody says which. `variables` are those that its declaration wants in a sandbox,
    `placeholder` is what stands for its credential in files and in other variables. `mcp_servers` belong into the
    agent's own settings, in place of those that an earlier run had there.
    """

    ref: CredentialRef
    base_url: str
    dialect: DialectId
    model: str | None = None
    placeholder: str = field(repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    mcp_servers: tuple[McpServer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What an agent wants in its run, beside what it wrote into its home.

    `without` are variables that it must not have from another grant; those of `environment` win over them. `files` are
    absolute paths inside, below /etc or /opt, with their contents; they are read-only.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A conversation that an agent keeps in its home. `used_at` is when it last wrote to it."""

    id: str
    used_at: datetime


class Agent(Protocol):
    """A coding agent. It is a value without a state: all that it knows of a run is given to it."""

    @property
    def id(self) -> str:
        """Its name in commands, records and settings."""
        ...

    @property
    def program(self) -> str:
        """The name of its program on PATH."""
        ...

    @property
    def install(self) -> str:
        """How to install it: an imperative for a hint."""
        ...

    @property
    def dialects(self) -> Sequence[DialectId]:
        """The dialects that it speaks: it can use each account of a provider with one of them."""
        ...

    @property
    def providers(self) -> Sequence[str]:
        """The providers that it is made for, the preferred one first."""
        ...

    def prepare(self, home: Path, served: Served) -> Prepared:
        """Make its home ready, so that nothing asks and no credential is in it, and give what it wants beside.

        The home may be that of an earlier run: whatever is in it was written by a program that is not trusted.

        Raises: HomeUnusable; McpServerUnusable, where it cannot speak to a server.
        """
        ...

    def command(self, program: Sequence[str], arguments: Sequence[str], session: str | None) -> tuple[str, ...]:
        """Give its command line, with a session to go on with or without."""
        ...

    def sessions(self, home: Path) -> list[Session]:
        """Give the sessions of a home, the last used first. The home is as untrusted as in `prepare`."""
        ...
