"""Logins on a terminal, each way of them, and what is left when the user stops one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, Terminal, api_server
from tests.support.oidc_provider import OidcProvider
from valetkey.testing.local_server import Answer, Hang, LocalServer, Received, Reply

KEY = "sk-" + "good1" * 8
ENTER = "\r"
UP = "\x1b[A"

API = """
[api]
base_url = "{url}"
dialect = "openai-chat"
hosts = ["{host}"]
allow_http = true
probe = {{ get = "{probe}", email = "/email" }}
"""
KEYED = """
[[auth]]
id = "api-key"
kind = "api-key"
keys_url = "https://keys.example.org"
environment = ["ACME_API_KEY"]
inject = [{ set = { authorization = "Bearer {key}" } }]
"""
DEVICE = """
[[auth]]
id = "device"
kind = "device"
client_id = "{client_id}"
device_authorization_endpoint = "{device}"
token_endpoint = "{token}"
scope = ["openid", "offline_access"]
revocation_endpoint = "{revocation}"
inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]
"""
BROWSER = """
[[auth]]
id = "browser"
kind = "authorization-code"
client_id = "{client_id}"
authorization_endpoint = "{authorization}"
token_endpoint = "{token}"
scope = ["openid", "offline_access"]
redirect = {{ loopback = {{ path = "/callback" }} }}
inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]
"""


def endpoints(oidc: OidcProvider, template: str) -> str:
    return template.format(
        client_id=oidc.client_id,
        authorization=oidc.authorization_endpoint,
        device=oidc.device_authorization_endpoint,
        token=oidc.token_endpoint,
        revocation=oidc.revocation_endpoint,
    )


def api(url: str, probe: str) -> str:
    return API.format(url=url, host=url.removeprefix("http://").partition("/")[0], probe=probe)


@pytest.fixture
def valetkey(home: Path) -> CommandLine:
    return CommandLine(home=home)


@pytest.fixture
def acme(valetkey: CommandLine) -> Iterator[LocalServer]:
    """Give a provider with one way to log in, by key."""
    with api_server([KEY]) as server:
        valetkey.declare("acme", api(server.url, "/models") + KEYED)
        yield server


@pytest.fixture
def idp(valetkey: CommandLine, oidc: OidcProvider) -> OidcProvider:
    """Give a provider `idp` that is npm oidc-provider, with a device login alone; `web` has the browser's alone."""
    valetkey.declare("idp", api(oidc.issuer, oidc.probe_endpoint) + endpoints(oidc, DEVICE))
    valetkey.declare("web", api(oidc.issuer, oidc.probe_endpoint) + endpoints(oidc, BROWSER))
    return oidc


# --- keys ------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_never_shown(valetkey: CommandLine, acme: LocalServer) -> None:
    with valetkey.terminal("login", "acme") as terminal:
        terminal.expect("https://keys.example.org")
        terminal.expect("API key: ")
        terminal.send(KEY + ENTER)
        terminal.expect("Logged in to acme@default.")
        assert terminal.end() == 0
        assert KEY not in terminal.shown


def test_a_key_in_the_environment_is_offered(valetkey: CommandLine, acme: LocalServer) -> None:
    with valetkey.terminal("login", "acme", environ={"ACME_API_KEY": KEY}) as terminal:
        terminal.expect("Use the key in ACME_API_KEY?")
        terminal.send("y" + ENTER)
        assert terminal.end() == 0
        assert KEY not in terminal.shown
    assert valetkey("token", "acme").out == KEY + "\n"


def test_the_menu_is_left_by_number_and_by_arrow_keys(valetkey: CommandLine, acme: LocalServer) -> None:
    with valetkey.terminal("login") as terminal:
        terminal.expect("Log in to (arrow keys, number or name; Enter)")
        terminal.expect("> ")
        terminal.send("acm")
        terminal.expect("Acme")
        terminal.send(ENTER)
        terminal.expect("Log in to: Acme")
        terminal.expect("API key: ")
        terminal.send(KEY + ENTER)
        assert terminal.end() == 0
    with valetkey.terminal("login") as terminal:
        terminal.expect(">  1 ")
        terminal.send(f"33{UP}{UP}2{UP}")
        terminal.expect("> 33 ")
        terminal.expect("> 31 ")
        terminal.expect(">  2 ")
        terminal.expect(">  1 Acme  (connected)")
        terminal.send(ENTER)
        terminal.expect("API key: ")
        terminal.interrupt()
        assert terminal.end() == 130


