"""The command line as a subprocess, without a terminal, in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PATIENCE_SECONDS", "CommandLine", "Done"]

# Whoever waits this long fails: it is for a machine under load, and costs nothing where all is well.
PATIENCE_SECONDS = 60.0
_KEPT = ("PATH", "PYTHONPATH", "LANG", "COVERAGE_PROCESS_START")


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Decode stdout as the one JSON document that it has to be."""
        return json.loads(self.out)


@dataclass(kw_only=True)
class CommandLine:
    """Runs `valetkey` with a VALETKEY_HOME and nothing of the developer's environment.

    `environ` is what it has beside; `through` goes before the command.
    """

    home: Path
    environ: dict[str, str] = field(default_factory=dict)
    through: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take over what a program needs to run at all."""
        user = self.home.parent / "user"
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.environ = {
            **kept,
            "HOME": str(user),
            "VALETKEY_HOME": str(self.home),
            "VALETKEY_STORE_KEY_SOURCE": "key-file",
            # Any free one: tests run side by side.
            "VALETKEY_GATEWAY_PORT": "0",
            **self.environ,
        }

    def __call__(
        self,
        *words: str,
        stdin: str | bytes = b"",
        environ: Mapping[str, str] | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Done:
        """Run it."""
        done = subprocess.run(  # noqa: S603  # our own program, with the words of a test
            [*self.through, sys.executable, "-m", "valetkey", *words],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            env={**self.environ, **(environ or {})},
            capture_output=True,
            timeout=patience_seconds,
            check=False,
        )
        return Done(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())
