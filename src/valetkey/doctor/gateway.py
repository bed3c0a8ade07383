"""The layer of the gateway's process: does it run, answer, and know the store?"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import valetkey
from valetkey import serving
from valetkey.doctor.finding import ASK_SECONDS, Finding, Parts
from valetkey.errors import GatewayDown, ValetkeyError

if TYPE_CHECKING:
    from valetkey.doctor.trial import Trial

__all__ = ["process"]


def process(parts: Parts, trial: Trial) -> Iterator[Finding]:
    """Ask it how it is. Where none runs and something is to be asked through it, it is started, and ended afterwards.

    One that was killed is a failure, for tools that have its address get no answer; one that was ended is none.
    """
    home = str(parts.paths.home)
    try:
        about = _about(home) or (trial.start_gateway() if trial.good else None)
        if about is None:
            detail, notice = "`valetkey up` starts it", _port_taken(parts)
            yield Finding(layer="gateway", subject="not running", detail=detail, notice=notice)
            return
        told = serving.ask(home, "GET", "/status", patience_seconds=ASK_SECONDS)
    except ValetkeyError as error:
        yield Finding(layer="gateway", subject="the process", error=error)
        return
    trial.locked = bool(told["locked"])
    notices = ["the store is locked: run `valetkey unlock`"] if trial.locked else []
    if about["version"] != valetkey.__version__:
        notices.append(f"it is of version {about['version']}, this is {valetkey.__version__}: run `valetkey up`")
    notices += [f"the valet key {key} does not count: {reason}" for key, reason in told["problems"].items()]
    detail = f"process {about['pid']}, version {about['version']}"
    detail += ", started for this alone" if trial.started else ""
    yield Finding(layer="gateway", subject=about["url"], detail=detail, notice="; ".join(notices))


def _about(home: str) -> Mapping[str, Any] | None:
    """Give what the one that runs says of itself. Raises: GatewayDown for one that was killed."""
    told = serving.about(home)
    if told is not None and not serving.is_alive(home):
        raise GatewayDown(
            f"the gateway (process {told.get('pid')}) was killed", hint="run `valetkey up`, which starts it anew"
        )
    return told


def _port_taken(parts: Parts) -> str:
    host, port = parts.config.text("gateway.host") or "", parts.config.port("gateway.port")
    try:
        socket.create_server((host, port), reuse_port=False).close()
    except OSError as error:
        return f"it could not listen on {host}, port {port}: {(error.strerror or str(error)).lower()}"
    return ""
