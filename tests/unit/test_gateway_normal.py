"""The normal form of an address: what is matched is what is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.gateway.normal import Malformed, Target, loosened, normalise, split_authority


def of(
    path: str = "/", host: str = "example.com", port: int | None = None, scheme: str = "https"
) -> Target | Malformed:
    return normalise(scheme=scheme, host=host, port=port, path=path)


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("/", "/"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models/"),
        ("/%76%31/mode%6cs", "/v1/models"),
        ("/a%7eb%2db%2Eb%5fb", "/a~b-b.b_b"),
        ("/a%3ab%20c%c3%a9", "/a%3Ab%20c%C3%A9"),
        ("//a///b", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/a/%2e/b/%2E%2e/c", "/a/c"),
        ("/a/.%2e/b", "/b"),
        ("/../../a", "/a"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a;b=c/d", "/a;b=c/d"),
        ("/a[id]/{b}|c^`", "/a%5Bid%5D/%7Bb%7D%7Cc%5E%60"),
        ("/v1/m:generate", "/v1/m:generate"),
        ("/100%25", "/100%25"),
        ("/a?b=%2e%2E//../c[]=d", "/a?b=%2e%2E//../c[]=d"),
        ("/a?", "/a?"),
        ("/?/x/../y", "/?/x/../y"),
    ],
)
def test_a_path_has_one_form(raw: str, normal: str) -> None:
    found = of(raw)
    assert isinstance(found, Target)
    assert found.path_and_query == normal


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "a",
        "*",
        "?a",
        "/a%2Fb",
        "/a%2fb",
        "/a%5Cb",
        "/a\\b",
        "/a%00",
        "/a%0d%0aHost:b",
        "/a%1F",
        "/a%7f",
        "/a%252Fb",
        "/a%25252Fb",
        "/a/%252e%252e/b",
        "/a/%25%32%65%25%32%65/b",
        "/a%255cb",
        "/a%2525252525b",
        "/a/..;/b",
        "/a/.;x/b",
        "/a/%2e%2e;/b",
        "/a/%2e%2e%3b/b",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a%c0%afb",
        "/a%c0%ae",
        "/a%ff",
        "/a b",
        "/a\tb",
        "/a\x00",
        "/aé",
        '/a"b',
        "/a<b>",
        "/a#b",
        "/a?b#c",
        "/a?b c",
        "/a?b\r\n",
        "/a?é",
        "/a?b\\c",
        "/" + "a" * 9000,
        "/a?" + "b" * 40000,
    ],
)
def test_what_two_servers_could_read_differently_is_malformed(raw: str) -> None:
    found = of(raw)
    assert isinstance(found, Malformed)
    assert found.code == "malformed"
    assert found.reason


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("API.Example.COM", "api.example.com"),
        ("example.com.", "example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ("[2001:DB8::A]", "[2001:db8::a]"),
        ("my_host", "my_host"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_a_host_has_one_form(raw: str, normal: str) -> None:
    found = of(host=raw)
    assert isinstance(found, Target)
    assert found.host == normal


@pytest.mark.parametrize(
    "raw",
    [
        "",
        ".",
        "a..b",
        "example.com..",
        "a b",
        "a/b",
        "a%2eb",
        "a@b",
        "bücher.example",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "1.2.3.4.5",
        "999.1.1.1",
        "::1",
        "[::1",
        "[::1]x",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "-a.example",
        "a" * 300,
    ],
)
def test_a_host_of_another_form_is_malformed(raw: str) -> None:
    found = of(host=raw)
    assert isinstance(found, Malformed)
    assert found.code == "malformed"


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "metadata.google.internal", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.169.254]"]
)
def test_a_metadata_address_is_refused(host: str) -> None:
    found = of(host=host)
    assert isinstance(found, Malformed)
    assert found.code == "address_refused"


def test_only_the_port_of_the_scheme_is_left_out() -> None:
    for scheme, port, authority in [
        ("https", None, "example.com"),
        ("https", 443, "example.com"),
        ("http", 80, "example.com"),
        ("http", 443, "example.com:443"),
        ("https", 8443, "example.com:8443"),
    ]:
        found = of(scheme=scheme, port=port)
        assert isinstance(found, Target)
        assert found.authority == authority
        assert found.url == f"{scheme}://{authority}/"
    assert isinstance(of(port=0), Malformed)
    assert isinstance(of(port=65536), Malformed)
    assert isinstance(of(scheme="ftp"), Malformed)


def test_an_authority_is_a_host_and_perhaps_a_port() -> None:
    assert split_authority("a.example") == ("a.example", None)
    assert split_authority("a.example:80") == ("a.example", 80)
    assert split_authority("[::1]:80") == ("[::1]", 80)
    assert split_authority("[::1]") == ("[::1]", None)
    for wrong in (
        "u@a.example",
        "u:p@a.example:80",
        "a.example:",
        "a:b:1",
        "a.example:+80",
        "a.example:\u0661",
        "[::1]80",
    ):
        assert isinstance(split_authority(wrong), Malformed), wrong


PIECES = st.sampled_from(
    [
        "/",
        "//",
        "a",
        "V1",
        ".",
        "..",
        "%2e",
        "%2E",
        "%61",
        "%7E",
        "%25",
        "%3a",
        "%2f",
        ";",
        ":",
        "*",
        "[",
        "%",
        "é",
        "?",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_normalising_twice_changes_nothing(tail: str) -> None:
    once = of("/" + tail)
    if isinstance(once, Target):
        assert of(once.path_and_query) == once


@given(st.text(max_size=30))
def test_no_text_makes_it_fail(text: str) -> None:
    for found in (of("/" + text), of(host=text)):
        if isinstance(found, Target):
            assert found.url.isascii()
            assert found.url.isprintable()
            assert " " not in found.url
    split_authority(text)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_dot_segment_and_no_empty_one_is_left(tail: str) -> None:
    found = of("/" + tail)
    if isinstance(found, Target):
        inner = found.path.removesuffix("/").split("/")[1:]
        assert not {"", ".", ".."} & set(inner)
        assert not {".", ".."} & set(loosened(found.path).split("/"))


@pytest.mark.parametrize(
    ("path", "loose"),
    [
        ("/V1/Keys/", "/v1/keys"),
        ("/v1;a/keys;b=c", "/v1/keys"),
        ("/v1/;x/keys", "/v1/keys"),
        ("/v1/p%3AsetIamPolicy", "/v1/p:setiampolicy"),
        ("/v1/%256beys", "/v1/keys"),
        ("/v1/keys%3Fx", "/v1/keys"),
        ("/", ""),
    ],
)
def test_the_loose_reading_is_that_of_the_most_lenient_server(path: str, loose: str) -> None:
    assert loosened(path) == loose
