"""`valetkey ask` and `valetkey models` as a user types them, against a real model and real servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from tests.support.servers import ApiMock, ModelServer
from valetkey.chat import conversation
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, ExchangedKey, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.testing.local_server import Answer, LocalServer, Received

KEY = "sk-" + "e2e9" * 10
PATIENCE_SECONDS = 60


class Valetkey:
    """The command line with a home of its own, and what a test puts into it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "providers").mkdir(mode=0o700)
        keep = ("PATH", "HOME", "LANG", "VALETKEY_HOME")
        self.environ = {name: os.environ[name] for name in keep if name in os.environ}

    def declare(self, id: str, url: str, dialect: str, *, header: str = "authorization = 'Bearer {key}'") -> None:
        """Write a declaration whose server is at `url`."""
        host = url.split("/")[2]
        (self.home / "providers" / f"{id}.toml").write_text(
            f"""
            id = "{id}"
            name = "{id}"
            [api]
            base_url = "{url}"
            dialect = "{dialect}"
            hosts = ["{host}"]
            allow_http = true
            [[auth]]
            id = "api-key"
            kind = "api-key"
            environment = ["{id.upper()}_API_KEY"]
            inject = [{{ set = {{ {header} }} }}]
            """
        )

    def log_in(self, id: str, url: str, key: str, *, account: str = "default") -> None:
        """Store a key, as `valetkey login --key -` does."""
        with contextlib.closing(
            open_store(Paths(home=self.home), clock=SystemClock(), key_source_kind="key-file")
        ) as s:
            s.save(
                Record(
                    ref=CredentialRef(provider=id, account=account),
                    credential=ApiKey(method="api-key", key=Secret(key)),
                    hosts=(url.split("/")[2],),
                    base_url=url,
                )
            )

    def declare_exchange(self, id: str, url: str) -> None:
        """Write a declaration whose login buys keys at `url`."""
        (self.home / "providers" / f"{id}.toml").write_text(
            f"""
            id = "{id}"
            name = "{id}"
            [api]
            base_url = "{url}/v1"
            dialect = "openai-chat"
            hosts = ["{url.split("/")[2]}"]
            allow_http = true
            [[auth]]
            id = "device"
            kind = "device-exchange"
            client_id = "client"
            device_authorization_endpoint = "{url}/device"
            token_endpoint = "{url}/token"
            inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
            [auth.exchange]
            get = "{url}/buy"
            headers = {{ authorization = "Bearer {{access_token}}" }}
            expires_in = "/expires_in"
            """
        )

    def log_in_exchange(self, id: str, url: str, key: str, *, minutes_left: int) -> None:
        """Store a bought key and the token that buys the next one."""
        now, host = datetime.now(UTC), url.split("/")[2]
        issued = now - timedelta(minutes=10)
        grant = OAuthToken(method="device", access_token=Secret("gho-grant"), issued_at=issued)
        credential = ExchangedKey(
            method="device",
            key=Secret(key),
            grant=grant,
            issued_at=issued,
            expires_at=now + timedelta(minutes=minutes_left),
        )
        with contextlib.closing(
            open_store(Paths(home=self.home), clock=SystemClock(), key_source_kind="key-file")
        ) as s:
            ref = CredentialRef(provider=id)
            s.save(Record(ref=ref, credential=credential, hosts=(host,), endpoints=(host,), base_url=f"{url}/v1"))

    def command(self, *words: str) -> list[str]:
        """Give the command line for these words."""
        return [sys.executable, "-m", "valetkey", *words]

    def __call__(
        self, *words: str, stdin: str | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it without a terminal."""
        return subprocess.run(
            self.command(*words),
            input=stdin or "",
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def latest(self) -> conversation.Conversation | None:
        """Open the last conversation."""
        with contextlib.closing(open_store(Paths(home=self.home), clock=SystemClock())) as store:
            return conversation.latest(store)


@pytest.fixture
def valetkey(home: Path) -> Valetkey:
    return Valetkey(home)


def chat_stream(*texts: str) -> bytes:
    chunks: list[object] = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return b"".join(f"data: {json.dumps(c)}\n\n".encode() for c in chunks) + b"data: [DONE]\n\n"


def says(*texts: str) -> LocalServer:
    def respond(request: Received) -> Answer:
        if request.method == "GET":
            body = json.dumps({"data": [{"id": "small"}, {"id": "a/b:c"}]}).encode()
            return Answer(headers={"content-type": "application/json"}, body=body)
        return Answer(headers={"content-type": "text/event-stream"}, body=chat_stream(*texts))

    return LocalServer(respond)


@pytest.fixture
def acme(valetkey: Valetkey) -> Iterator[LocalServer]:
    """Give a server that says `Hello.`, with a login at it."""
    with says("Hel", "lo.") as server:
        valetkey.declare("acme", f"{server.url}/v1", "openai-chat")
        valetkey.log_in("acme", f"{server.url}/v1", KEY)
        yield server


# --- a real model ----------------------------------------------------------------------------

DIALECTS = [("openai-chat", "/v1"), ("openai-responses", "/v1"), ("anthropic-messages", "")]


@pytest.mark.parametrize(("dialect", "path"), DIALECTS)
@pytest.mark.parametrize("mode", [(), ("--no-stream",)])
def test_a_real_model_answers_in_every_dialect(
    valetkey: Valetkey, model: ModelServer, dialect: str, path: str, mode: Sequence[str]
) -> None:
    valetkey.declare("llama", model.url + path, dialect)
    valetkey.log_in("llama", model.url + path, model.api_key)
    name = f"llama/{model.model}"

    done = valetkey("ask", "Say hello.", "-m", name, "--max-tokens", "8", "--json", *mode)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"].strip()
    # This llama.cpp leaves out message_start now and then, and with it the only count of what went in.
    counts_input = bool(mode) or dialect != "anthropic-messages"
    if counts_input:
        assert answer["usage"]["input_tokens"] > 5
    assert 1 <= answer["usage"]["output_tokens"] <= 8
    assert (answer["provider"], answer["account"], answer["model"]) == ("llama", "default", model.model)
    assert answer["source"] == "stored"

    more = valetkey("ask", "And again.", "--continue", "--max-tokens", "8", "--json", *mode)
    assert more.returncode == 0, more.stderr
    again = json.loads(more.stdout)
    assert again["conversation"] == answer["conversation"]
    if counts_input:
        assert again["usage"]["input_tokens"] > answer["usage"]["input_tokens"]

    assert json.loads(valetkey("models", "llama", "--json").stdout)["providers"][0]["models"][0]["id"] == model.model
    assert model.api_key not in done.stdout + done.stderr + more.stdout + more.stderr


def test_a_real_models_refusal_of_the_key_is_told(valetkey: Valetkey, model: ModelServer) -> None:
    valetkey.declare("llama", model.base_url, "openai-chat")
    done = valetkey("ask", "hi", "-m", f"llama/{model.model}", environ={"LLAMA_API_KEY": KEY})
    assert done.returncode == 3
    assert "LLAMA_API_KEY" in done.stderr
    assert KEY not in done.stderr


def test_gemini_is_asked_in_its_own_dialect(valetkey: Valetkey, aimock: ApiMock) -> None:
    valetkey.declare("gem", aimock.url, "gemini", header="x-goog-api-key = '{key}'")
    valetkey.log_in("gem", aimock.url, aimock.api_key)
    for mode in ((), ("--no-stream",)):
        done = valetkey("ask", "Hi", "-m", "gem/gemini-2.5-flash", "--json", *mode)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["text"] == aimock.reply
        assert set(answer["usage"]) == {"input_tokens", "output_tokens"}  # this server counts nothing


@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages"])
def test_every_dialect_is_understood_by_a_second_server(valetkey: Valetkey, aimock: ApiMock, dialect: str) -> None:
    url = aimock.url + ("" if dialect == "anthropic-messages" else "/v1")
    valetkey.declare("mock", url, dialect)
    valetkey.log_in("mock", url, aimock.api_key)
    done = valetkey("ask", "Hi", "-m", "mock/some-model")
    assert (done.stdout, done.stderr, done.returncode) == (aimock.reply + "\n", "", 0)


def test_the_key_of_gemini_goes_into_its_header(valetkey: Valetkey) -> None:
    chunk = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}
    body = f"data: {json.dumps(chunk)}\r\n\r\n".encode()
    with LocalServer(lambda _: Answer(headers={"content-type": "text/event-stream"}, body=body)) as server:
        valetkey.declare("gem", server.url, "gemini", header="x-goog-api-key = '{key}'")
        valetkey.log_in("gem", server.url, KEY)
        assert valetkey("ask", "Hi", "-m", "gem/g-1").stdout == "Hi\n"
    request = server.requests[0]
    assert request.headers["x-goog-api-key"] == KEY
    assert "authorization" not in request.headers
    assert (request.path, request.query) == ("/v1beta/models/g-1:streamGenerateContent", {"alt": "sse"})


# --- what is asked and what is printed -------------------------------------------------------


def messages_of(request: Received) -> list[tuple[str, str]]:
    messages = request.json["messages"]
    assert isinstance(messages, list)
    return [(m["role"], m["content"]) for m in messages]


def test_stdout_is_the_answer_and_nothing_else(valetkey: Valetkey, acme: LocalServer) -> None:
    done = valetkey("ask", "hi", "-m", "acme/small")
    assert (done.stdout, done.stderr, done.returncode) == ("Hello.\n", "", 0)


@pytest.mark.parametrize(
    ("words", "stdin", "asked"),
    [
        (["explain", "this"], "", "explain this"),
        (["explain"], "some code\n", "explain\n\nsome code"),
        (["-"], "the question\n", "the question"),
        ([], "the question\n", "the question"),
        (["-", "--system", "be brief"], "é 😀", "é 😀"),
    ],
)
def test_standard_input_is_context_or_the_question(
    valetkey: Valetkey, acme: LocalServer, words: list[str], stdin: str, asked: str
) -> None:
    assert valetkey("ask", "-m", "acme/small", *words, stdin=stdin).returncode == 0
    system = [("system", "be brief")] if "--system" in words else []
    assert messages_of(acme.requests[0]) == [*system, ("user", asked)]


def test_a_conversation_goes_on_where_it_was(valetkey: Valetkey, acme: LocalServer) -> None:
    valetkey("ask", "one", "-m", "acme/a/b:c", "--system", "be brief")
    assert valetkey("ask", "two", "--continue").stdout == "Hello.\n"
    said = [("system", "be brief"), ("user", "one"), ("assistant", "Hello."), ("user", "two")]
    assert messages_of(acme.requests[-1]) == said
    assert acme.requests[-1].json["model"] == "a/b:c"
    assert b"be brief" not in (valetkey.home / "valetkey.db").read_bytes()


def test_an_account_can_be_named(valetkey: Valetkey, acme: LocalServer) -> None:
    other = "sk-" + "work" * 10
    valetkey.log_in("acme", f"{acme.url}/v1", other, account="work")
    done = valetkey("ask", "hi", "-m", "acme@work/small", "--json")
    assert json.loads(done.stdout)["account"] == "work"
    assert acme.requests[-1].headers["authorization"] == f"Bearer {other}"


def test_a_key_in_the_environment_serves_without_a_login(valetkey: Valetkey) -> None:
    with says("Hi") as server:
        valetkey.declare("acme", f"{server.url}/v1", "openai-chat")
        done = valetkey("ask", "hi", "-m", "acme/small", "--json", environ={"ACME_API_KEY": KEY})
        assert json.loads(done.stdout)["source"] == "environment"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_an_answer_cannot_drive_the_terminal(valetkey: Valetkey) -> None:
    with says("a\x1b[2Jb") as server:
        valetkey.declare("acme", f"{server.url}/v1", "openai-chat")
        valetkey.log_in("acme", f"{server.url}/v1", KEY)
        assert valetkey("ask", "hi", "-m", "acme/small").stdout == "a\x1b[2Jb\n"
        assert "\x1b[2J" not in on_terminal(valetkey, ["ask", "hi", "-m", "acme/small"])


# --- who is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["ask", "hi", "-m", "acme/small"], 3, "valetkey login acme"),
        (["ask", "hi", "-m", "nobody/small"], 2, "nobody"),
        (["ask", "hi", "-m", "acme/"], 2, "PROVIDER/MODEL"),
        (["ask", "hi", "-m", "small"], 2, "PROVIDER/MODEL"),
        (["ask", "hi"], 3, "valetkey login"),
        (["ask", "hi", "--continue"], 2, "--continue"),
        (["ask", "-m", "acme/small"], 2, "question"),
        (["ask", "hi", "-m", "acme/small", "--max-tokens", "0"], 2, "max-tokens"),
        (["models", "nobody"], 2, "nobody"),
        (["models", "acme"], 3, "valetkey login acme"),
        (["models"], 3, "valetkey login"),
        (["models", "use"], 2, "PROVIDER/MODEL"),
        (["models", "use", "nobody/x"], 2, "nobody"),
    ],
)
def test_what_cannot_be_asked_has_its_exit_status(valetkey: Valetkey, words: list[str], status: int, said: str) -> None:
    valetkey.declare("acme", "http://127.0.0.1:9/v1", "openai-chat")
    done = valetkey(*words)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("valetkey: error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_down_is_told(valetkey: Valetkey) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        valetkey.declare("acme", url, "openai-chat")
        valetkey.log_in("acme", url, KEY)
        done = valetkey("ask", "hi", "-m", "acme/small")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr


def test_without_a_default_model_there_is_a_hint(valetkey: Valetkey, acme: LocalServer) -> None:
    done = valetkey("ask", "hi")
    assert done.returncode == 2
    assert "valetkey models use" in done.stderr
    assert valetkey("models", "use", "acme/small").returncode == 0
    assert valetkey("ask", "hi").stdout == "Hello.\n"


def test_on_a_terminal_a_model_is_chosen_by_its_number(valetkey: Valetkey, acme: LocalServer) -> None:
    shown = on_terminal(valetkey, ["ask", "hi"], Typed("a/b:c", "2", raw=True), Typed(">  2", "\r", raw=True))
    assert "Hello." in shown
    assert acme.requests[-1].json["model"] == "a/b:c"
    assert valetkey("ask", "again").stdout == "Hello.\n"


def test_on_a_terminal_a_missing_login_is_made_good(valetkey: Valetkey) -> None:
    with says("Hello.") as server:
        valetkey.declare("acme", f"{server.url}/v1", "openai-chat")
        words = ["ask", "hi", "-m", "acme/small"]
        shown = on_terminal(valetkey, words, Typed("log in to acme now?", "y\r"), Typed("API key: ", f"{KEY}\r"))
        assert "Hello." in shown
        assert KEY not in shown
        assert valetkey("ask", "again", "-m", "acme/small").stdout == "Hello.\n"
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"


class Typed(NamedTuple):
    """What is typed once `after` is shown; `raw` waits until single keys are read, as in a menu."""

    after: str
    text: str
    raw: bool = False


def on_terminal(valetkey: Valetkey, words: Sequence[str], *typed: Typed) -> str:
    """Run it on a terminal of its own, type, and give all that was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        valetkey.command(*words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**valetkey.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    shown, waiting = "", list(typed)
    deadline = threading.Timer(PATIENCE_SECONDS, process.kill)
    deadline.start()
    with contextlib.suppress(OSError):  # Linux tells the end of a terminal as EIO
        while True:
            if select.select([ours], [], [], 0.02)[0]:
                shown += os.read(ours, 4096).decode(errors="replace")
            line_mode = bool(termios.tcgetattr(ours)[3] & termios.ICANON)
            if waiting and waiting[0].after in shown and line_mode != waiting[0].raw:
                os.write(ours, waiting.pop(0).text.encode())
    deadline.cancel()
    os.close(ours)
    assert process.wait(PATIENCE_SECONDS) == 0, shown
    return shown


# --- renewal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes_left", [-5, 60])
def test_a_key_that_is_over_or_refused_is_bought_anew(valetkey: Valetkey, minutes_left: int) -> None:
    """Device-exchange: the login's token buys short-lived keys. One is past its end, one is refused before it."""
    bought = "sk-" + "new1" * 10

    def respond(request: Received) -> Answer:
        good = request.headers.get("authorization") == f"Bearer {bought}"
        if request.path == "/buy":
            body = json.dumps({"token": bought, "expires_in": 3600}).encode()
            return Answer(headers={"content-type": "application/json"}, body=body)
        if not good:
            return Answer(
                status=401, headers={"content-type": "application/json"}, body=b'{"error": {"message": "no"}}'
            )
        return Answer(headers={"content-type": "text/event-stream"}, body=chat_stream("Hello."))

    with LocalServer(respond) as server:
        valetkey.declare_exchange("pilot", server.url)
        valetkey.log_in_exchange("pilot", server.url, KEY, minutes_left=minutes_left)
        done = valetkey("ask", "hi", "-m", "pilot/small", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["text"] == "Hello."
        assert valetkey("ask", "hi", "-m", "pilot/small").stdout == "Hello.\n"
    assert len(server.calls("/buy")) == 1
    assert server.calls("/buy")[0].headers["authorization"] == "Bearer gho-grant"


# --- models ----------------------------------------------------------------------------------


def test_a_fetched_list_serves_when_the_server_is_gone(valetkey: Valetkey, acme: LocalServer) -> None:
    first = valetkey("models", "acme")
    assert "acme/a/b:c" in first.stdout
    asked = len(acme.requests)
    assert valetkey("models").returncode == 0
    assert len(acme.requests) == asked
    assert valetkey("models", "acme", "--refresh").returncode == 0
    assert len(acme.requests) == asked + 1
    acme.stop()
    offline = valetkey("models", "acme", "--refresh", "--json")
    assert offline.returncode == 0
    told = json.loads(offline.stdout)
    assert [m["id"] for m in told["providers"][0]["models"]] == ["small", "a/b:c"]
    assert told["providers"][0]["fetched_at"].endswith("Z")
    assert told["problems"][0]["error"]["code"] == "unreachable"
    assert valetkey("models", "use", "small").returncode == 0
    assert json.loads(valetkey("models", "--json").stdout)["default_model"] == "acme/small"


# --- stopping --------------------------------------------------------------------------------


class Holding:
    """A server that begins an answer and holds it open."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(65536)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
            connection.sendall(head + b'data: {"choices": [{"delta": {"content": "Well"}}]}\n\n')
            self._over.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()


@pytest.fixture
def holding(valetkey: Valetkey) -> Iterator[Holding]:
    with Holding() as server:
        valetkey.declare("slow", server.url, "openai-chat")
        valetkey.log_in("slow", server.url, KEY)
        yield server


def test_ctrl_c_keeps_what_came(valetkey: Valetkey, holding: Holding) -> None:
    process = subprocess.Popen(
        valetkey.command("ask", "hi", "-m", "slow/m"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=valetkey.environ,
    )
    assert process.stdout is not None
    assert process.stdout.read(4) == b"Well"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, rest, errors) == (130, b"\n", b"")
    kept = valetkey.latest()
    assert kept is not None
    assert [m.text for m in kept.messages] == ["hi", "Well"]


def test_a_reader_that_goes_away_is_no_error(valetkey: Valetkey, model: ModelServer) -> None:
    valetkey.declare("llama", model.base_url, "openai-chat")
    valetkey.log_in("llama", model.base_url, model.api_key)
    process = subprocess.Popen(
        valetkey.command("ask", "Count to one hundred.", "-m", f"llama/{model.model}", "--max-tokens", "200"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=valetkey.environ,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(PATIENCE_SECONDS) == 141
    assert valetkey.latest() is not None
