"""Runs another command beside that of a live run: in a second sandbox with all that the first one has."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from dataclasses import replace

from valetkey.errors import RunError
from valetkey.runs import parent
from valetkey.runs.environment import BUNDLE, CERTIFICATE, files
from valetkey.runs.order import Order
from valetkey.runs.record import Records, Run
from valetkey.sandbox import Sandbox, Started

__all__ = ["join", "kept", "over"]


def kept(order: Order) -> str:
    """Give what has to be kept of an order for whoever joins: it may hold a secret that a person typed.

    The bundle of authorities is left out: it is large, and made anew.
    """
    rest = {path: content for path, content in order.spec.files.items() if path != BUNDLE}
    return replace(order, spec=replace(order.spec, files=rest)).as_json()


def join(
    run: Run, order: str | None, command: Sequence[str], *, records: Records, sandbox: Sandbox, system_bundle: bytes
) -> int:
    """Run a command with the home, workspace and grants of a run that goes on; give its exit status.

    `order` is what `kept` gave, None where there is none any more. The command is ended when the run ends. What it
    says is kept with what the run says. Called in the main thread.

    Raises: RunError where the run is over; what `Sandbox.start` raises.
    """
    try:
        # Before the run is looked at: it is this process then and no later one of its number.
        handle = os.pidfd_open(run.pid) if run.pid is not None else None
    except ProcessLookupError:
        handle = None
    if handle is None or order is None or records.state(run) != "running":
        raise over(run)
    found = Order.from_json(order)
    spec = replace(
        found.spec,
        command=tuple(command),
        files={**found.spec.files, **files(found.spec.files[CERTIFICATE], system_bundle)},
        # Its time is the run's.
        limits=replace(found.spec.limits, seconds=None),
    )
    return parent.run(replace(found, spec=spec), sandbox, started=lambda started: _end_with(handle, started))


def over(run: Run) -> RunError:
    """Say that nothing joins a run that is over."""
    way = f"runs resume {run.id}" if run.agent else "run -- CMD"
    return RunError(f"the run {run.id} is over", hint=f"begin another one: `valetkey {way}`")


def _end_with(handle: int, started: Started) -> None:
    def wait() -> None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
        started.stop(0)

    threading.Thread(target=wait, daemon=True).start()
