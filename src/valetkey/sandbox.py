"""What a sandbox is: what it is asked to run, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

__all__ = [
    "ADDRESS",
    "AGENT_HOME",
    "GATEWAY",
    "PROXY_PORT",
    "WORKSPACE",
    "Limits",
    "Mount",
    "Overrun",
    "Sandbox",
    "Spec",
    "Started",
]

# Where things are inside, in every sandbox.
WORKSPACE = "/workspace"
AGENT_HOME = "/home/agent"
GATEWAY = "/run/valetkey"
# On 127.0.0.1 inside: all that comes there is passed on to the run's gateway.
PROXY_PORT = 3128
ADDRESS = f"http://127.0.0.1:{PROXY_PORT}"

# Which limit the sandbox ended a run for.
Overrun = Literal["memory", "time"]


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A file or folder of the host, and its absolute path inside."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may use at most; None is no limit. docs/sandbox.md says what each does not hold.

    `memory_bytes` is that of all processes together, `processes` counts threads too, `seconds` is wall time,
    `file_bytes` the size of one file.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    seconds: float | None = None
    file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One command and all that it has of the host.

    `gateway` is a folder with `gateway.sock`, mounted as a folder, so that a socket bound anew is reached too.
    `environment` is all of it, but for PATH, HOME, USER and LANG where it does not name them: nothing of the host's
    goes in. `files` are absolute paths inside and their contents,
    read-only, below /etc or /opt.
    """

    command: tuple[str, ...]
    workspace: Path
    home: Path
    gateway: Path
    workspace_read_only: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    limits: Limits = field(default_factory=Limits)


class Started(Protocol):
    """A command in a sandbox, under way or over. It ends with the process that started it."""

    @property
    def pid(self) -> int:
        """The host's id of the sandbox's outermost process."""
        ...

    @property
    def overrun(self) -> Overrun | None:
        """The limit that it was ended for, once `wait` has returned."""
        ...

    def wait(self) -> int:
        """Wait until nothing of it is left; give its exit status as a shell does: 128 and the signal that ended it."""
        ...

    def signal(self, number: int) -> None:
        """Send the command's process group a signal. Nothing happens to one that is over."""
        ...

    def stop(self, seconds: float) -> None:
        """Send SIGTERM to the command's process group; end all that is left after that time; return when it is gone."""
        ...


class Sandbox(Protocol):
    """A way to run a command from which nothing of the host is reachable but what its Spec names."""

    @property
    def id(self) -> str:
        """The name that settings and records call it by."""
        ...

    @property
    def own_programs(self) -> bool:
        """Whether the programs inside are those of an image, and not the host's /usr."""
        ...

    def check(self) -> None:
        """Find out whether it works here.

        Raises: SandboxUnavailable: its hint is the command that mends it.
        """
        ...

    def start(self, spec: Spec, *, stdin: int, stdout: int, stderr: int) -> Started:
        """Start the command on three descriptors, which stay the caller's; return when it is about to run.

        Where stdin is a terminal, it becomes the command's controlling one.

        Raises: SandboxUnavailable, SandboxFailed, WorkspaceRefused.
        """
        ...

    def lacking(self, programs: Sequence[str], *, path: str) -> list[str]:
        """Give those of these programs that a command inside would not find in the folders of `path`.

        Raises: SandboxUnavailable.
        """
        ...

    def clear(self) -> None:
        """End what there may still be of the run that it was made for, once nobody is its parent any more.

        Raises: SandboxUnavailable.
        """
        ...
