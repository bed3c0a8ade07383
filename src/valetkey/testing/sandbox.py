"""A sandbox that holds nothing back: the command as a child process, so that what is around it can be tested."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from valetkey.sandbox import Overrun, Spec, Started

__all__ = ["FakeSandbox"]


class _Process:
    """A child process."""

    overrun: Overrun | None = None

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        status = self._process.wait()
        return 128 - status if status < 0 else status

    def stop(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()


@dataclass(frozen=True, kw_only=True)
class _Over:
    """A function that has been called."""

    status: int
    pid: int = field(default_factory=os.getpid)
    overrun: Overrun | None = None

    def signal(self, number: int) -> None:
        """See Started: it is over."""

    def wait(self) -> int:
        return self.status

    def stop(self, seconds: float) -> None:
        """See Started: it is over."""


@dataclass(kw_only=True)
class FakeSandbox:
    """A valetkey.sandbox.Sandbox that keeps every spec that it was started with, in `specs`.

    The command runs as an ordinary child process, in the workspace itself, with the spec's environment and PATH: so
    give it none that you would not run yourself. With `runs`, no process begins: that is called with the spec, and what
    it gives is the exit status. `fault` is raised by `check`.
    """

    id: str = "plain"
    own_programs: bool = False
    specs: list[Spec] = field(default_factory=list)
    fault: Exception | None = None
    runs: Callable[[Spec], int] | None = None

    def check(self) -> None:
        """Raise what the test wants."""
        if self.fault is not None:
            raise self.fault

    def lacking(self, programs: Sequence[str], *, path: str) -> list[str]:
        """Look where this machine has them."""
        return [name for name in programs if shutil.which(name, path=path) is None]

    def clear(self) -> None:
        """Nothing is left of a run that has no parent any more."""

    def start(self, spec: Spec, *, stdin: int, stdout: int, stderr: int) -> Started:
        """Run the command in the workspace."""
        self.specs.append(spec)
        if self.runs is not None:
            return _Over(status=self.runs(spec))
        environment = dict(spec.environment) | {"PATH": os.environ["PATH"]}
        return _Process(
            subprocess.Popen(  # noqa: S603  # the test's own command
                spec.command, cwd=spec.workspace, env=environment, stdin=stdin, stdout=stdout, stderr=stderr
            )
        )
