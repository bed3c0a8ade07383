"""The texts that setup writes: everything else stays as it is written, and what was put in comes out byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.errors import SetupRefused
from valetkey.setup import files, json_text, sections
from valetkey.setup.diff import unified
from valetkey.setup.taking_back import taken_back

PATH = Path("settings.json")
NAMES = st.sampled_from(["env", "apiKeyHelper", "theme", "a b", "ü", '"', "\\"]) | st.text(max_size=4)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)
LAYOUTS = st.sampled_from([None, 0, 1, 2, 4, "\t"])


def text_of(value: object, layout: object, newline: str = "\n", ascii_only: bool = True) -> bytes:
    text = json.dumps(value, indent=layout, ensure_ascii=ascii_only) + "\n"  # type: ignore[arg-type]  # None, int or str
    return text.replace("\n", newline).encode(errors="surrogatepass")


@given(OBJECTS, LAYOUTS, st.sampled_from(["\n", "\r\n"]), st.text(st.characters(codec="utf-8"), max_size=8))
def test_a_member_is_set_and_the_rest_says_and_looks_what_it_did(
    value: dict[str, Any], layout: object, newline: str, helper: str
) -> None:
    before = text_of(value, layout, newline)
    members: dict[tuple[str, ...], str | None] = {
        ("apiKeyHelper",): helper,
        ("env", "NAME"): "x",
        ("env", "OTHER"): "y",
    }
    if not isinstance(value.get("env", {}), dict):
        with pytest.raises(SetupRefused, match="env is no object"):
            json_text.with_members(before, PATH, members)
        return
    after = json_text.with_members(before, PATH, members)
    env = {**value.get("env", {}), "NAME": "x", "OTHER": "y"}
    assert json.loads(after) == {**value, "apiKeyHelper": helper, "env": env}
    assert json_text.with_members(after, PATH, members) == after
    if newline == "\r\n":
        assert after.count(b"\n") == after.count(b"\r\n")
    if layout is not None and not ({"apiKeyHelper", "env"} & value.keys()) and value:
        # Every line that was there is there, in its order.
        rest = iter(after.splitlines())
        assert all(line in rest for line in before.splitlines())


@given(OBJECTS, LAYOUTS, st.sampled_from([("apiKeyHelper",), ("env", "a b"), ("theme",), ("env", "env", "env")]))
def test_a_member_is_taken_out_and_the_rest_says_what_it_did(
    value: dict[str, Any], layout: object, names: tuple[str, ...]
) -> None:
    before = text_of(value, layout)
    after = json_text.with_members(before, PATH, {names: None})
    holder: Any = value
    for name in names[:-1]:
        holder = holder.get(name, {}) if isinstance(holder, dict) else {}
    if isinstance(holder, dict) and names[-1] in holder:
        del holder[names[-1]]
    else:
        assert after == before
    assert json.loads(after) == value
    assert json_text.with_members(after, PATH, {names: None}) == after


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, // no\n"b": 2}', "not plain JSON"),
        ('{"a": 1,}', "not plain JSON"),
        ('/* */{"a": 1}', "not plain JSON"),
        ('\ufeff{"a": 1}', "not plain JSON"),
        ('{"a": NaN}', "not plain JSON"),
        ("", "not plain JSON"),
        ("{", "not plain JSON"),
        ("[1]", "no JSON object"),
        ('{"a": 1, "a": 2}', "a name twice"),
        ('{"b": {"a": 1, "a": 2}}', "a name twice"),
        ("[" * 100_000, "not plain JSON"),
    ],
)
def test_what_is_not_plain_json_is_refused(text: str, why: str) -> None:
    with pytest.raises(SetupRefused, match=why):
        json_text.with_members(text.encode(), PATH, {("a",): "x"})


def test_the_usual_layouts() -> None:
    def put(text: str) -> str:
        return json_text.with_members(text.encode(), PATH, {("env", "A"): "1"}).decode()

    assert json_text.with_members(None, PATH, {("a",): "x"}) == b'{\n  "a": "x"\n}\n'
    assert put("{}") == '{\n  "env": {\n    "A": "1"\n  }\n}'
    assert put('{"b": 1}') == '{"env": {"A": "1"}, "b": 1}'
    assert put('{\n\t"b": 1\n}\n') == '{\n\t"env": {\n\t\t"A": "1"\n\t},\n\t"b": 1\n}\n'
    assert put('{\n    "env": {}\n}') == '{\n    "env": {\n        "A": "1"\n    }\n}'
    assert put('{"env": {"B": [{"A": "}"}], "A": "0"}}') == '{"env": {"B": [{"A": "}"}], "A": "1"}}'


# --- taken back ------------------------------------------------------------------------------

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"}\n", b"\n"]), max_size=8)


def by_lines(content: bytes) -> Any:
    from collections import Counter

    return Counter((("",), repr(line)) for line in content.splitlines())


@given(LINES, st.integers(0, 8), st.lists(st.sampled_from([b"x\n", b"y\n"]), min_size=1, max_size=3))
def test_what_nobody_touched_comes_back_byte_for_byte(lines: list[bytes], at: int, put: list[bytes]) -> None:
    before, after = b"".join(lines), b"".join([*lines[:at], *put, *lines[at:]])
    assert taken_back(before, after, after, facts_of=by_lines) == before


@given(
    LINES,
    st.integers(0, 8),
    st.lists(st.sampled_from([b"x\n", b"y\n"]), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([b"new\n", b"a\n", b""])), max_size=3),
)
def test_what_others_changed_meanwhile_stays_or_nothing_is_done(
    lines: list[bytes], at: int, put: list[bytes], edits: list[tuple[int, bytes]]
) -> None:
    before, theirs, ours_at = list(lines), list(lines), min(at, len(lines))
    for where, line in edits:
        where = min(where, len(theirs))
        if line:
            theirs.insert(where, line)
            ours_at += where < ours_at
        elif where < len(theirs):
            del theirs[where]
            ours_at -= where < ours_at
    now = b"".join([*theirs[:ours_at], *put, *theirs[ours_at:]])
    after = b"".join([*before[:at], *put, *before[at:]])
    found = taken_back(b"".join(before), after, now, facts_of=by_lines)
    # Lines that are alike may be taken for one another; none of theirs is lost and none of ours is left.
    assert found is None or by_lines(found) == by_lines(b"".join(theirs))


def test_a_line_that_somebody_put_into_our_section_does_not_end_up_in_another() -> None:
    from valetkey.setup.aws import facts

    before = b"[default]\nregion = a\n"
    after = before + b"\n[profile valetkey]\ncredential_process = x\n"
    assert taken_back(before, after, after + b"\n[profile more]\nregion = b\n", facts_of=facts) == (
        before + b"\n[profile more]\nregion = b\n"
    )
    assert taken_back(before, after, after + b"region = b\n", facts_of=facts) is None
    assert taken_back(before, after, after.replace(b"= x", b"= y"), facts_of=facts) is None


def test_a_comment_that_somebody_put_among_our_lines_is_not_lost_either() -> None:
    from valetkey.setup.aws import facts

    before = b"[a]\nx = 1\n[b]\n"
    after = b"[a]\nx = 1\nours = 1\nours too = 2\n[b]\n"
    assert taken_back(before, after, after.replace(b"[b]", b"[b]\n# mine"), facts_of=facts) == before + b"# mine\n"
    assert taken_back(before, after, after.replace(b"ours too", b"# mine\nours too"), facts_of=facts) is None
    assert taken_back(before, after, b"[broken", facts_of=facts) is None


def test_what_was_changed_between_the_look_and_the_write_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "settings"
    path.parent.mkdir()
    path.write_bytes(b"theirs")
    with pytest.raises(SetupRefused, match="changed just now"):
        files.replace(path, b"ours", expected=b"seen")
    with pytest.raises(SetupRefused, match="changed just now"):
        files.replace(path, b"ours", expected=None)
    with pytest.raises(SetupRefused, match="changed just now"):
        files.remove(path, expected=b"seen")
    assert path.read_bytes() == b"theirs"
    path.unlink()
    with pytest.raises(SetupRefused):
        files.replace(path, b"ours", expected=b"seen")
    assert list(path.parent.iterdir()) == []


# --- sections, diff --------------------------------------------------------------------------


def test_a_section_is_added_at_the_end_and_a_value_in_its_section() -> None:
    def put(text: str) -> str:
        return sections.with_value(text, header="[b]", name="n", value="v")

    assert put("") == "[b]\nn = v\n"
    assert put("[a]\nx = 1") == "[a]\nx = 1\n\n[b]\nn = v\n"
    assert put("[b] # ours\nx = 1\n[c]\nn = 2\n") == "[b] # ours\nn = v\nx = 1\n[c]\nn = 2\n"
    assert put("[b]\r\nn = 1\r\n[c]\r\n") == "[b]\r\nn = v\r\n[c]\r\n"
    assert put("[b]") == "[b]\nn = v\n"


def test_a_diff_shows_no_value_that_was_in_the_file_and_looks_secret() -> None:
    secret = "dXNlcjpw" + "YXNz"
    before = f'{{\n  "auths": {{\n    "x": {{\n      "auth": "{secret}"\n    }}\n  }},\n  "token": "{secret}"\n}}\n'
    after = json_text.with_members(before.encode(), PATH, {("credHelpers", "h"): "valetkey"})
    for old, new in ((before.encode(), after), (after, before.encode())):
        shown = unified(PATH, old, new)
        assert secret not in shown
        assert '"h": "valetkey"' in shown
