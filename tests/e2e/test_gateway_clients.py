"""Programs that nobody here wrote reach a provider: straight, by base URL, and through the proxy.

The provider wants a credential that only the gateway has, and the client has a key that only the gateway knows. The
straight way shows that test and client are right.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.proofs import assert_credentials_stay
from tests.support.servers import ApiMock, ModelServer
from tests.support.upstreams import Upstreams
from tests.support.ways import Access, Reach, Way
from tests.support.workplace import Workplace, node_program, python_program
from valetkey.testing.gateway import GatewayProcess

PATIENCE_SECONDS = 60
# Of the answer, and of the proxy's to CONNECT; and what they are for a key that does not count.
STATUSES = "%{http_code} %{http_connect}"
REFUSED = ("401 000", "000 407")


def curl(access: Access, path: str, *words: str) -> list[str]:
    """Give curl's command. The key comes from its environment by a file on standard input, as it should."""
    return ["curl", "-sS", "-q", "-K", "-", *words, access.base_url + path]


def header(access: Access) -> bytes:
    return f'header = "authorization: Bearer {access.key}"\n'.encode()


@contextlib.contextmanager
def watching(workplace: Workplace, access: Access) -> Iterator[subprocess.Popen[bytes]]:
    """Run curl, which passes on each event as it comes."""
    process = subprocess.Popen(
        curl(access, "/events", "-N"),
        cwd=workplace.folder,
        env=workplace.environ(access, {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(header(access))
    process.stdin.close()
    process.stdin = None  # communicate() would close it again
    patience = threading.Timer(PATIENCE_SECONDS, process.kill)
    patience.start()
    try:
        yield process
    finally:
        patience.cancel()
        process.kill()
        process.communicate()


def question(*, stream: bool, model: str = "m") -> list[str]:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    return ["-H", "content-type: application/json", "--data", json.dumps(body)]


# --- curl ------------------------------------------------------------------------------------


def test_curl_asks(way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace) -> None:
    access = reach("mock-openai")
    asked = curl(access, "/chat/completions", "-w", "\n%{http_version} %{http_code}", *question(stream=False))
    done = workplace.run(asked, access, stdin=header(access))
    body, _, last = done.out.rpartition("\n")
    assert (done.status, last) == (0, "1.1 200"), done.out + done.err
    assert json.loads(body)["choices"][0]["message"]["content"] == aimock.reply
    assert_credentials_stay(way, upstreams["mock-openai"], access, workplace)


@pytest.mark.parametrize("way", ["base-url", "proxy"], indirect=True)
@pytest.mark.parametrize(
    "name", ["x-api-key", "x-goog-api-key", "api-key", "authorization: Bearer", "authorization: Basic"]
)
def test_wherever_the_client_puts_its_key_the_provider_gets_the_real_one(
    way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace, name: str
) -> None:
    access = reach("vault")
    value = base64.b64encode(f"x:{access.key}".encode()).decode() if name.endswith("Basic") else access.key
    line = f"{name} {value}" if ":" in name else f"{name}: {value}"
    done = workplace.run(curl(access, "/file"), access, stdin=f'header = "{line}"\n'.encode())
    assert done.out == f"0 {hashlib.sha256(b'').hexdigest()}", done.out + done.err
    assert_credentials_stay(way, upstreams["vault"], access, workplace)


@pytest.mark.parametrize("way", ["base-url", "proxy"], indirect=True)
def test_a_provider_that_says_its_credential_back_is_not_heard(
    way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace
) -> None:
    access = reach("mirror")
    done = workplace.run(curl(access, "/", "-i"), access, stdin=header(access))
    stars = "*" * len(upstreams["mirror"].door.key)
    said = [line.strip().lower() for line in done.out.splitlines()]
    assert f"authorization: bearer {stars}" in said
    assert f"x-mirror: bearer {stars}" in said
    assert_credentials_stay(way, upstreams["mirror"], access, workplace)


@pytest.mark.parametrize("way", ["base-url", "proxy"], indirect=True)
def test_a_key_that_is_none_gets_nowhere(
    reach: Reach, upstreams: Upstreams, gateway: GatewayProcess, workplace: Workplace
) -> None:
    last = gateway.key[-1]
    access = reach("vault", replace(gateway, key=gateway.key[:-1] + ("1" if last == "0" else "0")))
    done = workplace.run(curl(access, "/file", "-w", STATUSES), access, stdin=header(access))
    assert done.out.endswith(REFUSED), done.out + done.err
    assert upstreams["vault"].server.requests == []


@pytest.mark.parametrize("way", ["base-url"], indirect=True)
def test_curl_asks_over_the_unix_socket(
    way: Way, reach: Reach, upstreams: Upstreams, gateway: GatewayProcess, workplace: Workplace
) -> None:
    access = reach("vault")
    at_socket = replace(access, base_url="http://localhost/vault")
    asked = curl(at_socket, "/file", "--unix-socket", gateway.socket, "--data-binary", "some")
    done = workplace.run(asked, access, stdin=header(access))
    assert done.out == f"4 {hashlib.sha256(b'some').hexdigest()}", done.out + done.err
    assert_credentials_stay(way, upstreams["vault"], access, workplace)


@pytest.mark.parametrize("way", ["base-url"], indirect=True)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
def test_a_base_url_may_be_written_with_v1_or_without(
    reach: Reach, upstreams: Upstreams, workplace: Workplace, path: str
) -> None:
    access = reach("mock-openai")
    done = workplace.run(curl(access, path, *question(stream=False)), access, stdin=header(access))
    assert "choices" in done.json
    assert [r.path for r in upstreams["mock-openai"].server.requests] == ["/v1/chat/completions"]


def test_curl_asks_many_times_at_once(way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace) -> None:
    access = reach("vault")
    words = ["--parallel", "--parallel-max", "8", "--retry", "0", "--data-binary", "some"]
    done = workplace.run(curl(access, "/file/[1-60]", *words), access, stdin=header(access))
    assert done.out == f"4 {hashlib.sha256(b'some').hexdigest()}" * 60, done.err
    paths = [request.path for request in upstreams["vault"].server.requests]
    assert sorted(paths) == sorted(f"/file/{number}" for number in range(1, 61))
    assert_credentials_stay(way, upstreams["vault"], access, workplace)


def test_curl_asks_for_the_head_alone(way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace) -> None:
    access = reach("vault")
    # The second asks on the same connection, which has to be at the beginning of an answer.
    words = [
        "-I",
        "-w",
        "%{http_code} %{num_connects}\n",
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        access.base_url + "/two",
    ]
    done = workplace.run(curl(access, "/one", *words), access, stdin=header(access))
    assert [line.split()[0] for line in done.out.splitlines()] == ["200", "200"], done.out + done.err
    assert done.out.splitlines()[1].endswith(" 0")
    assert [r.method for r in upstreams["vault"].server.requests] == ["HEAD", "HEAD"]
    assert_credentials_stay(way, upstreams["vault"], access, workplace)


@pytest.mark.parametrize("shape", ["length", "chunked"])
def test_curl_uploads(way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace, shape: str) -> None:
    access = reach("vault")
    data = random.Random(3).randbytes(3_000_000)
    (workplace.folder / "data").write_bytes(data)
    # Both ask for 100 Continue first: more than 1 MB (curl(1), EXPECT100).
    words = ["-T", "data"] if shape == "length" else ["-T", "data", "-H", "transfer-encoding: chunked"]
    done = workplace.run(curl(access, "/file", *words), access, stdin=header(access))
    assert done.out == f"3000000 {hashlib.sha256(data).hexdigest()}", done.out + done.err
    assert_credentials_stay(way, upstreams["vault"], access, workplace)


def test_an_event_reaches_curl_before_the_next_is_sent(
    way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace
) -> None:
    access = reach("pulse")
    with watching(workplace, access) as process:
        assert process.stdout is not None
        for number in range(5):
            event = b"data: %d\n\n" % number
            upstreams.steps.send(event)
            assert process.stdout.read(len(event)) == event
        upstreams.steps.send(b"")
        rest, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, rest, errors) == (0, b"", b"")
    assert_credentials_stay(way, upstreams["pulse"], access, workplace)


@pytest.mark.parametrize("way", ["base-url", "proxy"], indirect=True)
def test_a_revoked_key_ends_the_stream_that_it_opened(
    reach: Reach, upstreams: Upstreams, gateway: GatewayProcess, workplace: Workplace
) -> None:
    held = gateway.create_key("pulse")
    access = reach("pulse", held)
    with watching(workplace, access) as process:
        assert process.stdout is not None
        upstreams.steps.send(b"data: 0\n\n")
        assert process.stdout.read(9) == b"data: 0\n\n"
        assert gateway.valetkey("key", "revoke", held.key_id).status == 0
        # Nothing more is sent: it ends because the key has ended.
        rest, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (rest, process.returncode) == (b"", 18), errors  # 18: a partial transfer (curl(1))
    again = workplace.run(curl(access, "/events", "-w", STATUSES), access, stdin=header(access))
    assert again.out.endswith(REFUSED), again.out + again.err
    assert len(upstreams["pulse"].server.requests) == 1


def test_curl_streams_from_a_real_model(
    way: Way, reach: Reach, upstreams: Upstreams, model: ModelServer, workplace: Workplace
) -> None:
    upstreams.llama.url, upstreams.llama.headers = model.url, {"authorization": f"Bearer {model.api_key}"}
    access = reach("llama")
    asked = curl(access, "/chat/completions", "-N", *question(stream=True, model=model.model))
    done = workplace.run(asked, access, stdin=header(access))
    events = [json.loads(line[6:]) for line in done.out.splitlines() if line.startswith("data: {")]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]), done.out + done.err
    assert len(events) > 2
    assert done.out.rstrip().endswith("data: [DONE]")
    assert_credentials_stay(way, upstreams["llama"], access, workplace)


