"""The real credential, in whatever form and field of an answer, reaches no client; the valet key no provider."""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest

from tests.support.rig import WAYS, Rig, Way, faults, rig
from tests.support.upstream import Conversation, Whole, answer, requests

# With what base64, URL-encoding and JSON each write in their own way.
SECRET = "sk-" + "canary/+=&%" + base64.b64encode(os.urandom(18)).decode()
MARK = "canary"


def forms() -> list[bytes]:
    encoded = [base64.b64encode(b"u" * before + b":" + SECRET.encode()) for before in range(3)]
    texts = [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        SECRET.replace("/", "\\/"),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ]
    return list(dict.fromkeys([*(text.encode() for text in texts), *encoded]))


FORMS = forms()


def leaks(data: bytes) -> list[bytes]:
    """Give what of the secret is in there, in the clear or in base64 at any offset."""
    pieces = [form[6:-6] for form in FORMS if MARK.encode() not in form] + [MARK.encode()]
    return [piece for piece in pieces if piece in data]


def stream(content_type: str, pieces: list[bytes], *, more: bytes = b"", trailers: bytes = b"") -> list[bytes]:
    """Give an answer in chunks, each a write of its own."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n".encode()
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return [head + more + b"\r\n", *chunks, b"0\r\n" + trailers + b"\r\n"]


def told(request: Whole) -> list[bytes]:
    kind, _, number = request.target.strip("/").partition("/")
    form = FORMS[int(number)]
    text = form.decode()
    event = b'data: {"said": "%b"}\n\n' % form
    match kind:
        case "header":
            return [answer(headers=f"x-echo: {text}\r\nset-cookie: a={text}\r\nwww-authenticate: Bearer k={text}\r\n")]
        case "redirect":
            return [answer(status=302, headers=f"location: https://elsewhere.example/?key={text}\r\n")]
        case "json":
            return [answer(json.dumps({"you": "sent"}).encode() + form)]
        case "refusal":
            return [answer(b"not you: " + form, status=401, content_type="text/plain")]
        case "error":
            return [answer(b"wrong: " + form, status=500, content_type="text/html")]
        case "event":
            return stream("text/event-stream", [event])
        case "split":
            return stream("text/event-stream", [event[at : at + 1] for at in range(len(event))])
        case "halves":
            return stream("text/plain", [p for at in range(1, len(form)) for p in (form[:at], form[at:], b"\n")])
        case "gzip":
            body = gzip.compress(form * 3)
            return [answer(body, headers="content-encoding: gzip\r\n")]
        case "deflate":
            return [answer(zlib.compress(form * 3), headers="content-encoding: deflate\r\n")]
        case "trailer":
            return stream("text/plain", [b"x"], trailers=b"x-echo: " + form + b"\r\n")
        case "interim":
            return [b"HTTP/1.1 103 Early Hints\r\nlink: " + form + b"\r\n\r\n", answer()]
    raise AssertionError(kind)


KINDS = [
    "header", "redirect", "json", "refusal", "error", "event", "split", "halves", "gzip", "deflate", "trailer",
    "interim",
]  # fmt: skip


def echoes(talk: Conversation) -> None:
    for request in requests(talk):
        talk.send(*told(request))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with faults(), rig(tmp_path_factory.mktemp("rig"), secure=echoes, plain=echoes) as running:
        running.running.log_in("acme", SECRET)
        running.running.log_in("plain", SECRET)
        yield running


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_credential_comes_back_in_no_form(engine: Rig, kind: str, way: Way) -> None:
    for number in range(len(FORMS)):
        with engine.connect(way) as client:
            client.send(engine.get(f"/{kind}/{number}", way, more="Connection: close\r\n"))
            got = client.rest()
        assert got.startswith(b"HTTP/1.1 ")
        assert got.count(b"HTTP/1.1 502") == 0, got
        assert leaks(got) == [], (FORMS[number], got)
        # The rest of the answer is there: something was covered, and not all.
        assert b"*" in got or b"~" in got or b"#" in got, got


def test_an_answer_to_head_is_looked_through_as_well(engine: Rig) -> None:
    with engine.connect("base-url") as client:
        client.send(engine.get("/header/0", method="HEAD", more="Connection: close\r\n"))
        assert leaks(client.rest()) == []


def test_what_the_canary_is_looked_for_by_finds_it() -> None:
    for form in FORMS:
        assert leaks(b"x" + form + b"y"), form


# --- the other way ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "where",
    [
        "{method} <T>/json/0?key=<K> HTTP/1.1\r\nHost: <H>\r\n<A>\r\n",
        "{method} <T>/json/0/<K> HTTP/1.1\r\nHost: <H>\r\n<A>\r\n",
        "{method} <T>/json/0 HTTP/1.1\r\nHost: <H>\r\n<A>X-Mine: <K>\r\n\r\n",
        "{method} <T>/json/0 HTTP/1.1\r\nHost: <H>\r\n<A>X-Mine: a=<K>; b\r\n\r\n",
        "{method} <T>/json/0 HTTP/1.1\r\nHost: <H>\r\n<A>Cookie: k=<K>\r\nX-Goog-Api-Key: <K>\r\nApi-Key: <K>\r\n\r\n",
        "{method} <T>/json/0 HTTP/1.1\r\nHost: <H>\r\n<A>X-Api-Key: <K>\r\nReferer: http://x/?key=<K>\r\n\r\n",
        "{method} <T>/json/0 HTTP/1.1\r\nHost: <H>\r\n<A>Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
        "1\r\nx\r\n0\r\nX-T: <K>\r\n\r\n",
    ],
)
def test_the_valet_key_is_sent_to_no_provider(engine: Rig, way: Way, where: str) -> None:
    before = len(engine.upstream(way).requests)
    with engine.connect(way) as client:
        client.send(engine.fill(where.format(method="POST").encode(), way))
        status, _, body = client.answer()
        assert status in (200, 400), body
    engine.barrier(way, "/json/0")
    for request in engine.upstream(way).requests[before:]:
        everything = repr((request.target, request.headers, request.trailers))
        assert "vk_" not in everything, everything
        assert engine.token[16:] not in everything
