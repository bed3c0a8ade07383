"""The other sandbox: a container of docker or podman, by their command lines, from an image that the user names.

forward.py is the first process inside. It reaches back to us through a socket that is mounted for it alone, and over
that gets the command, its environment and its three descriptors: nothing of these goes through the engine. What is
mounted for a start lies in a folder of its own, which is gone again as soon as the container stands.
"""

from __future__ import annotations

import csv
import io
import os
import re
import resource
import secrets
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from valetkey.errors import SandboxFailed, SandboxUnavailable, UsageError
from valetkey.sandbox import AGENT_HOME, GATEWAY, WORKSPACE, Limits, Spec
from valetkey.sandboxes import seccomp
from valetkey.sandboxes.engines import Engine, Identity, identity
from valetkey.sandboxes.inside import ENVIRONMENT, FORWARDER, START_SECONDS, TMPFS_BYTES, forwarder, made_etc
from valetkey.sandboxes.running import Running, Stood
from valetkey.workspace import check_file_target, check_mount_target, runs_as

__all__ = ["ISOLATION", "Container"]

_LABEL = "valetkey.run"
_CONTROL = "/run/valetkey-control"
_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@+-]*\Z", re.ASCII)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What the engines' clients look at; of the rest of our environment they and what they start get nothing.
_KEPT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|TMPDIR|XDG_\w+|DBUS_SESSION_BUS_ADDRESS|CONTAINERS?_\w+|DOCKER_\w+|(SSL_CERT|REGISTRY)_\w+)\Z"
)

# What every container is started with, whatever the engine.
ISOLATION = (
    "--rm --pull=never --network=none --read-only --cap-drop=all --security-opt=no-new-privileges --hostname=sandbox"
    " --cgroupns=private --ipc=private --no-healthcheck --log-driver=none --stop-timeout=0"
    # Without it nothing that is mounted could be read under SELinux; to relabel files would change them for all.
    " --security-opt=label=disable"
    # It tells of the machine's hardware; nothing that is run needs it.
    " --tmpfs=/sys:ro,size=4k"
)
_NO_PYTHON = 127
_LACKING = 'for name; do command -v "$name" > /dev/null || echo "$name"; done'
# RLIM_INFINITY is -1 here; podman lowers its own limit to the kernel's pid_max, which is no lower than this.
_UNLIMITED, _PROCESSES = 1 << 64, 32768


