"""Where the running gateway is, and how to ask it: HTTP over its control socket.

This module is on the path of `valetkey token`: it imports next to nothing. docs/serve.md says what lies in `run/`.
"""

import os

from valetkey.errors import GatewayDown, ValetkeyError
from valetkey.stores import modes

TYPE_CHECKING = False  # as in typing, which costs milliseconds
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

__all__ = [
    "ABOUT",
    "CONTROL",
    "GATEWAY",
    "LOCK",
    "LOG",
    "STARTING",
    "about",
    "ask",
    "base_url",
    "down",
    "error_from",
    "is_alive",
    "peer_uid",
    "poke",
    "running",
]

# The files of `run/`. The sockets lie there too, or where ABOUT says: see gateway/place.py.
ABOUT, LOCK, STARTING, LOG = "serve.json", "serve.lock", "start.lock", "serve.log"
CONTROL, GATEWAY = "control.sock", "gateway.sock"

# A renewal may be waited for, which may wait for another process's.
_PATIENCE_SECONDS = 60.0
_MAX_BYTES = 1 << 26


def about(home: str) -> "dict[str, Any] | None":
    """Give what the gateway of this home wrote of itself: version, pid, url, socket, control, started_at, locked.

    None where none has written anything; after a `kill -9` it is still there, and `is_alive` says no.
    Raises: WrongMode, ForeignStore for a home that others can write.
    """
    try:
        with open(os.path.join(home, "run", ABOUT), "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # It says where passphrases are sent to.
    modes.check_folder(home)
    import json

    try:
        found = json.loads(content)
        return found if isinstance(found, dict) and isinstance(found["control"], str) else None
    except (ValueError, KeyError):
        return None


def is_alive(home: str) -> bool:
    """Say whether a gateway of this home lives: it holds its lock for as long as it does."""
    return modes.is_locked(os.path.join(home, "run", LOCK))


def running(home: str) -> "dict[str, Any] | None":
    """Give what `about` gives of a gateway that lives and is ready, else None."""
    found = about(home)
    return found if found is not None and is_alive(home) else None


def base_url(home: str) -> str:
    """Give the address of the running gateway, such as http://127.0.0.1:4380. Raises: GatewayDown."""
    found = running(home)
    if found is None:
        raise down()
    return str(found["url"])


def poke(home: str) -> None:
    """Let the gateway read its keys anew now, where one runs; it would find out by itself within a second."""
    try:
        ask(home, "POST", "/refresh", patience_seconds=10.0)
    except (ValetkeyError, OSError):
        return


def ask(
    home: str,
    method: str,
    path: str,
    body: "dict[str, object] | None" = None,
    *,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> "dict[str, Any]":
    """Ask the control API and give the JSON that it answers.

    Raises: GatewayDown where none runs or answers, else what the gateway itself raised, by its code.
    """
    import json

    content = _exchange(home, method, path, b"" if body is None else json.dumps(body).encode(), patience_seconds)
    head, _, payload = content.partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
        answer = json.loads(payload)
    except (ValueError, IndexError):
        raise GatewayDown(
            "the gateway's control socket gave no answer that can be read",
            hint="start it anew: `valetkey down --now`, then `valetkey up`",
        ) from None
    if status >= 400:
        raise error_from(answer.get("error") or {})
    return answer if isinstance(answer, dict) else {}


def down() -> GatewayDown:
    """Give the error for a gateway that does not run."""
    return GatewayDown("the gateway does not run", hint="start it with `valetkey up`")


def error_from(told: "dict[str, Any]") -> ValetkeyError:
    """Give the error of the class that has this code: it ends the command with the same status as there."""
    from valetkey import errors

    classes = (getattr(errors, name) for name in errors.__all__)
    kind = next((c for c in classes if c.code == told.get("code")), ValetkeyError)
    return kind(
        str(told.get("message") or "the gateway could not do it"),
        hint=str(told.get("hint") or "see what it logged, in run/serve.log of the home folder"),
        provider=told.get("provider"),
    )


def peer_uid(connection: "socket") -> int:
    """Give the user at the other end of a Unix socket, as the kernel knows it."""
    import socket
    import sys

    if sys.platform == "linux":  # struct ucred: pid, uid, gid
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(told[4:8], sys.byteorder)
    # struct xucred of macOS and the BSDs: version, uid, …; SOL_LOCAL is 0 and LOCAL_PEERCRED is 1.
    told = connection.getsockopt(0, 1, 76)
    return int.from_bytes(told[4:8], sys.byteorder)


def _exchange(home: str, method: str, path: str, body: bytes, patience_seconds: float) -> bytes:
    """Send one request and read to the end of the answer. The server closes: there is nothing to frame."""
    found = about(home)
    if found is None:
        raise down()
    import socket

    head = (
        f"{method} {path} HTTP/1.1\r\nhost: valetkey\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_seconds)
        try:
            connection.connect(found["control"])
            if peer_uid(connection) != os.geteuid():
                # Whoever it is gets neither a name nor a passphrase.
                raise GatewayDown(
                    f"another user listens on {found['control']}", hint="run as the user whose gateway that is"
                )
            connection.sendall(head.encode("ascii") + body)
            return _rest(connection)
        except TimeoutError:
            raise GatewayDown(
                f"the gateway (process {found.get('pid')}) does not answer",
                hint="look whether it is stopped; `valetkey down --now` ends it",
            ) from None
        except OSError:
            raise down() from None  # nobody listens: it was killed, or is about to end


def _rest(connection: "socket") -> bytes:
    pieces, size = [], 0
    while piece := connection.recv(65536):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_BYTES:
            break
    return b"".join(pieces)
