"""No secret of an account comes back in an answer, however it is written and wherever it is cut."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Sequence
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.errors import UnclearAnswer
from valetkey.gateway.scrub import Needles, Scrubber, decoder
from valetkey.log import forms

KEY = "sk-" + "abc/+Def9" * 5


def through(needles: Needles, chunks: Sequence[bytes]) -> bytes:
    scrubber = Scrubber(needles)
    return b"".join([*(scrubber.feed(chunk) for chunk in chunks), scrubber.finish()])


# --- one piece -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        quote(KEY, safe=""),
        quote(KEY, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
        quote(KEY),
        json.dumps(KEY)[1:-1],
        KEY.replace("/", "\\/"),
        base64.b64encode(KEY.encode()).decode(),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
    ],
)
def test_a_secret_is_overwritten_in_every_form(written: str) -> None:
    data = b'{"echo": "' + written.encode() + b'", "n": 1}'
    cleaned = Needles([KEY]).clean(data)
    assert cleaned == b'{"echo": "' + b"*" * len(written) + b'", "n": 1}'


@pytest.mark.parametrize("user", ["", "x:", "ab:", "user:"])
def test_a_secret_inside_basic_is_overwritten_at_every_offset(user: str) -> None:
    data = base64.b64encode(f"{user}{KEY}:".encode())
    cleaned = Needles([KEY]).clean(data)
    assert len(cleaned) == len(data)
    assert not set(KEY.encode()) & set(base64.b64decode(cleaned.replace(b"*", b""))[len(user) + 2 : -3])
    assert cleaned.count(b"*") >= len(data) - 12


def test_text_without_a_secret_is_given_back_itself() -> None:
    data = b"nothing to see, sk-abc/+De"
    assert Needles([KEY]).clean(data) is data
    assert Scrubber(Needles([KEY])).feed(data[:10]) is not None


def test_short_ones_are_left_alone_and_eight_characters_are_taken() -> None:
    assert not Needles(["1234567", ""])
    assert Needles(["1234567"]).clean(b"1234567") == b"1234567"
    assert Needles(["12345678"]).clean(b"x12345678x") == b"x********x"


def test_the_longer_of_two_goes_whole() -> None:
    needles = Needles(["password", "password-and-more"])
    assert needles.clean(b"password password-and-more") == b"******** *****************"
    assert through(needles, [b"password", b"-and-more", b" password", b"-", b"x"]) == (
        b"*****************" + b" ********" + b"-x"
    )


def test_what_covers_one_secret_makes_no_other() -> None:
    needles = Needles(["ab******", "#" * 8])
    cleaned = needles.clean(b"abab******ab########")
    assert len(cleaned) == 20
    assert b"ab******" not in cleaned
    assert b"#" * 8 not in cleaned


def test_a_repr_shows_no_secret() -> None:
    assert KEY not in repr(Needles([KEY]))


# --- chunks ----------------------------------------------------------------------------------


def test_a_secret_cut_anywhere_does_not_come_out() -> None:
    needles, data = Needles([KEY]), f"event: {KEY}\n\n".encode()
    wanted = needles.clean(data)
    assert KEY.encode() not in wanted
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            assert through(needles, [data[:first], data[first:second], data[second:]]) == wanted
    assert through(needles, [data[i : i + 1] for i in range(len(data))]) == wanted


@pytest.mark.parametrize(
    "chunk",
    [b'data: {"a": 1}\n\n', b"{}", b"x" * 5000 + b"!", b"data: s\n\n", f"data: {KEY}\n\n".encode(), b"sk-ab?", b"\0"],
)
def test_a_chunk_whose_end_begins_no_form_is_not_late(chunk: bytes) -> None:
    given = Scrubber(Needles([KEY])).feed(chunk)
    assert len(given) == len(chunk)


@pytest.mark.parametrize(("chunk", "late"), [(b"as", 1), (b"a sk-", 3), (KEY[:20].encode(), 20), (b"sk-sk-a", 4)])
def test_only_what_may_be_a_beginning_is_held_back(chunk: bytes, late: int) -> None:
    scrubber = Scrubber(Needles([KEY]))
    given = scrubber.feed(chunk)
    assert given == chunk[: len(chunk) - late]
    assert scrubber.feed(b"\n") == chunk[len(chunk) - late :] + b"\n"


def test_the_end_of_one_may_begin_the_next() -> None:
    secret = "abcabcab"
    assert through(Needles([secret]), [b"abcabcab", b"cab!"]) == b"*" * 11 + b"!"
    assert through(Needles([secret]), [b"abcabcab", b"c"]) == b"*" * 8 + b"c"
    assert through(Needles([secret]), [b"abcabcab"]) == b"*" * 8


def test_a_secret_of_several_lines_is_held_over_its_line_ends() -> None:
    secret = "-----BEGIN KEY-----\nabc\n-----END KEY-----\n"
    assert through(Needles([secret]), [b"x-----BEGIN KEY-----\n", b"abc\n", b"-----END KEY-----\n"]) == b"x" + b"*" * 42


# Few letters, so that secrets overlap each other and themselves.
_secret = st.text(alphabet="ab*/", min_size=8, max_size=14)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), secrets=st.lists(_secret, min_size=1, max_size=3))
def test_whatever_is_cut_no_form_comes_out_and_lengths_agree(data: st.DataObject, secrets: list[str]) -> None:
    written = [form.encode() for secret in secrets for form in forms(secret)]
    part = st.one_of(st.sampled_from(written), st.text(alphabet="ab*/", max_size=6).map(str.encode))
    text = b"".join(data.draw(st.lists(part, max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    needles = Needles(secrets)
    out = through(needles, chunks)
    assert len(out) == len(text)
    assert [form for form in written if form in out] == []
    assert out == needles.clean(text)


@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=300), secret=st.text(min_size=8, max_size=40), cut=st.integers(0, 300))
def test_any_secret_and_any_bytes_will_do(text: bytes, secret: str, cut: int) -> None:
    text += secret.encode("utf-8", "surrogatepass") + text
    out = through(Needles([secret]), [text[:cut], text[cut:]])
    assert len(out) == len(text)
    assert secret.encode("utf-8", "surrogatepass") not in out


# --- compressed ------------------------------------------------------------------------------

BODY = json.dumps([{"id": n, "name": f"model-{n}"} for n in range(20000)]).encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def decoded(encoding: str, data: bytes, step: int) -> bytes:
    reader = decoder(encoding)
    assert reader is not None
    pieces = [piece for at in range(0, len(data), step) for piece in reader.feed(data[at : at + step])]
    reader.finish()
    assert all(0 < len(piece) <= 65536 for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("step", [1, 7, 1000, 10**9])
@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(BODY)),
        ("X-GZIP ", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("gzip", gzip.compress(BODY[:1000]) + gzip.compress(BODY[1000:])),
        ("gzip", gzip.compress(BODY) + b"\0" * 100),
    ],
    ids=["gzip", "x-gzip", "zlib", "raw", "two members", "padded"],
)
def test_a_body_is_decoded_in_any_pieces(encoding: str, packed: bytes, step: int) -> None:
    assert decoded(encoding, packed, step) == BODY


def test_a_body_that_is_not_packed_passes() -> None:
    assert decoded("identity", b"abc", 2) == b"abc"


def test_an_empty_body_is_too_short_for_gzip_and_an_empty_member_is_none() -> None:
    with pytest.raises(UnclearAnswer, match="too early"):
        decoded("gzip", b"", 1)
    assert decoded("gzip", gzip.compress(b""), 1) == b""


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip,br", "rot13"])
def test_what_cannot_be_decoded_is_said_to_be_so(encoding: str) -> None:
    assert decoder(encoding) is None


@pytest.mark.parametrize("cut", [0, 1, 5, 12, -9, -1])
def test_a_body_that_ends_too_early_is_told(cut: int) -> None:
    with pytest.raises(UnclearAnswer, match="too early"):
        decoded("gzip", gzip.compress(b"some text")[:cut], 3)


def test_a_broken_body_is_told() -> None:
    packed = bytearray(gzip.compress(BODY))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(UnclearAnswer, match="cannot be decoded"):
        decoded("gzip", bytes(packed), 4096)
    with pytest.raises(UnclearAnswer, match="cannot be decoded"):
        decoded("gzip", b"no gzip at all", 4096)


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_a_bomb_is_refused_before_it_takes_memory(encoding: str, window: int) -> None:
    packer = zlib.compressobj(wbits=window)
    packed = packer.compress(bytes(100_000_000)) + packer.flush()
    tracemalloc.start()
    try:
        with pytest.raises(UnclearAnswer, match="beyond measure"):
            decoded(encoding, packed, 10**9)
        # It is refused 20 MB in; those are what the test keeps.
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
    finally:
        tracemalloc.stop()
