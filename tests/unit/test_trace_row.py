"""What the trace keeps of a request, and that nothing secret is in it."""

from __future__ import annotations

import base64
import io
import json
import secrets
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest

from tests.support.rows import row
from valetkey import log
from valetkey.credential import Secret
from valetkey.gateway.row import BODY_LIMIT_BYTES, Cleaner, Row, is_failure, is_refusal

ODD = "s3cret+/&=ü " + secrets.token_urlsafe(24)
LOOKS_LIKE_ONE = "sk-" + secrets.token_hex(20)


@pytest.fixture(autouse=True)
def _hears_secrets() -> Iterator[None]:
    take_back = log.set_up(stream=io.StringIO())
    yield
    take_back()


def cleaned(**given: object) -> Row:
    (found,) = Cleaner().clean([row(**given)])
    return found


def all_percent(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def basic(text: str) -> str:
    return base64.b64encode(f"x-access-token:{text}".encode()).decode()


FORMS = [str, quote, quote_plus, basic, lambda t: base64.urlsafe_b64encode(t.encode()).decode()]


def test_an_ordinary_row_stays_as_it_is() -> None:
    assert cleaned() == row()


@pytest.mark.parametrize("form", [*FORMS, all_percent])
@pytest.mark.parametrize("field", ["client", "account", "method", "host", "path", "outcome", "way", "model"])
def test_a_known_secret_goes_out_of_every_text_in_every_form(field: str, form: object) -> None:
    assert callable(form)
    Secret(ODD)
    found = str(getattr(cleaned(**{field: f"a/{form(ODD)}/b"}), field))
    assert log.REMOVED in found
    assert ODD[-16:] not in found
    assert form(ODD)[8:24] not in found
    assert found.startswith("a/")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", ["request_body", "response_body"])
def test_a_known_secret_goes_out_of_bodies(field: str, form: object) -> None:
    assert callable(form)
    Secret(ODD)
    for body in (json.dumps({"x": form(ODD)}), json.dumps({"x": form(ODD)}).encode()):
        found = str(getattr(cleaned(**{field: body}), field))
        assert log.REMOVED in found
        assert ODD[-16:] not in found


def test_what_looks_like_a_key_goes_out_though_nobody_knows_it() -> None:
    found = cleaned(path=f"/bot/{LOOKS_LIKE_ONE}/send", request_body='{"api_key": "' + "x" * 20 + '"}')
    assert found.path == f"/bot/{log.REMOVED}/send"
    assert found.request_body == '{"api_key": "[secret]"}'


def test_a_key_whose_every_character_is_encoded_twice_goes_out_of_the_path() -> None:
    found = cleaned(path="/a/" + quote(all_percent(LOOKS_LIKE_ONE)))
    assert found.path == f"/a/{log.REMOVED}"


@pytest.mark.parametrize("path", ["/v1/a?key=x", "/v1/a#key=x", "/v1/a?b=1#c?d"])
def test_the_path_is_kept_without_its_query(path: str) -> None:
    assert cleaned(path=path).path == "/v1/a"


def test_a_path_that_was_seen_before_its_secret_was_known_is_looked_at_anew() -> None:
    cleaner, given = Cleaner(), row(path=f"/x/{ODD}", model=ODD)
    assert cleaner.clean([given])[0].path == f"/x/{ODD}"
    Secret(ODD)
    (found,) = cleaner.clean([given])
    assert (found.path, found.model) == (f"/x/{log.REMOVED}", log.REMOVED)


def test_control_characters_go_out() -> None:
    found = cleaned(path="/a\x1b[2J\n\x00\u202eb\ud800", model="a\tb", request_body=b"a\x1bb\r\n\tc\xff")
    assert found.path == "/a?[2J???b?"
    assert found.model == "a?b"
    assert found.request_body == "a?b\r\n\tc\ufffd"


def test_long_texts_are_cut() -> None:
    found = cleaned(path="/" + "ab" * 5000, request_body="é" * BODY_LIMIT_BYTES)
    assert len(found.path) == 2048
    assert isinstance(found.request_body, str)
    assert len(found.request_body.encode()) == BODY_LIMIT_BYTES


def test_the_beginning_of_a_secret_at_the_end_of_a_cut_body_goes_out() -> None:
    Secret(ODD)
    for form in (ODD, quote(ODD), json.dumps(ODD)[1:-1]):
        for length in range(6, len(form)):
            assert cleaned(request_body="x " + form[:length]).request_body == f"x {log.REMOVED}", length
    assert cleaned(request_body="x s3cre").request_body == "x s3cre"  # so short a beginning tells nothing


def test_more_texts_than_are_remembered_are_read_right() -> None:
    cleaner = Cleaner()
    cleaner.clean([row(path="/" + "a" * 100_000, model="b" * 100_000)])
    for number in range(10_000):
        assert cleaner.clean([row(path=f"/a/{number}?x")])[0].path == f"/a/{number}"
    kept = vars(cleaner)["_paths"]
    assert len(kept) <= 4096
    assert max(map(len, kept)) < 100


def test_counts_that_no_database_holds_are_cut() -> None:
    assert cleaned(input_tokens=10**30).input_tokens == 2**53


@pytest.mark.parametrize(
    ("status", "outcome", "refused", "failed"),
    [
        (200, "ok", False, False),
        (404, "ok", False, True),
        (500, "ok", False, True),
        (403, "denied", True, False),
        (429, "too_many_requests", True, False),
        (502, "unreachable", False, True),
        (0, "client_gone", False, True),
        (200, "cut_off", False, True),
    ],
)
def test_a_refusal_is_ours_and_a_failure_is_not(status: int, outcome: str, refused: bool, failed: bool) -> None:
    found = row(status=status, outcome=outcome)
    assert (is_refusal(found), is_failure(found)) == (refused, failed)
