"""MCP: which servers are configured, and what may go between one and its client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valetkey.config import load
from valetkey.credential import CredentialRef
from valetkey.errors import ConfigError, UsageError
from valetkey.mcp import Answered, Local, Pass, Relayed, Rules, Tool, Unclear, chosen, filtered, look_at, servers

RULES = Rules(server="linear", tools=("read_*", "list"), withheld=frozenset({"read_changed"}))


def message(**members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", **members}


def call(tool: object, id: object = 1) -> dict[str, Any]:
    return message(id=id, method="tools/call", params={"name": tool, "arguments": {"x": 1}})


def posted(value: Any, rules: Rules = RULES) -> Pass | Answered | Unclear:
    return look_at(value if isinstance(value, bytes) else json.dumps(value).encode(), rules)


# --- what a client says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        call("read_issue"),
        call("list"),
        message(id="a", method="tools/list"),
        message(method="notifications/initialized"),
        message(id=2, method="tools/list", params={"cursor": "délicat \U0001f511"}),
        message(id=3, result={"roots": []}),
        message(id=4, error={"code": -1, "message": "no"}),
        message(id=None, error={"code": -1, "message": "no"}),
        [call("read_issue"), message(id=2, method="ping")],
    ],
)
def test_what_is_allowed_goes_out_as_it_was_meant(value: Any) -> None:
    found = posted(value)
    assert isinstance(found, Pass)
    assert json.loads(found.body) == value


@pytest.mark.parametrize("tool", ["delete", "List", "lists", "", "xread_", "read_changed"])
def test_a_tool_that_is_not_allowed_is_answered_with_the_rule_and_what_to_ask_for(tool: str) -> None:
    found = posted(call(tool, id="q"))
    assert isinstance(found, Answered)
    told = json.loads(found.body)
    assert (told["jsonrpc"], told["id"]) == ("2.0", "q")
    said = told["error"]["message"]
    assert repr(tool) in said
    assert "linear" in said
    assert ("mcp.servers.linear.tools allows read_*, list" in said) != (tool == "read_changed")
    assert ("valetkey mcp approve linear" in said) == (tool == "read_changed")
    assert "ask whoever started this run" in said


def test_without_a_list_every_tool_is_allowed_but_one_that_has_changed() -> None:
    rules = Rules(server="linear", withheld=frozenset({"changed"}))
    assert isinstance(posted(call("anything"), rules), Pass)
    assert isinstance(posted(call("changed"), rules), Answered)


def test_an_empty_list_allows_none() -> None:
    assert isinstance(posted(call("list"), Rules(server="linear", tools=())), Answered)


def test_of_an_array_with_a_refused_call_nothing_goes_out_and_each_request_is_answered() -> None:
    batch = [call("list", 1), message(method="notifications/x"), call("delete", 2), message(id=3, method="ping")]
    found = posted(batch)
    assert isinstance(found, Answered)
    told = json.loads(found.body)
    assert [one["id"] for one in told] == [1, 2, 3]
    assert "'delete'" in told[1]["error"]["message"]
    assert "another message" in told[0]["error"]["message"]


@pytest.mark.parametrize(
    "value",
    [
        message(id=1, method="tools/call"),
        message(id=1, method="tools/call", params=[]),
        message(id=1, method="tools/call", params={}),
        call(7),
        message(id=1, method="tools/call", params={"name": "list", "Name": "delete"}),
        message(id=1, method="Tools/Call", params={"name": "list"}),
        message(id=1, method=" tools/call", params={"name": "list"}),
        # The long s is folded to s by some readers.
        message(id=1, method="tool\u017f/call", params={"name": "delete"}),
        message(method="tools/call", params={"name": "delete"}),
    ],
)
def test_a_call_that_could_be_read_in_two_ways_does_not_go_out(value: Any) -> None:
    assert isinstance(posted(value), Answered)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"{",
        b"[]",
        b"7",
        b'"tools/call"',
        b"[7]",
        b"[[]]",
        b"{}",
        b"\x1f\x8b\x08",
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1,"a":2}}',
        b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"method":7}',
        b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":[1],"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping"} {"jsonrpc":"2.0"}',
        '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    found = posted(body)
    assert isinstance(found, Unclear)
    assert found.reason.startswith("it ") or found.reason.startswith("its ")


# --- what a server says ----------------------------------------------------------------------


def tools_list(*names: str, **more: Any) -> bytes:
    tools = [{"name": name, "description": f"Does {name}."} for name in names]
    return json.dumps(message(id=1, result={"tools": tools, **more})).encode()


def only_list(tools: list[Tool]) -> list[Tool]:
    return [tool for tool in tools if tool["name"] == "list"]


def test_a_list_of_tools_is_left_with_what_may_be_seen() -> None:
    found = json.loads(filtered(tools_list("list", "delete", nextCursor="c"), only_list))
    assert [tool["name"] for tool in found["result"]["tools"]] == ["list"]
    assert found["result"]["nextCursor"] == "c"


def test_lists_within_an_array_are_found_and_what_is_no_tool_is_left_out() -> None:
    batch = b"[%b,%b]" % (tools_list("delete"), b'{"jsonrpc":"2.0","id":2,"result":{"tools":["delete",7,{"name":1}]}}')
    found = json.loads(filtered(batch, lambda tools: tools))
    assert [len(one["result"]["tools"]) for one in found] == [1, 0]


@pytest.mark.parametrize(
    "body",
    [
        tools_list("list"),
        b'{ "jsonrpc": "2.0", "id": 1, "result": {"content": [{"text": "1e400"}], "big": 1e400} }',
        b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{"tools":[{"name":"x"}]}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}',
    ],
)
def test_all_else_that_a_server_says_passes_byte_for_byte(body: bytes) -> None:
    assert filtered(body, only_list) == body


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'{"result":{"tools":[]},"result":{"tools":[{"name":"x"}]}}',
        b'{"result":{"tools":[],"Tools":[{"name":"x"}]}}',
        b'{"Result":{"tools":[{"name":"x"}]}}',
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        filtered(body, only_list)


# --- configured ------------------------------------------------------------------------------


def configured(home: Path, text: str) -> dict[str, str]:
    (home / "config.toml").write_text(text)
    (home / "config.toml").chmod(0o600)
    return {"VALETKEY_HOME": str(home)}


def test_servers_are_read_from_the_file(tmp_path: Path) -> None:
    environ = configured(
        tmp_path,
        '[runs]\nmcp = ["linear"]\n[mcp.servers.linear]\nurl = "https://mcp.linear.example/mcp"\ngrant = "linear"\n'
        'tools = ["read_*"]\n[mcp.servers.old]\nurl = "https://old.example/sse"\ntransport = "sse"\n'
        'grant = "old@work"\n[mcp.servers.files]\ncommand = ["npx", "files"]\n',
    )
    config = load(environ)
    linear = Relayed(
        name="linear",
        url="https://mcp.linear.example/mcp",
        grant=CredentialRef(provider="linear"),
        tools=("read_*",),
    )
    old = Relayed(
        name="old",
        url="https://old.example/sse",
        grant=CredentialRef(provider="old", account="work"),
        transport="sse",
    )
    files = Local(name="files", command=("npx", "files"))
    assert servers(config) == {"linear": linear, "old": old, "files": files}
    assert chosen(config, None) == (linear,)
    assert chosen(config, ["files", "old", "files"]) == (files, old)
    assert chosen(config, []) == ()
    with pytest.raises(UsageError, match="no MCP server 'other'; configured: linear, old, files"):
        chosen(config, ["other"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('grant = "x"', "either url or command"),
        ('url = "https://a.example"\ncommand = ["x"]', "either url or command"),
        ('url = "https://a.example"', "has no grant"),
        ('url = "ftp://a.example"\ngrant = "x"', "a url that cannot be used"),
        ('url = "https://u:p@a.example"\ngrant = "x"', "a url that cannot be used"),
        ('url = "https://a.example"\ngrant = "X Y"', "a grant that cannot be used"),
        ("command = []", "an empty command"),
        ('command = ["x"]\ntools = ["a"]', "tools beside its command"),
        ('command = ["x"]\ngrant = "a"', "grant beside its command"),
        ('url = "https://a.example"\ngrant = "x"\ntransport = "smoke"', "transport"),
        ('url = "https://a.example"\ngrant = "x"\ntool = ["a"]', "unknown key"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, table: str, said: str) -> None:
    environ = configured(tmp_path, f"[mcp.servers.one]\n{table}\n")
    with pytest.raises(ConfigError, match=said) as raised:
        servers(load(environ))
    assert "config.toml:" in raised.value.message


def test_a_name_that_no_address_could_hold_is_refused(tmp_path: Path) -> None:
    environ = configured(tmp_path, '[mcp.servers."a/b"]\ncommand = ["x"]\n')
    with pytest.raises(ConfigError, match="a name that cannot be used"):
        servers(load(environ))


@pytest.mark.parametrize(
    "value",
    [b"1e999", b"-1E+400", b"1" * 5000, b"[" * 100_000 + b"]" * 100_000, b"[" + b"{}," * 250_000 + b"1]", b"NaN"],
    ids=["large", "negative", "digits", "deep", "many", "none"],
)
def test_what_would_be_written_otherwise_or_costs_too_much_to_read_is_unclear(value: bytes) -> None:
    body = b'{"jsonrpc":"2.0","method":"x","params":[' + value + b"]}"
    assert isinstance(look_at(body, RULES), Unclear)
    listed = b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"delete"}],"x":' + value + b"}}"
    with pytest.raises(ValueError, match="it "):
        filtered(listed, only_list)