class Container:
    """Runs commands in containers of one engine."""

    own_programs = True

    def __init__(self, engine: Engine, *, image: str = "", run: str = "", program: str | None = None) -> None:
        """Take the image to be run, and the id of the run that a container is labelled with."""
        self._engine = engine
        self._image = image
        self._run = run
        self._program = program or engine.id

    @property
    def id(self) -> str:
        """The engine's name."""
        return self._engine.id

    def check(self) -> None:
        """See that there are program, engine and image.

        Raises: UsageError without an image; SandboxUnavailable: its hint is the command that mends it.
        """
        self._check_image_name()
        found = self._ask("image", "inspect", "--format", "{{.Id}}", self._image)
        if found.returncode == 0 and not self._engine.unfit:
            return
        probe = self._ask(*self._engine.probe)
        if probe.returncode:
            raise SandboxUnavailable(f"{self.id} does not work here: {_complaint(probe)}", hint=self._engine.remedy)
        for word in self._engine.unfit:
            if word in probe.stdout:
                raise SandboxUnavailable(
                    f"this {self.id} maps user ids ({word}), so that your files are not yours inside",
                    hint="use `--sandbox podman`",
                )
        if found.returncode:
            raise SandboxUnavailable(
                f"there is no image {self._image} here, and none is pulled by itself",
                hint=f"run `{self.id} pull {self._image}`, or build it",
            )

    def start(self, spec: Spec, *, stdin: int, stdout: int, stderr: int) -> Running:
        """Start the command; see sandbox.Sandbox. Started by root, it runs as the workspace's owner, and its home is
        given to that user.

        Raises: UsageError, SandboxUnavailable, SandboxFailed, WorkspaceRefused.
        """
        self._check_image_name()
        for target in spec.files:
            check_file_target(target)
        for mount in spec.mounts:
            check_mount_target(mount.target)
        program = self._found()
        owner = runs_as(spec.workspace)
        if owner is not None:
            os.chown(spec.home, owner.uid, owner.gid)
        who = identity(self._engine, owner)
        name = f"valetkey-{self._run or 'no-run'}-{secrets.token_hex(4)}"
        variables = {**ENVIRONMENT, **spec.environment, "PWD": WORKSPACE}

        def launch() -> Stood:
            with (
                tempfile.TemporaryDirectory(prefix="valetkey-container-") as folder,
                tempfile.TemporaryFile() as complaint,
                socket.socket(socket.AF_UNIX) as listener,
            ):
                arguments = [*self._arguments(spec, who, Path(folder), listener)]
                process = self._spawn([program, "run", f"--name={name}", *arguments], complaint)
                control, top = self._reached(listener, process)
                if control is None:
                    raise self._failed(name, process, complaint)
                words = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in variables.items())
                socket.send_fds(control, [len(words).to_bytes(4, "big")], [stdin, stdout, stderr])
                control.sendall(words)
                return Stood(process=process, top=top, control=control)

        running = Running(launch, spec.limits)
        running.go(spec.command)
        return running

    def lacking(self, programs: Sequence[str], *, path: str) -> list[str]:
        """Ask a container of the image, in which nothing of a run is.

        Raises: UsageError, SandboxUnavailable.
        """
        self.check()
        limits = self._limiting(Limits(), Identity(uid=0, gid=0, options=(), alone=False))
        words = (*ISOLATION.split(), *self._engine.options, *limits, "--user=0:0", f"--env=PATH={path}")
        done = self._ask("run", *words, "--entrypoint=sh", self._image, "-c", _LACKING, "sh", *programs)
        if done.returncode:
            raise SandboxUnavailable(
                f"{self.id} does not say what is in {self._image}: {_complaint(done)}", hint=self._engine.remedy
            )
        return done.stdout.split()

    def clear(self) -> None:
        """Remove what is left of the run, whose parent is gone. Raises: SandboxUnavailable."""
        found = self._ask("ps", "--all", "--quiet", "--filter", f"label={_LABEL}={self._run}")
        left = found.stdout.split()
        done = self._ask("rm", "--force", *left) if left else found
        if found.returncode or done.returncode:
            raise SandboxUnavailable(
                f"{self.id} does not say what is left of the run {self._run}: {_complaint(done)}",
                hint=self._engine.remedy,
            )

    # --- the engine -------------------------------------------------------------------------------

    def _check_image_name(self) -> None:
        if not self._image:
            raise UsageError(
                f"a container of {self.id} needs an image",
                hint="name one that has python3: `--image IMAGE`, or runs.image in config.toml",
            )
        if not _IMAGE.match(self._image):
            raise UsageError(f"{self._image[:60]!r} is no name of an image", hint="write `--image NAME:TAG`")

    def _found(self) -> str:
        program = shutil.which(self._program)
        if program is None:
            raise SandboxUnavailable(f"{self.id} is not installed", hint=self._engine.install)
        return program

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603  # the engine's client, with words of ours
            [self._found(), *words],
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def _spawn(self, argv: list[str], complaint: BinaryIO) -> subprocess.Popen[bytes]:
        """Start the client in a session of its own, for what is typed at our terminal is ours to answer."""
        try:
            return subprocess.Popen(  # noqa: S603  # the engine's client, with arguments of ours
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaint,
                env=_environment(os.environ),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxFailed(f"{self.id} cannot be started: {error}", hint=self._engine.remedy) from error

    def _reached(self, listener: socket.socket, process: subprocess.Popen[bytes]) -> tuple[socket.socket | None, int]:
        """Wait until forward.py is ready inside; give the socket to it, and the host's id of it."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        ended = os.pidfd_open(process.pid)
        poll.register(ended, select.POLLIN)
        try:
            ready = dict(poll.poll(START_SECONDS * 1000))
        finally:
            os.close(ended)
        if listener.fileno() in ready:
            control, _ = listener.accept()
            control.settimeout(START_SECONDS)
            try:
                top = int(struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
                # 0 is a process that this machine does not know: the engine runs on another one, or in a virtual one.
                if control.recv(1) and top > 0:
                    control.settimeout(None)
                    return control, top
            except OSError:
                pass
            control.close()
        return None, 0

    def _failed(self, name: str, process: subprocess.Popen[bytes], complaint: BinaryIO) -> SandboxFailed:
        """End what did not come up, and say why."""
        if process.poll() is None:
            self._ask("rm", "--force", name)
            process.kill()
        status = process.wait()
        complaint.seek(0)
        said = _said(complaint.read().decode(errors="replace")) or f"{self.id} ended with {status}"
        if status == _NO_PYTHON:
            return SandboxFailed(
                f"the image {self._image} has no python3, which passes on what goes to the gateway",
                hint="add it to the image: `RUN apt-get install -y python3-minimal`, or use `--sandbox bubblewrap`",
            )
        return SandboxFailed(f"the container did not start: {said}", hint=f"{self._engine.remedy}; docs/sandbox.md")

    # --- the command line -------------------------------------------------------------------------

    def _arguments(self, spec: Spec, who: Identity, folder: Path, listener: socket.socket) -> Iterator[str]:
        """Give the engine's arguments, and put into the folder what they name."""
        yield f"--label={_LABEL}={self._run}"
        yield from ISOLATION.split()
        yield from self._engine.options
        yield from who.options
        yield from self._limiting(spec.limits, who)
        yield f"--security-opt=seccomp={_written(folder / 'seccomp.json', seccomp.profile())}"
        yield f"--shm-size={TMPFS_BYTES['/dev/shm']}"  # noqa: S108  # inside
        for target, size in (("/tmp", TMPFS_BYTES["/tmp"]), ("/var/tmp", TMPFS_BYTES["/var"])):  # noqa: S108  # inside
            yield f"--tmpfs={target}:rw,exec,nosuid,nodev,size={size},mode=1777{self._engine.tmpfs}"
        yield _mount(spec.gateway, GATEWAY, read_only=True)
        yield _mount(spec.home, AGENT_HOME, read_only=False)
        yield _mount(spec.workspace, WORKSPACE, read_only=spec.workspace_read_only)
        for mount in spec.mounts:
            yield _mount(mount.source, mount.target, read_only=mount.read_only)
        made = {f"/etc/{name}": data for name, data in made_etc(uid=who.uid, gid=who.gid).items()}
        for number, (target, data) in enumerate({**made, FORWARDER: forwarder(), **spec.files}.items()):
            yield _mount(_written(folder / str(number), data), target, read_only=True)
        yield _mount(_listening(folder / "control", listener), _CONTROL, read_only=True)
        # The first process' own environment: the command has another one.
        yield from (f"--env=PATH={_PATH}", f"--workdir={WORKSPACE}", "--entrypoint=python3", self._image)
        yield from ("-I", "-S", "-B", FORWARDER, f"{_CONTROL}/socket")

    def _limiting(self, limits: Limits, who: Identity) -> Iterator[str]:
        """Give the options that limit what is inside; `running` looks at memory and time."""
        yield "--ulimit=core=0:0"
        # An engine would raise these two, which it may not everywhere.
        for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            soft, hard = (min(limit % _UNLIMITED, _PROCESSES) for limit in resource.getrlimit(which))
            if name == "nproc" and limits.processes is not None and who.alone:
                # A podman of one's own often has no control groups; this counts in its user namespace.
                soft = hard = limits.processes
            yield f"--ulimit={name}={soft}:{hard}"
        for name, value in (("data", limits.memory_bytes), ("fsize", limits.file_bytes)):
            if value is not None:
                yield f"--ulimit={name}={value}:{value}"
        if limits.memory_bytes is not None:
            # The outer bound, which holds for files in memory too: what processes have is looked at as in bubblewrap.
            yield f"--memory={limits.memory_bytes + sum(TMPFS_BYTES.values())}"
        if limits.processes is not None:
            yield f"--pids-limit={limits.processes}"


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o444)
    return path


def _listening(folder: Path, listener: socket.socket) -> Path:
    """Listen in a folder that lies in one of ours alone: whoever may pass there is who it is mounted for."""
    folder.mkdir(mode=0o700)
    path = folder / "socket"
    listener.bind(str(path))
    listener.listen(1)
    path.chmod(0o666)
    folder.chmod(0o755)
    return folder


def _mount(source: Path, target: str, *, read_only: bool) -> str:
    """Give the option for a mount, which is a line of CSV."""
    line = io.StringIO()
    words = ["type=bind", f"src={source}", f"dst={target}", *(["readonly"] if read_only else [])]
    csv.writer(line, lineterminator="").writerow(words)
    return f"--mount={line.getvalue()}"


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if _KEPT.match(name)}


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    return _said(done.stderr) or f"it ended with {done.returncode}"


def _said(text: str) -> str:
    """Give the line that says what went wrong, among warnings and advice."""
    lines = text.strip().splitlines() or [""]
    return next((line for line in lines if re.search("error:|cannot|denied", line, re.IGNORECASE)), lines[-1])
