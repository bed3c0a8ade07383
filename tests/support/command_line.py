"""The command line as a subprocess, without a terminal and on one, in a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from valetkey.testing.command_line import PATIENCE_SECONDS
from valetkey.testing.command_line import CommandLine as OwnCommandLine
from valetkey.testing.local_server import Answer, LocalServer, Received

# Root starts no run: where the tests run as root, they do this as an ordinary user of a namespace of their own.
ORDINARY = (
    (str(shutil.which("unshare")), "--user", "--map-user=1000", "--map-group=1000", "--") if os.geteuid() == 0 else ()
)
# Makes standard input the controlling terminal: without one there is neither Ctrl-C nor /dev/tty.
_ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "valetkey", *sys.argv[1:]])
"""


class CommandLine(OwnCommandLine):
    """Runs `valetkey` with a VALETKEY_HOME and nothing of the developer's environment, on a terminal too."""

    @contextlib.contextmanager
    def terminal(self, *words: str, environ: Mapping[str, str] | None = None) -> Iterator[Terminal]:
        """Run it on a terminal of its own, 80 columns wide."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*self.through, sys.executable, "-c", _ON_TERMINAL, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**self.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", **(environ or {})},
        )
        os.close(theirs)
        try:
            yield Terminal(ours, process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            os.close(ours)

    def declare(self, id: str, toml: str) -> None:
        """Write a declaration of the user's own."""
        folder = self.home / "providers"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / f"{id}.toml").write_text(f'id = "{id}"\nname = "{id.title()}"\n{toml}')

    def accounts(self) -> list[dict[str, Any]]:
        """Give what is stored, as `list --json` tells it."""
        found: list[dict[str, Any]] = self("list", "--json").json["accounts"]
        return [account for account in found if account["source"] == "stored"]


class Terminal:
    """A command that runs on a terminal. `shown` is all that it wrote so far."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self._ours = ours
        self._process = process
        self.pid = process.pid
        self.shown = ""
        self._seen = 0

    def expect(self, text: str) -> str:
        """Wait until this is shown, behind what was waited for before. Raises: AssertionError with all that came."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.shown[self._seen :]:
            assert self._read(deadline), f"{text!r} never came: {self.shown!r}"
        self._seen = self.shown.index(text, self._seen) + len(text)
        return self.shown

    def resize(self, rows: int, columns: int) -> None:
        """Make it this large."""
        termios.tcsetwinsize(self._ours, (rows, columns))

    def send(self, text: str) -> None:
        """Type this."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.send("\x03")

    def end(self) -> int:
        """Read to the end and give the exit status."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(PATIENCE_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._ours], [], [], left)[0]:
            raise AssertionError(f"nothing more came: {self.shown!r}")
        try:
            piece = os.read(self._ours, 65536)
        except OSError:  # Linux tells the end of a terminal as EIO
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)


@contextlib.contextmanager
def api_server(keys: Sequence[str]) -> Iterator[LocalServer]:
    """Give a server that lists its models and says who one is, for a Bearer of these keys; 401 for any other."""

    def respond(request: Received) -> Answer:
        if request.headers.get("authorization") not in [f"Bearer {key}" for key in keys]:
            return Answer(status=401, headers={"content-type": "application/json"}, body=b'{"error":{}}')
        body = {"data": [{"id": "small"}], "email": "a@example.org", "plan": "pro"}
        return Answer(headers={"content-type": "application/json"}, body=json.dumps(body).encode())

    with LocalServer(respond) as server:
        yield server
