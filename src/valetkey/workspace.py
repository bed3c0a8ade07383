"""Which folders of the host a sandbox may be given, and whose uid a run takes."""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path

from valetkey.errors import WorkspaceRefused
from valetkey.sandbox import AGENT_HOME, WORKSPACE, Mount

__all__ = [
    "CREDENTIAL_PLACES",
    "Owner",
    "check_file_target",
    "check_in_place",
    "check_mount",
    "check_mount_target",
    "check_workspace",
    "runs_as",
]

# Below the user's home: where tools keep credentials, or the sockets of what keeps them.
_PLACES = """
    .ssh .gnupg .aws .azure .kube .docker .netrc .git-credentials .npmrc .pypirc .pgpass .vault-token .oci .boto .s3cfg
    .password-store .local/share/keyrings .local/share/kwalletd .mozilla .cargo/credentials.toml .config/gh
    .config/gcloud .config/git .config/github-copilot .config/op .config/hub .config/glab-cli .config/google-chrome
    .config/chromium .config/containers .config/rclone .config/doctl .config/sops .claude .claude.json .codex .copilot
    .gemini .local/share/opencode .config/opencode .code-mesh .valetkey
"""
CREDENTIAL_PLACES = tuple(_PLACES.split())

_SYSTEM_PLACES = "/proc /sys /dev /run /var/run /etc /boot /bin /sbin /lib /lib64 /usr"
_SHARED_PLACES = "/ /home /root /tmp /var /var/lib /var/tmp /opt /mnt /srv /media"
# Neither these nor what lies in them. What lies in /usr is in every sandbox as it is.
_SYSTEM = tuple(map(Path, _SYSTEM_PLACES.split()))
# Of these only what lies in them.
_SHARED = tuple(map(Path, _SHARED_PLACES.split()))

# What a sandbox makes itself: a mount over or in one of these would take its walls away, or be led elsewhere by a
# link that an earlier run left.
_INSIDE = "/proc /sys /dev /run /etc /usr /bin /sbin /lib /lib32 /lib64 /libx32 /tmp /var"
_OWN_TARGETS = (*_INSIDE.split(), WORKSPACE, posixpath.dirname(AGENT_HOME))


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whom a run started by root becomes."""

    uid: int
    gid: int


def runs_as(workspace: Path) -> Owner | None:
    """Give whom a run on this workspace becomes: its owner where we are root, else nobody but ourselves (None).

    Raises: WorkspaceRefused: we are root, and so is the owner.
    """
    if os.geteuid() != 0:
        return None
    status = workspace.stat()
    if status.st_uid == 0:
        raise WorkspaceRefused(
            f"{workspace} belongs to root, and nothing is run as root",
            hint="start it as an ordinary user, or give the folder to one: `chown -R USER FOLDER`",
        )
    return Owner(uid=status.st_uid, gid=status.st_gid)


def check_workspace(path: Path, *, home: Path, valetkey_home: Path) -> Path:
    """Give the folder without links, if a sandbox may have it.

    It may not have a folder of the system or a user's whole home, nor what holds or lies in VALETKEY_HOME or a place of
    credentials, nor what holds a socket on which somebody listens now. A socket made later is not seen.

    Raises: WorkspaceRefused.
    """
    found = _resolved(path, option="--workspace")
    if not found.is_dir():
        raise WorkspaceRefused(f"{path} is no folder", hint="name a folder that exists: `--workspace DIR`")
    _check_source(found, home=home, valetkey_home=valetkey_home, option="--workspace")
    return found


def check_mount(mount: Mount, *, home: Path, valetkey_home: Path) -> Mount:
    """Give the mount with its source without links, if a sandbox may have it.

    The source is held to what a workspace is held to, and may be a file. The target may be neither in nor over what a
    sandbox makes itself.

    Raises: WorkspaceRefused.
    """
    source = _resolved(mount.source, option="--mount")
    _check_source(source, home=home, valetkey_home=valetkey_home, option="--mount")
    check_mount_target(mount.target)
    return Mount(source=source, target=mount.target, read_only=mount.read_only)


def check_in_place(path: Path) -> None:
    """See that a workspace or a mount's source, which had no links when it was looked at, has none now.

    It may lie where something that runs can put one. Raises: WorkspaceRefused.
    """
    if path.resolve() != path:
        raise WorkspaceRefused(f"{path} is not what it was when the run began", hint="begin a new run")


def check_mount_target(target: str) -> None:
    """Let something be mounted neither in nor over what a sandbox makes itself. Raises: WorkspaceRefused."""
    if not _is_plain(target) or any(_touch(Path(target), Path(own)) for own in _OWN_TARGETS):
        raise WorkspaceRefused(
            f"nothing can be mounted at {target} in a sandbox",
            hint="name another place, such as `/mnt/NAME`",
        )


def check_file_target(target: str) -> None:
    """Let a file be put below /etc or /opt, where no earlier run can have left a link. Raises: WorkspaceRefused."""
    if not _is_plain(target) or not target.startswith(("/etc/", "/opt/")):
        raise WorkspaceRefused(
            f"no file can be put at {target} in a sandbox",
            hint="name a place below `/etc` or `/opt`",
        )


def _is_plain(target: str) -> bool:
    return target.startswith("/") and posixpath.normpath(target) == target and target != "/" and "\0" not in target


def _resolved(path: Path, *, option: str) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise WorkspaceRefused(
            f"{path} cannot be looked at: {error}", hint=f"name a folder that exists: `{option} DIR`"
        ) from error


def _check_source(path: Path, *, home: Path, valetkey_home: Path, option: str) -> None:
    reason = _reason(path, home=home.resolve(), valetkey_home=valetkey_home.resolve())
    if reason is not None:
        raise WorkspaceRefused(
            f"{path} is not given to a sandbox: {reason}", hint=f"name the folder of one project: `{option} DIR`"
        )


def _reason(path: Path, *, home: Path, valetkey_home: Path) -> str | None:
    if path in _SHARED or any(path.is_relative_to(place) for place in _SYSTEM):
        return "it is the system's"
    if path == home:
        return "it is your home folder, with all that tools keep there"
    if home.is_relative_to(path):
        return f"it holds the home folder {home}"
    if _touch(path, valetkey_home):
        return f"it holds or lies in {valetkey_home}"
    for place in (home / name for name in CREDENTIAL_PLACES):
        # A missing place is refused only to what would be made in it.
        if path.is_relative_to(place.resolve()) or (place.exists() and place.resolve().is_relative_to(path)):
            return f"{place} keeps credentials"
    socket = _socket_in(path)
    return None if socket is None else f"{socket} in it is a socket of a program outside"


def _touch(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _socket_in(path: Path) -> Path | None:
    """Give a socket that is bound below the path as the kernel knows it, or lies in the folder itself."""
    try:
        table = Path("/proc/net/unix").read_text(errors="surrogateescape")
    except OSError:  # not Linux
        table = ""
    for line in table.splitlines()[1:]:
        name = line.split(maxsplit=7)[7:]
        if name and name[0].startswith("/") and Path(os.path.realpath(name[0])).is_relative_to(path):
            return Path(name[0])
    entries = [path] if not path.is_dir() else path.iterdir()
    try:
        return next((entry for entry in entries if stat.S_ISSOCK(entry.lstat().st_mode)), None)
    except OSError as error:
        raise WorkspaceRefused(f"{path} cannot be read: {error}", hint="name a folder of your own") from error
