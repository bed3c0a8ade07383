"""What is kept of a run: `runs/<id>/` with run.json, output.log, and the home that it had.

A run lives as long as somebody holds the lock of its folder: the process that is its parent does, whatever else dies.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from valetkey.clock import Clock, written
from valetkey.config import Paths
from valetkey.errors import RecordDamaged, RunGoesOn, UnknownRun
from valetkey.sandbox import Limits, Mount
from valetkey.stores import modes
from valetkey.stores.locks import FileLock, try_lock_file

__all__ = ["HOME", "OUTPUT", "RECORD", "Records", "Run", "State", "read", "save"]

RECORD, OUTPUT, HOME = "run.json", "output.log", "home"
State = Literal["running", "ended", "lost"]
_FORMAT = 1
_ID = re.compile(r"[0-9a-f]{12}\Z")
_SHORTEST_PREFIX = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it is kept. `grants` are `provider@account`; `exit_status` is None where nobody saw its end.

    `pid` is the process that is its parent. `home_of` is the run whose home it went on with. `account` is what its
    agent used of the grants, `method` the login of that account. `mcp` are the names of its MCP servers. `read_only`,
    `allow` and `policy` (a text, None for none) are what it was held to, `mounts` and `limits` too. `variables` are
    those that were named for it: `NAME` for one of its starter's environment, `NAME=` for one whose value was typed; no
    value is kept, for it may be a secret. `image` is what its sandbox was made of, "" where that takes none. `bytes` is
    what its folder took when it ended.
    """

    id: str
    command: tuple[str, ...]
    grants: tuple[str, ...]
    workspace: str
    sandbox: str
    created_at: datetime
    image: str = ""
    agent: str | None = None
    account: str | None = None
    method: str | None = None
    home_of: str | None = None
    read_only: bool = False
    allow: tuple[str, ...] = ()
    mcp: tuple[str, ...] = ()
    policy: str | None = None
    policy_file: str = ""
    mounts: tuple[Mount, ...] = ()
    variables: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    pid: int | None = None
    ended_at: datetime | None = None
    exit_status: int | None = None
    bytes: int | None = None


class Records:
    """The runs of one home, by whichever process they were made."""

    def __init__(self, paths: Paths, clock: Clock) -> None:
        self.folder = paths.runs
        self._paths = paths
        self._clock = clock

    def create(self, command: tuple[str, ...], *, workspace: Path, **more: Any) -> tuple[Run, FileLock]:
        """Make a record with its folder, 0700, and hold its lock; `more` are fields of it.

        Raises: WrongMode, StoreUnwritable.
        """
        for folder in (self._paths.home, self.folder):
            modes.own_folder(str(folder))
        while (at := self.folder / (run_id := secrets.token_hex(6))).exists():
            pass
        modes.own_folder(str(at))
        lock = try_lock_file(self._paths.run_lock(run_id))
        assert lock is not None  # noqa: S101 - nobody else knows the folder yet
        run = Run(id=run_id, command=command, workspace=str(workspace), created_at=self._clock.now(), **more)
        if run.home_of is None:
            modes.own_folder(str(at / HOME))
        save(at, run)
        return run, lock

    def at(self, run: Run) -> Path:
        """Give the folder of a run."""
        return self.folder / run.id

    def home(self, run: Run) -> Path:
        """Give the home that the run has: its own, or that of the run which it goes on with."""
        return self.folder / (run.home_of or run.id) / HOME

    def check_home(self, run: Run) -> None:
        """See that a run has its home, and alone. Raises: UnknownRun, RunGoesOn."""
        home = run.home_of or run.id
        if not self.home(run).is_dir():
            raise UnknownRun(f"the home of the run {home} is not there any more", hint="begin a new run")
        for other in self.all():
            if home in (other.id, other.home_of) and other.id != run.id and self.state(other) == "running":
                raise RunGoesOn(
                    f"the run {other.id} goes on in that home", hint=f"run `valetkey runs stop {other.id}` first"
                )

    def all(self) -> list[Run]:
        """Give every run that can be read, the last begun first."""
        found = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                if _ID.match(entry.name):
                    with suppress(RecordDamaged, FileNotFoundError):
                        found.append(read(self.folder / entry.name))
        return sorted(found, key=lambda run: run.created_at, reverse=True)

    def find(self, id: str) -> Run:
        """Give a run by its id, or the beginning of it. Raises: UnknownRun, RecordDamaged."""
        if _ID.match(id) and (self.folder / id / RECORD).exists():
            return read(self.folder / id)
        found = [run for run in self.all() if len(id) >= _SHORTEST_PREFIX and run.id.startswith(id)]
        if len(found) != 1:
            which = "more than one run begins with" if found else "there is no run"
            raise UnknownRun(f"{which} {id[:40]!r}", hint="see `valetkey runs list`")
        return found[0]

    def state(self, run: Run) -> State:
        """Say how it is: one whose parent died before it could write the end is lost."""
        if run.ended_at is not None:
            return "ended"
        return "running" if self.is_alive(run.id) else "lost"

    def is_alive(self, id: str) -> bool:
        """Say whether the parent of this run lives."""
        return modes.is_locked(str(self._paths.run_lock(id)))

    def end(self, run: Run, exit_status: int | None) -> Run:
        """Write that it has ended."""
        run = replace(run, ended_at=self._clock.now(), exit_status=exit_status, bytes=size_of(self.at(run)))
        save(self.at(run), run)
        return run

    def outdated(self, *, keep_days: int, most_bytes: int) -> list[Run]:
        """Give those to be removed: that ended so long ago, and the oldest where all together take more room than that.

        One that goes on counts and stays, and so does one whose home another one that stays has.
        """
        runs = self.all()
        begins = self._clock.now() - timedelta(days=keep_days)
        room, found = most_bytes, []
        for run in runs:
            room -= run.bytes or 0
            if run.ended_at is not None and (run.ended_at < begins or room < 0):
                found.append(run)
        needed = {run.home_of for run in runs if run not in found}
        return [run for run in found if run.id not in needed]

    def remove(self, run: Run) -> None:
        """Remove all of it. Raises: RunGoesOn; RunGoesOn too where another run lives in its home."""
        for other in self.all():
            if run.id in (other.id, other.home_of) and self.state(other) == "running":
                raise RunGoesOn(f"the run {other.id} goes on", hint=f"run `valetkey runs stop {other.id}` first")
        _remove(self.at(run))


