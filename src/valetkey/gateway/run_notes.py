"""Writes into a run's log what its requests wait for: whoever looks there sees why nothing goes on."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from valetkey.config import Paths
from valetkey.credential import CredentialRef, login_command
from valetkey.gateway.approvals import Pending

__all__ = ["RunNotes"]

log = logging.getLogger(__name__)

_LOG = "output.log"


class RunNotes:
    """The logs of the runs of one home. Where one cannot be written nothing else is lost."""

    def __init__(self, paths: Paths) -> None:
        self._runs = paths.runs

    def awaiting(self, pending: Pending) -> None:
        """Tell that a request waits for a login."""
        kind, _, run = pending.client.partition(":")
        provider, _, account = pending.account.partition("@")
        command = login_command(CredentialRef(provider=provider, account=account))
        if kind == "run":
            self.note(run, f"{pending.account} needs a login, and requests wait for it: run `{command}`")

    def note(self, run: str, line: str) -> None:
        """Tell this run's log, where it has one."""
        log.warning("run %s: %s", run, line)
        with suppress(OSError):
            # It is opened to append by the run's parent too.
            at = os.open(self._runs / run / _LOG, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.write(at, f"\nvaletkey: {line}\n".encode())
            finally:
                os.close(at)