def test_the_menu_ends_with_servers_of_ones_own(valetkey: CommandLine, acme: LocalServer) -> None:
    with valetkey.terminal("login") as terminal:
        terminal.expect("> ")
        terminal.send("openai-comp" + ENTER)
        terminal.expect("Name")
        terminal.send("My Box" + ENTER)
        terminal.expect("Base URL")
        terminal.send(f"{acme.url}/" + ENTER)
        terminal.expect("Model")
        terminal.send("small" + ENTER)
        terminal.expect("API key")
        terminal.send(KEY + ENTER)
        # On this machine nobody is on the way.
        terminal.expect("Added my-box: openai-chat")
        assert terminal.end() == 0
        assert KEY not in terminal.shown
        assert "plain http" not in terminal.shown
    assert valetkey("token", "my-box").out == KEY + "\n"


def test_a_key_over_plain_http_to_another_machine_wants_a_yes(valetkey: CommandLine, tmp_path: Path) -> None:
    (file := tmp_path / "key").write_text(KEY)
    words = ("--base-url", "http://10.0.0.1:9/v1", "--dialect", "openai-chat", "--no-verify", "--file", str(file))
    with valetkey.terminal("providers", "add", "far", *words) as terminal:
        terminal.expect("over plain http, readable on the way")
        terminal.expect("Send it all the same? [y/N]")
        terminal.send("n" + ENTER)
        assert terminal.end() != 0
    assert valetkey("providers", "show", "far").status != 0


def test_a_restricted_login_shows_its_notice_and_wants_a_yes(valetkey: CommandLine, acme: LocalServer) -> None:
    restricted = KEYED + 'standing = "restricted"\nnotice = "Only for its own tools."\n'
    valetkey.declare("strict", api(acme.url, "/models") + restricted)
    refused = valetkey("login", "strict", "--key", "-", stdin=KEY)
    assert refused.status == 2
    assert "Only for its own tools." in refused.err
    assert "add --yes" in refused.err
    with valetkey.terminal("login", "strict") as terminal:
        terminal.expect("Only for its own tools.")
        terminal.expect("[y/N]")
        terminal.send(ENTER)
        terminal.expect("Nothing was changed.")
        assert terminal.end() == 1
    assert valetkey.accounts() == []
    assert valetkey("login", "strict", "--key", "-", "--yes", stdin=KEY).status == 0
    # It may not be handed out.
    assert valetkey("token", "strict").status == 4


# --- device, browser -------------------------------------------------------------------------


def user_code(terminal: Terminal) -> str:
    terminal.expect("and enter the code")
    while (found := re.search(r"enter the code\s+(?:\x1b\[\d+m)*([A-Z0-9]{4}-?[A-Z0-9]{4})", terminal.shown)) is None:
        terminal.expect("\n")
    return found[1]


def test_a_device_login_shows_code_address_and_drawing_and_ends_when_it_is_approved(
    valetkey: CommandLine, idp: OidcProvider
) -> None:
    with valetkey.terminal("login", "idp", environ={"LINES": "60"}) as terminal:
        terminal.expect(f"{idp.issuer}/device")
        code = user_code(terminal)
        terminal.expect("waiting for you, ")
        idp.approve_device(code)
        terminal.expect("Logged in to idp@default.")
        assert terminal.end() == 0
        assert "▄" in terminal.shown or "█" in terminal.shown or "\x1b[7m" in terminal.shown
    (account,) = valetkey.accounts()
    assert (account["method"], account["kind"], account["health"]) == ("device", "oauth-token", "ok")
    gone = valetkey("logout", "idp", "--yes")
    assert "the provider revoked the login" in gone.out
    assert idp.counts().revocation == 1
    assert valetkey.accounts() == []


def test_on_a_dumb_terminal_nothing_is_drawn_or_overwritten(valetkey: CommandLine, idp: OidcProvider) -> None:
    with valetkey.terminal("login", "idp", environ={"TERM": "dumb", "LINES": "60"}) as terminal:
        idp.approve_device(user_code(terminal))
        terminal.expect("Logged in to idp@default.")
        assert terminal.end() == 0
    assert "\x1b" not in terminal.shown
    assert "█" not in terminal.shown
    assert "▄" not in terminal.shown
    assert "waiting for you" not in terminal.shown


