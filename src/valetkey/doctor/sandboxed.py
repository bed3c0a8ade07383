"""The layers of the sandbox: can one be made here, and is the gateway answered from inside?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from valetkey.doctor.finding import ASK_SECONDS, Finding, Parts, looked
from valetkey.doctor.question import MOST_BYTES, Question
from valetkey.doctor.through import finding_of
from valetkey.errors import RunError, SandboxFailed, ValetkeyError
from valetkey.sandbox import PROXY_PORT, Limits, Spec
from valetkey.stores import modes

if TYPE_CHECKING:
    from valetkey.doctor.trial import Trial

__all__ = ["asked", "there"]

_SANDBOX = "bubblewrap"
LAYER = "inside sandbox"
# Each question in hexadecimal is an argument, each answer a line: what came, or behind "!" why nothing did.
# No more of Python than Debian's python3-minimal has.
_PROGRAM = f"""
import socket, sys
for question in sys.argv[1:]:
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", {PROXY_PORT}), {ASK_SECONDS}) as connection:
            connection.sendall(bytes.fromhex(question))
            while len(received) < {MOST_BYTES}:
                piece = connection.recv({MOST_BYTES})
                if not piece:
                    break
                received += piece
    except OSError as error:
        print("!", error, flush=True)
    else:
        print(received.hex(), flush=True)
"""
_START_SECONDS = 10.0
_MEMORY_BYTES = 512 << 20


def there() -> Iterator[Finding]:
    """Find out whether a sandbox can be made here."""
    from valetkey.sandboxes import sandbox_for

    if os.geteuid() == 0:
        yield Finding(layer="sandbox", subject=_SANDBOX, skipped="root starts no run")
        return

    def check() -> str:
        sandbox_for(_SANDBOX).check()
        return "works here"

    yield looked("sandbox", _SANDBOX, check)


def asked(parts: Parts, trial: Trial) -> Iterator[Finding]:
    """Ask from inside what was answered through the gateway outside."""
    for question in trial.asked:
        if question not in trial.answered:
            yield Finding(layer=LAYER, subject=str(question.ref), skipped="it is not answered outside either")
    if not trial.answered:
        return
    try:
        lines = _run(trial)
    except (ValetkeyError, OSError) as error:
        failed = error if isinstance(error, ValetkeyError) else SandboxFailed(str(error), hint="see docs/sandbox.md")
        yield Finding(layer=LAYER, subject=_SANDBOX, error=failed)
        return
    for question, line in zip(trial.answered, lines, strict=True):
        yield finding_of(LAYER, question, partial(_received, line))


def _run(trial: Trial) -> list[str]:
    """Give a line for each question. Raises: SandboxUnavailable, SandboxFailed, RunError, OSError."""
    from valetkey.sandboxes import sandbox_for

    assert trial.begun is not None  # noqa: S101  # the only caller looked
    home, workspace = trial.folder / "home", trial.folder / "workspace"
    for folder in (home, workspace):
        modes.own_folder(str(folder))
    seconds = _START_SECONDS + ASK_SECONDS * len(trial.answered)
    spec = Spec(
        command=("/usr/bin/env", "python3", "-I", "-S", "-c", _PROGRAM, *(_hex(q) for q in trial.answered)),
        workspace=workspace,
        workspace_read_only=True,
        home=home,
        gateway=trial.begun.folder,
        limits=Limits(seconds=seconds, memory_bytes=_MEMORY_BYTES),
    )
    with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = sandbox_for(_SANDBOX).start(spec, stdin=nothing.fileno(), stdout=out.fileno(), stderr=err.fileno())
        try:
            status = started.wait()
        finally:
            started.stop(0)
        out.seek(0)
        err.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
        if status or len(lines) != len(trial.answered):
            words = err.read(500).decode(errors="replace").strip() or f"it ended with {status}"
            raise RunError(f"the program inside did not do its work: {words}", hint="see docs/sandbox.md")
        return lines


def _hex(question: Question) -> str:
    return question.as_bytes().hex()


def _received(line: str) -> bytes:
    """Give what came inside. Raises: SandboxFailed."""
    if line.startswith("!"):
        raise SandboxFailed(
            f"the run's gateway is not reached from inside: {line[1:].strip().lower()}",
            hint="see `valetkey trace`, and docs/sandbox.md",
        )
    return bytes.fromhex(line)
