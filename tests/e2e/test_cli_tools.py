"""Providers of one's own, doctor, import, store: what keeps the rest in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, api_server
from tests.support.tls import CertificateAuthority
from valetkey.testing.local_server import Answer, Drop, LocalServer, Received

KEY = "sk-" + "tools1" * 7


@pytest.fixture
def line(home: Path) -> CommandLine:
    return CommandLine(home=home)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with api_server([KEY]) as running:
        yield running


def keyless() -> LocalServer:
    """Give a server that speaks Anthropic's messages alone and wants no key."""

    def respond(request: Received) -> Answer:
        if request.path == "/v1/models":
            return Answer(headers={"content-type": "application/json"}, body=b'{"data": [{"id": "small"}]}')
        if request.path == "/v1/messages" and request.method == "POST":
            return Answer(status=400, headers={"content-type": "application/json"}, body=b'{"type": "error"}')
        return Answer(status=404)

    return LocalServer(respond)


# --- providers -------------------------------------------------------------------------------


def test_a_server_without_a_key_is_added_by_asking_it_what_it_speaks(line: CommandLine) -> None:
    with keyless() as server:
        done = line("providers", "add", "My Box", "--base-url", f"{server.url}/v1/", "--model", "small", "--json")
        assert done.status == 0, done.err
        added = done.json
        assert (added["id"], added["dialect"], added["base_url"]) == ("my-box", "anthropic-messages", server.url)
        assert added["default_model_set"] == "my-box/small"
        assert line("providers", "check", "my-box").status == 0
    assert line("providers", "check", "my-box").status == 1
    assert [p["id"] for p in line("providers", "list", "--custom", "--json").json["providers"]] == ["my-box"]
    gone = line("providers", "remove", "my-box", "--yes", "--json").json
    assert gone == {"provider": "my-box", "accounts": [], "default_model": "my-box/small"}
    assert line("ask", "hi").status == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["openai", "--base-url", "https://x.example.org", "--dialect", "openai-chat"], "built-in provider"),
        (["!!!", "--base-url", "https://x.example.org", "--dialect", "openai-chat"], "makes no id"),
        (["x", "--base-url", "ftp://x.example.org", "--dialect", "openai-chat"], ""),
        (["x", "--base-url", "https://user:pass@x.example.org", "--dialect", "openai-chat"], ""),
        (["x", "--base-url", "not a url", "--dialect", "openai-chat"], ""),
        (["x", "--base-url", "http://10.0.0.1:9/v1", "--key", "-", "--dialect", "openai-chat"], "over plain http"),
        (["x", "--base-url", "http://127.0.0.1:9/v1", "--key", "-", "--dialect", "openai-chat"], "not"),
        (["x", "--base-url", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["x", "--base-url", "https://x.example.org", "--like", "nobody"], "no provider"),
    ],
)
def test_a_server_that_cannot_be_added_leaves_nothing(
    line: CommandLine, home: Path, words: list[str], said: str
) -> None:
    done = line("providers", "add", *words, stdin=KEY)
    assert done.status in (1, 2)
    assert said in done.err
    assert "valetkey: hint: " in done.err
    assert not list(home.glob("providers/*.toml"))


def test_a_wrong_key_of_an_added_server_leaves_nothing(line: CommandLine, server: LocalServer, home: Path) -> None:
    words = ["own", "--base-url", server.url, "--dialect", "openai-chat", "--allow-http", "--key", "-"]
    done = line("providers", "add", *words, stdin="sk-wrong-wrong-wrong")
    assert done.status == 1
    assert "did not accept the key" in done.err
    assert not list(home.glob("providers/*.toml"))
    assert line("providers", "add", *words, stdin=KEY).status == 0
    gone = line("providers", "remove", "own", "--yes", "--json").json
    assert gone["accounts"] == ["own@default"]
    assert line.accounts() == []


