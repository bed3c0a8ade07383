"""`valetkey.gateway`: a program's own valet key, with the OpenAI SDK in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import valetkey
from tests.support.command_line import CommandLine
from tests.support.gateway_process import declare, end, until
from tests.support.upstream import Upstream, Whole, answer, ordinary
from valetkey import sdk
from valetkey.errors import NotLoggedIn

ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
}

PROGRAM = """
import json, os, openai, valetkey
access = valetkey.gateway("acme")
assert access is valetkey.gateway("acme@default")
client = openai.OpenAI(base_url=access.base_url, api_key=access.key)
said = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
print(json.dumps({"said": said.choices[0].message.content, "key": access.key, "repr": repr(access)}), flush=True)
pid = os.fork()
if pid == 0:
    raise SystemExit  # a child that ends takes nothing away
os.waitpid(pid, 0)
client.models.with_raw_response.list()
"""


@pytest.fixture
def line(home: Path) -> Iterator[CommandLine]:
    found = CommandLine(home=home)
    found.environ["VALETKEY_GATEWAY_PORT"] = "0"
    yield found
    end(found)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    def answered(request: Whole) -> bytes:
        return answer(json.dumps(ANSWER if request.method == "POST" else {"object": "list", "data": []}).encode())

    with Upstream(ordinary(answered)) as server:
        yield server


def test_a_program_asks_with_a_key_that_ends_with_it(line: CommandLine, upstream: Upstream) -> None:
    secret = declare(line, upstream.url)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=line.environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["said"] == "hello"
    assert told["key"] not in told["repr"]
    assert [r.header("authorization") for r in upstream.requests] == [f"Bearer {secret}"] * 2
    assert secret not in done.stdout + done.stderr
    assert line("key", "list", "--json").json["keys"] == []


def test_a_block_ends_its_key(line: CommandLine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    declare(line, upstream.url)
    monkeypatch.setenv("VALETKEY_GATEWAY_PORT", "0")
    monkeypatch.setenv("VALETKEY_STORE_KEY_SOURCE", "key-file")
    broker = sdk.open_broker(environ={**os.environ, **line.environ})
    try:
        with valetkey.gateway("acme", broker=broker) as access, httpx2.Client(trust_env=False) as client:

            def status() -> int:
                return client.get(f"{access.base_url}/x", headers={"x-api-key": access.key}).status_code

            assert status() == 200
            assert Path(access.ca_file).read_text().startswith("-----BEGIN CERTIFICATE-----")
            assert access.key in access.proxy_url
            access.revoke()
            assert status() == 401
            until(lambda: line("key", "list", "--json").json["keys"] == [])
        with pytest.raises(NotLoggedIn):
            valetkey.gateway("acme@nobody", broker=broker)
    finally:
        broker.close()


def test_the_package_of_the_gateway_can_be_called_too(home: Path) -> None:
    import valetkey.gateway as package

    assert callable(package)
    assert package.__name__ == "valetkey.gateway"
