"""Heads: what is refused beyond what the parser refuses, what goes on, what does not."""

from __future__ import annotations

import pytest

from valetkey.gateway.message import (
    MAX_HEADERS,
    Header,
    Problem,
    ReadHead,
    ReadResponse,
    read_length,
    read_request,
    read_response,
    status_line,
    trailer_lines,
    version_of,
)

HOST: Header = (b"host", b"x")


def head(*headers: Header, method: bytes = b"GET", version: str = "1.1", has_body: bool = False) -> ReadHead:
    read = read_request(method, version, [HOST, *headers], has_body=has_body)
    assert isinstance(read, ReadHead)
    return read


def refused(*headers: Header, method: bytes = b"GET", version: str = "1.1", has_body: bool = False) -> int:
    read = read_request(method, version, [HOST, *headers], has_body=has_body)
    assert isinstance(read, Problem)
    return read.status


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], 0),
        ([b"0"], 0),
        ([b"5"], 5),
        ([b"999999999999999999"], 999999999999999999),
        ([b"5", b"5"], None),
        ([b"5", b"6"], None),
        ([b"05"], None),
        ([b"+5"], None),
        ([b"5 "], None),
        ([b""], None),
        ([b"5,5"], None),
        ([b"1" * 19], None),
        ([b"\xb2"], None),
    ],
)
def test_a_length_is_one_plain_number(lengths: list[bytes], expected: int | None) -> None:
    read = read_length(lengths)
    assert (None if isinstance(read, Problem) else read) == expected


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (b"GET / HTTP/1.1\r\n", "1.1"),
        (b"GET / HTTP/1.0\r\n", "1.0"),
        (b"GET / HTTP/1.1\n", ""),
        (b"GET / HTTP/2.0\r\n", ""),
        (b"GET / RTSP/1.0\r\n", ""),
        (b"GET /\r\n", ""),
        (b"GET  / HTTP/1.1\r\n", ""),
        (b"GET  HTTP/1.1\r\n", ""),
        (b" GET / HTTP/1.1\r\n", ""),
        (b"G\0T / HTTP/1.1\r\n", ""),
        (b"\n", ""),
    ],
)
def test_only_two_versions_begin_a_request(line: bytes, version: str) -> None:
    assert version_of(line) == version


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([HOST], 400),
        ([(b"host", b"a b")], 400),
        ([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"transfer-encoding", b"gzip, chunked")], 501),
        ([(b"transfer-encoding", b"")], 501),
        ([(b"proxy-authorization", b"a"), (b"proxy-authorization", b"b")], 400),
        ([(b"expect", b"200-ok")], 417),
        ([(b"content_length", b"5")], 400),
        ([(b"x_forwarded_for", b"y")], 400),
        ([(b"x_original_url", b"/")], 400),
        ([(b"x y", b"z")], 400),
        ([(b"", b"z")], 400),
        ([(b"connection", b"upgrade"), (b"upgrade", b"h2c")], 400),
        ([(b"connection", b"upgrade"), (b"upgrade", b"h2c"), (b"upgrade", b"websocket")], 400),
        ([(b"x", b"y")] * MAX_HEADERS, 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(headers: list[Header], status: int) -> None:
    assert refused(*headers) == status


def test_chunks_and_upgrades_need_their_version_and_method() -> None:
    upgrade: list[Header] = [(b"connection", b"Upgrade"), (b"upgrade", b"WebSocket")]
    assert refused((b"transfer-encoding", b"chunked"), version="1.0") == 400
    assert refused(*upgrade, method=b"POST") == 400
    assert refused(*upgrade, version="1.0") == 400
    assert refused(*upgrade, has_body=True) == 400
    assert refused(*upgrade, (b"transfer-encoding", b"chunked")) == 400
    assert refused(method=b"PROPFIND") == 501
    assert refused(version="0.9") == 505
    assert head(*upgrade, (b"sec-websocket-extensions", b"permessage-deflate")).websocket
    assert head(*upgrade, (b"sec-websocket-extensions", b"permessage-deflate")).lines == []


def test_what_connection_names_ends_here() -> None:
    read = head((b"connection", b"keep-alive, X-Gone"), (b"x-gone", b"1"), (b"x-kept", b"2"), (b"te", b"trailers"))
    assert read.lines == [(b"x-kept", b"2")]
    read = head((b"x-gone", b"1"), (b"connection", b"close"), (b"connection", b"x-gone ,accept"), (b"accept", b"*/*"))
    assert read.lines == []


def test_nothing_says_who_asks() -> None:
    read = head(
        (b"x-forwarded-for", b"1"),
        (b"x-forwarded-user", b"1"),
        (b"forwarded", b"1"),
        (b"via", b"1"),
        (b"client-ip", b"1"),
        (b"accept-encoding", b"br"),
        (b"cookie", b"a=b"),
        (b"authorization", b"y"),
        (b"x", b"y"),
    )
    assert read.lines == [(b"x", b"y")]
    assert [name for name, _ in read.credentials] == [b"cookie", b"authorization"]


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"host",
        b"content-length",
        b"content_length",
        b"transfer_encoding",
        b"x-forwarded-for",
        b"x_forwarded_for",
        b"x-http-method-override",
        b"set-cookie",
        b"x y",
    ],
)
def test_a_trailer_that_changes_the_message_goes_no_further(name: bytes) -> None:
    assert trailer_lines([(name, b"1"), (b"x-sum", b"2")]) == b"x-sum: 2\r\n"


def test_a_valet_key_is_no_trailer() -> None:
    assert trailer_lines([(b"x", b"vk_1"), (b"x-sum", b"2")]) == b"x-sum: 2\r\n"


def test_the_framing_of_an_answer_is_clear_or_it_is_none() -> None:
    length: Header = (b"content-length", b"5")
    chunked: Header = (b"transfer-encoding", b"Chunked")
    assert read_response([(b"content-length", b"05")]) is None
    assert read_response([(b"content-length", b"5, 5")]) is None
    assert read_response([(b"transfer-encoding", b"gzip, chunked")]) is None
    assert read_response([chunked, chunked]) is None
    assert read_response([length, length]) is None
    assert read_response([length, chunked]) is None
    assert read_response([chunked, length]) is None
    read = read_response([length, (b"set-cookie", b"a"), (b"alt-svc", b"h3"), (b"x", b"y")])
    assert isinstance(read, ReadResponse)
    assert (read.length, read.chunked, read.lines) == (5, False, [(b"x", b"y")])


def test_what_connection_names_in_an_answer_ends_here() -> None:
    read = read_response([(b"connection", b"close, X-Gone"), (b"x-gone", b"1"), (b"x-kept", b"2")])
    assert isinstance(read, ReadResponse)
    assert read.lines == [(b"x-kept", b"2")]


def test_a_status_has_our_own_words() -> None:
    assert status_line(200) == b"HTTP/1.1 200 OK\r\n"
    assert status_line(299) == b"HTTP/1.1 299 \r\n"
