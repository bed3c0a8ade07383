"""`policy check` and `policy explain`, as a person and as a script meet them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, api_server

KEY = "sk-" + "policy" * 8
POLICY = """default = "deny"

[[rule]]
name = "reading"
allow = "GET 127.0.0.1:*/**"

[[rule]]
ask = "POST 127.0.0.1:*/v1/images/**"

[[rule]]
reason = "nothing goes away"
deny = "DELETE */**"

[[rule]]
deny = "DELETE 127.0.0.1:*/v1/**"
"""


@pytest.fixture
def line(home: Path) -> CommandLine:
    return CommandLine(home=home)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return str(path)


def test_check_says_that_it_can_be_used_and_what_never_counts(line: CommandLine, file: str) -> None:
    done = line("policy", "check", file)
    assert done.status == 0
    assert done.out == f"{file} can be used: 4 rules, default deny.\n"
    assert f"{file}:15: " in done.err
    assert f"never counts: {file}:12" in done.err
    assert line("policy", "check", file, "--json").json["warnings"][0]["place"] == f"{file}:15"


def test_check_names_line_key_and_nearest(line: CommandLine, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('default = "deny"\n[[rule]]\ndeni = "GET a.example/x"\n')
    done = line("policy", "check", str(wrong))
    assert done.status == 2
    assert done.err == f"valetkey: error: {wrong}:3: unknown key deni\nvaletkey: hint: did you mean deny?\n"
    assert line("policy", "explain", "GET", "https://a.example/x", "--policy", str(wrong)).status == 2
    assert line("policy", "check", str(tmp_path / "none.toml")).status == 2


def test_explain_says_what_where_and_how_to_allow_it(line: CommandLine, file: str) -> None:
    with api_server([KEY]) as server:
        add = ("acme", "--base-url", server.url, "--dialect", "openai-chat", "--allow-http", "--key", "-")
        assert line("providers", "add", *add, stdin=KEY).status == 0
        words = ("policy", "explain", "--policy", file, "--grant", "acme")
        allowed = line(*words, "get", "/acme/v1/models?limit=1")
        assert allowed.status == 0
        assert allowed.out.startswith(f"allow: GET {server.url}/v1/models?limit=1\n")
        assert "acme@default" in allowed.out
        assert f'{file}:5: allow = "GET 127.0.0.1:*/**"' in allowed.out
        assert "reading" in allowed.out
        asked = line(*words, "POST", f"{server.url}/v1/images/x", "--json")
        assert (asked.status, asked.json["verdict"], asked.json["how"]) == (0, "ask", "inject")
        refused = line(*words, "DELETE", f"{server.url}/v1/models/m")
        assert refused.status == 4
        assert "nothing goes away" in refused.out
        host = server.url.removeprefix("http://")
        assert f'allow = "DELETE {host}/v1/models/m"' in refused.out
        assert KEY not in allowed.out + refused.out + allowed.err + refused.err


def test_explain_without_grants_takes_every_account_and_provider(line: CommandLine) -> None:
    line("login", "openai", "--account", "work", "--key", "-", "--no-verify", stdin=KEY)
    mine = line("policy", "explain", "GET", "https://api.openai.com/v1/models", "--json")
    assert mine.json["grant"] == "openai@work"
    declared = line("policy", "explain", "GET", "https://api.anthropic.com/v1/models", "--json")
    assert declared.json["grant"] == "anthropic@default"
    other = line("policy", "explain", "CONNECT", "example.com:443", "--json")
    assert (other.status, other.json["code"]) == (4, "denied")


def test_explain_wants_a_provider_that_there_is_and_an_address_that_is_known(line: CommandLine) -> None:
    unknown = line("policy", "explain", "GET", "/x", "--grant", "opnai")
    assert unknown.status == 2
    assert "openai" in unknown.err
    azure = line("policy", "explain", "GET", "/azure-openai/x", "--grant", "azure-openai")
    assert azure.status == 3
    assert "valetkey login azure-openai" in azure.err


def test_a_url_without_its_scheme_is_wrong_usage_and_no_verdict(line: CommandLine) -> None:
    done = line("policy", "explain", "GET", "api.openai.com/v1/models")
    assert done.status == 2
    assert "write https://api.openai.com/v1/models" in done.err
