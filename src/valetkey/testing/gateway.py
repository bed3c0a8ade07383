"""`valetkey serve` as a process of its own, with logins and a valet key made by the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from valetkey.gateway.keys import proxy_url
from valetkey.testing.canary import holding
from valetkey.testing.command_line import CommandLine, Done
from valetkey.testing.provider import RunningProvider

__all__ = ["GatewayProcess", "serving"]

_PATIENCE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class GatewayProcess:
    """A gateway that runs. `key` is a valet key of it, `log` is what it said, `valetkey` its command line."""

    valetkey: CommandLine
    url: str
    socket: str
    ca_file: Path
    key: str = field(default="", repr=False)
    key_id: str = ""
    log: Path

    @property
    def proxy_url(self) -> str:
        """Give what goes into HTTPS_PROXY."""
        return proxy_url(self.url, self.key)

    def login(self, provider: RunningProvider) -> None:
        """Declare a fake provider here and log in there: with its key where it has one, else with a code."""
        provider.declare(self.valetkey.home)
        if provider.api_key is not None:
            words = ["--method", "api-key", "--key", "-"]
        else:
            words = ["--method", "device", "--no-browser"]
        _good(self.valetkey("login", provider.id, *words, stdin=provider.api_key or ""))

    def create_key(self, *grants: str) -> GatewayProcess:
        """Make another valet key, for these accounts, and give the gateway as its holder sees it."""
        made = _good(self.valetkey("key", "create", *(word for name in grants for word in ("--grant", name)), "--json"))
        return replace(self, key=made.json["key"], key_id=made.json["id"])

    def shows(self, secret: str) -> list[str]:
        """Name the files with this secret in the clear: what it said, its trace, everything in its home."""
        return holding(secret, [self.log, *self.valetkey.home.rglob("*")])


def _good(done: Done) -> Done:
    if done.status != 0:
        raise AssertionError(done.err)
    return done


@contextlib.contextmanager
def serving(valetkey: CommandLine, *, environ: dict[str, str] | None = None) -> Iterator[GatewayProcess]:
    """Start it on a free port, and end it by its process id."""
    log = valetkey.home.parent / "serve.log"
    with log.open("wb") as said:
        process = subprocess.Popen(  # our own program
            [sys.executable, "-m", "valetkey", "serve", "--port", "0", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**valetkey.environ, **(environ or {})},
        )
    # What hangs is ended, and then there is no line to read.
    patience = threading.Timer(_PATIENCE_SECONDS, process.kill)
    patience.start()
    try:
        about = None if process.stdout is None else _first_document(process.stdout)
        patience.cancel()
        if about is None:
            raise AssertionError(f"the gateway did not start: {log.read_text()}")
        ca_file = valetkey.home.parent / "gateway-ca.pem"
        _good(valetkey("ca", "export", str(ca_file)))
        yield GatewayProcess(valetkey=valetkey, url=about["url"], socket=about["socket"], ca_file=ca_file, log=log)
    finally:
        patience.cancel()
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _first_document(stdout: IO[bytes]) -> Any:
    """Read as far as the document goes that is told once the gateway serves; None where it ended before."""
    lines = []
    for line in stdout:
        lines.append(line)
        if line == b"}\n":
            return json.loads(b"".join(lines))
    return None
