"""The default sandbox: bubblewrap as an ordinary user, without an image.

Nothing of the host is there but /usr, a few files of /etc, and what the Spec names; no network but a loopback of its
own, on which forward.py passes 127.0.0.1:3128 on to the run's gateway. docs/sandbox.md says what holds and what not.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from valetkey.errors import SandboxFailed, SandboxUnavailable
from valetkey.sandbox import AGENT_HOME, GATEWAY, WORKSPACE, Limits, Spec
from valetkey.sandboxes import seccomp
from valetkey.sandboxes.inside import ENVIRONMENT, FORWARDER, START_SECONDS, TMPFS_BYTES, forwarder, made_etc
from valetkey.sandboxes.running import Running, Stood
from valetkey.workspace import Owner, check_file_target, check_mount_target, runs_as

__all__ = ["Bubblewrap"]

# --disable-userns and --size came with it.
_OLDEST = (0, 8, 0)
_CONTAINER = "use a container: `--sandbox podman --image IMAGE`"

# What programs need to run and to speak TLS; of /etc nothing else is there.
_ETC = (
    "alternatives ld.so.cache ld.so.conf ld.so.conf.d localtime mime.types services protocols terminfo"
    " ssl/certs ssl/openssl.cnf pki/tls/certs pki/ca-trust/extracted crypto-policies ca-certificates"
)
# What of the host's programs is there.
_SYSTEM = ("/usr/", "/bin/", "/sbin/")


class Bubblewrap:
    """Runs commands by `bwrap`."""

    id = "bubblewrap"
    own_programs = False

    def __init__(self, *, program: str = "bwrap", kernel: Path = Path("/proc/sys")) -> None:
        """Take bwrap's name or path; `kernel` is where the kernel's settings are read."""
        self._program = program
        self._kernel = kernel

    def check(self) -> None:
        """Try it with the smallest sandbox there is.

        Raises: SandboxUnavailable: its hint is the command that mends it.
        """
        if platform.machine() not in seccomp.ARCHITECTURES:
            raise SandboxUnavailable(f"there is no system call filter for {platform.machine()}", hint=_CONTAINER)
        program, _ = self._programs()
        version = _output([program, "--version"]).strip().removeprefix("bubblewrap ")
        if _numbers(version) < _OLDEST:
            raise SandboxUnavailable(
                f"bubblewrap {version} is too old: it has to be 0.8.0 or newer",
                hint=f"install a newer bubblewrap, or {_CONTAINER}",
            )
        try:
            _output([program, *_ISOLATION.split(), *_usr(), "--proc", "/proc", "--dev", "/dev", "true"])
        except SandboxFailed as error:
            raise SandboxUnavailable(
                f"no sandbox can be made here: {error.message}", hint=f"{self._remedy()}, or {_CONTAINER}"
            ) from error

    def start(self, spec: Spec, *, stdin: int, stdout: int, stderr: int) -> Running:
        """Start the command; see sandbox.Sandbox. Started by root, it runs as the workspace's owner, and its home is
        given to that user; the gateway's folder has to be open to that user already.

        Raises: SandboxUnavailable, SandboxFailed, WorkspaceRefused.
        """
        for target in spec.files:
            check_file_target(target)
        for mount in spec.mounts:
            check_mount_target(mount.target)
        program, python = self._programs()
        owner = runs_as(spec.workspace)
        if owner is not None:
            os.chown(spec.home, owner.uid, owner.gid)
        ours, theirs = socket.socketpair()

        def launch() -> Stood:
            with theirs, _Descriptors() as descriptors:
                outer = [program, "--args", str(descriptors.holding(_packed(_arguments(spec, descriptors.holding))))]
                errors = descriptors.copy(stderr)
                inner = [python, "-I", "-S", "-B", FORWARDER, str(theirs.fileno()), str(errors)]
                complaint, complaining = os.pipe()
                with open(complaint, "rb") as reader:
                    with open(complaining, "wb") as writer:
                        passed = (*descriptors.open, theirs.fileno())
                        process = _spawn([*outer, "--", *inner], (stdin, stdout, writer.fileno()), passed, owner)
                    theirs.close()
                    _await(process, ours, reader.read)
                    return Stood(process=process, top=process.pid, control=ours)

        try:
            running = Running(launch, spec.limits)
        except BaseException:
            ours.close()
            raise
        running.go((*_limiting(spec.limits), *spec.command))
        return running

    def lacking(self, programs: Sequence[str], *, path: str) -> list[str]:
        """Look where the system's programs are: a link that leads out of them leads nowhere inside."""
        found = {name: shutil.which(name, path=path) for name in programs}
        return [name for name, at in found.items() if at is None or not os.path.realpath(at).startswith(_SYSTEM)]

    def clear(self) -> None:
        """Do nothing: what is inside ends with the thread that started it, however that ends."""

    def _programs(self) -> tuple[str, str]:
        """Give the paths of bwrap here and of Python inside."""
        program = shutil.which(self._program)
        if program is None:
            raise SandboxUnavailable(
                "bubblewrap is not installed",
                hint=f"run `sudo apt install bubblewrap` (or your system's like), or {_CONTAINER}",
            )
        python, prlimit = (shutil.which(name, path="/usr/bin:/usr/local/bin") for name in ("python3", "prlimit"))
        if python is None or prlimit is None:
            raise SandboxUnavailable(
                "the sandbox needs the system's own python3 and prlimit, in /usr",
                hint=f"run `sudo apt install python3-minimal util-linux`, or {_CONTAINER}",
            )
        return program, python

    def _remedy(self) -> str:
        """Give the command that lets user namespaces be made, as far as the kernel tells what holds them back."""
        for name, bad, good in (
            ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
            ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ):
            with contextlib.suppress(OSError):  # this kernel has no such setting
                if (self._kernel / name).read_text().strip() == bad:
                    return f"run `sudo sysctl -w {good}`"
        return "let this user make user namespaces: in a container, start that with `--security-opt seccomp=unconfined`"


