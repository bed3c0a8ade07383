"""The certificate authority as a person, a script and real TLS clients meet it."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.echo import Echo
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.gateway.authority import Authority
from valetkey.testing.canary import holding

BIN = Path(sys.executable).parent


@pytest.fixture
def line(home: Path, tmp_path: Path) -> CommandLine:
    environ = {"VALETKEY_LOG_FILE": str(tmp_path / "log"), "VALETKEY_LOG_LEVEL": "debug"}
    return CommandLine(home=home, environ=environ)


@pytest.fixture
def server(home: Path) -> Iterator[Echo]:
    """A server of localhost, with a leaf of the home's authority."""
    ours = Authority(Paths(home=home), SystemClock())
    with Echo(tls=asyncio.run(ours.context("localhost"))) as running:
        yield running
    ours.close()


def run(script: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{environ['PATH']}"
    return subprocess.run(
        ["sh", "-e", "-c", script],
        env={**environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- the commands ----------------------------------------------------------------------------


def test_show_tells_which_one_it_is_as_openssl_does(line: CommandLine, home: Path) -> None:
    shown = line("ca", "show", "--json").json
    assert shown["path"] == str(home / "ca" / "ca.pem")
    said = run(f"openssl x509 -noout -fingerprint -sha256 -subject -in {shown['path']}", line.environ).stdout
    assert shown["fingerprint"] in said
    assert shown["subject"] in said
    person = line("ca", "show").out
    assert shown["fingerprint"] in person
    assert shown["until"][:10] in person


def test_export_writes_the_certificate_and_nothing_of_the_key(line: CommandLine, home: Path, tmp_path: Path) -> None:
    pem = (home / "ca" / "ca.pem").read_text() if line("ca", "show").status == 0 else ""
    assert line("ca", "export").out == pem
    assert line("ca", "export", "-").out == pem
    assert line("ca", "export", "--json").json == {"file": None, "pem": pem}
    file = tmp_path / "ca.pem"
    for words in ([], ["--bundle"], []):
        assert line("ca", "export", str(file), *words).status == 0
    assert file.read_text() == pem
    bundle = line("ca", "export", "--bundle").out
    assert bundle.endswith(pem)
    assert bundle.count("BEGIN CERTIFICATE") > 50


def test_export_writes_over_certificates_alone(line: CommandLine, home: Path, tmp_path: Path) -> None:
    line("ca", "show")
    other = tmp_path / "other"
    other.write_text("mine")
    for file in (home / "ca" / "ca.key", other):
        before = file.read_bytes()
        assert line("ca", "export", str(file)).status == 2
        assert file.read_bytes() == before


def test_rotate_asks_and_says_which_one_is_no_more(line: CommandLine, home: Path) -> None:
    before = line("ca", "show", "--json").json
    refused = line("ca", "rotate")
    assert refused.status == 2
    assert "--yes" in refused.err
    with line.terminal("ca", "rotate") as terminal:
        terminal.expect("Make a new authority?")
        terminal.send("n\r")
        assert terminal.end() != 0
    assert line("ca", "show", "--json").json == before
    after = line("ca", "rotate", "--yes", "--json").json
    assert after["old_fingerprint"] == before["fingerprint"] != after["fingerprint"]
    assert Path(after["old_path"]).exists()
    hint = line("ca", "install-hint")
    assert before["fingerprint"] in hint.err
    assert not (home / "ca" / "bundle.pem").exists()


def test_wide_modes_are_refused_with_the_command_that_mends_them(line: CommandLine, home: Path) -> None:
    line("ca", "show")
    (home / "ca" / "ca.key").chmod(0o640)
    done = line("ca", "show", "--json")
    assert (done.status, done.json["error"]["code"]) == (1, "wrong_mode")
    assert run(done.json["error"]["hint"].split("`")[1], line.environ).returncode == 0
    assert line("ca", "show").status == 0


def test_no_command_and_no_log_tells_the_key(line: CommandLine, home: Path, tmp_path: Path) -> None:
    line("ca", "show")
    content = (home / "ca" / "ca.key").read_text()
    body = content[: content.index("-----END")].splitlines()[1:]
    calls = [("show",), ("export",), ("export", "--bundle"), ("install-hint",), ("export", str(tmp_path / "x"))]
    said = ""
    for words in calls:
        for more in ((), ("--json",), ("--verbose",)):
            done = line("ca", *words, *more)
            said += done.out + done.err
    (home / "ca" / "ca.key").write_text(content[:60])
    broken = line("ca", "show", "--verbose")
    assert broken.status == 1
    said += broken.out + broken.err + (tmp_path / "log").read_text()
    (home / "ca" / "ca.key").write_text(content)
    assert [secret for secret in body if secret in said] == []
    for secret in body:
        assert holding(secret, tmp_path.rglob("*")) == [str(home / "ca" / "ca.key")]


# --- real clients ----------------------------------------------------------------------------


def lines_for(line: CommandLine, what: str) -> str:
    hints = line("ca", "install-hint", "--json").json["hints"]
    (found,) = [hint for hint in hints if hint["for"].startswith(what)]
    return "\n".join(found["lines"])


CLIENTS = {
    "curl": "curl --silent --show-error --fail {url}",
    "Node": "node -e 'fetch(process.argv[1]).then(r => r.text()).then(console.log)' {url}",
    "Python: requests": "python -c 'import requests, sys; print(requests.get(sys.argv[1]).text)' {url}",
    "Python: ssl": "python -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read())' {url}",
}


@pytest.mark.parametrize("what", CLIENTS)
def test_a_client_believes_it_by_the_lines_of_the_hint_and_not_without(
    what: str, line: CommandLine, server: Echo
) -> None:
    call = CLIENTS[what].format(url=f"https://localhost:{server.port}/seen")
    without = run(call, line.environ)
    assert without.returncode != 0
    assert server.requests == []
    done = run(f"{lines_for(line, what)}\n{call}", line.environ)
    assert done.returncode == 0, done.stderr
    assert "/seen" in done.stdout
    assert line("ca", "rotate", "--yes").status == 0
    assert run(f"{lines_for(line, what)}\n{call}", line.environ).returncode != 0


def test_git_believes_it_by_the_lines_of_the_hint(line: CommandLine, server: Echo) -> None:
    call = f"git ls-remote https://localhost:{server.port}/repository.git"
    environ = {**line.environ, "GIT_TERMINAL_PROMPT": "0"}
    os.makedirs(environ["HOME"], exist_ok=True)
    assert "certificate" in run(call, environ).stderr
    assert server.requests == []
    run(f"{lines_for(line, 'git')}\n{call}", environ)
    assert server.requests


def test_openssl_verifies_chain_and_name(line: CommandLine, home: Path, server: Echo) -> None:
    call = (
        f"openssl s_client -connect 127.0.0.1:{server.port} -servername {{name}} -verify_hostname {{name}} -x509_strict"
        f" -purpose sslserver -verify_return_error -CAfile {home / 'ca' / 'ca.pem'} < /dev/null"
    )
    good = run(call.format(name="localhost"), line.environ)
    assert good.returncode == 0, good.stderr
    assert "Verification: OK" in good.stdout
    assert "Verified peername: localhost" in good.stdout
    other = run(call.format(name="api.acme.test"), line.environ)
    assert other.returncode != 0
    assert "unrecognized name" in other.stderr


def test_python_verifies_as_strictly_as_it_can(line: CommandLine, home: Path, server: Echo) -> None:
    context = ssl.create_default_context(cafile=str(home / "ca" / "ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with urllib.request.urlopen(f"https://localhost:{server.port}/seen", context=context) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"https://127.0.0.1:{server.port}/seen", context=context)
