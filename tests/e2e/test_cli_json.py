"""Every command has `--json`, in the shape that docs/cli.md promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import background
from valetkey.cli.frame import valetkey as root
from valetkey.testing.local_server import Answer, LocalServer, Received

KEY = "sk-" + "json1" * 8
AWS_KEYS = f"access_key_id=AKIA{'A' * 16}\nsecret_access_key={'s' * 40}\n"
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
# They give what their commands give. The demo has a test of its own, with its model.
WITHOUT_SHAPE = {
    "exec",
    "run",
    "runs resume",
    "claude resume",
    "codex resume",
    "copilot resume",
    "gemini resume",
    "runs join",
}
# `serve` goes on until it is ended, and a request has to wait for a decision: test_serve.py. Runs: test_run.py.
RUNS = {"runs show", "runs logs", "runs trace", "runs stop", "runs remove"}
ELSEWHERE = {"demo", "serve", "approvals approve", "approvals deny"} | RUNS
# Other names of commands that stand in the table under their own; `auth` has one of its own too.
OWN_NAMES = {"auth switch"}
# A command that reads its first word itself.
WITHIN = {"models use"}


def promised() -> dict[str, list[str]]:
    """Give the keys that docs/cli.md names for each command."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^### ", DOCS.read_text(), flags=re.MULTILINE)[1:]:
        name = re.match(r"`(.+?)`", section)
        shape = re.search(r"^JSON: `\{(.+?)\}`", section, flags=re.MULTILINE)
        assert name is not None
        if shape is not None:
            found[name[1]] = shape[1].split(", ")
    return found