def size_of(folder: Path) -> int:
    """Give how many bytes the files below it have; links are not followed, nor what is too deep for a path."""
    # What ran there may have made a thousand folders in each other.
    total, waiting = 0, [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:  # removed in between, or closed
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    with suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def _remove(folder: Path) -> None:
    """Remove a folder with all below it, however deep that is and whatever modes it has. No link is followed."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(folder, os.O_RDONLY | flags)
    try:
        while names := os.listdir(top):
            for name in names:
                if _opened_up(name, top):
                    # Those in it are put beside it: neither the stack nor the descriptors grow with the depth.
                    at = os.open(name, os.O_RDONLY | flags, dir_fd=top)
                    try:
                        for below in os.listdir(at):
                            if _opened_up(below, at):
                                os.rename(below, f".{secrets.token_hex(8)}", src_dir_fd=at, dst_dir_fd=top)
                            else:
                                os.unlink(below, dir_fd=at)
                    finally:
                        os.close(at)
                    os.rmdir(name, dir_fd=top)
                else:
                    os.unlink(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(folder)


def _opened_up(name: str, at: int) -> bool:
    """Say whether it is a folder; one is made ours to enter and to change."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
        return False
    # Only a path takes a mode that shuts us out, and only a descriptor is no link meanwhile.
    held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        os.chmod(f"/proc/self/fd/{held}", 0o700)
    finally:
        os.close(held)
    return True


def save(folder: Path, run: Run) -> None:
    """Write run.json, whole or not at all. Raises: StoreUnwritable."""
    path, fresh = folder / RECORD, folder / f"{RECORD}.{os.getpid()}"
    times = {
        name: written(value) if value else None
        for name in ("created_at", "ended_at")
        for value in (getattr(run, name),)
    }
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    modes.create_file(
        str(fresh), json.dumps({"format": _FORMAT, **asdict(run), **times}, indent=1, default=str).encode() + b"\n"
    )
    os.replace(fresh, path)


def read(folder: Path) -> Run:
    """Read run.json. Raises: RecordDamaged, FileNotFoundError."""
    content = (folder / RECORD).read_bytes()
    try:
        found = json.loads(content)
        if found.pop("format") != _FORMAT:
            raise ValueError
        return Run(
            **found
            | {"command": tuple(found["command"]), "grants": tuple(found["grants"])}
            | {name: tuple(found.get(name, ())) for name in ("allow", "mcp", "variables")}
            | {"mounts": tuple(Mount(**one | {"source": Path(one["source"])}) for one in found.get("mounts", ()))}
            | {"limits": Limits(**found.get("limits", {}))}
            | {name: _time(found, name) for name in ("created_at", "ended_at")}
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RecordDamaged(f"{folder / RECORD} cannot be read", hint="update Valetkey, or remove the folder") from None


def _time(found: Mapping[str, str | None], name: str) -> datetime | None:
    value = found[name]
    return None if value is None else datetime.fromisoformat(value)
