"""`key create`, `key list`, `key revoke`, as a person and as a script meet them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.command_line import CommandLine
from valetkey.config import Paths
from valetkey.gateway.ring import Ring
from valetkey.providers import catalogue
from valetkey.stores import open_store
from valetkey.testing.clock import FakeClock

KEY = "sk-" + "granted" * 6
POLICY = 'default = "deny"\n\n[[rule]]\nallow = "GET api.acme.example/v1/**"\n'


@pytest.fixture
def line(home: Path) -> CommandLine:
    made = CommandLine(home=home)
    for name, more in (("acme", ""), ("zenith", ""), ("forbidding", 'standing = "restricted"\nnotice = "No."\n')):
        made.declare(
            name,
            f"""
            [api]
            base_url = "https://api.{name}.example/v1"
            hosts = ["api.{name}.example"]
            [[auth]]
            id = "api-key"
            kind = "api-key"
            {more}
            inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
            """,
        )
    for words in (("acme",), ("acme", "--account", "work"), ("forbidding", "--yes")):
        done = made("login", *words, "--key", "-", "--no-verify", stdin=KEY)
        assert done.status == 0, done.err
    return made


def forms(secret: str) -> list[bytes]:
    data = secret.encode()
    encoded = [base64.b64encode(data[cut:])[:-4] for cut in range(3)]
    return [data, bytes.fromhex(secret), quote(secret).encode(), json.dumps(secret).encode(), *encoded]


def files_with(secret: str, folder: Path) -> list[tuple[str, int]]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [(str(path), number) for number, form in enumerate(forms(secret)) if form in content]
    return found


def test_a_key_is_printed_alone_and_once_for_a_script(line: CommandLine) -> None:
    done = line("key", "create", "--grant", "acme", "--name", "ci")
    assert (done.status, done.err) == (0, "valetkey: no gateway runs yet: start it with `valetkey up`\n")
    assert re.fullmatch(r"vk_[0-9a-f]{12}_[0-9a-f]{64}\n", done.out)
    listed = line("key", "list").out + line("key", "list", "--json").out + line("key", "list", "--all", "--verbose").err
    assert done.out[3:15] in listed
    assert done.out[16:-1] not in listed


def test_it_opens_in_another_process_what_was_granted(line: CommandLine, home: Path, tmp_path: Path) -> None:
    policy = tmp_path / "reading.toml"
    policy.write_text(POLICY)
    words = ("--policy", str(policy), "--expires", "8h", "--rpm", "60", "--tokens-per-day", "1e6", "--concurrent", "4")
    made = line("key", "create", "--grant", "acme@work", "--grant", "acme@default", *words, "--json").json
    policy.unlink()
    assert made["base_url"] == "http://127.0.0.1:4380/acme"
    assert made["grants"] == ["acme@work", "acme@default"]
    (listed,) = line("key", "list", "--json").json["keys"]
    assert listed["limits"] == {"requests_per_minute": 60, "tokens_per_day": 10**6, "concurrent": 4}
    assert (listed["policy_file"], listed["state"], listed["problem"]) == ("reading.toml", "live", None)
    assert (listed["expires_at"], listed["id"]) == (made["expires_at"], made["id"])
    clock = FakeClock()
    store = open_store(Paths(home=home), clock=clock)
    ring = Ring(store, catalogue(Paths(home=home)), clock, {})
    ring.refresh()
    live = ring.resolve(made["key"].encode())
    assert live is not None
    assert [str(grant.ref) for grant in live.client.grants] == ["acme@work", "acme@default"]
    assert [rule.place for rule in live.policy.rules] == ["reading.toml:4"]
    assert line("key", "revoke", made["id"]).out == f"The valet key {made['id']} is revoked.\n"
    assert ring.changed() is True
    assert ring.refresh() == [live]
    store.close()


def test_the_token_is_in_no_file_below_the_home(line: CommandLine, home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    line.environ |= {"VALETKEY_LOG_FILE": str(log), "VALETKEY_LOG_LEVEL": "debug"}
    token = line("key", "create", "--grant", "acme", "--name", "ci", "--verbose").out.strip()
    other = line("key", "create", "--grant", "acme", "--json", "--verbose").json["key"]
    line("key", "list", "--all", "--verbose")
    line("key", "revoke", "ci", "--verbose")
    line("store", "rekey")
    line("store", "backup", str(home / "backup"), "--passphrase-file", "-", stdin="a passphrase\n")
    line("doctor", "--offline")
    for secret in (token, other):
        assert files_with(secret[16:], home) == []
        assert files_with(secret[16:], log.parent) == []


def test_a_terminal_shows_where_a_tool_takes_it(line: CommandLine) -> None:
    with line.terminal(
        "key", "create", "--grant", "acme@work", "--grant", "acme@default", "--expires", "1h"
    ) as terminal:
        assert terminal.end() == 0
        shown = terminal.shown
    (token,) = re.findall(r"vk_[0-9a-f]{12}_[0-9a-f]{64}", shown)
    assert "It is shown this once." in shown
    assert re.search(r"acme@work +http://127\.0\.0\.1:4380/acme\r", shown)
    assert re.search(r"acme@default +http://127\.0\.0\.1:4380/acme@default\r", shown)
    assert "HTTPS_PROXY=http://x:KEY@127.0.0.1:4380" in shown
    assert f"valetkey key revoke {token[3:15]}" in shown


def test_a_list_is_a_table_of_what_counts(line: CommandLine) -> None:
    assert "valetkey key create" in line("key", "list").out
    line("key", "create", "--grant", "acme", "--name", "my tool", "--rpm", "60", "--tokens-per-day", "1e6")
    line("key", "create", "--grant", "acme@work", "--concurrent", "2")
    line("key", "revoke", "my tool")
    (heading, row) = line("key", "list").out.splitlines()
    assert heading.split() == ["ID", "NAME", "GRANTS", "LIMITS", "UNTIL", "STATE"]
    assert row.split()[1:] == ["-", "acme@work", "2", "at", "a", "time", "-", "live"]
    rows = line("key", "list", "--all").out.splitlines()[1:]
    assert [re.split(r"  +", row)[1:] for row in rows if "my tool" in row] == [
        ["my tool", "acme@default", "60/min, 1000000 tokens/day", "-", "revoked"]
    ]


def test_what_may_not_be_granted_is_refused_with_its_status(line: CommandLine) -> None:
    cases = [
        (("--grant", "zenith"), 3, "zenith@default cannot be granted", "run `valetkey login zenith`"),
        (("--grant", "forbidding"), 4, "restricted login", "log in with an API key"),
        (("--grant", "nobody"), 2, "there is no provider 'nobody'", ""),
        ((), 2, "a valet key without a grant", "add --grant"),
        (("--grant", "acme", "--expires", "8"), 2, "--expires '8' is no time", "write 30m"),
        (("--grant", "acme", "--expires", "2020-01-01"), 2, "ended before it was made", ""),
        (("--grant", "acme", "--rpm", "0"), 2, "--rpm '0'", "from 1 to 1000000"),
        (("--grant", "acme", "--tokens-per-day", "1.5"), 2, "--tokens-per-day '1.5'", ""),
        (("--grant", "acme", "--policy", "none.toml"), 2, "none.toml cannot be read", ""),
    ]
    for words, status, message, hint in cases:
        done = line("key", "create", *words)
        assert (done.status, done.out) == (status, ""), words
        assert message in done.err, words
        assert hint in done.err, words
    assert line("key", "list", "--json").json == {"keys": [], "damaged": []}


def test_a_wrong_policy_is_told_by_file_and_line(line: CommandLine, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('default = "deny"\n[[rule]]\ndeni = "GET a.example/x"\n')
    done = line("key", "create", "--grant", "acme", "--policy", str(wrong))
    assert done.status == 2
    assert f"{wrong}:3: unknown key deni" in done.err


def test_a_key_that_cannot_be_used_is_listed_with_its_reason(line: CommandLine, home: Path) -> None:
    key = line("key", "create", "--grant", "acme", "--json").json["id"]
    (home / "providers" / "acme.toml").unlink()
    done = line("key", "list")
    assert done.out.splitlines()[1].endswith("disabled")
    assert f"{key} is disabled: there is no provider 'acme'" in done.err
    (listed,) = line("key", "list", "--json").json["keys"]
    assert listed["state"] == "live"
    assert "there is no provider 'acme'" in listed["problem"]
    assert line("key", "revoke", key).status == 0


def test_revoking_takes_id_name_or_token_and_tells_what_is_not_there(line: CommandLine) -> None:
    key = line("key", "create", "--grant", "acme", "--json").json
    first = line("key", "revoke", key["key"], "--json").json
    assert list(first) == ["id", "name", "revoked_at"]
    assert line("key", "revoke", key["id"], "--json").json == first
    done = line("key", "revoke", "nobody", "--json")
    assert (done.status, done.json["error"]["code"]) == (1, "unknown_key")
    assert "there is no valet key 'nobody'" in done.err