def test_a_denied_device_login_says_so(valetkey: CommandLine, idp: OidcProvider) -> None:
    with valetkey.terminal("login", "idp") as terminal:
        idp.approve_device(user_code(terminal), deny=True)
        terminal.expect("valetkey: error: ")
        terminal.expect("valetkey: hint: ")
        assert terminal.end() == 1
    assert valetkey.accounts() == []


def test_without_a_browser_the_address_is_pasted_also_in_pieces(valetkey: CommandLine, idp: OidcProvider) -> None:
    with valetkey.terminal("login", "web", environ={"SSH_CONNECTION": "there"}) as terminal:
        terminal.expect("Open this address in a browser:")
        terminal.expect("paste here the code")
        address = re.search(r"http://\S+/auth\?\S+", terminal.shown)
        assert address is not None
        location = idp.approve_in_browser(address[0])
        terminal.send("schöner Tag" + ENTER)
        terminal.expect("this is not a code")
        middle = len(location) // 2
        terminal.send(f"  {location[:middle]}\n{location[middle:]}" + ENTER)
        terminal.expect("Logged in to web@default.")
        assert terminal.end() == 0


def test_no_address_is_shown_where_nothing_can_be_pasted(valetkey: CommandLine, idp: OidcProvider) -> None:
    done = valetkey("login", "web", "--no-browser")
    assert done.status == 2
    assert "no terminal to paste it on" in done.err
    assert idp.issuer not in done.err


def test_another_logins_state_ends_it(valetkey: CommandLine, idp: OidcProvider) -> None:
    with valetkey.terminal("login", "web", "--no-browser") as terminal:
        terminal.expect("paste here the code")
        terminal.send("http://127.0.0.1:1/callback?code=abc&state=foreign" + ENTER)
        terminal.expect("belongs to another login")
        assert terminal.end() == 1
    assert valetkey.accounts() == []


def test_a_time_limit_of_ones_own_ends_the_wait(valetkey: CommandLine, idp: OidcProvider) -> None:
    done = valetkey("login", "idp", "--timeout", "1")
    assert done.status == 1
    assert "was not finished within 1 s" in done.err
    assert valetkey.accounts() == []


# --- stopped ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (("login",), "arrow keys"),
        (("login", "acme"), "API key: "),
        (("login", "idp"), "waiting for you"),
        (("login", "web", "--no-browser"), "paste here"),
        (("login", "openai-compatible"), "Name"),
        (("providers", "add", "own"), "Base URL"),
        (("store", "backup", "b"), "Passphrase"),
        (("ask", "-m", "acme/small", "hi"), "log in to acme"),
        (("exec", "-p", "acme", "--", "true"), "Log in to acme"),
    ],
)
def test_ctrl_c_at_a_prompt_or_a_wait_leaves_no_record(
    valetkey: CommandLine, acme: LocalServer, idp: OidcProvider, words: tuple[str, ...], prompt: str
) -> None:
    with valetkey.terminal(*words) as terminal:
        terminal.expect(prompt)
        terminal.interrupt()
        assert terminal.end() == 130
        assert "Traceback" not in terminal.shown
    assert valetkey.accounts() == []


def test_ctrl_c_while_the_provider_is_asked_leaves_no_record(valetkey: CommandLine) -> None:
    asked = threading.Event()

    def respond(request: Received) -> Reply:
        asked.set()
        return Hang() if request.path == "/models" else Answer(status=404)

    with LocalServer(respond) as server:
        valetkey.declare("slow", api(server.url, "/models") + KEYED)
        with valetkey.terminal("login", "slow") as terminal:
            terminal.expect("API key: ")
            terminal.send(KEY + ENTER)
            assert asked.wait(60)
            terminal.interrupt()
            assert terminal.end() == 130
            assert "Traceback" not in terminal.shown
        assert valetkey.accounts() == []


def test_the_end_of_input_is_a_no(valetkey: CommandLine, acme: LocalServer) -> None:
    with valetkey.terminal("login", "acme") as terminal:
        terminal.expect("API key: ")
        terminal.send("\x04")
        assert terminal.end() == 130
    assert valetkey.accounts() == []
