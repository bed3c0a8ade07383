"""`Audit` writes the chain for a process that lives: it counts uses, takes secrets out of details, and tells errors."""

from __future__ import annotations

import logging
import os
import pwd
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from valetkey.audit import chain
from valetkey.clock import Clock
from valetkey.config import Paths
from valetkey.errors import ValetkeyError
from valetkey.log import redact
from valetkey.stores import modes
from valetkey.stores.locks import ThreadLock

__all__ = ["KINDS", "Audit", "Counted", "person", "who_of"]

# docs/audit.md says what each tells. `further` uses and denials of a minute are in an entry of their own.
KINDS = (
    "login",
    "logout",
    "renewal",
    "default",
    "accept",
    "key-issued",
    "key-revoked",
    "use",
    "uses",
    "denial",
    "denials",
    "approval",
    "reveal",
    "run-started",
    "run-stopped",
    "run-joined",
    "run-removed",
    "access-requested",
    "mcp-tools-seen",
    "mcp-tools-changed",
    "mcp-tools-approved",
    "store",
)

log = logging.getLogger(__name__)

_BUSY_SECONDS = 5.0


class Counted(NamedTuple):
    """Further uses of a minute (counted from 1970) that were not written one by one."""

    who: str
    account: str
    minute: int
    further: int


class Audit:
    """The audit of one home, for any thread. Nothing is opened before the first entry."""

    def __init__(self, paths: Paths, clock: Clock, *, busy_seconds: float = _BUSY_SECONDS) -> None:
        self.path = paths.audit
        # Whether this process wrote something that should be signed when it ends.
        self.wants_signature = False
        self._clock = clock
        self._busy_seconds = busy_seconds
        self._guard = ThreadLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._pid = os.getpid()
        self._of_parents: list[sqlite3.Connection] = []
        # By client and account: how many more there were, and since which minute.
        self._uses: dict[tuple[str, str], list[int]] = {}

    # --- entries -----------------------------------------------------------------------------

    def append(
        self, kind: str, *, who: str = "", account: str = "", detail: Mapping[str, object] | None = None
    ) -> None:
        """Write an entry, durable on return. Without `who` it is the person whose process this is.

        `detail` holds texts, whole numbers, lists and mappings of them. Raises: AuditUnwritable, WrongMode.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind} is no kind of entry")
        told, by, at = _without_secrets(detail or {}), who or person(), self._now()

        def work(connection: sqlite3.Connection) -> None:
            chain.flush(connection, at)
            chain.append(connection, kind, by, account, told, at)

        self.transaction(work)
        self.wants_signature = True

    def tell(self, kind: str, *, who: str = "", account: str = "", detail: Mapping[str, object] | None = None) -> None:
        """Write an entry of what is done already, or must be done in any case; a warning where it cannot be written."""
        try:
            self.append(kind, who=who, account=account, detail=detail)
        except ValetkeyError as error:
            log.warning("not in the audit: %s of %s: %s", kind, account or who or "this home", error.message)

    def used(self, who: str, account: str, detail: Mapping[str, object] | None = None) -> None:
        """Record a use before it happens: the first of a minute is written, later ones are counted.

        Raises: AuditUnwritable, WrongMode: then the use must not happen.
        """
        with self._guard:
            over = self.take_over()
            try:
                self.note(who, account, detail)
            finally:
                self.count(over)

    def note(self, who: str, account: str, detail: Mapping[str, object] | None = None) -> None:
        """Record a use as `used` does, for one thread that calls `take_over` itself. Raises: as `used`."""
        counted = self._uses.get((who, account))
        if counted is not None:
            counted[0] += 1
            return
        at = self._now()
        with self._guard, _translated(self.path):
            chain.use(self._connected(), who, account, detail or {}, at)
        self._uses[who, account] = [0, int(at // 60)]

    def take_over(self, *, all: bool = False) -> list[Counted]:
        """Give what was counted, for `count`, once the minute is over in which it began; with `all` at once."""
        if self._pid != os.getpid():
            self._uses = {}  # a forked child's parent writes what it counted
            return []
        uses = self._uses
        if not uses or (not all and next(iter(uses.values()))[1] == int(self._now() // 60)):
            return []
        self._uses = {}
        return [Counted(*who, minute, further) for who, (further, minute) in uses.items() if further]

    def count(self, counted: Sequence[Counted]) -> None:
        """Write what was counted. Where it cannot be written the numbers are lost, with a warning."""
        if not counted:
            return
        at = self._now()

        def work(connection: sqlite3.Connection) -> None:
            for who, account, minute, further in counted:
                detail = {"further": further, "minute": chain.minute_text(minute)}
                chain.append(connection, "uses", who, account, detail, at)

        try:
            self.transaction(work)
        except ValetkeyError as error:
            log.warning("%d uses are not in the audit: %s", sum(c.further for c in counted), error.message)

    def settle(self) -> None:
        """Put what was counted in minutes that are over into the chain. Raises: AuditUnwritable, WrongMode."""
        self.transaction(lambda connection: chain.flush(connection, self._now()))

    def close(self) -> None:
        """Write what was counted and let go of the file."""
        with self._guard:
            over = self.take_over(all=True)
        self.count(over)
        with self._guard:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
                self._connection = None

    # --- the file ----------------------------------------------------------------------------

    def transaction(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Do the work as the one writer of the chain. Raises: AuditUnwritable, WrongMode."""
        with self._guard, _translated(self.path):
            connection = self._connected()
            return chain.transaction(connection, lambda: work(connection))

    def _connected(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            # Forked: the connection is the parent's. Closing it would clean up files that the parent uses.
            if self._connection is not None:
                self._of_parents.append(self._connection)
            self._connection, self._uses, self._pid = None, {}, os.getpid()
        if self._connection is not None:
            if self._file == modes.file_at(self.path):
                return self._connection
            self._connection.close()  # somebody took the file away
            self._connection = None
        self._connection = chain.opened(str(self.path), busy_seconds=self._busy_seconds)
        self._file = modes.file_at(self.path)
        return self._connection

    def _now(self) -> float:
        return self._clock.now().timestamp()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Put SQLite's errors into our words."""
    try:
        yield
    except (sqlite3.Error, UnicodeEncodeError) as error:
        raise chain.unwritable(str(path), error) from error


def person() -> str:
    """Name who acts: the user whose process this is."""
    try:
        return f"person:{pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"person:{os.geteuid()}"


def who_of(client: str) -> str:
    """Name a client of the gateway: `key:ID` of a valet key, `run:ID` as it is, "unknown" for none."""
    return client if ":" in client else f"key:{client}" if client else "unknown"


def _without_secrets(value: Mapping[str, object]) -> dict[str, object]:
    return {name: _clean(found) for name, found in value.items()}


def _clean(value: object) -> object:
    match value:
        case str():
            return redact(value)
        case Mapping():
            return _without_secrets(value)
        case list() | tuple():
            return [_clean(one) for one in value]
        case None | bool() | int():
            return value
    raise TypeError(f"{type(value).__name__} has no place in the audit")
