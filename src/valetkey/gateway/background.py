"""Starts the gateway in the background when somebody needs it, and ends it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from valetkey import serving
from valetkey.config import Paths
from valetkey.errors import GatewayDown, GatewayFailed, ValetkeyError
from valetkey.proxies import without_gateway
from valetkey.stores import modes
from valetkey.stores.locks import try_lock_file

__all__ = ["Up", "down", "up"]

# Loading takes a second; this is for a machine under load.
_START_SECONDS = 30.0
# Another one that starts it may have to end an old one first.
_LOCK_SECONDS = 90.0
# Drains for 30 s at most, then saves what it has.
_END_SECONDS = 45.0
_END_NOW_SECONDS = 15.0
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Up:
    """A gateway that answers. `about` is what it says of itself."""

    how: Literal["running", "started", "restarted"]
    about: Mapping[str, Any]


def up(
    paths: Paths, *, environ: Mapping[str, str], version: str, tell: Callable[[str], None] = lambda text: None
) -> Up:
    """See to it that a gateway of this version runs, and give it. However many call this at once, one is started.

    `tell` hears what takes long. Raises: GatewayFailed and what its start raised; GatewayDown where it is stopped.
    """
    home = os.path.abspath(paths.home)
    with _starting(paths):
        found = _ready(home)
        if found is not None and found.get("version") == version:
            serving.ask(home, "GET", "/status", patience_seconds=_ANSWER_SECONDS)
            return Up(how="running", about=found)
        if found is not None:
            tell(f"the gateway is of version {found.get('version')}: starting it anew")
            down(paths)
        _spawn(home, environ)
        started = serving.running(home)
        if started is None:
            raise _not_started(home)
        return Up(how="restarted" if found is not None else "started", about=started)


def down(paths: Paths, *, now: bool = False) -> bool:
    """End the gateway after what is under way, or at once; False where none runs. Raises: GatewayFailed."""
    home = os.path.abspath(paths.home)
    if not serving.is_alive(home):
        return False
    found = serving.about(home)
    pid = found.get("pid") if found is not None else None
    try:
        serving.ask(home, "POST", "/stop", {"now": now}, patience_seconds=_ANSWER_SECONDS)
    except ValetkeyError:
        # The process holds the lock, so the number is its own and nobody else's.
        if isinstance(pid, int) and serving.is_alive(home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + (_END_NOW_SECONDS if now else _END_SECONDS)
    while serving.is_alive(home):
        if time.monotonic() > end:
            raise GatewayFailed(
                f"the gateway (process {pid}) does not end", hint=f"look at what it does, or run `kill -9 {pid}`"
            )
        time.sleep(0.02)
    return True


@contextmanager
def _starting(paths: Paths) -> Iterator[None]:
    for folder in (str(paths.home), str(paths.run)):
        modes.own_folder(folder)
    end = time.monotonic() + _LOCK_SECONDS
    while (lock := try_lock_file(paths.run / serving.STARTING)) is None:
        if time.monotonic() > end:
            raise GatewayFailed("another process has been starting the gateway for too long", hint="try again")
        time.sleep(0.02)
    try:
        yield
    finally:
        lock.release()


def _ready(home: str) -> dict[str, Any] | None:
    """Give the gateway that runs; one that is just starting is waited for."""
    end = time.monotonic() + _START_SECONDS
    while serving.is_alive(home):
        if (found := serving.running(home)) is not None:
            return found
        if time.monotonic() > end:
            raise GatewayDown("a gateway has begun to start and does not get ready", hint="run `valetkey doctor`")
        time.sleep(0.02)
    return None


def _spawn(home: str, environ: Mapping[str, str]) -> None:
    """Start `serve`, and wait until it says that it is ready, or why not.

    It detaches itself once its settings are read. `-P`: no module is taken from the folder that we happen to be in.
    """
    # Its words are JSON on stdout: the address, or an error. Then it lets go of the pipe.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "valetkey", "serve", "--background", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Our shell may be set up for this very gateway.
        env={**without_gateway(environ), "VALETKEY_HOME": home},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101  # it was asked for
        said = _read_all(process.stdout.fileno())
    try:
        told = json.loads(said)
    except ValueError:
        raise _not_started(home) from None
    if "error" in told:
        raise serving.error_from(told["error"])


def _read_all(descriptor: int) -> bytes:
    end, pieces = time.monotonic() + _START_SECONDS, [b""]
    while (left := end - time.monotonic()) > 0 and select.select([descriptor], [], [], left)[0]:
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def _not_started(home: str) -> GatewayFailed:
    log = os.path.join(home, "run", serving.LOG)
    return GatewayFailed("the gateway did not start", hint=f"run `valetkey serve` to see why, or look into {log}")
