"""Folders for a sandbox, commands in it, and a gateway at its socket."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from valetkey.sandbox import Limits, Mount, Sandbox, Spec, Started
from valetkey.testing.command_line import Done

__all__ = ["PYTHON", "Gateway", "Place", "ended", "give", "ordinary", "processes_with", "sandbox_place"]

# The system's, which is the same inside and outside.
PYTHON = "/usr/bin/python3"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a run has of the host. Where the tests run as root it belongs to `nobody`, whom the run then becomes."""

    root: Path
    sandbox: Sandbox

    @property
    def workspace(self) -> Path:
        """Give the workspace."""
        return self.root / "workspace"

    @property
    def home(self) -> Path:
        """Give the home of the run."""
        return self.root / "home"

    @property
    def gateway(self) -> Path:
        """Give the folder of the gateway's socket."""
        return self.root / "gateway"

    def spec(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        mounts: tuple[Mount, ...] = (),
        limits: Limits | None = None,
        read_only: bool = False,
    ) -> Spec:
        """Give what runs this command here."""
        return Spec(
            command=command,
            workspace=self.workspace,
            workspace_read_only=read_only,
            home=self.home,
            gateway=self.gateway,
            environment=environment or {},
            files=files or {},
            mounts=mounts,
            limits=limits or Limits(seconds=60),
        )

    def run(self, spec: Spec, *, given: str = "") -> Done:
        """Run it to its end."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as stdin:
            stdin.write(given.encode())
            stdin.seek(0)
            started = self.sandbox.start(spec, stdin=stdin.fileno(), stdout=out.fileno(), stderr=err.fileno())
            status = started.wait()
            out.seek(0)
            err.seek(0)
            return Done(status=status, out=out.read().decode(), err=err.read().decode())

    def probe(self, code: str, *arguments: str, limits: Limits | None = None) -> Done:
        """Run some Python inside."""
        return self.run(self.spec(PYTHON, "-c", code, *arguments, limits=limits))

    @contextlib.contextmanager
    def talking(self, spec: Spec) -> Iterator[tuple[Started, socket.socket]]:
        """Start it with a socket as stdin and stdout, and end it."""
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        with ours, open(os.devnull, "w") as null:
            with theirs:
                started = self.sandbox.start(spec, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=null.fileno())
            try:
                yield started, ours
            finally:
                started.stop(0)


def ordinary() -> tuple[int, int] | None:
    """Give uid and gid that a sandbox's commands run as where the tests run as root, else None: as they do."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


@contextlib.contextmanager
def sandbox_place(sandbox: Sandbox) -> Iterator[Place]:
    """Make the folders, where an ordinary user may reach them too."""
    root = Path(tempfile.mkdtemp(prefix="valetkey-sandbox-"))
    root.chmod(0o755)
    place = Place(root=root, sandbox=sandbox)
    try:
        for folder in (place.workspace, place.home, place.gateway):
            folder.mkdir(mode=0o700)
            give(folder)
        yield place
    finally:
        shutil.rmtree(root)


def give(path: Path) -> None:
    """Give a file to whom the sandbox's commands run as."""
    ids = ordinary()
    if ids is not None:
        os.chown(path, *ids)


class Gateway:
    """A server on a place's gateway socket: sends back in capitals what it is sent, once that has ended."""

    def __init__(self, place: Place) -> None:
        self._path = place.gateway / "gateway.sock"
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        give(self._path)
        self._listener.listen(128)
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes what waits in accept, which closing alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    @staticmethod
    def _answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), client.makefile("rb") as reader:
            client.sendall(reader.read().upper())


def processes_with(word: str) -> list[int]:
    """Give the processes of the machine with this word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def ended(pids: list[int], seconds: float = 60) -> bool:
    """Wait until all of these have ended."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([handle], [], [], seconds)[0]:
                return False
        finally:
            os.close(handle)
    return True
