"""What a setup is: a wish, and the one file of a tool that fulfils it. A tool is a module with these functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from valetkey.credential import Secret
from valetkey.errors import UsageError
from valetkey.helpers.places import Candidate, candidates
from valetkey.setup.taking_back import Facts

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["KEY_SHOWN", "Plan", "Tool", "Wish", "chosen", "home_of", "no_gateway", "no_profile", "one_account"]

# What stands in a preview where the valet key will be: none is made before the yes.
KEY_SHOWN = "vk_…"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user wants. `program` are the words that call Valetkey, `accounts` the names that were given.

    `gateway` is its address where the tool is to go through it; `key` is then the valet key, None before it is made.
    """

    broker: Broker
    program: tuple[str, ...]
    accounts: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    gateway: str | None = None
    key: Secret | None = None
    profile: str | None = None

    @property
    def key_text(self) -> str:
        """The valet key, or what stands for it in a preview."""
        return KEY_SHOWN if self.key is None else self.key.reveal()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a tool's file is and will be; None before: there is none yet.

    `grants` are the accounts that the valet key in it has to open; without any there is no key in it.
    """

    path: Path
    before: bytes | None = field(repr=False)
    after: bytes = field(repr=False)
    grants: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Tool(Protocol):
    """What a module of a tool has."""

    # Whether this tool can only go through the gateway.
    NEEDS_GATEWAY: bool

    async def plan(self, wish: Wish, read: Callable[[Path], bytes | None]) -> Plan:
        """Say what the file would be; `read` gives a file's bytes, None where there is none.

        Raises: UsageError for a wish that means nothing here; SetupRefused for a file that cannot be read.
        """
        ...

    def facts(self, content: bytes) -> Facts:
        """Read what such a file says; of an empty one nothing. Raises: SetupRefused when the tool could not read it."""
        ...


def home_of(environ: Mapping[str, str]) -> Path:
    """Give the user's home folder."""
    return Path(environ.get("HOME") or Path.home())


def no_gateway(wish: Wish, tool: str) -> None:
    """Refuse a wish that this tool has no place for. Raises: UsageError."""
    if wish.gateway is not None:
        raise UsageError(
            f"{tool} asks for credentials itself, and needs no gateway", hint=f"write `valetkey setup {tool}`"
        )


def no_profile(wish: Wish, tool: str) -> None:
    """Refuse a wish that this tool has no place for. Raises: UsageError."""
    if wish.profile is not None:
        raise UsageError(f"{tool} has no profiles", hint="leave --profile out")


def one_account(wish: Wish, usual: str) -> str:
    """Give the account that was named, else the usual one. Raises: UsageError for more."""
    if len(wish.accounts) > 1:
        raise UsageError("this tool takes one account", hint="name one")
    named: Sequence[str] = wish.accounts
    return named[0] if named else usual


def chosen(wish: Wish, tool: str) -> list[Candidate]:
    """Give the accounts that were named; without a name those of providers that come with this tool.

    Raises: UnknownProvider, UsageError.
    """
    found = list(candidates(wish.broker, tool))
    if not wish.accounts:
        return [c for c in found if tool in c.provider.tools]
    wanted = [wish.broker.resolve(name) for name in wish.accounts]
    missing = [ref for ref in wanted if ref not in [c.ref for c in found]]
    if missing:
        raise UsageError(
            f"{missing[0]} is no login that goes by user and password", hint="name one that does, or none for all"
        )
    return [c for c in found if c.ref in wanted]
