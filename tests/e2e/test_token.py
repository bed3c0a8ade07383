"""`valetkey token`: the short way says what the long way says, and stays short."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from valetkey.cli.fast import fast
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, CredentialRef, ExchangedKey, Health, OAuthToken, Secret
from valetkey.store import Record, Store
from valetkey.stores import open_store

NOW = datetime.now(UTC)


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    opened = open_store(Paths(home=home), clock=SystemClock(), key_source_kind="key-file")
    yield opened
    opened.close()


def save(store: Store, credential: Credential, *, account: str = "default", restricted: bool = False) -> Record:
    return store.save(
        Record(
            ref=CredentialRef(provider="openai", account=account),
            credential=credential,
            hosts=("api.openai.com",),
            endpoints=(),
            base_url="https://api.openai.com/v1",
            restricted=restricted,
        )
    )


def oauth(*, age: float, life: float | None = 3600) -> OAuthToken:
    issued = NOW - timedelta(seconds=age)
    return OAuthToken(
        method="api-key",
        access_token=Secret("the-token"),
        issued_at=issued,
        expires_at=None if life is None else issued + timedelta(seconds=life),
    )


def token(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "valetkey", "token", *words], capture_output=True, text=True, check=False, cwd=cwd
    )


KEY = ApiKey(method="api-key", key=Secret("the-key"))
EXCHANGED = ExchangedKey(
    method="api-key",
    key=Secret("bought"),
    grant=oauth(age=0, life=None),
    issued_at=NOW,
    expires_at=NOW + timedelta(hours=1),
)


@pytest.mark.parametrize(
    ("credential", "short_way"),
    [
        (KEY, "the-key"),
        (oauth(age=0), "the-token"),
        (EXCHANGED, "bought"),
        (oauth(age=3000), None),  # due for renewal
        (oauth(age=4000), None),  # dead
        (oauth(age=0, life=None), None),  # only the declaration knows its interval
    ],
)
def test_the_short_way_answers_what_is_fresh_and_nothing_else(
    store: Store, capsys: pytest.CaptureFixture[str], credential: Credential, short_way: str | None
) -> None:
    save(store, credential)
    assert fast(["token", "openai"]) == (None if short_way is None else 0)
    assert capsys.readouterr().out == ("" if short_way is None else short_way + "\n")


def test_the_short_way_leaves_what_may_be_refused_to_the_long_way(store: Store) -> None:
    record = save(store, KEY, account="ended")
    store.mark(record.ref, generation=1, health=Health.NEEDS_LOGIN, reason="revoked")
    save(store, KEY, account="restricted", restricted=True)
    for name in ("openai@ended", "openai@restricted", "openai@nobody", "openai@", "@", "", "--json", "nobody"):
        assert fast(["token", name]) is None, name
    assert fast(["token"]) is None
    assert fast(["token", "openai", "--json"]) is None


def test_a_folders_account_is_not_overlooked_by_the_short_way(store: Store, home: Path, tmp_path: Path) -> None:
    save(store, KEY)
    save(store, ApiKey(method="api-key", key=Secret("of-the-folder")), account="work")
    folder = tmp_path / "project"
    folder.mkdir()
    config = home / "config.toml"
    config.touch(mode=0o600)
    config.write_text(f'[folders."{folder}"]\nopenai = "work"\n')
    assert token("openai", cwd=folder).stdout == "of-the-folder\n"
    assert token("openai", cwd=tmp_path).stdout == "the-key\n"
    assert token("openai@default", cwd=folder).stdout == "the-key\n"


def test_a_restricted_login_is_refused_with_exit_status_4(store: Store) -> None:
    save(store, KEY, restricted=True)
    done = token("openai")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("valetkey: error: ")
    assert "valetkey: hint: " in done.stderr


def test_no_login_is_exit_status_3_and_says_which_command(home: Path) -> None:
    done = token("openai")
    assert (done.returncode, done.stdout) == (3, "")
    assert "valetkey login openai" in done.stderr


def test_a_home_open_to_others_is_refused_with_the_command_that_mends_it(store: Store, home: Path) -> None:
    save(store, KEY)
    home.chmod(0o755)
    done = token("openai")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"chmod 700 {home}" in done.stderr


def test_a_key_file_open_to_others_is_refused(store: Store, home: Path) -> None:
    save(store, KEY)
    (home / "store.key").chmod(0o644)
    done = token("openai")
    assert (done.returncode, done.stdout) == (1, "")
    assert "chmod 600" in done.stderr


def test_an_environment_key_is_found_where_none_is_stored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    assert token("openai").stdout == "from-the-environment\n"


def test_the_short_way_imports_nothing_heavy(store: Store) -> None:
    save(store, KEY)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "valetkey", "token", "openai"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout == "the-key\n"
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    heavy = {"click", "asyncio", "httpx2", "dataclasses", "tomllib", "logging", "keyring", "socket", "subprocess"}
    assert imported & heavy == set()
    assert "valetkey.stores.quick" in imported


def test_a_reader_that_went_away_gets_neither_a_traceback_nor_a_word(store: Store) -> None:
    save(store, KEY)
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "valetkey", "token", "openai"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_stdout_is_told(store: Store) -> None:
    save(store, KEY)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "valetkey", "token", "openai"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("valetkey: error: no space left on device\nvaletkey: hint: ")
