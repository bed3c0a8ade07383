"""Ways out of a sandbox, each tried inside, and each tried outside too: as the control that shows that it is one.

Every probe is a few lines of Python that print `reached`, or the name of the error that held it back.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandboxed import on_host, sandbox_here
from valetkey.sandbox import Limits
from valetkey.testing.command_line import Done
from valetkey.testing.place import PYTHON, Place, give, processes_with, sandbox_place

START = """
import ctypes, errno, os, signal, socket, sys
LIBC = ctypes.CDLL(None, use_errno=True)
ARM = os.uname().machine == "aarch64"
def call(numbers, *arguments):
    result = LIBC.syscall(*map(ctypes.c_long, (numbers[ARM] if isinstance(numbers, tuple) else numbers, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
KEPT = []
def text(words):
    KEPT.append(ctypes.create_string_buffer(words.encode()))
    return ctypes.addressof(KEPT[-1])
def attempt():
"""
END = """
try:
    attempt()
    print("reached")
except OSError as error:
    print(errno.errorcode.get(error.errno, error.errno))
"""


def probe(body: str) -> str:
    return START + "".join(f"    {line}\n" for line in body.strip().splitlines()) + END


@pytest.fixture(params=["bubblewrap", "podman"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with sandbox_place(sandbox_here(request.param, request)) as made:
        yield made


def answer(done: Done) -> str:
    assert done.status == 0, done.err
    return done.out.strip()


# --- the network --------------------------------------------------------------------------------

TCP = "socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()"
UDP = """
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.settimeout(10)
    sender.connect((sys.argv[1], int(sys.argv[2])))
    sender.send(b"a question, such as one for a name")
    sender.recv(100)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp_to_the_hosts_loopback(place: Place, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        where = (host, str(server.getsockname()[1]))
        assert answer(on_host(probe(TCP), *where)) == "reached"
        assert answer(place.probe(probe(TCP), *where)) == "ECONNREFUSED"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_udp_to_the_hosts_loopback_which_a_name_server_is(place: Place, host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((host, 0))
        server.settimeout(30)

        def reply() -> None:
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)

        replying = threading.Thread(target=reply)
        replying.start()
        where = (host, str(server.getsockname()[1]))
        assert answer(on_host(probe(UDP), *where)) == "reached"
        replying.join()
        assert answer(place.probe(probe(UDP), *where)) == "ECONNREFUSED"


def test_no_name_server_is_named(place: Place) -> None:
    lookup = (
        "try: socket.getaddrinfo('example.com', 443)\nexcept socket.gaierror: raise OSError(errno.EHOSTUNREACH, '')"
    )
    assert answer(place.probe(probe(lookup))) == "EHOSTUNREACH"
    assert place.run(place.spec("cat", "/etc/resolv.conf")).out == ""


# Connecting a UDP socket sends nothing: it asks the kernel for a route. The addresses are RFC 5737's and RFC 3849's.
ROUTE = """
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.connect((sys.argv[1], 9))
"""


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "169.254.169.254", "10.0.0.1"])
def test_the_world(place: Place, address: str) -> None:
    # A machine may have no route there itself. A namespace of one's own can be given one: that is the control.
    assert answer(as_root_of_its_own(probe(ROUTE), address, before=ROUTED)) == "reached"
    assert answer(place.probe(probe(ROUTE), address)) == "ENETUNREACH"


def test_there_is_no_interface_but_a_loopback(place: Place) -> None:
    assert place.probe("import socket; print([name for _, name in socket.if_nameindex()])").out == "['lo']\n"


ICMP = "socket.socket(socket.AF_INET{six}, socket.{kind}, socket.{protocol}).close()"
# The control's own groups may make datagram sockets of ICMP, whatever this machine's may.
PINGING = "echo 0 0 > /proc/sys/net/ipv4/ping_group_range"


@pytest.mark.parametrize(("six", "protocol"), [("", "IPPROTO_ICMP"), ("6", "IPPROTO_ICMPV6")], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["SOCK_RAW", "SOCK_DGRAM"])
def test_icmp(place: Place, kind: str, six: str, protocol: str) -> None:
    code = probe(ICMP.format(kind=kind, six=six, protocol=protocol))
    assert answer(as_root_of_its_own(code, before=PINGING)) == "reached"
    assert answer(place.probe(code)) in ("EPERM", "EACCES")


ROUTED = "ip link set lo up && ip route add default dev lo && ip -6 route add default dev lo"


def as_root_of_its_own(code: str, *arguments: str, before: str = ":") -> Done:
    """Run it in new namespaces in which it has every capability, behind a line of shell."""
    words = ["unshare", "-Urnmu", "sh", "-c", f'{before} && exec "$@"', "sh", PYTHON, "-c", code, *arguments]
    return on_host(f"import os\nos.environ['PATH'] += ':/usr/sbin:/sbin'\nos.execvp('unshare', {words!r})")


UNIX = "socket.socket(socket.AF_UNIX).connect(sys.argv[1].replace('@', chr(0)))"


def test_an_abstract_unix_socket(place: Place) -> None:
    name = f"@valetkey-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name.replace("@", "\0"))
        server.listen()
        assert answer(on_host(probe(UNIX), name)) == "reached"
        assert answer(place.probe(probe(UNIX), name)) == "ECONNREFUSED"


@pytest.mark.parametrize(
    "name", ["docker.sock", "agent.4711", "bus", "X0", "wayland-0", "podman/podman.sock", "S.gpg-agent", "control.sock"]
)
def test_a_unix_socket_of_a_program_outside(name: str, place: Place) -> None:
    with tempfile.TemporaryDirectory(prefix="valetkey-socket-") as folder, socket.socket(socket.AF_UNIX) as server:
        os.chmod(folder, 0o755)
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        server.bind(str(path))
        give(path)
        server.listen()
        assert answer(on_host(probe(UNIX), str(path))) == "reached"
        assert answer(place.probe(probe(UNIX), str(path))) == "ENOENT"
        # The place in the sandbox that the way back from its own folders would lead to.
        assert answer(place.probe(probe(UNIX), f"/workspace/../..{path}")) == "ENOENT"


def test_no_variable_says_where_the_hosts_sockets_are(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY", "DOCKER_HOST"):
        monkeypatch.setenv(name, "/run/somewhere")
    assert "/run/somewhere" not in place.run(place.spec("env")).out


def test_the_folders_of_sockets_are_empty(place: Place) -> None:
    listed = place.run(place.spec("sh", "-c", "find /run /tmp /var -type s")).out
    assert listed == ""


# --- files --------------------------------------------------------------------------------------

READ = "open(sys.argv[1]).read()"


def test_a_link_out_of_the_workspace(place: Place) -> None:
    outside = place.root / "outside"
    outside.write_text(secrets.token_hex(16))
    outside.chmod(0o644)
    links = {"absolute": outside, "relative": Path("../outside"), "process": Path(f"/proc/{os.getpid()}/root{outside}")}
    for name, target in links.items():
        (place.workspace / name).symlink_to(target)
    assert answer(on_host(probe(READ), str(place.workspace / "absolute"))) == "reached"
    for name in links:
        assert answer(place.probe(probe(READ), f"/workspace/{name}")) in ("ENOENT", "EACCES")


@pytest.mark.parametrize("path", ["/etc/shadow", "/root", "/home/agent/../../root", "/sys/kernel", "/boot", "/var/lib"])
def test_what_of_the_host_is_not_there(place: Place, path: str) -> None:
    assert place.probe("import os, sys; print(os.path.exists(sys.argv[1]))", path).out == "False\n"


WRITE = """
name = sys.argv[1] + "/valetkey-probe"
os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o755))
os.unlink(name)
"""


@pytest.mark.parametrize(
    "folder",
    ["/", "/etc", "/usr", "/usr/bin", "/usr/local/bin", "/bin", "/lib", "/run", "/run/valetkey", "/dev", "/home"],
)
def test_nothing_is_written_but_in_its_own_folders(place: Place, folder: str) -> None:
    assert answer(place.probe(probe(WRITE), folder)) in ("EROFS", "EACCES")
    assert answer(place.probe(probe(WRITE), "/workspace")) == "reached"


@pytest.mark.parametrize("file", ["/etc/passwd", "/etc/resolv.conf", "/etc/hosts", "/run/forward.py"])
def test_the_files_that_it_was_given_stay(place: Place, file: str) -> None:
    assert answer(place.probe(probe("open(sys.argv[1], 'a')"), file)) in ("EROFS", "EACCES")
    assert answer(place.probe(probe("os.chmod(sys.argv[1], 0o777)"), file)) in ("EROFS", "EPERM")
    assert answer(place.probe(probe("os.rename('/etc', '/gone')"), file)) in ("EROFS", "EBUSY", "EXDEV")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a program that makes root of its caller")
def test_a_setuid_program_gives_nothing(place: Place) -> None:
    program = place.workspace / "id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(stat.S_ISUID | 0o755)
    place.workspace.chmod(0o755)
    ask = "import subprocess, sys; subprocess.run([sys.argv[1], '-u'])"
    assert on_host(ask, str(program)).out == "0\n"
    assert place.probe(ask, "/workspace/id").out == place.run(place.spec("id", "-u")).out != "0\n"


def test_privileges_are_gone_for_every_process(place: Place) -> None:
    read = (
        "import glob\nfor name in glob.glob('/proc/[0-9]*/status'):\n"
        "  lines = dict(line.split(':', 1) for line in open(name))\n"
        "  print(*(lines[key].strip() for key in ('CapEff', 'CapPrm', 'CapBnd', 'NoNewPrivs', 'Seccomp')))"
    )
    lines = set(place.probe(read).out.splitlines())
    assert lines == {f"{'0' * 16} {'0' * 16} {'0' * 16} 1 2"}


# --- other processes ----------------------------------------------------------------------------


@pytest.fixture
def neighbour(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process outside, of the user whom the sandbox's commands run as, with a canary in its environment."""
    owner = place.workspace.stat()
    root = os.geteuid() == 0
    with subprocess.Popen(
        ["sleep", "600"],
        env={"CANARY": secrets.token_hex(16)},
        user=owner.st_uid if root else None,
        group=owner.st_gid if root else None,
        extra_groups=[] if root else None,
    ) as process:
        yield process
        process.kill()


LOOK = """
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        if int(name) != os.getpid() and "CANARY=" in open(f"/proc/{name}/environ").read():
            return
    except OSError:
        continue
raise OSError(errno.ESRCH, "")
"""


@pytest.mark.usefixtures("neighbour")
def test_processes_of_others_cannot_be_seen(place: Place) -> None:
    assert answer(on_host(probe(LOOK))) == "reached"
    assert answer(place.probe(probe(LOOK))) == "ESRCH"


def test_processes_of_others_get_no_signal(place: Place, neighbour: subprocess.Popen[bytes]) -> None:
    assert answer(on_host(probe("os.kill(int(sys.argv[1]), 0)"), str(neighbour.pid))) == "reached"
    assert answer(place.probe(probe("os.kill(int(sys.argv[1]), 9)"), str(neighbour.pid))) == "ESRCH"
    place.probe("import os, signal; os.kill(-1, signal.SIGKILL)")
    assert neighbour.poll() is None


# --- calls of the kernel ------------------------------------------------------------------------

# What is called (numbers for x86_64 and aarch64, or the one that both have), what that gives outside, what inside.
CALLS: dict[str, tuple[str, str | tuple[str, ...], str]] = {
    "ptrace": ("call((101, 117), 0, 0, 0, 0)", "reached", "EPERM"),
    "process_vm_readv": ("call((310, 270), os.getpid(), 0, 0, 0, 0, 0)", "reached", "EPERM"),
    "process_vm_writev": ("call((311, 271), os.getpid(), 0, 0, 0, 0, 0)", "reached", "EPERM"),
    "pidfd_getfd": ("call(438, os.pidfd_open(os.getpid()), 1, 0)", "reached", "EPERM"),
    "keyctl": ("call((250, 219), 0, -3, 1)", "reached", "EPERM"),
    "add_key": ("call((248, 217), 0, 0, 0, 0, 0)", "EFAULT", "EPERM"),
    "request_key": ("call((249, 218), 0, 0, 0, 0)", "EFAULT", "EPERM"),
    "io_uring_setup": ("call(425, 4, ctypes.addressof(ctypes.create_string_buffer(120)))", "reached", "EPERM"),
    "io_uring_enter": ("call(426, 999, 0, 0, 0, 0, 0)", "EBADF", "EPERM"),
    "userfaultfd": ("call((323, 282), 1)", "reached", "EPERM"),
    "perf_event_open": ("call((298, 241), 0, 0, 0, 0, 0)", "EFAULT", "EPERM"),
    "open_tree": (
        "call(428, -100, text('/'), 0)",
        "reached",
        "EPERM",
    ),
    "setns": ("call((308, 268), os.open('/proc/self/ns/user', os.O_RDONLY), 0)", "EINVAL", "EPERM"),
    "unshare user": ("call((272, 97), 0x10000000)", "reached", "EPERM"),
    "clone user": ("if call((56, 220), 0x10000011, 0, 0, 0, 0) == 0: os._exit(0)\nos.wait()", "reached", "EPERM"),
    "clone3": ("call(435, 0, 0)", "EINVAL", "ENOSYS"),
    "TIOCSTI": ("call((16, 29), os.pipe()[0], 0x5412, 0)", "ENOTTY", "EPERM"),
    "TIOCSTI in 64 bits": ("call((16, 29), os.pipe()[0], 0x700005412, 0)", "ENOTTY", "EPERM"),
    "TIOCLINUX": ("call((16, 29), os.pipe()[0], 0x541C, 0)", "ENOTTY", "EPERM"),
    # Nothing is ever connected; a kernel without it says EAFNOSUPPORT.
    "AF_VSOCK": ("call((41, 198), 40, 1, 0)", ("reached", "EAFNOSUPPORT"), "EPERM"),
    "AF_VSOCK in 64 bits": ("call((41, 198), 0x700000028, 1, 0)", ("reached", "EAFNOSUPPORT"), "EPERM"),
    "AF_ALG": ("call((41, 198), 38, 5, 0)", ("reached", "EAFNOSUPPORT"), "EPERM"),
    "NETLINK_AUDIT": ("call((41, 198), 16, 3, 9)", ("reached", "EPROTONOSUPPORT"), "EPERM"),
    # Those that have to go on working.
    "NETLINK_ROUTE": ("call((41, 198), 16, 3, 0)", "reached", "reached"),
    "AF_UNIX pair": ("socket.socketpair()", "reached", "reached"),
    "unshare files": ("call((272, 97), 0x400)", "reached", "reached"),
    "fork": ("if os.fork() == 0: os._exit(0)\nos.wait()", "reached", "reached"),
    "thread": ("import threading\nthreading.Thread(target=print, args=('',)).start()", "reached", "reached"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_the_kernel(place: Place, name: str) -> None:
    code, outside, inside = CALLS[name]
    assert answer(on_host(probe(code))) in ([outside] if isinstance(outside, str) else outside)
    assert answer(place.probe(probe(code))) == inside


# Those that need privileges, which one has in a namespace of one's own.
PRIVILEGED = {
    "mount": "call((165, 40), text('none'), text('/mnt'), text('tmpfs'), 0, 0)",
    "fsopen": "call(430, text('tmpfs'), 0)",
    "chroot": "call((161, 51), text('/'))",
    "sethostname": "call((170, 161), text('x'), 1)",
}


@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_call_of_the_kernel_with_privileges(place: Place, name: str) -> None:
    code = probe(PRIVILEGED[name])
    assert answer(as_root_of_its_own(code)) == "reached"
    assert answer(place.probe(code)) == "EPERM"


def test_no_namespace_is_made_by_a_program(place: Place) -> None:
    assert on_host("import os; os.execvp('unshare', ['unshare', '-Ur', 'true'])").status == 0
    assert place.run(place.spec("unshare", "-Ur", "true")).status != 0


def test_the_hostname_is_not_the_machines(place: Place) -> None:
    assert place.run(place.spec("uname", "-n")).out == "sandbox\n"


# --- using up the machine -----------------------------------------------------------------------

FORKS = """
import os, signal
children = []
try:
    while len(children) < 150:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
print(len(children))
"""


def test_no_more_processes_than_the_limit(place: Place) -> None:
    assert int(on_host(FORKS).out) == 150
    assert 20 < int(place.probe(FORKS, limits=Limits(processes=60, seconds=60)).out) < 60


def test_a_fork_bomb_ends_with_its_time(place: Place) -> None:
    word = secrets.token_hex(8)
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    with place.talking(place.spec(PYTHON, "-c", bomb, word, limits=Limits(processes=60, seconds=1))) as (started, _):
        assert started.wait() in (143, 137)
        assert started.overrun == "time"
    assert processes_with(word) == []


def test_one_process_gets_no_more_memory_than_the_limit(place: Place) -> None:
    take = "print(len(bytearray(400 << 20)))"
    assert place.probe(take).status == 0
    assert "MemoryError" in place.probe(take, limits=Limits(memory_bytes=200 << 20, seconds=60)).err


MEMORY = """
import mmap, os, signal
kept = []
for _ in range(10):
    if os.fork() == 0:
        {take}
        signal.pause()
signal.pause()
"""


@pytest.mark.parametrize(
    "take",
    [
        "kept.append(bytearray(os.urandom(1 << 20)) * 40)",
        "kept.append(mmap.mmap(-1, 40 << 20)); kept[0].write(bytes(40 << 20))",
    ],
    ids=["its own", "shared"],
)
def test_many_processes_get_no_more_memory_than_the_limit(place: Place, take: str) -> None:
    limits = Limits(memory_bytes=200 << 20, seconds=60)
    with place.talking(place.spec(PYTHON, "-c", MEMORY.format(take=take), limits=limits)) as (started, _):
        assert started.wait() == 137
        assert started.overrun == "memory"


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm", "/var"])
def test_what_is_in_memory_cannot_be_filled_for_ever(place: Place, folder: str) -> None:
    # Asked for at once, which the kernel refuses at once: nothing is filled.
    fill = "os.posix_fallocate(os.open(sys.argv[1] + '/fill', os.O_CREAT | os.O_RDWR), 0, int(sys.argv[2]))"
    if folder == "/var" and place.sandbox.own_programs:
        assert answer(place.probe(probe(fill), folder, "1")) in ("EROFS", "EACCES")
        return
    assert answer(place.probe(probe(fill), folder, str(2 << 30))) == "ENOSPC"
    assert answer(place.probe(probe(fill), folder, str(1 << 20))) == "reached"
