"""code-mesh's auth.json, well-formed and not."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from valetkey.credential import ApiKey, ExchangedKey, Fields, OAuthToken, Secret
from valetkey.errors import ImportFailed, UnknownProvider, UsageError
from valetkey.imports import Found, Reading, source
from valetkey.provider import Api, AuthMethod, CreateKey, Exchange, Parameter, Provider
from valetkey.testing.clock import START

KEY = "sk-" + "mesh1" * 8


def provider(id: str, *methods: AuthMethod) -> Provider:
    return Provider(id=id, name=id, api=Api(base_url="https://api.example.org"), auth=methods)


KEYED = AuthMethod(id="api-key", kind="api-key")
DEVICE = AuthMethod(id="device", kind="device", token_endpoint="https://t")
PROVIDERS = {
    "keyed": provider("keyed", KEYED),
    "tokens": provider("tokens", KEYED, replace(DEVICE, standing="restricted")),
    "bought": provider("bought", replace(DEVICE, kind="device-exchange", exchange=Exchange(get="/x"))),
    "makes-key": provider("makes-key", replace(DEVICE, kind="authorization-code", create_key=CreateKey(post="/k"))),
    "cloud": provider(
        "cloud", AuthMethod(id="key", kind="cloud", parameters=(Parameter(key="resource", label="Resource"),))
    ),
    "two": provider(
        "two",
        AuthMethod(
            id="keys", kind="cloud", secrets=(Parameter(key="id", label="Id"), Parameter(key="secret", label="Secret"))
        ),
    ),
}


def find(id: str) -> Provider:
    if id not in PROVIDERS:
        raise UnknownProvider(f"there is no provider {id!r}", hint="see `valetkey providers list`")
    return PROVIDERS[id]


def read_from(path: Path, *, home: Path, uid: int | None = None) -> Reading:
    return source("code-mesh").read(path, find=find, now=START, home=home, uid=os.geteuid() if uid is None else uid)


def read(tmp_path: Path, content: object) -> dict[str, Found]:
    path = tmp_path / "auth.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"credentials": content}))
    path.chmod(0o600)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode
    reading = read_from(path, home=tmp_path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) == before
    assert reading.warnings == ()
    return {found.id: found for found in reading.logins}


@pytest.mark.parametrize("kind", ["apikey", "api_key"])
def test_a_key_becomes_a_key(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path, {"keyed": {"type": kind, "key": f" {KEY}\n"}})["keyed"]
    assert found.credential == ApiKey(method="api-key", key=Secret(KEY))
    assert not found.restricted


def test_tokens_go_to_the_login_that_ends_in_tokens(tmp_path: Path) -> None:
    entry = {"type": "oauth", "access_token": "acc", "refresh_token": "ref", "expires_at": 1_800_000_000}
    found = read(tmp_path, {"tokens": entry})["tokens"]
    assert isinstance(found.credential, OAuthToken)
    assert found.credential.expires_at == datetime.fromtimestamp(1_800_000_000, tz=UTC)
    assert found.credential.refresh_token == Secret("ref")
    assert found.restricted
    bought = read(tmp_path, {"bought": entry})["bought"].credential
    assert isinstance(bought, ExchangedKey)
    assert (bought.key, bought.grant.access_token) == (Secret("acc"), Secret("ref"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_800_000_000_000, datetime.fromtimestamp(1_800_000_000, tz=UTC)),
        (1_800_000_000.5, datetime.fromtimestamp(1_800_000_000.5, tz=UTC)),
        (None, None),
        ("soon", None),
        (True, None),
        (-1, None),
        (1e300, None),
    ],
)
def test_an_end_of_any_form_is_read_or_left_out(tmp_path: Path, value: object, expected: datetime | None) -> None:
    entry = {"type": "oauth", "access_token": "acc", "expires_at": value}
    credential = read(tmp_path, {"tokens": entry})["tokens"].credential
    assert isinstance(credential, OAuthToken)
    assert credential.expires_at == expected


def test_custom_data_is_matched_by_name(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "cloud": {"type": "custom", "data": {"api_key": KEY, "resource": "mine", "other": 1}},
            "two": {"type": "custom", "data": {"id": "AKIA", "secret": KEY}},
        },
    )
    assert found["cloud"].credential == ApiKey(method="key", key=Secret(KEY), parameters={"resource": "mine"})
    assert found["two"].credential == Fields(method="keys", values={"id": Secret("AKIA"), "secret": Secret(KEY)})


@pytest.mark.parametrize(
    ("id", "entry", "problem"),
    [
        ("nobody", {"type": "apikey", "key": KEY}, "no provider that Valetkey knows"),
        ("keyed", "text", "is no table"),
        ("keyed", {"type": "apikey"}, "no usable key"),
        ("keyed", {"type": "apikey", "key": 5}, "no usable key"),
        ("keyed", {"type": "apikey", "key": "a\nb"}, "no usable key"),
        ("keyed", {"type": "apikey", "key": "k" * 100_000}, "no usable key"),
        ("keyed", {"type": "password", "key": KEY}, "has a type that is not"),
        ("keyed", {"type": "oauth", "access_token": "acc"}, "do not end in one"),
        ("makes-key", {"type": "oauth", "access_token": "acc"}, "do not end in one"),
        ("tokens", {"type": "oauth", "refresh_token": "ref"}, "no usable access token"),
        ("bought", {"type": "apikey", "key": KEY}, "this provider takes none"),
        ("cloud", {"type": "apikey", "key": KEY}, "lacks parameters"),
        ("cloud", {"type": "custom", "data": {"api_key": KEY}}, "can make nothing"),
        ("two", {"type": "custom", "data": []}, "has no `data` table"),
        ("../x", {"type": "apikey", "key": KEY}, "no provider that Valetkey knows"),
    ],
)
def test_what_cannot_be_taken_over_says_why(tmp_path: Path, id: str, entry: object, problem: str) -> None:
    found = read(tmp_path, {id: entry, "keyed": {"type": "apikey", "key": KEY}} if id != "keyed" else {id: entry})[id]
    assert found.credential is None
    assert problem in found.problem
    assert found.hint
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", '{"credentials": []}', '{"other": {}}', "[" * 100_000, "\x00", "x" * (1 << 21)]
)
def test_a_malformed_file_is_an_error_with_a_hint(tmp_path: Path, content: str) -> None:
    with pytest.raises(ImportFailed) as caught:
        read(tmp_path, content)
    assert caught.value.hint
    assert len(caught.value.message) < 500


def test_a_file_that_is_missing_or_none_is_said_to_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ImportFailed):
            read_from(path, home=tmp_path)
    with pytest.raises(UsageError, match="cannot be imported"):
        source("other")


def test_a_file_that_others_may_read_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_text('{"credentials": {}}')
    path.chmod(0o644)
    (warning,) = read_from(path, home=tmp_path).warnings
    assert f"chmod 600 {path}" in warning
    assert source("code-mesh").default_path({"HOME": "/h"}) == Path("/h/.code-mesh/auth.json")


def auth_file(folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / "auth.json"
    path.write_text(json.dumps({"credentials": {"keyed": {"type": "apikey", "key": KEY}}}))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_within_the_home_is_followed_with_a_warning(tmp_path: Path, linked: str) -> None:
    target = auth_file(tmp_path / "home" / "dotfiles")
    # The home itself may be reached by a link.
    home = tmp_path / "also-home"
    home.symlink_to(tmp_path / "home")
    if linked == "file":
        (home / ".code-mesh").mkdir()
        (home / ".code-mesh" / "auth.json").symlink_to(target)
    else:
        (home / ".code-mesh").symlink_to("dotfiles")
    reading = read_from(home / ".code-mesh" / "auth.json", home=home)
    assert [found.id for found in reading.logins] == ["keyed"]
    (warning,) = reading.warnings
    assert str(target.resolve()) in warning


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_out_of_the_home_is_refused(tmp_path: Path, linked: str) -> None:
    target = auth_file(tmp_path / "elsewhere")
    home = tmp_path / "home"
    home.mkdir()
    if linked == "file":
        (home / ".code-mesh").mkdir()
        (home / ".code-mesh" / "auth.json").symlink_to(target)
    else:
        (home / ".code-mesh").symlink_to(target.parent)
    with pytest.raises(ImportFailed, match="outside your home folder") as caught:
        read_from(home / ".code-mesh" / "auth.json", home=home)
    assert "name the file itself" in caught.value.hint
    assert read_from(target, home=home).warnings == ()


@pytest.mark.parametrize("target", ["gone.json", "auth.json"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    path = tmp_path / "auth.json"
    path.symlink_to(target)
    with pytest.raises(ImportFailed, match="leads nowhere") as caught:
        read_from(path, home=tmp_path)
    assert caught.value.hint


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = auth_file(tmp_path / "mine")
    with pytest.raises(ImportFailed, match="belongs to another user") as caught:
        read_from(path, home=tmp_path, uid=os.geteuid() + 1)
    assert "as that user" in caught.value.hint