def test_a_broken_declaration_disables_only_itself(line: CommandLine) -> None:
    line.declare("broken", "this is not TOML")
    done = line("providers", "list")
    assert done.status == 0
    assert "broken.toml" in done.err
    assert line("providers", "remove", "broken", "--yes").status == 0
    assert line("providers", "list").err == ""


# --- doctor ----------------------------------------------------------------------------------


def failing(line: CommandLine, *words: str) -> tuple[int, str | None]:
    done = line("doctor", "--json", *words)
    assert "Traceback" not in done.err
    return done.status, done.json["layer"]


def declare(line: CommandLine, base_url: str) -> None:
    host = base_url.partition("://")[2].partition("/")[0]
    line.declare(
        "acme",
        f"""
        [api]
        base_url = "{base_url}"
        hosts = ["{host}"]
        allow_http = true
        probe = {{ get = "/models" }}
        [[auth]]
        id = "api-key"
        kind = "api-key"
        inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
        """,
    )


def test_doctor_is_content_with_a_new_home_and_a_good_login(line: CommandLine, server: LocalServer) -> None:
    assert line("doctor").status == 0
    declare(line, server.url)
    line("login", "acme", "--key", "-", stdin=KEY)
    done = line("doctor", "--json").json
    assert done["ok"]
    assert {f["layer"] for f in done["findings"]} >= {"home", "settings", "providers", "store", "key", "account"}
    assert any("lies in the file" in f["notice"] for f in done["findings"])


def test_doctor_names_the_home(line: CommandLine, home: Path) -> None:
    home.chmod(0o755)
    assert failing(line) == (10, "home")


def test_doctor_names_the_settings(line: CommandLine, home: Path) -> None:
    (home / "config.toml").write_text("login.timeout = 5\n")
    assert failing(line) == (11, "settings")


def test_doctor_names_a_declaration(line: CommandLine) -> None:
    line.declare("broken", "x = ")
    assert failing(line) == (12, "providers")


def test_doctor_names_the_store(line: CommandLine, home: Path) -> None:
    (home / "valetkey.db").write_bytes(b"not a database at all" * 300)
    (home / "valetkey.db").chmod(0o600)
    assert failing(line) == (13, "store")


def test_doctor_names_the_key(line: CommandLine, home: Path, server: LocalServer) -> None:
    declare(line, server.url)
    line("login", "acme", "--key", "-", stdin=KEY)
    (home / "store.key").rename(home / "elsewhere")
    assert failing(line, "--offline") == (14, "key")


def test_doctor_names_the_name_resolution(line: CommandLine) -> None:
    declare(line, "https://no-such-host.invalid")
    assert failing(line) == (15, "name resolution")


def test_doctor_names_tls(line: CommandLine, certificate_authority: CertificateAuthority) -> None:
    with LocalServer(lambda _: Answer(), tls=certificate_authority.context()) as server:
        declare(line, server.url)
        assert failing(line) == (16, "tls")


def test_doctor_names_the_connection(line: CommandLine) -> None:
    with LocalServer(lambda _: Answer()) as server:
        declare(line, server.url)
    assert failing(line) == (17, "connection")


def test_doctor_names_the_clock(line: CommandLine) -> None:
    head = f"HTTP/1.1 200 OK\r\ndate: {formatdate(0, usegmt=True)}\r\ncontent-length: 2\r\n\r\n{{}}"
    with LocalServer(lambda _: Drop(after=head.encode())) as server:
        declare(line, server.url)
        assert failing(line) == (18, "clock")


def test_doctor_names_the_account(line: CommandLine, server: LocalServer) -> None:
    declare(line, server.url)
    line("login", "acme", "--key", "-", "--no-verify", stdin="sk-wrong-wrong-wrong")
    assert failing(line) == (19, "account")
    assert failing(line, "--offline") == (0, None)


# --- import ----------------------------------------------------------------------------------