# --- the providers' own libraries ------------------------------------------------------------


def test_the_openai_sdk(way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace) -> None:
    access = reach("mock-openai")
    program = python_program("openai_sdk", "gpt-5")
    told = workplace.run(program, access, {"OPENAI_BASE_URL": access.base_url, "OPENAI_API_KEY": access.key}).json
    assert min(told.pop("chat_events"), told.pop("async_events")) > 1
    assert told == {
        "chat": aimock.reply,
        "chat_stream": aimock.reply,
        "responses": aimock.reply,
        "async": [aimock.reply] * 4,
        "async_stream": aimock.reply,
    }
    assert_credentials_stay(way, upstreams["mock-openai"], access, workplace)


def ask_anthropic(access: Access, workplace: Workplace, variable: str, reply: str) -> None:
    keys = {"ANTHROPIC_BASE_URL": access.base_url, variable: access.key}
    told = workplace.run(python_program("anthropic_sdk", "claude-sonnet-5"), access, keys).json
    assert told.pop("events") > 2
    assert told == dict.fromkeys(("messages", "async", "async_stream"), reply)


def test_the_anthropic_sdk(way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace) -> None:
    access = reach("mock-bearer")
    ask_anthropic(access, workplace, "ANTHROPIC_API_KEY", aimock.reply)
    assert_credentials_stay(way, upstreams["mock-bearer"], access, workplace)


