"""Programs under the benchmark: started on one core, watched through /proc, and ended by their process id."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Busy", "Cores", "Process", "cores", "free_port", "more_files", "started", "tool"]

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Load and upstream share one, the proxy has the other."""

    load: int
    proxy: int


def cores() -> Cores:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("two cores are needed: one for the proxy, one for load and upstream")
    return Cores(load=usable[0], proxy=usable[1])


def tool(name: str) -> str:
    """Give the path of a program; Debian keeps some where an ordinary user's PATH does not look."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise SystemExit(f"{name} is not here; `make bench-gateway` installs it")
    return path


def more_files() -> None:
    """Let this process and its children open as many files as the system allows: 1,000 streams are 2,000 sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Process:
    """A running program with what it started."""

    name: str
    pid: int

    def family(self) -> list[int]:
        pids = [self.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    pids += [int(child) for child in children.read_text().split()]
        return pids

    def cpu_seconds(self) -> float:
        """Give the processor time that it and its children have taken, in user and kernel."""
        total = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])  # utime, stime: proc(5)
        return total / _TICKS

    def rest(self) -> None:
        """Wait until it is idle: some go on with requests whose client has left."""
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            before = self.cpu_seconds()
            time.sleep(0.1)
            if self.cpu_seconds() - before < 0.02:
                return

    def resident_mb(self) -> float:
        pages = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6


class Busy:
    """How busy a core was from here on, whoever used it."""

    def __init__(self, core: int) -> None:
        self._core = core
        self._idle, self._total = self._read()

    def _read(self) -> tuple[int, int]:
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith(f"cpu{self._core} "):
                ticks = [int(field) for field in line.split()[1:9]]
                return ticks[3] + ticks[4], sum(ticks)
        return 0, 0

    def percent(self) -> float:
        idle, total = self._read()
        return 100 * (1 - (idle - self._idle) / max(1, total - self._total))


@contextlib.contextmanager
def started(
    name: str,
    argv: Sequence[str],
    *,
    core: int,
    ports: Sequence[int],
    log: Path,
    environ: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> Iterator[Process]:
    """Run a program on one core until the block ends; it is there once all of its ports answer."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "HOME") if key in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *argv],  # taskset executes it: the process id stays
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**kept, **(environ or {})},
            start_new_session=True,
        )
    running = Process(name=name, pid=process.pid)
    try:
        limit = time.monotonic() + seconds
        for port in ports:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > limit:
                    raise SystemExit(f"{name} did not start: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.05)
        yield running
    finally:
        _end(process, running)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end(process: subprocess.Popen[bytes], running: Process) -> None:
    children = running.family()[1:]
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in children:
        # One that went with its parent is gone already; its number is not given away so soon.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
