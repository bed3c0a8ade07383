"""What `doctor` says to a person, and of each layer that is broken; test_cli_tools.py breaks the outer ones too."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import secretstorage
from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]  # it ships no types

from tests.support.command_line import CommandLine, api_server
from tests.support.gateway_process import about, kill, until
from tests.support.keychain import gnome_keyring
from valetkey import serving
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.testing.local_server import Answer, LocalServer, Received

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"

KEY = "sk-" + "d" * 40


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """An API that takes the key."""
    with api_server([KEY]) as running:
        yield running


def _logged_in(line: CommandLine, url: str, *, key: str = KEY, off_limits: str = "") -> None:
    """Declare `acme` at this address and store a login, unverified."""
    near = "allow_http = true\n" if url.startswith("http:") else ""
    line.declare(
        "acme",
        f'[api]\nbase_url = "{url}"\nhosts = ["{urlsplit(url).netloc}"]\ndialect = "openai-chat"\n{near}'
        f'probe = {{ get = "/models" }}\n{off_limits}[[auth]]\nid = "api-key"\nkind = "api-key"\n'
        'inject = [{ set = { authorization = "Bearer {key}" } }]\n',
    )
    done = line("login", "acme", "--key", "-", "--no-verify", stdin=key)
    assert done.status == 0, done.err


def told(line: CommandLine, *words: str, patience_seconds: float = 60) -> tuple[int, dict[str, Any]]:
    """Give the exit status, and what each layer says, by layer: the last of several."""
    done = line("doctor", "--json", *words, patience_seconds=patience_seconds)
    assert done.err == ""
    assert KEY not in done.out
    found = done.json
    failed = [finding for finding in found["findings"] if finding["error"] is not None]
    assert (found["ok"], found["cause"]) == (not failed, failed[0]["error"] if failed else None)
    return done.status, {finding["layer"]: finding for finding in found["findings"]}


def skipped(found: dict[str, Any], *layers: str) -> bool:
    return all(found[layer]["skipped"] for layer in layers)


def test_settings_that_cannot_be_read_do_not_keep_it_from_speaking(line: CommandLine) -> None:
    (line.home / "config.toml").write_text("[network]\ntimeout_seconds = 'soon'\n")
    (line.home / "config.toml").chmod(0o600)
    done = line("doctor")
    assert (done.status, done.err) == (11, "")
    assert "config.toml:2" in done.out
    assert "The first layer that fails: settings" in done.out


def test_behind_a_broken_declaration_the_rest_is_looked_at(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    line.declare("broken", "[api]\nbase_ulr = 'https://x.example'\n[[auth]]\nid = 'key'\nkind = 'api-key'\n")
    done = line("doctor")
    assert (done.status, "base_ulr" in done.out) == (12, True)
    assert "ok    account" in done.out
    assert KEY not in done.out + done.err


def test_offline_nobody_is_asked(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url, key="sk-" + "w" * 40)
    assert line("doctor", "--offline").status == 0
    assert server.requests == []


# --- the whole way ---------------------------------------------------------------------------


def test_an_account_is_asked_directly_through_the_gateway_and_from_inside_a_sandbox(
    line: CommandLine, server: LocalServer
) -> None:
    _logged_in(line, server.url)
    status, found = told(line)
    assert status == 0, found
    for layer in ("account", "through gateway", "sandbox", "inside sandbox"):
        assert (found[layer]["error"], found[layer]["skipped"]) == (None, ""), layer
    assert [request.headers["authorization"] for request in server.calls("/models")] == [f"Bearer {KEY}"] * 3
    used = [e["who"] for e in line("audit", "show", "--account", "acme", "--kind", "use", "--json").json["entries"]]
    assert [who.partition("-")[0] for who in used if who.startswith("run:")] == ["run:doctor"]


def test_what_was_begun_for_it_is_gone_and_what_ran_before_goes_on(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    assert told(line)[0] == 0
    assert not serving.is_alive(str(line.home))
    assert line("up").status == 0
    before = about(line)["pid"]
    assert told(line)[0] == 0
    assert about(line)["pid"] == before
    assert list((line.home / "runs").iterdir()) == []
    assert list((line.home / "run" / "runs").iterdir()) == []
    assert line("runs", "list", "--json").json == {"runs": []}
    assert line("status", "--json").json["gateway"]["runs"] == 0


def test_killed_it_leaves_no_grant_and_the_next_one_removes_its_folder(line: CommandLine) -> None:
    asked, let_go = threading.Event(), threading.Event()

    def respond(request: Received) -> Answer:
        if request.path == "/models" and len(upstream.calls("/models")) == 2 and not let_go.is_set():
            asked.set()
            let_go.wait(60)
        return Answer(headers={"content-type": "application/json"}, body=b"{}")

    with LocalServer(respond) as upstream:
        _logged_in(line, upstream.url)
        assert line("up").status == 0
        words = [*line.through, sys.executable, "-m", "valetkey", "doctor", "--json"]
        with subprocess.Popen(words, env=line.environ, stdout=subprocess.DEVNULL) as process:
            assert asked.wait(60)
            (folder,) = (line.home / "runs").iterdir()
            assert (line.home / "run" / "runs" / folder.name / "gateway.sock").exists()
            process.send_signal(signal.SIGKILL)
        let_go.set()
        until(lambda: not (line.home / "run" / "runs" / folder.name).exists())
        assert folder.exists()
        assert told(line)[0] == 0
        assert list((line.home / "runs").iterdir()) == []


# --- what is broken --------------------------------------------------------------------------


def test_certificate_authorities_that_cannot_be_read(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    _logged_in(line, server.url)
    (tmp_path / "ca.pem").write_text("no certificate")
    (line.home / "config.toml").write_text(f"[network]\nca_file = {json.dumps(str(tmp_path / 'ca.pem'))}\n")
    (line.home / "config.toml").chmod(0o600)
    status, found = told(line)
    assert (status, "ca.pem" in found["tls"]["error"]["message"]) == (16, True)
    assert skipped(found, "connection", "account", "through gateway", "inside sandbox")
    assert "tls" in found["inside sandbox"]["skipped"]
    refused = line("login", "openai", "--key", "-", stdin=KEY)
    assert (refused.status, "network.ca_file" in refused.err, "inside Valetkey" in refused.err) == (2, True, False)


def test_a_name_that_is_not_resolved(line: CommandLine) -> None:
    _logged_in(line, "https://no-such-host.invalid")
    status, found = told(line)
    assert (status, skipped(found, "account", "through gateway")) == (15, True)


def test_a_clock_that_is_ahead(line: CommandLine) -> None:
    late = {"date": format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)}
    late["content-type"] = "application/json"
    with LocalServer(lambda _: Answer(headers=late, body=b"{}")) as server:
        _logged_in(line, server.url)
        status, found = told(line)
    assert (status, "ahead of acme's" in found["clock"]["error"]["message"]) == (18, True)
    assert found["inside sandbox"]["ok"], "what does not need it is looked at"


def test_a_token_that_has_ended_and_cannot_be_renewed(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    assert line("logout", "acme", "--yes").status == 0
    host, now = urlsplit(server.url).netloc, datetime.now(UTC)
    with closing(open_store(Paths(home=line.home), clock=SystemClock())) as store:
        dead = OAuthToken(
            method="api-key",
            access_token=Secret(secrets.token_hex(20)),
            issued_at=now - timedelta(hours=2),
            expires_at=now - timedelta(hours=1),
        )
        store.save(
            Record(
                ref=CredentialRef(provider="acme"),
                credential=dead,
                hosts=(host,),
                endpoints=(host,),
                base_url=server.url,
            )
        )
    status, found = told(line)
    assert (status, found["account"]["error"]["hint"]) == (19, "run `valetkey login acme`")
    assert skipped(found, "through gateway")


def test_a_gateway_that_was_killed(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    assert line("up").status == 0
    kill(line)
    status, found = told(line)
    assert (status, found["gateway"]["error"]["hint"][:18]) == (20, "run `valetkey up`,")
    assert skipped(found, "through gateway", "inside sandbox")
    assert "gateway" in found["inside sandbox"]["skipped"]
    assert found["account"]["ok"]
    assert line("up").status == 0
    assert told(line)[0] == 0


def test_a_gateway_that_cannot_start(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line.environ["VALETKEY_GATEWAY_PORT"] = str(taken.getsockname()[1])
        status, found = told(line)
    assert (status, skipped(found, "through gateway", "inside sandbox")) == (20, True)
    assert not serving.is_alive(str(line.home))


def test_a_policy_that_refuses_the_probe(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    _logged_in(line, server.url)
    (tmp_path / "shut.toml").write_text('default = "allow"\n[[rule]]\ndeny = "GET */models"\n')
    status, found = told(line, "--policy", str(tmp_path / "shut.toml"))
    assert (status, "shut.toml:3" in found["policy"]["error"]["message"]) == (23, True)
    assert "allow = " in found["policy"]["error"]["hint"]
    assert skipped(found, "inside sandbox")
    (tmp_path / "open.toml").write_text('default = "allow"\n')
    assert told(line, "--policy", str(tmp_path / "open.toml"))[0] == 0
    (tmp_path / "wrong.toml").write_text('default = "perhaps"\n')
    assert told(line, "--policy", str(tmp_path / "wrong.toml"))[0] == 23


def test_a_probe_that_its_own_provider_has_off_limits(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url, off_limits='off_limits = ["GET /models"]\n')
    assert told(line)[0] == 23


def test_a_key_of_another_store(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    _logged_in(line, server.url)
    (other := tmp_path / "other").mkdir(mode=0o700)
    made = line("key", "create", "--grant", "acme", environ={"VALETKEY_HOME": str(other)})
    assert made.status != 0
    elsewhere = CommandLine(home=other, through=line.through)
    _logged_in(elsewhere, server.url)
    shutil.copyfile(other / "store.key", line.home / "store.key")
    status, found = told(line)
    assert (status, skipped(found, "account", "through gateway", "inside sandbox")) == (14, True)
    assert found["connection"]["ok"]


def test_a_damaged_store(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    (line.home / "valetkey.db").write_bytes(b"not a database at all" * 300)
    status, found = told(line)
    assert (status, skipped(found, "key", "connection", "account")) == (13, True)
    assert found["audit"]["ok"]


def test_a_keychain_that_is_gone_or_locked(home: Path, server: LocalServer, tmp_path: Path) -> None:
    (folder := tmp_path / "bus").mkdir()
    with gnome_keyring(folder) as address:
        line = CommandLine(
            home=home, environ={"VALETKEY_STORE_KEY_SOURCE": "keychain", "DBUS_SESSION_BUS_ADDRESS": address}
        )
        _logged_in(line, server.url)
        assert told(line)[0] == 0
        with open_dbus_connection(bus=address) as connection:
            secretstorage.get_default_collection(connection).lock()
        locked, found = told(line)
        assert (locked, skipped(found, "account", "through gateway")) == (14, True)
    assert told(line)[0] == 14


def test_a_machine_without_bubblewrap(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    line.environ["PATH"] = "/nonexistent"
    status, found = told(line)
    assert (status, "bubblewrap is not installed" in found["sandbox"]["error"]["message"]) == (24, True)
    assert skipped(found, "inside sandbox")
    assert found["through gateway"]["ok"]


def test_a_machine_that_lets_nobody_make_user_namespaces(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    # In a user namespace of the test's own, in which no other can be made.
    forbidding = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --ambient-caps=-all --inh-caps=-all -- "$@"'
    ids = ("--map-user=1000", "--map-group=1000", "--keep-caps")
    line.through = (str(shutil.which("unshare")), "--user", *ids, "--", "/bin/sh", "-c", forbidding, "sh")
    status, found = told(line)
    assert (status, skipped(found, "inside sandbox")) == (24, True)
    assert "sysctl -w user.max_user_namespaces" in found["sandbox"]["error"]["hint"]


def test_an_audit_that_was_changed(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    assert told(line, "--offline", "--whole-audit")[0] == 0
    with closing(sqlite3.connect(line.home / "audit.db")) as connection, connection:
        connection.execute("DROP TRIGGER entry_stays")
        connection.execute("UPDATE entry SET body = replace(body, 'acme', 'acne')")
    for words in ((), ("--whole-audit",)):
        status, found = told(line, "--offline", *words)
        assert (status, found["audit"]["error"]["code"]) == (21, "audit_broken")


# --- how it is told --------------------------------------------------------------------------


def test_it_fits_eighty_columns_has_no_colour_where_none_is_wanted_and_asks_nothing(
    line: CommandLine, server: LocalServer
) -> None:
    (file := line.home.parent / "passphrase").write_text("a long one")
    file.chmod(0o600)
    line.environ |= {"VALETKEY_STORE_KEY_SOURCE": "passphrase", "VALETKEY_PASSPHRASE_FILE": str(file)}
    _logged_in(line, server.url)
    del line.environ["VALETKEY_PASSPHRASE_FILE"]
    hint = told(line)[1]["key"]["error"]["hint"]
    with line.terminal("doctor", environ={"NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 14
        assert "\x1b" not in terminal.shown
        # A hint stays whole, for it is pasted.
        lines = [text for text in terminal.shown.split("\r\n") if text.strip() != hint]
        assert max(map(len, lines)) <= 80
        assert "The first layer that fails: key" in terminal.shown
    with line.terminal("doctor") as terminal:
        assert terminal.end() == 14
        assert "\x1b[31m" in terminal.shown


def test_each_layer_has_a_status_of_its_own_and_stands_in_the_manual(line: CommandLine) -> None:
    from valetkey.doctor import LAYERS

    assert len(set(LAYERS.values())) == len(LAYERS)
    section = DOCS.read_text().partition("### `doctor`")[2].partition("###")[0]
    assert dict(re.findall(r"\| (\d+) \| ([a-z ]+?) \|", section)) == {str(n): layer for layer, n in LAYERS.items()}
    shown = line("doctor", "--help").out
    assert all(re.search(rf"{status}\s+{layer}", re.sub(r"\s+", " ", shown)) for layer, status in LAYERS.items())
