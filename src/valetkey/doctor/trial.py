"""What the layers hand on to each other, and the run that the gateway is asked as.

It is no run that `runs list` has, for nobody began one: its grants, socket and folder are gone when the looking ends.
Where that is killed the gateway takes back what was granted, as from any run whose lock nobody holds, and the next look
removes the folder.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import valetkey
from valetkey import serving
from valetkey.doctor.finding import Parts
from valetkey.stores import modes
from valetkey.stores.locks import try_lock_file

if TYPE_CHECKING:
    from valetkey.account_state import AccountState
    from valetkey.credential import CredentialRef
    from valetkey.doctor.question import Question
    from valetkey.gateway.runs import BegunRun

__all__ = ["Trial"]

# Of an id that no run of a person's has: those are hexadecimal.
_PREFIX = "doctor-"


class Trial:
    """What is known so far, and what was begun for it."""

    def __init__(self, parts: Parts, *, policy: str | None, policy_file: str) -> None:
        self.policy = policy
        self.policy_file = policy_file
        self.accounts: Sequence[AccountState] = ()
        self.unreachable: set[str] = set()
        # Stored accounts that their provider takes, what is asked of them through the gateway, and what was answered.
        self.good: list[CredentialRef] = []
        self.asked: Sequence[Question] = ()
        self.answered: list[Question] = []
        self.locked = False
        self.started = False
        self.folder = Path()
        self.begun: BegunRun | None = None
        self._parts = parts
        self._after = ExitStack()

    def start_gateway(self) -> Mapping[str, Any]:
        """Start a gateway that ends with this. Raises: GatewayFailed, and what its start raised."""
        from valetkey.gateway import background

        found = background.up(self._parts.paths, environ=self._parts.environ, version=valetkey.__version__)
        if found.how == "started":
            self.started = True
            self._after.callback(background.down, self._parts.paths, now=True)
        return found.about

    def begin(self, grants: Sequence[CredentialRef]) -> BegunRun:
        """Grant these, and give the run. Raises: what `Runs.begin` raises."""
        from valetkey.gateway.runs import Runs

        parts, runs = self._parts, Runs(self._parts.store, self._parts.clock)
        self._sweep()
        run = _PREFIX + secrets.token_hex(6)
        self.folder = parts.paths.run_lock(run).parent
        for folder in (parts.paths.runs, self.folder):
            modes.own_folder(str(folder))
        self._after.callback(shutil.rmtree, self.folder, ignore_errors=True)
        lock = try_lock_file(parts.paths.run_lock(run))
        assert lock is not None  # noqa: S101  # nobody else knows the folder
        self._after.callback(lock.release)
        self._after.callback(serving.poke, str(parts.paths.home))
        self._after.callback(runs.end, run)
        self.begun = runs.begin(
            run=run,
            grants=grants,
            catalogue=parts.catalogue,
            environ=parts.environ,
            paths=parts.paths,
            policy=self.policy,
            policy_file=self.policy_file,
        )
        serving.poke(str(parts.paths.home))
        return self.begun

    def close(self) -> None:
        """End what was begun."""
        self._after.close()

    def _sweep(self) -> None:
        """Remove what a look that was killed left."""
        for folder in self._parts.paths.runs.glob(f"{_PREFIX}*"):
            lock = folder / "lock"
            if lock.exists() and not modes.is_locked(str(lock)):
                shutil.rmtree(folder, ignore_errors=True)
