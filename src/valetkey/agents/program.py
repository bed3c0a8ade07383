"""Finds an agent's program, and what of the host has to be mounted so that it runs in a sandbox."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from valetkey.agent import Agent
from valetkey.errors import AgentNotInstalled, WorkspaceRefused
from valetkey.sandbox import Mount
from valetkey.workspace import check_mount

__all__ = ["Program", "located"]

# Below it, all that is not in /usr. Nothing else is there in a sandbox.
_INSIDE = "/opt/valetkey/programs"
_IN_EVERY_SANDBOX = Path("/usr")
_PACKAGES = "node_modules"


@dataclass(frozen=True, kw_only=True)
class Program:
    """How a program is called inside, and what is mounted for it, read-only."""

    command: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()


def located(
    agent: Agent, *, configured: str | None, environ: Mapping[str, str], home: Path, valetkey_home: Path
) -> Program:
    """Find the program of an agent: what is configured, else on PATH.

    A file that lies in an npm `node_modules` is mounted with the outermost such folder, any other one alone; a script
    is called by its interpreter, which is mounted too.

    Raises: AgentNotInstalled; WorkspaceRefused where it lies in a place that no sandbox is given.
    """
    path = environ.get("PATH", os.defpath)
    found = shutil.which(configured or agent.program, path=path)
    if found is None:
        where = f"at {configured}" if configured else "on PATH"
        raise AgentNotInstalled(f"there is no program {agent.program} {where}", hint=agent.install)
    real = Path(found).resolve()
    program = _placed(real, agent.id)
    interpreter = _interpreter(real)
    if interpreter is None:
        parts = [program]
    else:
        at = shutil.which(interpreter, path=path)
        if at is None:
            raise AgentNotInstalled(
                f"{found} needs {interpreter}, which is not there", hint=f"install {Path(interpreter).name}"
            )
        parts = [_placed(Path(at).resolve(), Path(interpreter).name), program]
    try:
        mounts = [check_mount(mount, home=home, valetkey_home=valetkey_home) for _, mount in parts if mount is not None]
    except WorkspaceRefused as refused:
        raise WorkspaceRefused(
            refused.message, hint=f"install it elsewhere, and name it as agents.{agent.id}.program in config.toml"
        ) from refused
    return Program(command=tuple(inside for inside, _ in parts), mounts=tuple(mounts))


def _placed(real: Path, name: str) -> tuple[str, Mount | None]:
    """Give its path inside, and what is mounted for it."""
    if real.is_relative_to(_IN_EVERY_SANDBOX):
        return str(real), None
    root = next((above for above in reversed(real.parents) if above.name == _PACKAGES), real)
    target = f"{_INSIDE}/{name}/{root.name}"
    below = real.relative_to(root)
    return os.path.normpath(f"{target}/{below}"), Mount(source=root, target=target)


def _interpreter(real: Path) -> str | None:
    """Give what a script names in its first line, without options; None for what is no script."""
    with open(real, "rb") as file:
        line = file.readline(256)
    words = line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    return words[0] if words else None
