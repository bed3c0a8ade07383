"""git's credential helper (gitcredentials(7)): reads what git writes, and writes what git reads (git-credential(1))."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from valetkey.credential import Secret, expires_at_of
from valetkey.errors import UsageError
from valetkey.helpers.places import Candidate, Pair, candidates, choose, pair_at

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["MOST_BYTES", "Answer", "Wanted", "answer", "parse", "refused"]

TOOL = "git"
# What git itself writes is a few lines; nobody else has business here.
MOST_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What git asks for. `password` is what the server has just refused, with `erase`."""

    protocol: str
    host: str
    path: str = ""
    username: str | None = None
    password: Secret | None = None
    # The schemes of the server's WWW-Authenticate, in lower case; none where git does not tell (before 2.41).
    schemes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What git gets; `candidate` says from whom."""

    candidate: Candidate
    pair: Pair
    expires_at: datetime | None

    def lines(self) -> str:
        """Write it as git reads it."""
        written = f"username={self.pair.user}\npassword={self.pair.password.reveal()}\n"
        if self.expires_at is not None:
            written += f"password_expiry_utc={int(self.expires_at.timestamp())}\n"
        return written


def parse(data: bytes) -> Wanted:
    """Read lines of `key=value`, up to an empty one; keys that nobody knows here are left alone.

    Raises: UsageError for what could be read in two ways: no `=`, a NUL, a carriage return, text that is not UTF-8.
    """
    known: dict[str, str] = {}
    schemes: list[str] = []
    try:
        lines = data[:MOST_BYTES].decode().split("\n")
    except UnicodeDecodeError:
        raise _unreadable("it is not UTF-8") from None
    for line in lines:
        if not line:
            break
        key, equals, value = line.partition("=")
        if not equals:
            raise _unreadable("a line has no =")
        if "\0" in value or "\r" in value:
            raise _unreadable("a value holds a NUL or a carriage return")
        if key == "wwwauth[]":
            # An empty value forgets what came before (git-credential(1)).
            schemes = [*schemes, value.split(" ", 1)[0].lower()] if value else []
        else:
            known[key] = value
    password = known.get("password")
    return Wanted(
        protocol=known.get("protocol", ""),
        host=known.get("host", "").lower(),
        path=known.get("path", ""),
        username=known.get("username"),
        password=Secret(password) if password else None,
        schemes=tuple(schemes),
    )


async def answer(broker: Broker, wanted: Wanted) -> Answer | None:
    """Give user and password for this place; None where no account is for it, so that git asks the next helper.

    Raises: HostsNotAccepted for plain http that the login is not for; what `Broker.access` raises.
    """
    found = _found(broker, wanted)
    if found is None:
        return None
    access = await broker.access(found.name, use="helper")
    if access.credential is None:
        return None
    access.check_place(f"{wanted.protocol}://{wanted.host}/")
    pair = pair_at(found, access.credential, host=wanted.host, tool=TOOL)
    return Answer(candidate=found, pair=pair, expires_at=expires_at_of(access.credential))


async def refused(broker: Broker, wanted: Wanted) -> Candidate | None:
    """Renew the account whose password the server refused; None when it is not the one that is in use now.

    Raises: CredentialExpired when it cannot be renewed; what `Broker.access` raises.
    """
    if wanted.password is None:
        return None
    # Not by user name: git sends back the one that it was given.
    for found in candidates(broker, TOOL):
        if choose([found], host=wanted.host, tool=TOOL) is None:
            continue
        access = await broker.access(found.name, use="helper")
        if access.credential is None:
            continue
        if pair_at(found, access.credential, host=wanted.host, tool=TOOL).password == wanted.password:
            await broker.access(found.name, use="helper", rejected=access.credential)
            return found
    return None


def _found(broker: Broker, wanted: Wanted) -> Candidate | None:
    if wanted.protocol not in ("https", "http") or (wanted.schemes and "basic" not in wanted.schemes):
        return None
    return choose(
        list(candidates(broker, TOOL)), host=wanted.host, tool=TOOL, username=wanted.username, path=wanted.path
    )


def _unreadable(why: str) -> UsageError:
    return UsageError(
        f"what came on standard input is not a question of git's: {why}",
        hint="let git call this: `valetkey setup git` tells it to",
    )
