"""Which folders a sandbox may have."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from valetkey.errors import WorkspaceRefused
from valetkey.sandbox import Mount
from valetkey.workspace import CREDENTIAL_PLACES, Owner, check_file_target, check_mount, check_workspace, runs_as


@pytest.fixture
def user() -> Iterator[Path]:
    """Give a home folder with a project in it; short, for sockets have short names."""
    folder = Path(tempfile.mkdtemp(prefix="valetkey-user-")).resolve()
    (folder / "project" / "src").mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def checked(path: Path, user: Path) -> Path:
    return check_workspace(path, home=user, valetkey_home=user / ".valetkey")


def test_a_project_is_given(user: Path) -> None:
    assert checked(user / "project", user) == user / "project"
    assert checked(user / "project" / ".." / "project" / "src", user) == user / "project" / "src"


def test_a_link_is_followed_first(user: Path) -> None:
    (user / "project" / "link").symlink_to(user)
    with pytest.raises(WorkspaceRefused):
        checked(user / "project" / "link", user)


def test_the_home_and_what_holds_it_are_refused(user: Path) -> None:
    for path in (user, user.parent, Path("/")):
        with pytest.raises(WorkspaceRefused):
            checked(path, user)
    with pytest.raises(WorkspaceRefused, match="it is your home folder"):
        checked(user, user)


@pytest.mark.parametrize("path", ["/", "/home", "/tmp", "/etc", "/etc/ssl", "/usr", "/run", "/proc/self", "/dev/shm"])
def test_a_folder_of_the_system_is_refused(path: str, user: Path) -> None:
    with pytest.raises(WorkspaceRefused):
        checked(Path(path), user)


@pytest.mark.parametrize("place", CREDENTIAL_PLACES)
def test_a_place_of_credentials_is_refused_with_what_holds_and_lies_in_it(place: str, user: Path) -> None:
    (user / place / "deeper").mkdir(parents=True)
    for path in (user / place, user / place / "deeper"):
        with pytest.raises(WorkspaceRefused):
            checked(path, user)
    if "/" in place:
        with pytest.raises(WorkspaceRefused):
            checked((user / place).parent, user)


def test_a_place_of_credentials_that_is_a_link_is_refused_where_it_leads(user: Path) -> None:
    (user / "project" / "keys").mkdir()
    (user / ".ssh").symlink_to(user / "project" / "keys")
    for path in (user / "project", user / "project" / "keys"):
        with pytest.raises(WorkspaceRefused, match=r"\.ssh"):
            checked(path, user)


def test_valetkey_home_is_refused_with_what_holds_and_lies_in_it(user: Path) -> None:
    own = user / "project" / "src" / "valet"
    (own / "runs").mkdir(parents=True)
    for path in (own, own / "runs", own.parent, user / "project"):
        with pytest.raises(WorkspaceRefused):
            check_workspace(path, home=user, valetkey_home=own)


def test_what_holds_a_socket_is_refused(user: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(user / "project" / "src" / "agent.sock"))
        server.listen()
        with pytest.raises(WorkspaceRefused, match=r"agent\.sock"):
            checked(user / "project", user)
    # Nobody has it open any more, but what lies in the folder itself is seen all the same.
    with pytest.raises(WorkspaceRefused, match=r"agent\.sock"):
        checked(user / "project" / "src", user)
    assert checked(user / "project", user) == user / "project"


def test_what_is_no_folder_is_refused(user: Path) -> None:
    (user / "project" / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(WorkspaceRefused):
            checked(user / "project" / name, user)


REFUSED_TARGETS = (
    "/ relative /mnt/../etc /mnt/ /proc /proc/1 /etc /etc/x /usr/local /run /run/valetkey /dev/x /tmp/x"
    " /workspace /workspace/x /home /home/agent /home/agent/.ssh /lib64 /mnt//x /mnt/\0"
)


@pytest.mark.parametrize("target", REFUSED_TARGETS.split(" "))
def test_a_mount_is_not_put_over_what_the_sandbox_makes(target: str, user: Path) -> None:
    mount = Mount(source=user / "project", target=target)
    with pytest.raises(WorkspaceRefused):
        check_mount(mount, home=user, valetkey_home=user / ".valetkey")


def test_a_mount_is_held_to_what_a_workspace_is(user: Path) -> None:
    (user / "project" / "file").touch()
    (user / ".ssh").mkdir()
    (user / ".ssh" / "id").touch()
    (user / "link").symlink_to(user / "project" / "file")
    given = check_mount(
        Mount(source=user / "link", target="/mnt/file", read_only=False), home=user, valetkey_home=user / ".valetkey"
    )
    assert given == Mount(source=user / "project" / "file", target="/mnt/file", read_only=False)
    for source in (user / ".ssh" / "id", user / ".ssh", user, Path("/run"), user / "missing"):
        with pytest.raises(WorkspaceRefused) as refused:
            check_mount(Mount(source=source, target="/mnt/x"), home=user, valetkey_home=user / ".valetkey")
        assert "`--mount DIR`" in refused.value.hint


@pytest.mark.parametrize("target", ["/etc/valetkey/ca.pem", "/opt/file"])
def test_a_file_goes_below_etc_or_opt(target: str) -> None:
    check_file_target(target)


@pytest.mark.parametrize("target", ["/etc", "/etc/", "/etc/../home/x", "/usr/x", "/workspace/x", "/home/agent/x", "x"])
def test_a_file_goes_nowhere_else(target: str) -> None:
    with pytest.raises(WorkspaceRefused):
        check_file_target(target)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_root_becomes_the_owner_or_nobody(user: Path) -> None:
    os.chown(user / "project", 65534, 65533)
    assert runs_as(user / "project") == Owner(uid=65534, gid=65533)
    with pytest.raises(WorkspaceRefused, match="root"):
        runs_as(user / "project" / "src")
