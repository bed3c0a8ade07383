"""A gateway in the background, as `valetkey up` starts it, and requests to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tests.support.command_line import CommandLine
from valetkey import serving
from valetkey.errors import ValetkeyError
from valetkey.testing.command_line import PATIENCE_SECONDS

__all__ = [
    "about",
    "ask",
    "background",
    "declare",
    "end",
    "ended",
    "kill",
    "kill_what_is_left",
    "make_key",
    "until",
]


@contextlib.contextmanager
def background(line: CommandLine) -> Iterator[dict[str, Any]]:
    """Run it, give what `up` says, and see that it is gone afterwards, whatever the test did to it."""
    done = line("up", "--json")
    try:
        assert done.status == 0, done.err
        yield done.json
    finally:
        end(line)


def end(line: CommandLine) -> None:
    """End what runs on this home, with all means."""
    home = str(line.home)
    found = serving.about(home)
    if found is not None and serving.is_alive(home):
        os.kill(found["pid"], signal.SIGCONT)
        line("down", "--now")
        if serving.is_alive(home):
            os.kill(found["pid"], signal.SIGKILL)
    until(lambda: not serving.is_alive(home))


def kill_what_is_left(home: Path) -> None:
    """Kill a gateway that a failed test left behind: it would live for hours."""
    with contextlib.suppress(OSError, ValueError, KeyError, ValetkeyError):
        if serving.is_alive(str(home)):
            os.kill(json.loads((home / "run" / serving.ABOUT).read_bytes())["pid"], signal.SIGKILL)


def until(true: Callable[[], object]) -> None:
    """Wait until it is: another process does it. Raises: AssertionError."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def about(line: CommandLine) -> dict[str, Any]:
    """Give what the running one says of itself. Raises: AssertionError where none runs."""
    found = serving.running(str(line.home))
    assert found is not None
    return found


def ended(pid: int) -> bool:
    """Say whether the process is gone; a zombie that nobody has waited for is too."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def kill(line: CommandLine) -> None:
    """Kill it as nothing can be prepared for."""
    pid = about(line)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: ended(pid))


def declare(line: CommandLine, url: str, *, id: str = "acme", key: str = "sk-" + "upstream" * 5) -> str:
    """Declare a provider at this address, log in there without asking it, and give the key."""
    line.declare(
        id,
        f'[api]\nbase_url = "{url}"\nhosts = ["{urlsplit(url).netloc}"]\ndialect = "openai-chat"\nallow_http = true\n'
        'probe = { get = "/models" }\n[[auth]]\nid = "api-key"\nkind = "api-key"\n'
        'inject = [{ set = { authorization = "Bearer {key}" } }]\n',
    )
    done = line("login", id, "--key", "-", "--no-verify", stdin=key)
    assert done.status == 0, done.err
    return key


def make_key(line: CommandLine, *words: str, grant: str = "acme") -> str:
    """Make a valet key and give it."""
    done = line("key", "create", "--grant", grant, *words, "--json")
    assert done.status == 0, done.err
    made: str = done.json["key"]
    return made


def ask(line: CommandLine, key: str, path: str = "/acme/models", *, method: str = "GET") -> httpx2.Response:
    """Send a request with this valet key."""
    url = about(line)["url"]
    with httpx2.Client(timeout=PATIENCE_SECONDS, trust_env=False) as client:
        return client.request(method, url + path, headers={"authorization": f"Bearer {key}"})