def leaves(group: click.Group, path: str = "") -> Iterator[str]:
    """Give the commands that there are, by their words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = f"{path} {name}".strip()
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield words
            yield from leaves(command, words)
        else:
            yield words


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    def respond(request: Received) -> Answer:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Answer(status=401, headers={"content-type": "application/json"}, body=b"{}")
        if request.method == "GET":
            return Answer(headers={"content-type": "application/json"}, body=b'{"data": [{"id": "small"}]}')
        events = [{"choices": [{"delta": {"content": "Hi"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return Answer(headers={"content-type": "text/event-stream"}, body=body.encode())

    with LocalServer(respond) as running:
        yield running


def commands(server: LocalServer, folder: Path) -> list[tuple[str, list[str], str]]:
    """Give each command with words that make it succeed, in an order that works, and what comes on stdin."""
    auth = folder / "auth.json"
    auth.write_text('{"credentials": {"acme": {"type": "apikey", "key": "x"}}}')
    backup = str(folder / "backup")
    policy = folder / "policy.toml"
    policy.write_text('default = "allow"\n')
    add = ["acme", "--base-url", server.url, "--dialect", "openai-chat", "--model", "small", "--allow-http"]
    return [
        ("providers add", add, ""),
        ("login", ["acme", "--key", "-"], KEY),
        ("list", [], ""),
        ("status", [], ""),
        ("auth switch", ["acme@default"], ""),
        ("token", ["acme"], ""),
        ("env", ["acme"], ""),
        ("login", ["github", "--method", "token", "--key", "-", "--no-verify"], KEY),
        ("login", ["aws", "--method", "keys", "--key", "-", "--no-verify"], AWS_KEYS),
        ("helper git", ["get"], "protocol=https\nhost=github.com\n\n"),
        ("helper aws", ["aws"], ""),
        ("helper claude", ["acme"], ""),
        ("helper docker", ["get"], "github.com"),
        ("setup", ["git", "--yes"], ""),
        ("logout", ["github", "--yes"], ""),
        ("logout", ["aws", "--yes"], ""),
        ("ask", ["-m", "acme/small", "hi"], ""),
        ("models", [], ""),
        ("models use", ["acme/small"], ""),
        ("providers list", [], ""),
        ("providers show", ["acme"], ""),
        ("providers check", ["acme"], ""),
        ("providers accept", ["acme"], ""),
        ("import", ["code-mesh", str(auth), "--dry-run"], ""),
        ("policy check", [str(policy)], ""),
        ("policy explain", ["GET", "/acme/models", "--policy", str(policy), "--grant", "acme"], ""),
        ("mcp add", ["acme", server.url, "--grant", "acme"], ""),
        ("mcp list", [], ""),
        ("mcp check", [], ""),
        ("mcp approve", ["acme"], ""),
        ("mcp remove", ["acme"], ""),
        ("up", [], ""),
        ("approvals list", [], ""),
        ("lock", [], ""),
        ("unlock", [], ""),
        ("down", [], ""),
        ("key create", ["--grant", "acme", "--name", "ci"], ""),
        ("key list", [], ""),
        ("key revoke", ["ci"], ""),
        ("trace", [], ""),
        ("runs list", [], ""),
        ("audit show", [], ""),
        ("audit verify", [], ""),
        ("audit export", [str(folder / "audit.jsonl")], ""),
        ("ca show", [], ""),
        ("ca export", [str(folder / "exported.pem")], ""),
        ("ca install-hint", [], ""),
        ("ca rotate", ["--yes"], ""),
        ("store source", [], ""),
        ("store rekey", [], ""),
        ("store backup", [backup, "--passphrase-file", "-"], "a passphrase\n"),
        ("store restore", [backup, "--passphrase-file", "-", "--force"], "a passphrase\n"),
        ("runs list", [], ""),
        ("claude sessions", [], ""),
        ("codex sessions", [], ""),
        ("copilot sessions", [], ""),
        ("gemini sessions", [], ""),
        ("config show", [], ""),
        ("doctor", [], ""),
        ("completion", ["bash"], ""),
        ("logout", ["acme", "--yes"], ""),
        ("providers remove", ["acme", "--yes"], ""),
    ]


def test_every_command_gives_the_json_that_is_documented(home: Path, tmp_path: Path, server: LocalServer) -> None:
    line, shapes = CommandLine(home=home), promised()
    tried = set()
    for name, words, stdin in commands(server, tmp_path):
        done = line(*name.split(), *words, "--json", stdin=stdin)
        assert done.status == 0, (name, done.err)
        shape: dict[str, Any] = done.json
        assert list(shape) == shapes[name], name
        tried.add(name)
    assert tried | ELSEWHERE == set(shapes)
    assert tried | ELSEWHERE | WITHOUT_SHAPE == set(leaves(root)) | WITHIN | OWN_NAMES


def test_the_shapes_within_are_the_documented_ones_too(home: Path, server: LocalServer) -> None:
    line, text = CommandLine(home=home), DOCS.read_text()
    line("providers", "add", "acme", "--base-url", server.url, "--dialect", "openai-chat", "--allow-http")
    line("login", "acme", "--key", "-", stdin=KEY)

    def said(value: dict[str, Any]) -> str:
        return f"`{{{', '.join(value)}}}`"

    account = line("list", "--json").json["accounts"][0]
    assert said(account) in text
    assert said(account["identity"]) in text
    assert said(line("providers", "check", "--json").json["providers"][0]) in text
    assert said(line("config", "show", "--json").json["settings"][0]) in text
    assert said(line("doctor", "--offline", "--json").json["findings"][0]) in text
    line("key", "create", "--grant", "acme")
    key = line("key", "list", "--json").json["keys"][0]
    assert said(key) in text
    assert said(key["limits"]) in text
    assert said(line("audit", "show", "--json").json["entries"][0]) in text
    assert said(line("models", "--json").json["providers"][0]) in text
    with background(line) as running:
        assert said(running) in text
        assert said(line("status", "--json").json["gateway"]) in text
    assert said(line("ca", "install-hint", "--json").json["hints"][0]) in text


def test_an_error_is_one_document_too_whatever_was_wrong(home: Path) -> None:
    line = CommandLine(home=home)
    cases = [("token", "openai"), ("list", "--bogus"), ("nonsense",), ("login", "openai", "--key", "x"), ("env",)]
    for words in cases:
        done = line(*words, "--json")
        error = done.json["error"]
        assert list(error) == ["code", "message", "hint", "provider", "retryable"], words
        assert done.err.splitlines()[0] == f"valetkey: error: {error['message']}"
        assert done.status in (2, 3)


def test_every_command_has_help_without_opening_anything(home: Path) -> None:
    home.rmdir()
    context = click.Context(root, obj=None)
    for words in leaves(root):
        command: click.Command = root
        for word in words.split():
            assert isinstance(command, click.Group)
            found = command.get_command(context, word)
            assert found is not None
            command = found
        assert command.get_help(click.Context(command, info_name=words))
    assert not home.exists()