# --- the command line ---------------------------------------------------------------------------

_ISOLATION = (
    "--unshare-all --unshare-user --disable-userns --die-with-parent --new-session --clearenv"
    " --cap-drop ALL --uid 1000 --gid 1000 --hostname sandbox"
)


def _usr() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            yield from ("--symlink", os.readlink(name), name)
        elif os.path.isdir(name):
            yield from ("--ro-bind", name, name)


def _arguments(spec: Spec, holding: Callable[[bytes], int]) -> Iterator[str]:
    """Give bwrap's arguments; `holding` gives a descriptor from which those bytes can be read."""
    yield from _ISOLATION.split()
    yield from ("--seccomp", str(holding(seccomp.compiled())))
    yield from _usr()
    for name in _ETC.split():
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    yield from ("--proc", "/proc", "--dev", "/dev")
    for target, size in TMPFS_BYTES.items():
        yield from ("--size", str(size), "--perms", "1777", "--tmpfs", target)
    yield from ("--perms", "1777", "--dir", "/var/tmp")  # noqa: S108  # inside
    yield from ("--ro-bind", str(spec.gateway), GATEWAY)
    yield from ("--bind", str(spec.home), AGENT_HOME)
    yield from ("--ro-bind" if spec.workspace_read_only else "--bind", str(spec.workspace), WORKSPACE)
    for mount in spec.mounts:
        yield from ("--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target)
    made = {f"/etc/{name}": data for name, data in made_etc(uid=1000, gid=1000).items()}
    made[FORWARDER] = forwarder()
    for target, data in {**made, **spec.files}.items():
        yield from ("--perms", "0444", "--ro-bind-data", str(holding(data)), target)
    # Last, for each mount point above had to be made first.
    for target in ("/run", "/dev", "/"):
        yield from ("--remount-ro", target)
    for name, value in {**ENVIRONMENT, **spec.environment}.items():
        yield from ("--setenv", name, value)
    yield from ("--chdir", WORKSPACE)


def _packed(arguments: Iterator[str]) -> bytes:
    words = [os.fsencode(word) for word in arguments]
    if any(b"\0" in word for word in words):
        raise SandboxFailed("a path or an environment variable holds a NUL", hint="take it out")
    return b"".join(word + b"\0" for word in words)


def _limiting(limits: Limits) -> Iterator[str]:
    """Give what sets the limits that a process has of its own, in front of the command.

    Inside, because RLIMIT_NPROC counts the processes of a user in the namespace in which it was set (Linux 5.14).
    """
    yield from ("/usr/bin/prlimit", "--core=0")
    for name, value in (
        ("data", limits.memory_bytes),
        ("nproc", limits.processes),
        ("fsize", limits.file_bytes),
    ):
        if value is not None:
            yield f"--{name}={value}:{value}"
    yield "--"


# --- processes ------------------------------------------------------------------------------------


class _Descriptors(contextlib.ExitStack):
    """Descriptors for one start of bwrap, closed here once it has them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[int] = []

    def holding(self, data: bytes) -> int:
        """Give one from which these bytes are read."""
        made = self._kept(os.memfd_create("valetkey"))
        with open(made, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(made, 0, os.SEEK_SET)
        return made

    def copy(self, descriptor: int) -> int:
        """Give another one of the same file."""
        return self._kept(os.dup(descriptor))

    def _kept(self, descriptor: int) -> int:
        self.callback(os.close, descriptor)
        self.open.append(descriptor)
        return descriptor


def _spawn(
    argv: Sequence[str], streams: tuple[int, int, int], passed: Sequence[int], owner: Owner | None
) -> subprocess.Popen[bytes]:
    """Start bwrap with an empty environment, for the first process inside shows it; in a session of its own, for what
    is typed at our terminal is ours to answer.
    """
    stdin, stdout, stderr = streams
    try:
        return subprocess.Popen(  # noqa: S603  # bwrap, with arguments of ours
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=passed,
            env={},
            cwd="/",
            start_new_session=True,
            user=None if owner is None else owner.uid,
            group=None if owner is None else owner.gid,
            extra_groups=None if owner is None else [],
        )
    except OSError as error:
        raise SandboxFailed(f"bwrap cannot be started: {error}", hint="run `valetkey doctor`") from error


def _await(process: subprocess.Popen[bytes], control: socket.socket, complaint: Callable[[], bytes]) -> None:
    """Return when forward.py is ready inside."""
    control.settimeout(START_SECONDS)
    try:
        ready = control.recv(1)
    except TimeoutError:
        ready = b""
    control.settimeout(None)
    if not ready:
        process.kill()
        process.wait()
        words = complaint().decode(errors="replace").strip() or f"it did not start in {START_SECONDS} seconds"
        raise SandboxFailed(f"the sandbox did not start: {words}", hint="run `bwrap --version` and see docs/sandbox.md")


def _output(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, env={}, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603  # bwrap
    if done.returncode:
        raise SandboxFailed(done.stderr.strip() or f"bwrap ended with {done.returncode}", hint="run `bwrap --version`")
    return done.stdout


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
