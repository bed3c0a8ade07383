"""A small image made of this machine's own files, and a podman with storage of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command_line import ORDINARY

__all__ = ["IMAGE", "NO_PYTHON", "Podman", "ordinary_user", "podman_storage"]

IMAGE, NO_PYTHON = "localhost/valetkey-tests", "localhost/valetkey-without-python"

_PROGRAMS = "sh bash cat chmod env find grep head id ls readlink sleep stty touch tr true uname unshare"
_FOLDERS = "usr usr/bin usr/lib usr/lib64 usr/local usr/local/bin etc home proc sys dev run var"
_PYTHON = Path("/usr/bin/python3").resolve()
_LIBRARY = Path("/usr/lib", _PYTHON.name)
_LEFT_OUT = re.compile(r".*/(dist-packages|config-|test|__pycache__|idlelib|lib2to3|ensurepip|pydoc_data|tkinter)")


@dataclass(frozen=True, kw_only=True)
class Podman:
    """A podman with storage of its own; `environ` makes any podman use it."""

    root: Path
    environ: dict[str, str]
    through: tuple[str, ...] = ()

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.through, "podman", *words],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def containers(self) -> list[str]:
        """Give the names of all that there are."""
        done = self("ps", "--all", "--format", "{{.Names}}")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def mounts(self) -> list[str]:
        """Give the mounts below its storage: the host's, and of an ordinary user's podman those of its namespace."""
        own = {"self"} if self.pause is None else {"self", str(self.pause)}
        lines = [line for pid in own for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        return [line for line in lines if str(self.root) in line]

    @property
    def pause(self) -> int | None:
        """Give the process that keeps the namespace of an ordinary user's podman."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.root / "own" / "libpod" / "tmp" / "pause.pid").read_text())
        return None


@contextlib.contextmanager
def ordinary_user() -> Iterator[tuple[str, ...]]:
    """Give what goes before a command so that an ordinary user runs it: for root, always the same one of a namespace.

    A podman that is not root keeps a process for each user namespace that it is started in, and means the same by all.
    """
    if not ORDINARY:
        yield ()
        return
    with subprocess.Popen(
        [*ORDINARY, "sh", "-c", "echo up; exec sleep infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"up\n"
            yield ("nsenter", f"--user=/proc/{holder.pid}/ns/user", "--preserve-credentials", "--")
        finally:
            holder.kill()


@contextlib.contextmanager
def podman_storage(through: tuple[str, ...] = ()) -> Iterator[Podman]:
    """Give a podman that has the images; where it cannot run here, the test is skipped with its own words."""
    root = Path(tempfile.mkdtemp(prefix="valetkey-podman-"))
    settings, own = root / "storage.conf", root / "own"
    # Without a layer's file system of its own where podman is not root: that would need FUSE.
    driver = "vfs" if through or os.geteuid() != 0 else "overlay"
    where = {"graphroot": root / "graph", "runroot": root / "run", "rootless_storage_path": root / "graph"}
    settings.write_text(
        f'[storage]\ndriver = "{driver}"\n' + "".join(f'{key} = "{path}"\n' for key, path in where.items())
    )
    own.mkdir()
    environ = {"CONTAINERS_STORAGE_CONF": str(settings), "XDG_RUNTIME_DIR": str(own), "HOME": str(own)}
    # Else it would be in /run/libpod where we are root, and in one piece of shared memory for each user, whatever the
    # storage: the reset of another worker's podman takes them away.
    temporary, engine = own / "libpod" / "tmp", root / "containers.conf"
    engine.write_text(f'[engine]\ntmp_dir = "{temporary}"\nlock_type = "file"\n')
    environ["CONTAINERS_CONF"] = str(engine)
    podman = Podman(root=root, environ=environ, through=through)
    try:
        if shutil.which("podman") is None:
            pytest.skip("podman is not installed: run scripts/debian-packages")
        for name, with_python in ((IMAGE, True), (NO_PYTHON, False)):
            _write_image(root / "image.tar", with_python=with_python)
            done = podman("import", str(root / "image.tar"), name)
            if done.returncode:
                pytest.skip(f"podman makes no image here: {done.stderr.strip()}")
        done = podman(
            "run",
            "--rm",
            "--network=none",
            *(f"--ulimit={name}=256:256" for name in ("nofile", "nproc")),
            IMAGE,
            "true",
        )
        if done.returncode:
            pytest.skip(f"podman runs no container here: {done.stderr.strip()}")
        yield podman
    finally:
        podman("system", "reset", "--force")
        if podman.pause is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(podman.pause, signal.SIGKILL)
        # What is left of it, where it runs as another user of a namespace, is ours all the same.
        subprocess.run(["umount", "--lazy", str(root / "graph" / "overlay")], capture_output=True, check=False)
        shutil.rmtree(root, ignore_errors=True)


def _write_image(path: Path, *, with_python: bool) -> None:
    """Write a file system: a shell, a few programs, Python, with the libraries that they load."""
    programs = {f"/usr/bin/{name}": _found(name) for name in _PROGRAMS.split()}
    if with_python:
        programs["/usr/bin/python3"] = _PYTHON
    loading = [*programs.values(), *(_LIBRARY.glob("lib-dynload/*.so") if with_python else ())]
    libraries = {library for program in loading for library in _libraries(program)}
    with tarfile.open(path, "w") as image:
        for name in _FOLDERS.split():
            _add(image, name, tarfile.DIRTYPE)
        for name in ("bin", "lib", "lib64"):
            _add(image, name, tarfile.SYMTYPE, link=f"usr/{name}")
        for target, source in programs.items():
            image.add(source, target)
        for library in libraries:
            image.add(os.path.realpath(library), library if library.startswith("/usr/") else f"/usr{library}")
        if with_python:
            image.add(_LIBRARY, filter=lambda entry: None if _LEFT_OUT.match(entry.name) else entry)


def _add(image: tarfile.TarFile, name: str, kind: bytes, link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, link, 0o755
    image.addfile(entry)


def _found(name: str) -> Path:
    found = shutil.which(name, path="/usr/bin:/bin")
    assert found is not None, name
    return Path(found).resolve()


def _libraries(program: Path) -> list[str]:
    told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+)(?= \(0x)", told)
