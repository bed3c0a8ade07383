"""`valetkey serve` as a process of its own, with logins and a valet key made by the command line."""

from __future__ import annotations

import contextlib
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.canary import holding
from tests.support.command_line import CommandLine

__all__ = ["GatewayProcess", "serving"]

_PATIENCE_SECONDS = 30
_ADDRESS = re.compile(rb"http://127\.0\.0\.1:[0-9]+")


@dataclass(frozen=True, kw_only=True)
class GatewayProcess:
    """A gateway that runs. `key` is a valet key for every account of it; `log` is what it said."""

    valetkey: CommandLine
    url: str
    ca_file: Path
    key: str = field(repr=False)
    log: Path

    @property
    def proxy_url(self) -> str:
        """Give what goes into HTTPS_PROXY."""
        return self.url.replace("http://", f"http://x:{self.key}@")

    def shows(self, secret: str) -> list[str]:
        """Name the files with this secret in the clear: what it said, its trace, everything in its home."""
        return holding(secret, [self.log, *self.valetkey.home.rglob("*")])


@contextlib.contextmanager
def serving(valetkey: CommandLine, *, key: str, environ: dict[str, str]) -> Iterator[GatewayProcess]:
    """Start it on a free port, and end it by its process id."""
    log = valetkey.home.parent / "serve.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "valetkey", "serve", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**valetkey.environ, **environ},
        )
    try:
        url = _address(process, log)
        ca_file = valetkey.home / "ca" / "ca.pem"
        yield GatewayProcess(valetkey=valetkey, url=url, ca_file=ca_file, key=key, log=log)
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := _ADDRESS.search(log.read_bytes())):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the gateway did not start: {log.read_text()}")
        select.select([], [], [], 0.02)
    return found[0].decode()