def test_logins_of_code_mesh_are_taken_over_once(line: CommandLine, server: LocalServer) -> None:
    declare(line, server.url)
    path = Path(line.environ["HOME"]) / ".code-mesh" / "auth.json"
    path.parent.mkdir()
    content = {
        "credentials": {
            "acme": {"type": "api_key", "key": KEY},
            "someone": {"type": "apikey", "key": KEY},
            "openai": {"type": "oauth", "access_token": KEY},
        }
    }
    path.write_text(json.dumps(content))
    path.chmod(0o644)
    before = path.read_bytes()
    assert line("import", "--json").json["tools"] == [{"tool": "code-mesh", "path": str(path), "found": True}]
    dry = line("import", "code-mesh", "--dry-run", "--json")
    assert [e["result"] for e in dry.json["logins"]] == ["found", "failed", "failed"]
    assert line.accounts() == []
    done = line("import", "code-mesh")
    assert done.status == 1
    assert "someone is no provider that Valetkey knows" in done.err
    assert f"chmod 600 {path}" in done.err
    assert KEY not in done.out + done.err
    assert line("token", "acme").out == KEY + "\n"
    again = line("import", "code-mesh", "--json").json["logins"][0]
    assert "is logged in already" in again["error"]["message"]
    assert line("import", "code-mesh", "--replace", "--json").json["logins"][0]["result"] == "stored"
    assert path.read_bytes() == before


def test_an_imported_key_that_is_refused_is_not_stored(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    declare(line, server.url)
    path = tmp_path / "auth.json"
    path.write_text('{"credentials": {"acme": {"type": "apikey", "key": "sk-wrong-wrong"}}}')
    done = line("import", "code-mesh", str(path), "--json")
    assert (done.status, done.json["logins"][0]["result"]) == (1, "failed")
    assert line.accounts() == []
    path.write_text("{")
    malformed = line("import", "code-mesh", str(path))
    assert malformed.status == 1
    assert "is not JSON" in malformed.err


# --- store -----------------------------------------------------------------------------------


def test_a_backup_comes_back_on_another_machine(line: CommandLine, server: LocalServer, tmp_path: Path) -> None:
    declare(line, server.url)
    line("login", "acme", "--key", "-", stdin=KEY)
    backup = tmp_path / "backup"
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse\n")
    assert line("store", "backup", str(backup), "--passphrase-file", str(phrase)).status == 0
    assert line("store", "rekey").status == 0
    assert line("token", "acme").out == KEY + "\n"
    other = CommandLine(home=tmp_path / "other")
    (tmp_path / "other").mkdir(mode=0o700)
    wrong = other("store", "restore", str(backup), "--passphrase-file", "-", stdin="wrong\n")
    assert wrong.status == 1
    assert "another passphrase, or the file is damaged" in wrong.err
    done = other("store", "restore", str(backup), "--passphrase-file", str(phrase), "--json")
    assert (done.json["accounts"], done.json["undeclared"]) == (1, ["acme"])
    assert "not declared here: acme" in done.err
    status = other("status", "--json")
    assert status.status == 1
    assert [a["reason"] for a in status.json["accounts"]] == ["the provider acme is not declared here"]
    assert failing(other) == (19, "account")
    declare(other, server.url)
    assert other("token", "acme").out == KEY + "\n"


def test_a_passphrase_is_asked_for_on_a_terminal_and_never_without_one(line: CommandLine, server: LocalServer) -> None:
    declare(line, server.url)
    line("login", "acme", "--key", "-", stdin=KEY)
    done = line("store", "source", "passphrase", "--passphrase-file", "-", "--json", stdin="correct horse\n")
    assert done.json["key_source"] == "passphrase"
    locked = line("token", "acme")
    assert (locked.status, locked.out) == (1, "")
    assert "the store is locked by a passphrase" in locked.err
    assert line("status", "--json").json["accounts"][0]["health"] == "locked"
    with line.terminal("token", "acme") as terminal:
        terminal.expect("Passphrase of the store")
        terminal.send("correct horse\r")
        terminal.expect(KEY)
        assert terminal.end() == 0
        assert "correct horse" not in terminal.shown
    with line.terminal("token", "acme") as terminal:
        terminal.expect("Passphrase of the store")
        terminal.interrupt()
        assert terminal.end() == 130
