"""The log: what it says, and that no secret gets into it."""

from __future__ import annotations

import base64
import io
import json
import logging
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey import log
from valetkey.credential import Secret
from valetkey.errors import ConfigError

ODD = "s3cret+/&=ü " + secrets.token_urlsafe(24)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    take_back = log.set_up(level="debug", stream=stream)
    yield stream
    take_back()


def basic(value: str) -> str:
    return base64.b64encode(f"x-access-token:{value}".encode()).decode()


@pytest.mark.parametrize(
    "form",
    [
        lambda value: value,
        quote,
        lambda value: quote(value, safe=""),
        quote_plus,
        lambda value: base64.b64encode(value.encode()).decode(),
        lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
        lambda value: json.dumps({"x": value}),
        repr,
        lambda value: urlencode({"x": value}),
    ],
)
def test_a_secret_is_taken_out_in_every_form_that_it_takes(written: io.StringIO, form: object) -> None:
    assert callable(form)
    Secret(ODD)
    logging.getLogger("valetkey").info("sent %s there", form(ODD))
    assert form(ODD) not in written.getvalue()
    assert ODD[-20:] not in written.getvalue()
    assert "sent " in written.getvalue()


@given(before=st.text(max_size=8), value=st.text(min_size=12, max_size=60), after=st.text(max_size=8))
def test_a_secret_inside_base64_is_taken_out_at_every_offset(before: str, value: str, after: str) -> None:
    data = value.encode(errors="replace")
    value = data.decode()
    take_back = log.set_up(stream=io.StringIO())
    log.known(value)
    whole = base64.b64encode(before.encode(errors="replace") + data + after.encode(errors="replace")).decode()
    left = log.redact(f"<{whole}>")
    take_back()
    # What is left at the edges are bits shared with the text around it: at most two characters on either side.
    assert log.REMOVED in left


def test_a_password_in_basic_is_taken_out(written: io.StringIO) -> None:
    Secret(ODD)
    logging.getLogger("valetkey").warning("x %s y", basic(ODD))
    assert basic(ODD)[24:40] not in written.getvalue()


def test_a_traceback_loses_its_secrets_too(written: io.StringIO) -> None:
    Secret(ODD)
    try:
        raise ValueError(f"bad: {ODD}")
    except ValueError:
        logging.getLogger("valetkey").exception("it failed")
    assert ODD not in written.getvalue()
    assert "Traceback" in written.getvalue()
    assert "ValueError: bad: [secret]" in written.getvalue()


def test_an_error_that_no_thread_caught_is_logged_without_its_secret(written: io.StringIO) -> None:
    Secret(ODD)

    def fail() -> None:
        raise RuntimeError(ODD)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "RuntimeError: [secret]" in written.getvalue()
    assert ODD not in written.getvalue()


TOKEN = "x" * 8 + "1a2b3c4d" * 3


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            f"GET https://a.test/cb?code={TOKEN}&state={TOKEN}&x=1",
            "GET https://a.test/cb?code=[secret]&state=[secret]&x=1",
        ),
        (f"GET https://a.test/v1?key={TOKEN} 200", "GET https://a.test/v1?key=[secret] 200"),
        (f"grant_type=a&refresh_token={TOKEN}", "grant_type=a&refresh_token=[secret]"),
        ('{"access_token": "' + TOKEN + '", "a": 1}', '{"access_token": "[secret]", "a": 1}'),
        (f"Authorization: Basic {TOKEN}", "Authorization: [secret]"),
        ("{'x-api-key': '" + TOKEN + "', 'b': 'c'}", "{'x-api-key': '[secret]', 'b': 'c'}"),
        (f"sent Bearer {TOKEN}", "sent Bearer [secret]"),
        (f"https://user:{TOKEN}@proxy.test:3128/", "https://[secret]@proxy.test:3128/"),
        ("key sk-" + TOKEN + " ok", "key [secret] ok"),
        ("gh" + "p_" + TOKEN, "[secret]"),
        ("ey" + "J0eXAiOiJKV1Qi." + TOKEN + "." + TOKEN, "[secret]"),
        ("the monkey=banana asked for status code 200", "the monkey=banana asked for status code 200"),
        ("token openai@work renewed", "token openai@work renewed"),
        ("https://a.test:8000/path@x", "https://a.test:8000/path@x"),
    ],
)
def test_what_looks_like_a_credential_is_taken_out_and_the_rest_stays(text: str, left: str) -> None:
    assert log.redact(text) == left


def test_a_message_whose_arguments_do_not_fit_is_still_written(written: io.StringIO) -> None:
    logging.getLogger("valetkey").info("%d of them", "many")
    assert "%d of them" in written.getvalue()


def test_a_short_secret_tears_no_holes_into_words(written: io.StringIO) -> None:
    Secret("ab")
    logging.getLogger("valetkey").info("about")
    assert "about" in written.getvalue()


def test_the_http_client_is_quiet_even_at_debug(written: io.StringIO) -> None:
    logging.getLogger("httpx2").info("HTTP Request: GET https://a.test")
    logging.getLogger("httpcore2.connection").debug("connect_tcp.started")
    assert written.getvalue() == ""


def test_taking_it_back_leaves_logging_as_it_was() -> None:
    stream = io.StringIO()
    handlers, level = list(logging.root.handlers), logging.root.level
    log.set_up(level="info", stream=stream)()
    logging.getLogger("valetkey").error("nobody listens")
    assert stream.getvalue() == ""
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert Secret.heard_by is None


def test_a_log_file_is_for_its_owner_only_and_is_added_to(tmp_path: Path) -> None:
    file = tmp_path / "valetkey.log"
    for word in ("one", "two"):
        take_back = log.set_up(level="info", file=str(file))
        logging.getLogger("valetkey").info(word)
        take_back()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [line.split()[-1] for line in file.read_text().splitlines()] == ["one", "two"]


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.file"):
        log.set_up(file=str(tmp_path))


def test_an_old_log_file_is_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch(mode=0o644)
    log.set_up(level="warning", file=str(file))()
    assert file.stat().st_mode & 0o777 == 0o600


def test_only_so_many_secrets_are_known_at_a_time_and_the_oldest_are_forgotten() -> None:
    take_back = log.set_up(stream=io.StringIO())
    before = log.generation()
    made = [f"{number:06}-secret" for number in range(4100)]
    for value in made:
        log.known(value)
        log.known(value)
    assert log.redact(f"{made[0]} {made[-1]}") == f"{made[0]} {log.REMOVED}"
    assert log.generation() != before
    assert made[0][:6] not in vars(log)["_by_beginning"]
    take_back()
    assert log.redact(made[-1]) == made[-1]
    assert vars(log)["_by_beginning"] == {}


def test_secrets_that_begin_alike_are_told_apart() -> None:
    take_back = log.set_up(stream=io.StringIO())
    for value in ("common-one", "common-two", "common-one-and-more"):
        log.known(value)
    assert log.redact("common-one common-two common-x common-one-and-more") == (
        f"{log.REMOVED} {log.REMOVED} common-x {log.REMOVED}-and-more"
    )
    assert log.without_beginning("ends in common-t") == f"ends in {log.REMOVED}"
    assert log.without_beginning("ends in commo") == "ends in commo"
    take_back()
