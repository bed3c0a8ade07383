"""The process that is a run's parent: starts the sandbox, keeps what it says, writes how it ended.

The command turns into it (exec), so that it is small, owns the terminal, and lives on whatever happens to the gateway.
While it lives it holds the run's lock; once nobody does, the gateway takes back what the run was granted.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import BinaryIO, NoReturn

from valetkey import serving
from valetkey.audit.recorder import Audit
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.errors import ValetkeyError
from valetkey.runs.order import Order
from valetkey.runs.record import OUTPUT, Records, read, save
from valetkey.sandbox import Sandbox, Started
from valetkey.sandboxes import sandbox_for
from valetkey.workspace import check_in_place

__all__ = ["become", "main", "run", "watch"]

# What is told to end gets so long, in seconds, before it is killed.
_END_SECONDS = 5.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PIECE = 65536
# A gateway that takes longer to tell what was refused is not waited for.
_ASK_SECONDS = 10.0
_NOT_STARTED = 125


def become(order: Order, lock: int) -> NoReturn:
    """Turn this process into the parent of a run. `lock` is what `FileLock.outlive` gave for the run's lock."""
    with tempfile.TemporaryFile() as written:
        written.write(order.as_json().encode())
        written.seek(0)
        os.set_inheritable(written.fileno(), True)
        sys.stdout.flush()
        sys.stderr.flush()
        # `-P`: no module is taken from the folder that we happen to be in.
        argv = [sys.executable, "-P", "-m", "valetkey.runs.parent", str(written.fileno()), str(lock)]
        os.execv(sys.executable, argv)  # noqa: S606 - our own module


def main(argv: Sequence[str]) -> int:
    """Read the order and see to the run."""
    with open(int(argv[0]), "rb") as file:
        order = Order.from_json(file.read().decode())
    os.set_inheritable(int(argv[1]), False)
    return watch(order, sandbox_for(order.sandbox, image=order.image, run=order.run))


def watch(order: Order, sandbox: Sandbox) -> int:
    """Run it to its end, and give the command's exit status; 125 where it could not be started."""
    paths, clock = Paths(home=order.home), SystemClock()
    records = Records(paths, clock)
    record = replace(read(order.folder), pid=os.getpid())
    save(order.folder, record)
    try:
        status = run(order, sandbox)
    except (ValetkeyError, OSError) as error:
        _say(error)
        status = _NOT_STARTED
    with suppress(OSError, ValetkeyError):  # its folder may be gone, the disk full: the status counts all the same
        records.end(record, status)
    _hint(order)
    Audit(paths, clock).tell("run-stopped", who=f"run:{record.id}", detail={"exit_status": status})
    return status


def _hint(order: Order) -> None:
    """Say once what to do where an account was refused to the end."""
    try:
        told = serving.ask(str(order.home), "GET", f"/runs/{order.run}/unrecovered", patience_seconds=_ASK_SECONDS)
    except (ValetkeyError, OSError):
        return  # no gateway runs: nobody has been asked lately
    for found in told["accounts"][:1]:
        _tell(f"{found['account']} was refused with {found['status']} to the end of the run")
        _tell(f"hint: {found['hint']}")
    for server in dict.fromkeys(found["server"] for found in told["withheld"]):
        tools = ", ".join(repr(found["tool"]) for found in told["withheld"] if found["server"] == server)
        _tell(f"what the MCP server {server} says of these tools has changed, and they were withheld: {tools}")
        _tell(f"hint: read `valetkey mcp check {server}`, and if that is right say `valetkey mcp approve {server}`")


def run(order: Order, sandbox: Sandbox, *, started: Callable[[Started], None] = lambda _: None) -> int:
    """Run its command to the end, and give its exit status; what it says is kept too. `started` is told once it runs.

    Raises: WorkspaceRefused; what `Sandbox.start` raises.
    """
    for source in (order.spec.workspace, *(mount.source for mount in order.spec.mounts)):
        check_in_place(source)
    path = order.folder / OUTPUT
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", buffering=0) as log:
        if os.isatty(0) and os.isatty(1):
            from valetkey.sandboxes.terminal import run_on_terminal

            begun: list[Started] = []

            def told(one: Started) -> None:
                begun.append(one)
                started(one)

            status = run_on_terminal(sandbox, order.spec, terminal=0, record=_Kept(log).write, started=told)
            _tell_overrun(begun[0])
            return status
        return _in_pipes(order, sandbox, _Kept(log), started)


class _Kept:
    """Keeps what is said until that cannot be kept any more: the command goes on all the same."""

    def __init__(self, log: BinaryIO) -> None:
        self._log: BinaryIO | None = log

    def write(self, data: bytes) -> None:
        """Keep it. For any thread: the file is opened to append."""
        if self._log is not None:
            try:
                self._log.write(data)
            except OSError as error:
                self._log = None
                _say(error)


def _in_pipes(order: Order, sandbox: Sandbox, log: _Kept, told: Callable[[Started], None]) -> int:
    out, out_side = os.pipe()
    err, err_side = os.pipe()
    try:
        started = sandbox.start(order.spec, stdin=0, stdout=out_side, stderr=err_side)
    finally:
        os.close(out_side)
        os.close(err_side)
    told(started)
    _hand_on_signals(started)
    copiers = [threading.Thread(target=_copy, args=pair) for pair in ((out, 1, log), (err, 2, log))]
    for copier in copiers:
        copier.start()
    status = started.wait()
    for copier in copiers:
        copier.join()
    _tell_overrun(started)
    return status


def _tell_overrun(started: Started) -> None:
    if started.overrun is not None:
        _tell(f"the run was ended: it had reached its limit of {started.overrun}")


def _copy(source: int, target: int, log: _Kept) -> None:
    """Copy until the end. Whoever reads us may have gone: the command goes on all the same."""
    there = True
    while data := os.read(source, _PIECE):
        log.write(data)
        view = memoryview(data)
        while there and view:
            try:
                view = view[os.write(target, view) :]
            except OSError:
                there = False
    os.close(source)


def _hand_on_signals(started: Started) -> None:
    ending = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        if not ending.is_set():
            ending.set()
            threading.Thread(target=started.stop, args=(_END_SECONDS,), daemon=True).start()

    for number in _ENDING:
        signal.signal(number, end)


def _say(error: Exception) -> None:
    hint = f"\nvaletkey: hint: {error.hint}" if isinstance(error, ValetkeyError) else ""
    message = error.message if isinstance(error, ValetkeyError) else (getattr(error, "strerror", None) or str(error))
    _tell(f"error: {message}{hint}")


def _tell(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"valetkey: {text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
