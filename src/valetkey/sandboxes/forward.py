"""Runs inside a sandbox: passes 127.0.0.1:3128 on to the run's gateway, and runs the command.

    python3 -I -S -B forward.py CONTROL STDERR
    python3 -I -S -B forward.py PATH

CONTROL is the descriptor of a socket to the starter. To it goes one byte when the port is open. From it comes the
command: four bytes of length, then its words, each ended by NUL. Each byte after that is a signal for the command, and
the end says that the starter is gone. STDERR is the command's stderr; what is written to descriptor 2 before the
command runs is the starter's to read.

A container hands no descriptors down: there PATH is the Unix socket of the starter. In front of the command comes a
message of the same form with the command's whole environment as NAME=VALUE, and with it stdin, stdout and stderr
(unix(7), SCM_RIGHTS): so what is said passes through no engine, and no variable is kept in the engine's records.

No more of Python than Debian's python3-minimal has: no asyncio, resource, termios or ctypes. And of modules written in
Python only `os`: `socket` and `signal` are wrapped around `_socket` and `_signal`, and in an image without .pyc files
what they import takes longer to compile than all else here takes.
"""

import _signal  # type: ignore[import-not-found]  # typeshed knows it by `signal` alone
import _socket
import _thread
import fcntl
import os
import sys
import time

PORT = 3128
GATEWAY = "/run/valetkey/gateway.sock"
INT_BYTES = 4
TIOCSCTTY = 0x540E  # of asm-generic/ioctls.h, which x86 and ARM use


def main() -> None:
    """Open the port, run the command, and end as it ends."""
    control, descriptors = reached()
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", PORT))
    listener.listen(128)
    control.sendall(b"r")
    streams: list[int] = []
    environment = dict(os.environb)
    if not descriptors:
        words, streams = received(control)
        environment = dict(word.partition(b"=")[::2] for word in words)
        descriptors = streams[2:]
    command, _ = received(control)
    # Closed by exec, so its end says that the command runs.
    running, starting = os.pipe()
    # Forked before there is a thread.
    child = os.fork()
    if child == 0:
        run(command, environment, streams or [0, 1, *descriptors])
    os.dup2(descriptors[0], 2)
    for descriptor in (starting, *streams):
        os.close(descriptor)
    # What is reserved for stacks counts for a limit of memory: 256 KiB are ten times what a copier takes.
    _thread.stack_size(1 << 18)
    _thread.start_new_thread(obey, (control, child, running))
    _thread.start_new_thread(serve, (listener,))
    ended, status = os.wait()
    while ended != child:  # the first process of a container gets the orphans of all
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def reached() -> "tuple[_socket.socket, list[int]]":
    """Give the socket to the starter, and the command's stderr where that has been handed down."""
    if len(sys.argv) == 2:
        control = _socket.socket(_socket.AF_UNIX)
        control.connect(sys.argv[1])
        return control, []
    control, errors = _socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for descriptor in (control.fileno(), errors):
        os.set_inheritable(descriptor, False)
    return control, [errors]


def received(control: _socket.socket) -> "tuple[list[bytes], list[int]]":
    """Read one message: its words, and the descriptors that came with it."""
    head, sent, _, _ = control.recvmsg(
        4, _socket.CMSG_SPACE(3 * INT_BYTES), _socket.MSG_WAITALL | _socket.MSG_CMSG_CLOEXEC
    )
    if len(head) < 4:
        os._exit(1)  # the starter is gone
    numbers = b"".join(data[: len(data) - len(data) % INT_BYTES] for _, _, data in sent)
    descriptors = [
        int.from_bytes(numbers[at : at + INT_BYTES], sys.byteorder) for at in range(0, len(numbers), INT_BYTES)
    ]
    length = int.from_bytes(head, "big")
    words = control.recv(length, _socket.MSG_WAITALL).split(b"\0")[:-1] if length else []
    return words, descriptors


def run(command: "list[bytes]", environment: "dict[bytes, bytes]", streams: "list[int]") -> None:
    """Become the command, in a session of its own, on the terminal where there is one."""
    try:
        # Ctrl-C may come as soon as there is a terminal.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        os.setsid()
        if os.isatty(0):
            fcntl.ioctl(0, TIOCSCTTY, 0)
        # When the machine's memory runs out, the kernel is to take the sandbox first.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        # Python ignores these two, and what is ignored stays so across exec.
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
        os.execvpe(command[0], command, environment)  # noqa: S606  # the command is what it is for
    except OSError as error:
        os.write(2, f"{os.fsdecode(command[0])}: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def obey(control: _socket.socket, child: int, running: int) -> None:
    """Pass on the starter's signals; end everything when the starter is gone."""
    # Until then it has no process group of its own, and a signal would be lost, or be Python's.
    os.read(running, 1)
    while number := control.recv(1):
        try:
            os.killpg(child, number[0])
        except OSError:
            continue
    os.kill(-1, _signal.SIGKILL)


def serve(listener: _socket.socket) -> None:
    """Take connections for ever."""
    while True:
        try:
            descriptor, _ = listener._accept()  # type: ignore[attr-defined]  # all that `socket` has of accept
            _thread.start_new_thread(connect, (_socket.socket(fileno=descriptor),))
        except (OSError, RuntimeError):  # no descriptor or thread left: until others are closed
            time.sleep(0.05)


def connect(client: _socket.socket) -> None:
    """Connect one client with the gateway; without a gateway, a descriptor or a thread for it, it is closed."""
    try:
        gateway = _socket.socket(_socket.AF_UNIX)
        gateway.connect(GATEWAY)
        client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        lock = _thread.allocate_lock()
        lock.acquire()
        _thread.start_new_thread(upload, (client, gateway, lock))
        copy(gateway, client)
        lock.acquire()
    except (OSError, RuntimeError):
        pass  # both close as they are let go of


def upload(client: _socket.socket, gateway: _socket.socket, done: "_thread.LockType") -> None:
    """Copy what the client sends, then release the lock."""
    try:
        copy(client, gateway)
    finally:
        done.release()


def copy(source: _socket.socket, sink: _socket.socket) -> None:
    """Copy until the source ends, and end the sink's half; where one of them is gone, end both whole."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(_socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            try:
                end.shutdown(_socket.SHUT_RDWR)
            except OSError:
                continue


if __name__ == "__main__":
    main()
