"""A sandbox that holds nothing back: the command as a child process, so that what is around it can be tested."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field

from valetkey.sandbox import Spec

__all__ = ["PlainSandbox"]


class _Started:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.overrun = None

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


@dataclass
class PlainSandbox:
    """Keeps every spec that it was started with."""

    id: str = "plain"
    specs: list[Spec] = field(default_factory=list)
    fault: Exception | None = None

    def check(self) -> None:
        """Raise what the test wants."""
        if self.fault is not None:
            raise self.fault

    def start(self, spec: Spec, *, stdin: int, stdout: int, stderr: int) -> _Started:
        """Run the command in the workspace."""
        self.specs.append(spec)
        environment = dict(spec.environment) | {"PATH": os.environ["PATH"]}
        return _Started(
            subprocess.Popen(
                spec.command, cwd=spec.workspace, env=environment, stdin=stdin, stdout=stdout, stderr=stderr
            )
        )
