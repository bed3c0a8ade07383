"""Looks for canaries in all that whoever is inside of a sandbox can see, and writes what it found to `found`.

It does not know them: a canary is the word with 40 hexadecimal digits behind it. It is looked for as it stands,
backwards, in base64 wherever in a text it may have begun (RFC 4648 section 4, and section 5), in hexadecimal and
percent-encoded; in environments, arguments, memory, files, and what listens on a socket says. `found` has, as JSON,
where canaries are, where placeholders are (so it does see), and what could not be read.
"""

import base64
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

# In pieces, so that this text is no finding.
WORD = b"can" + b"ary"
LARGEST_SPAN_BYTES = 1 << 28
EMPTY = bytes(4096)
SILENCE_SECONDS = 4
ASKED = ("/", "/v1/keys", "/status", "/metrics", "/latest/meta-data/")


class Form(NamedTuple):
    """What is looked for: fast, a part that is always the same; then all of it."""

    part: bytes
    whole: re.Pattern[bytes]


def canary() -> list[Form]:
    """Give the forms of one."""
    backwards, percent = WORD[::-1], b"".join(b"%%%02x" % byte for byte in WORD)
    forms = [
        Form(WORD, re.compile(WORD + rb"-?[0-9a-f]{40}")),
        Form(backwards, re.compile(rb"[0-9a-f]{40}-?" + backwards)),
    ]
    for upper in (False, True):
        for part, digit in ((WORD.hex().encode(), rb"(?:3[0-9]|6[1-6])"), (percent, rb"(?:%3[0-9]|%6[1-6])")):
            shown = part.upper() if upper else part
            forms.append(Form(shown, re.compile(shown + rb"(?:%?2[dD])?" + digit + rb"{40}")))
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + WORD)
        # The letters that something beside it has a part in are anybody's.
        inner = encoded[-(-before * 8 // 6) : (before + len(WORD)) * 8 // 6]
        forms.append(Form(inner, re.compile(inner + rb"[0-9A-Za-z+/_-]{50}")))
    return forms


MARK = b"placeholder-" + b"vkp_"
CANARY, PLACEHOLDER = canary(), [Form(MARK, re.compile(MARK))]
CANARIES: list[str] = []
PLACEHOLDERS: list[str] = []
UNREAD: list[str] = []


def look(place: str, data: bytes) -> None:
    """Keep the place where it is in there."""
    for forms, places in ((CANARY, CANARIES), (PLACEHOLDER, PLACEHOLDERS)):
        if any(form.part in data and form.whole.search(data) for form in forms):
            places.append(place)


def processes() -> None:
    """Look at environments, arguments and memory of all that there are, but for the memory of this one."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("environ", "cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/{name}", "rb") as file:
                look(f"{name} of {pid}", file.read())
        # 1 is the sandbox's own and keeps its memory shut; this one's holds what it is looking for.
        if int(pid) not in (1, os.getpid()):
            try:
                memory(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            except OSError as error:
                UNREAD.append(f"{pid}:{error.strerror}")


def memory(pid: str) -> None:
    """Look at what a process may write to."""
    with open(f"/proc/{pid}/mem", "rb", 0) as file, open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            span, mode = line.split()[:2]
            start, end = (int(number, 16) for number in span.split("-"))
            if mode.startswith("rw") and end - start < LARGEST_SPAN_BYTES:
                with suppress(OSError, OverflowError):
                    file.seek(start)
                    # Most of a large one was never written to.
                    look(f"memory of {pid}", file.read(end - start).replace(EMPTY, b""))


def files() -> None:
    """Look at every file, and what each is called; /usr and /opt hold programs, as they are without a run."""
    for top in ("/dev/shm", "/etc", "/home", "/run", "/tmp", "/var", "/workspace"):
        for at, folders, names in os.walk(top):
            for name in (*folders, *names):
                path = os.path.join(at, name)
                look(path, os.fsencode(path))
                if os.path.isfile(path):
                    try:
                        with open(path, "rb") as file:
                            look(path, file.read())
                    except FileNotFoundError:
                        continue  # somebody's temporary one
                    except OSError as error:
                        UNREAD.append(f"{path}:{error.strerror}")


def listening() -> Iterator[tuple[str, socket.AddressFamily, str | tuple[str, int]]]:
    """Give what can be connected to."""
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                port = int(words[1].rpartition(":")[2], 16)
                yield f"port {port}", socket.AF_INET, ("127.0.0.1", port)
    with open("/proc/net/unix") as table:
        for line in table.readlines()[1:]:
            for path in line.split(maxsplit=7)[7:]:
                name = path.strip()
                yield f"socket {name}", socket.AF_UNIX, "\0" + name[1:] if name.startswith("@") else name
    for at, _, names in os.walk("/run"):
        for name in names:
            path = os.path.join(at, name)
            if not os.path.isfile(path):
                yield f"socket {path}", socket.AF_UNIX, path


def sockets() -> None:
    """Look at what each of them says, to whoever says nothing and to whoever asks, as long as it answers."""
    for place, family, address in listening():
        for path in ("", *ASKED):
            try:
                hear(place, family, address, path)
            except TimeoutError:
                if path:
                    break
            except OSError:
                continue


def hear(place: str, family: socket.AddressFamily, address: str | tuple[str, int], path: str) -> None:
    """Look at what it says to a GET, or to nothing."""
    with socket.socket(family) as client:
        client.settimeout(SILENCE_SECONDS if path else 0.2)
        client.connect(address)
        if path:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        said = b""
        while piece := client.recv(65536):
            said += piece
            look(place, said)


def main() -> None:
    """Look everywhere."""
    processes()
    files()
    sockets()
    path = sys.argv[1] if len(sys.argv) > 1 else "/workspace/found"
    with open(f"{path}-", "w") as out:
        json.dump({"canaries": CANARIES, "placeholders": PLACEHOLDERS, "unread": UNREAD}, out)
    os.replace(f"{path}-", path)  # whoever waits for it finds it whole


main()