@pytest.mark.parametrize("way", ["base-url", "proxy"], indirect=True)
def test_a_bearer_becomes_the_header_that_the_provider_wants(
    way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace
) -> None:
    """The SDK sends Bearer, whatever the key; this provider takes x-api-key alone, and no second credential."""
    access = reach("mock-claude")
    ask_anthropic(access, workplace, "ANTHROPIC_AUTH_TOKEN", aimock.reply)
    assert_credentials_stay(way, upstreams["mock-claude"], access, workplace)


# It takes seconds to be imported, so it is not asked to go straight.
@pytest.mark.parametrize("way", ["base-url", "proxy"], indirect=True)
def test_litellm(way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace) -> None:
    models = {"mock-openai": "openai/gpt-4o", "mock-claude": "anthropic/claude-sonnet-4-5"}
    asked = [
        {"model": model, "api_base": reach(provider).base_url, "api_key": reach(provider).key}
        for provider, model in models.items()
    ]
    # Without it LiteLLM fetches its table of prices from GitHub when it is imported.
    settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program = python_program("litellm_library")
    for told in workplace.run(program, reach("mock-openai"), settings, stdin=json.dumps(asked).encode()).json:
        assert told.pop("events") > 1
        assert told == dict.fromkeys(("whole", "stream", "async"), aimock.reply)
    assert upstreams.asked_outside == set()
    for provider in models:
        assert_credentials_stay(way, upstreams[provider], reach(provider), workplace)


def test_pythons_own_urllib(
    way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace
) -> None:
    access = reach("mock-openai")
    environ = {"BASE_URL": access.base_url, "API_KEY": access.key}
    told = workplace.run(python_program("urllib_request"), access, environ).json
    assert told["choices"][0]["message"]["content"] == aimock.reply
    assert_credentials_stay(way, upstreams["mock-openai"], access, workplace)


def test_nodes_own_fetch(way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace) -> None:
    access = reach("mock-openai")
    environ = {"BASE_URL": access.base_url, "API_KEY": access.key}
    if way == "proxy":
        environ["BY_PROXY"] = access.environ["HTTPS_PROXY"]
    told = workplace.run(node_program("fetch"), access, environ).json
    assert told.pop("events") > 1
    assert told == {"statuses": [200, 200], "whole": aimock.reply, "stream": aimock.reply}
    assert_credentials_stay(way, upstreams["mock-openai"], access, workplace)
