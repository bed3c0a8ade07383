"""What looks into the bodies of MCP servers gives the same wherever they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from valetkey.errors import UnclearAnswer
from valetkey.gateway.mcp_stream import Inspected
from valetkey.mcp import Tool

EVENTS = "text/event-stream; charset=utf-8"


def listed(*names: str) -> bytes:
    tools = [{"name": name, "description": "é"} for name in names]
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}, ensure_ascii=False).encode()


def keep(tools: list[Tool]) -> list[Tool]:
    return [tool for tool in tools if tool["name"] == "keep"]


def through(pieces: list[bytes], kind: str = EVENTS, **more: Any) -> bytes:
    inspected = Inspected(kind, keep, **more)
    return b"".join([*map(inspected.feed, pieces), inspected.finish()])


def cut_everywhere(body: bytes) -> list[list[bytes]]:
    """Cut it in two at every place, in three around every place, and into single bytes."""
    found = [[body[:at], body[at:]] for at in range(len(body) + 1)]
    found += [[body[:at], body[at : at + 1], body[at + 1 :]] for at in range(len(body))]
    return [*found, [bytes((byte,)) for byte in body]]


STREAM = (
    b": welcome\n\nid: 1\nretry: 5\ndata:\n\n"
    b"event: message\nid: 2\ndata: " + listed("drop", "keep") + b"\n\n"
    b'data: {"jsonrpc":"2.0","id":7,"method":"roots/list"}\n\n'
    b'data: {"jsonrpc":"2.0",\ndata: "method":"x"}\n\n'
)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_looked_into_wherever_they_are_cut(end: bytes) -> None:
    body = STREAM.replace(b"\n", end)
    found = [through(pieces) for pieces in cut_everywhere(body)]
    assert set(found) == {found[0]}
    events = found[0].decode().split("\n\n")
    assert events[0] == ": welcome"
    assert events[1] == "id: 1\nretry: 5\ndata:"
    lines = events[2].split("\n")
    assert lines[:2] == ["event: message", "id: 2"]
    assert [tool["name"] for tool in json.loads(lines[2].removeprefix("data: "))["result"]["tools"]] == ["keep"]
    assert events[3] == 'data: {"jsonrpc":"2.0","id":7,"method":"roots/list"}'
    assert events[4] == 'data: {"jsonrpc":"2.0",\ndata: "method":"x"}'
    assert b"drop" not in found[0]


def test_a_list_over_several_lines_of_data_is_one() -> None:
    pretty = json.dumps(json.loads(listed("drop", "keep")), indent=1).encode()
    body = b"".join(b"data:" + line + b"\n" for line in pretty.split(b"\n")) + b"\n"
    assert b"drop" not in through([body])
    assert b"keep" in through([body])


def test_json_is_looked_into_wherever_it_is_cut() -> None:
    body = listed("drop", "keep")
    found = {through(pieces, "application/json") for pieces in cut_everywhere(body)}
    (one,) = found
    assert [tool["name"] for tool in json.loads(one)["result"]["tools"]] == ["keep"]


def test_an_event_goes_out_as_soon_as_it_is_whole_and_not_before() -> None:
    inspected = Inspected(EVENTS, keep)
    assert inspected.feed(b"data: {}\n") == b""
    assert inspected.feed(b"\nda") == b"data: {}\n\n"
    assert inspected.feed(b"ta: [") == b""
    assert inspected.finish() == b""


def test_a_mark_at_the_start_hides_no_event() -> None:
    assert b"drop" not in through([b"\xef\xbb\xbfdata: " + listed("drop") + b"\n\n"])


def test_the_endpoint_of_the_older_transport_is_changed_wherever_it_is_cut() -> None:
    body = b"event: endpoint\ndata: /messages/?session_id=4\n\n"
    found = {through(pieces, endpoint=lambda text: f"/mcp/x/{len(text)}") for pieces in cut_everywhere(body)}
    assert found == {b"event: endpoint\ndata: /mcp/x/23\n\n"}
    with pytest.raises(UnclearAnswer, match="where this transport has none"):
        through([body])


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<p>"),
        ("", b"{}"),
        ("application/json", b"<p>"),
        ("application/json", b'{"a":1,"a":2}'),
        (EVENTS, b"data: nothing\n\n"),
        (EVENTS, b"event: endpoint\ndata: \xff\n\n"),
    ],
)
def test_what_cannot_be_looked_into_does_not_pass(kind: str, body: bytes) -> None:
    with pytest.raises(UnclearAnswer):
        through([body], kind, endpoint=str)


def test_words_behind_a_202_are_dropped() -> None:
    assert through([b"Acc", b"epted"], "text/plain", drops=True) == b""


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json", EVENTS])
def test_an_empty_answer_passes(kind: str) -> None:
    assert through([b""], kind) == b""


@pytest.mark.parametrize("begin", [b"", b"data: ", b"data: x\n"])
def test_what_is_too_long_ends_the_answer(begin: bytes) -> None:
    inspected = Inspected(EVENTS if begin else "application/json", keep, most_bytes=1000)
    inspected.feed(begin)
    pieces = [b": " + b"x" * 98 + b"\n"] * 20
    with pytest.raises(UnclearAnswer, match="too long"):
        list(map(inspected.feed, pieces))


def test_a_stream_may_be_longer_than_any_event() -> None:
    inspected = Inspected(EVENTS, keep, most_bytes=1000)
    for _ in range(100):
        assert inspected.feed(b"data: {}\n\n" * 10) == b"data: {}\n\n" * 10


# --- clients that read otherwise -------------------------------------------------------------


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
def test_nobody_finds_an_event_in_a_text_whoever_ends_lines_there(mark: str) -> None:
    """`str.splitlines` does, and clients have read streams by it."""
    hidden = f"{mark}{mark}data: {listed('drop').decode()}{mark}{mark}"
    text = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"x": "HERE"}}).replace("HERE", hidden.replace('"', "'"))
    out = through([f"data: {text}\n\n".encode()])
    assert [line for line in out.decode().splitlines() if "drop" in line] == [out.decode().splitlines()[0]]
    assert json.loads(out[6:])["result"]["x"] == hidden.replace('"', "'"), "it says the same"
    for field in (":", ": x", "event: x", "id: x"):
        assert "drop" not in through([f"{field}{hidden}\n\n".encode()]).decode()


@pytest.mark.parametrize("begin", ["\ufeffdata", " data", "Data", "data ", "\0data", "datas"])
@pytest.mark.parametrize("before", ["", "\n", "\n\n\r\n"])
def test_a_field_that_is_none_is_left_out_whatever_a_client_takes_it_for(begin: str, before: str) -> None:
    """What stands behind empty lines is the beginning of the client's stream, where a mark is dropped."""
    out = through([f"{before}{begin}: ".encode() + listed("drop") + b"\n\n"])
    kept = b"" if (begin, before) != ("\ufeffdata", "") else b"data: "
    assert out.startswith(kept)
    assert b"drop" not in out


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("text/event-stream; charset=utf-7", b"text/event-stream"),
        ("Application/JSON;charset=utf-16", b"application/json"),
        ("text/html", b""),
    ],
)
def test_the_type_that_goes_out_is_the_one_that_was_looked_at(told: str, wanted: bytes) -> None:
    assert Inspected(told, keep).content_type == wanted


def test_a_stream_names_one_endpoint() -> None:
    body = b"event: endpoint\ndata: /x\n\n"
    with pytest.raises(UnclearAnswer, match="or a second one"):
        through([body, body], endpoint=str)


@pytest.mark.parametrize("line", [b"data:\n", b"x\n"])
def test_many_short_lines_are_too_much_as_well(line: bytes) -> None:
    inspected = Inspected(EVENTS, keep)
    with pytest.raises(UnclearAnswer, match="too long"):
        list(map(inspected.feed, [line * 10_000] * 30))


def test_what_holds_back_much_asks_for_room() -> None:
    asked: list[int] = []
    inspected = Inspected("application/json", keep, room=lambda: asked.append(inspected.held_bytes))
    inspected.feed(b" " * (1 << 20))
    assert asked == []
    inspected.feed(b" ")
    assert asked == [(1 << 20) + 1]
