"""What goes wrong has one name: what a Python program gets is what the command line tells, and what it ends with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import valetkey
from valetkey.errors import ValetkeyError
from valetkey.testing import CommandLine, FakeProvider, RunningProvider

Broken = Callable[[Path, RunningProvider], None]


def as_it_is(home: Path, provider: RunningProvider) -> None:
    """Break nothing."""


def open_to_others(home: Path, provider: RunningProvider) -> None:
    home.chmod(0o777)


def settings_that_are_no_toml(home: Path, provider: RunningProvider) -> None:
    (home / "config.toml").write_text("[network\n")
    (home / "config.toml").chmod(0o600)


def declaration_with_a_slip(home: Path, provider: RunningProvider) -> None:
    path = home / "providers" / "fake.toml"
    path.write_text(path.read_text().replace("base_url", "bose_url"))


def wrong_key() -> None:
    async def log_in() -> None:
        await valetkey.complete_login(await valetkey.begin_login("fake"), {"key": "another"})

    asyncio.run(log_in())


def log_out() -> None:
    asyncio.run(valetkey.logout("fake@work"))


@pytest.mark.parametrize(
    ("broken", "call", "words", "code"),
    [
        (as_it_is, lambda: valetkey.token("fake"), ("token", "fake"), "not_logged_in"),
        (as_it_is, lambda: valetkey.token("nobody"), ("token", "nobody"), "unknown_provider"),
        (as_it_is, lambda: valetkey.token("fake@../x"), ("token", "fake@../x"), "invalid_name"),
        (
            as_it_is,
            log_out,
            ("logout", "fake@work", "--yes"),
            "not_logged_in",
        ),
        (as_it_is, wrong_key, ("login", "fake", "--key", "-"), "key_rejected"),
        (open_to_others, lambda: valetkey.token("fake"), ("token", "fake"), "wrong_mode"),
        (settings_that_are_no_toml, lambda: valetkey.token("fake"), ("token", "fake"), "config_error"),
        (declaration_with_a_slip, lambda: valetkey.token("fake"), ("token", "fake"), "invalid_provider"),
    ],
)
def test_the_same_error_in_python_and_on_the_command_line(
    valetkey_home: Path,
    fake_provider: RunningProvider,
    broken: Broken,
    call: Callable[[], object],
    words: tuple[str, ...],
    code: str,
) -> None:
    fake_provider.declare(valetkey_home)
    broken(valetkey_home, fake_provider)
    with pytest.raises(ValetkeyError) as caught:
        call()
    done = CommandLine(home=valetkey_home)(*words, "--json", stdin="another")
    assert caught.value.code == code
    assert done.json["error"] == caught.value.as_dict()
    assert done.status == caught.value.exit_status


def test_a_provider_that_fails_is_one_error_for_both(valetkey_home: Path, canary: str) -> None:
    with FakeProvider().with_api_key(canary).answering(status=503) as provider:
        provider.declare(valetkey_home)
        line = CommandLine(home=valetkey_home)
        assert line("login", "fake", "--key", "-", "--no-verify", stdin=canary).status == 0
        with pytest.raises(valetkey.TransportError) as caught:
            asyncio.run(valetkey.models("fake"))
        done = line("models", "fake", "--json")
        assert caught.value.retryable
        assert (done.status, done.json["error"]) == (caught.value.exit_status, caught.value.as_dict())
        assert canary not in done.out + done.err
