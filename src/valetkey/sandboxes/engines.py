"""The programs that make containers, as data: where podman and docker differ, and whom a container runs as in each."""

from __future__ import annotations

import os
import pwd
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from valetkey.workspace import Owner

__all__ = ["DOCKER", "PODMAN", "Engine", "Identity", "identity"]

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A program with docker's command line. `options` are its own ones of `run`, `tmpfs` those of a tmpfs.

    `probe` is the command that fails where the engine does not work, `remedy` what to do then, `install` where it is
    not there at all. `of_caller` says that its containers are the caller's own processes, not those of a daemon.
    `unfit` are words in what the probe says by which the engine cannot serve.
    """

    id: str
    options: tuple[str, ...]
    tmpfs: str
    probe: tuple[str, ...]
    remedy: str
    install: str
    of_caller: bool
    unfit: tuple[str, ...] = ()


PODMAN = Engine(
    id="podman",
    # None of these is podman's default, or the user's containers.conf may say otherwise: no proxy variables of the
    # host, no other variables, no writable tmpfs beside ours, no volumes that the image asks for.
    options=("--http-proxy=false", "--unsetenv-all", "--read-only-tmpfs=false", "--image-volume=ignore"),
    # Else it takes content and mode from the image's folder of that name.
    tmpfs=",notmpcopyup",
    probe=("info", "--format", "{{.Host.OS}}"),
    remedy="see what `podman info` says",
    install="run `sudo apt install podman` (or your system's like), or use `--sandbox bubblewrap`",
    of_caller=True,
)
DOCKER = Engine(
    id="docker",
    # Its client puts the proxies of its own settings in, with what passwords they hold.
    options=tuple(f"--env={name}=" for proxy in _PROXIES for name in (proxy, proxy.lower())),
    tmpfs="",
    probe=("info", "--format", "{{json .SecurityOptions}}"),
    remedy="start it: `sudo systemctl start docker`, or see what `docker info` says",
    install="install Docker, or use `--sandbox podman` or `--sandbox bubblewrap`",
    of_caller=False,
    # There the caller's files belong to nobody inside.
    unfit=("name=rootless", "name=userns"),
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whom the command is inside, and the options of `run` that make it so.

    `alone` says that its processes are counted in a user namespace of ours, and not with all that it has outside.
    """

    uid: int
    gid: int
    options: tuple[str, ...]
    alone: bool


def identity(engine: Engine, owner: Owner | None, *, subuid: Path = Path("/etc/subuid")) -> Identity:
    """Give whom a container runs as: outside always the owner where we are root, else ourselves.

    Inside it is the same number, but with a podman of one's own that has no further user ids: there it is 0, which is
    ourselves outside, without a capability.
    """
    if owner is not None or not engine.of_caller:
        uid, gid = (os.getuid(), os.getgid()) if owner is None else (owner.uid, owner.gid)
        return Identity(uid=uid, gid=gid, options=(f"--user={uid}:{gid}",), alone=False)
    if _has_further_ids(subuid):
        return Identity(uid=os.getuid(), gid=os.getgid(), options=("--userns=keep-id",), alone=True)
    return Identity(uid=0, gid=0, options=("--user=0:0",), alone=True)


def _has_further_ids(subuid: Path) -> bool:
    names = {str(os.getuid())}
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    try:
        lines = subuid.read_text().splitlines()
    except OSError:
        return False
    return shutil.which("newuidmap") is not None and any(line.split(":")[0] in names for line in lines)
