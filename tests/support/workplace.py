"""Where a client program works: a home of its own and an environment without anybody's settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ways import Access
from valetkey.testing.canary import holding, holds

__all__ = ["Ran", "Workplace", "node_program", "packaged_program", "python_program"]

_ROOT = Path(__file__).parents[2]
_PROGRAMS = Path(__file__).parent / "programs"
_PATIENCE_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a program left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Decode stdout as the one JSON document that it has to be."""
        assert self.status == 0, self.out + self.err
        return json.loads(self.out)


class Workplace:
    """Runs programs in `folder`, which is their home too, and remembers all that they said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self._said: list[bytes] = []

    def environ(self, access: Access, extra: Mapping[str, str]) -> dict[str, str]:
        """Give what a program gets: the access, and what it needs to run at all."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {**kept, "HOME": str(self.home), "TMPDIR": str(self.folder), **access.environ, **extra}

    def run(
        self, command: Sequence[str], access: Access, extra: Mapping[str, str] | None = None, *, stdin: bytes = b""
    ) -> Ran:
        """Run it to its end; `extra` are further variables."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ(access, extra or {}),
            input=stdin,
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        self.heard(done.stdout, done.stderr)
        return Ran(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    def heard(self, *said: bytes) -> None:
        """Remember what a program said that was not run by `run`."""
        self._said += said

    def holds(self, secret: str) -> list[str]:
        """Name the places where this secret is: what was said, and every file below the folder."""
        said = [f"output {number}" for number, text in enumerate(self._said) if holds(secret, text)]
        return said + holding(secret, self.folder.rglob("*"))


def python_program(name: str, *words: str) -> list[str]:
    """Give the command for `programs/<name>.py`."""
    return [sys.executable, "-W", "ignore", str(_PROGRAMS / f"{name}.py"), *words]


def node_program(name: str) -> list[str]:
    """Give the command for `programs/<name>.mjs`."""
    node = shutil.which("node")
    assert node is not None, "Node 20 is needed: see `make install`"
    return [node, "--no-warnings", str(_PROGRAMS / f"{name}.mjs")]


def packaged_program(package: str, pattern: str) -> str:
    """Give the program that a package brings for this machine; its folder's name ends in the platform's."""
    found = sorted((_ROOT / "node_modules").glob(f"{package}-*/{pattern}"))
    assert found, f"{package} is not installed: run `make install`"
    return str(found[0])
