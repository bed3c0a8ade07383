"""The file of a policy: what it says, and what is told of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from valetkey.errors import ConfigError
from valetkey.gateway.coverage import remarks
from valetkey.gateway.policy import read, read_file

TOP = 'default = "deny"\n'


def test_a_policy_is_read_with_its_lines() -> None:
    policy = read(
        'default = "deny"  # nothing else\n'
        'other_hosts = "allow"\n'
        "allow_off_limits = [\n"
        '  "acme: POST /v1/keys/**",\n'
        '  "other: * api.other.example/admin",\n'
        "]\n"
        "\n"
        "[[rule]]\n"
        'name = "reading"\n'
        'allow = "GET,HEAD api.acme.example/**"\n'
        "\n"
        "[[ rule ]] # the second\n"
        'deny = "* */**"\n'
        'reason = "no"\n',
        file="p.toml",
    )
    assert (policy.default, policy.other_hosts) == ("deny", "allow")
    assert [(o.provider, o.pattern.text, o.place) for o in policy.openings] == [
        ("acme", "POST /v1/keys/**", "p.toml:4"),
        ("other", "* api.other.example/admin", "p.toml:5"),
    ]
    assert [(r.verdict, r.name, r.reason, r.place) for r in policy.rules] == [
        ("allow", "reading", "", "p.toml:10"),
        ("deny", "", "no", "p.toml:13"),
    ]
    assert policy.rules[0].pattern.methods == frozenset({"GET", "HEAD"})


def test_other_hosts_follow_the_default_where_nothing_is_said() -> None:
    assert read('default = "allow"', file="p").other_hosts == "allow"
    assert read('default = "deny"', file="p").other_hosts == "deny"


RULE = TOP + "\n[[rule]]\n"


@pytest.mark.parametrize(
    ("text", "place", "said", "hinted"),
    [
        ("", "p.toml:1", "default is missing", 'default = "deny"'),
        ('default = "maybe"', "p.toml:1", "default is neither", 'default = "allow"'),
        ('\ndefault = "ask"', "p.toml:2", "default is neither", ""),
        (TOP + 'other_hosts = "ask"', "p.toml:2", "other_hosts is neither", ""),
        (TOP + 'defualt = "allow"', "p.toml:2", "unknown key defualt", "did you mean default?"),
        (TOP + "zzz = 1", "p.toml:2", "unknown key zzz", "known here"),
        (TOP + "= 3", "p.toml:2", "not TOML", "correct that line"),
        (TOP + 'x = "', "p.toml:2", "not TOML", ""),
        (RULE + 'alow = "GET a.b/c"', "p.toml:4", "unknown key alow", "did you mean allow?"),
        (RULE + 'name = "x"', "p.toml:3", "needs just one of allow, deny, ask", ""),
        (RULE + 'allow = "GET a.b/c"\ndeny = "GET a.b/c"', "p.toml:3", "has allow and deny", ""),
        (RULE + "allow = 1", "p.toml:4", "allow is no text", "in quotes"),
        (RULE + 'allow = ["GET a.b/c"]', "p.toml:4", "allow is no text", ""),
        (RULE + 'allow = "GET a.b/c"\nname = 3', "p.toml:5", "name is no text", ""),
        (RULE + 'allow = "GET a.b/c"\nreason = "a\\nb"', "p.toml:5", "reason is no text on one line", ""),
        (RULE + 'allow = "a.b/c"', "p.toml:4", "is not a method", "GET api.example.com"),
        (RULE + 'allow = "GET  a.b/c"', "p.toml:4", "is not a method, one space", ""),
        (RULE + 'allow = "get a.b/c"', "p.toml:4", "'get' for a method", "capitals"),
        (RULE + 'allow = "GET a.b"', "p.toml:4", "has no path", "GET a.b/**"),
        (RULE + 'allow = "GET /v1/x"', "p.toml:4", "has no host", "*/"),
        (RULE + 'allow = "GET https://a.b/c"', "p.toml:4", "for a host", ""),
        (RULE + 'allow = "GET api.*/c"', "p.toml:4", "for a host", "*.example.com"),
        (RULE + 'allow = "GET a.b:0/c"', "p.toml:4", "for a host", ""),
        (RULE + 'allow = "GET a.b/c?d=e"', "p.toml:4", "has a query", "take it out"),
        (RULE + 'allow = "GET a.b/c/../d"', "p.toml:4", "not in normal form", "/d"),
        (RULE + 'allow = "GET a.b/c//d"', "p.toml:4", "not in normal form", "/c/d"),
        (RULE + 'allow = "GET a.b/%61"', "p.toml:4", "not in normal form", "/a"),
        (RULE + 'allow = "GET a.b/a%2Fb"', "p.toml:4", "encoded slash", ""),
        (RULE + 'allow = "GET a.b/***"', "p.toml:4", "more than one star", ""),
        (RULE + 'allow = "GET a.b/a*b*"', "p.toml:4", "more than one star", ""),
        (RULE + 'allow = "GET a.b/**/c/**/d/**"', "p.toml:4", "more than one ** before its end", ""),
        (RULE + 'allow = "CONNECT a.b/c"', "p.toml:4", "a path for CONNECT", "a.b/**"),
        (RULE + 'allow = "GET bücher.example/c"', "p.toml:4", "is not a method", ""),
        (TOP + "[rule]\nallow = 1", "p.toml", "rule is not repeated", "[[rule]]"),
        (TOP + "rule = [1]", "p.toml:2", "rule is no table", ""),
        (TOP + 'allow_off_limits = "x"', "p.toml:2", "is no list", ""),
        (TOP + 'allow_off_limits = [\n"a: GET /b",\n"POST /v1"]', "p.toml:4", "[1] names no provider", "PROVIDER"),
        (TOP + 'allow_off_limits = ["a: get /b"]', "p.toml:2", "for a method", ""),
        (TOP + "allow_off_limits = [1]", "p.toml:2", "names no provider", ""),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, place: str, said: str, hinted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, file="p.toml")
    assert caught.value.message.startswith(place)
    assert said in caught.value.message
    assert hinted in caught.value.hint
    assert caught.value.exit_status == 2


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_file(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a directory"):
        read_file(tmp_path)
    file = tmp_path / "p.toml"
    file.write_bytes(b'default = "deny"\n# \xff')
    with pytest.raises(ConfigError, match=r"p\.toml:2: the file is not UTF-8"):
        read_file(file)
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="longer than"):
        read_file(file)
    file.write_text(TOP)
    assert read_file(file).default == "deny"


def rules(*lines: str) -> str:
    return TOP + "".join(f"[[rule]]\n{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('allow = "GET a.b/c"', 'deny = "GET a.b/c"'),
        ('allow = "* a.b/**"', 'deny = "GET a.b/c/*/d"'),
        ('deny = "GET,POST *.b/**"', 'allow = "POST x.b/c"'),
        ('deny = "GET */c/*"', 'allow = "GET a.b/c/d"'),
        ('deny = "GET a.b/c/**"', 'allow = "GET a.b/c"'),
        ('deny = "GET a.b/c/**"', 'allow = "GET a.b/c/**"'),
        ('ask = "GET a.b:*/c/**"', 'allow = "GET a.b:80/c/x"'),
    ],
)
def test_a_rule_behind_one_that_matches_all_of_it_is_told(first: str, second: str) -> None:
    (remark,) = remarks(read(rules(first, second), file="p"), providers=[])
    assert remark.place == "p:5"
    assert "never counts: p:3" in remark.message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('allow = "GET a.b/c"', 'deny = "POST a.b/c"'),
        ('allow = "GET a.b/c"', 'deny = "* a.b/c"'),
        ('allow = "GET a.b/c"', 'deny = "GET */c"'),
        ('allow = "GET *.a.b/c"', 'deny = "GET a.b/c"'),
        ('allow = "GET a.b/*"', 'deny = "GET a.b/**"'),
        ('allow = "GET a.b/*/*"', 'deny = "GET a.b/**"'),
        ('allow = "GET a.b/c*"', 'deny = "GET a.b/*"'),
        ('allow = "GET a.b:80/c"', 'deny = "GET a.b/c"'),
    ],
)
def test_a_rule_that_can_count_is_not_told(first: str, second: str) -> None:
    assert remarks(read(rules(first, second), file="p"), providers=[]) == []


def test_an_opening_for_no_provider_is_told() -> None:
    policy = read(TOP + 'allow_off_limits = ["acme: GET /a", "emca: GET /a"]', file="p")
    (remark,) = remarks(policy, providers=["acme"])
    assert "emca" in remark.message
