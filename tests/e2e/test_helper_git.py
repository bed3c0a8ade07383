"""`valetkey helper git`, called by git itself: clone and push over TLS from a server that wants Basic."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.git_server import GitServer, git_server
from tests.support.tls import CertificateAuthority
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.canary import holding

TOKEN = "gh" + "p_" + "forge0" * 6
OTHER = "gh" + "p_" + "other1" * 6


@pytest.fixture
def forge(tmp_path: Path, certificate_authority: CertificateAuthority) -> Iterator[GitServer]:
    with git_server(
        tmp_path / "repositories", user="x-access-token", password=TOKEN, tls=certificate_authority.context()
    ) as server:
        server.make("one.git")
        yield server


@pytest.fixture
def line(home: Path, forge: GitServer, certificate_authority: CertificateAuthority) -> CommandLine:
    made = CommandLine(home=home)
    host = forge.url.removeprefix("https://")
    made.declare(
        "forge",
        f"""
        tools = ["git"]
        [api]
        base_url = "https://{host}/api"
        hosts = ["{host}", "api.forge.example"]
        [[auth]]
        id = "token"
        kind = "api-key"
        inject = [
          {{ set = {{ authorization = "Bearer {{key}}" }} }},
          {{ hosts = ["{host}"], basic = "x-access-token:{{key}}" }},
        ]
        [[auth]]
        id = "oauth"
        kind = "device"
        client_id = "client"
        device_authorization_endpoint = "https://forge.example/device"
        token_endpoint = "https://forge.example/token"
        inject = [{{ hosts = ["{host}"], basic = "oauth2:{{access_token}}" }}]
        """,
    )
    made.environ |= {
        "GIT_SSL_CAINFO": str(certificate_authority.ca_file),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }
    return made


def log_in(line: CommandLine, account: str = "default", key: str = TOKEN) -> None:
    done = line("login", "forge", "--method", "token", "--account", account, "--key", "-", "--no-verify", stdin=key)
    assert done.status == 0, done.err


def git(line: CommandLine, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *words], env=line.environ, cwd=cwd or line.home.parent, capture_output=True, text=True, check=False
    )


def asked(line: CommandLine, *attributes: str, operation: str = "get") -> dict[str, str]:
    done = line("helper", "git", operation, stdin="".join(f"{a}\n" for a in attributes) + "\n")
    assert done.status == 0, done.err
    return dict(answer.split("=", 1) for answer in done.out.splitlines())


def test_git_clones_commits_and_pushes_with_nothing_but_the_helper(
    line: CommandLine, forge: GitServer, tmp_path: Path
) -> None:
    log_in(line)
    (tmp_path / "user" / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    done = line("setup", "git", "--yes")
    assert done.status == 0, done.err
    cloned = git(line, "clone", "--quiet", f"{forge.url}/one.git", "copy")
    assert cloned.returncode == 0, cloned.stderr
    copy = tmp_path / "copy"
    (copy / "file").write_text("hello\n")
    assert git(line, "add", "file", cwd=copy).returncode == 0
    assert git(line, "commit", "--quiet", "-m", "first", cwd=copy).returncode == 0
    pushed = git(line, "push", "--quiet", "origin", "HEAD:main", cwd=copy)
    assert pushed.returncode == 0, pushed.stderr
    again = git(line, "clone", "--quiet", f"{forge.url}/one.git", "again")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "file").read_text() == "hello\n"
    # git gave the password to no helper that would have kept it (`store`), and wrote it nowhere.
    assert holding(TOKEN, tmp_path.rglob("*")) == []


def test_an_oauth_token_that_the_server_refuses_is_renewed_once(
    line: CommandLine, forge: GitServer, home: Path, authorization_server: AuthorizationServer
) -> None:
    toml = home / "providers" / "forge.toml"
    toml.write_text(toml.read_text().replace("https://forge.example/token", f"{authorization_server.url}/token"))
    renewed = "new-" + TOKEN
    forge.user, forge.password = "oauth2", renewed
    authorization_server.answers("/token", json={"access_token": renewed, "token_type": "bearer", "expires_in": 3600})
    store = open_store(Paths(home=home), clock=SystemClock(), key_source_kind="key-file")
    now = datetime.now(UTC)
    store.save(
        Record(
            ref=CredentialRef(provider="forge"),
            credential=OAuthToken(
                method="oauth",
                access_token=Secret("old-" + TOKEN),
                refresh_token=Secret("r" * 40),
                issued_at=now,
                expires_at=now + timedelta(hours=1),
            ),
            hosts=(forge.url.removeprefix("https://"),),
            endpoints=(authorization_server.url.removeprefix("http://"),),
            base_url=f"{forge.url}/api",
        )
    )
    store.close()
    assert line("setup", "git", "--yes").status == 0
    first = git(line, "clone", "--quiet", f"{forge.url}/one.git", "first")
    assert first.returncode != 0  # git asks once; the refusal is what renews
    assert git(line, "clone", "--quiet", f"{forge.url}/one.git", "second").returncode == 0
    assert len(authorization_server.calls("/token")) == 1
    answer = asked(line, "protocol=https", f"host={forge.url.removeprefix('https://')}")
    assert answer["password"] == renewed
    ends = datetime.fromtimestamp(int(answer["password_expiry_utc"]), UTC)
    assert timedelta(minutes=50) < ends - now < timedelta(minutes=70)
    # What is refused and is no longer in use renews nothing.
    asked(line, "protocol=https", f"host={forge.url.removeprefix('https://')}", "password=x", operation="erase")
    assert len(authorization_server.calls("/token")) == 1


def test_a_key_that_the_server_refuses_says_what_helps(line: CommandLine, forge: GitServer) -> None:
    log_in(line, key=OTHER)
    assert line("setup", "git", "--yes").status == 0
    refused = git(line, "clone", "--quiet", f"{forge.url}/one.git", "copy")
    assert refused.returncode != 0
    assert "valetkey login forge" in refused.stderr
    assert OTHER not in refused.stderr


def test_hosts_that_no_login_is_for_get_nothing_and_git_goes_on(line: CommandLine, forge: GitServer) -> None:
    log_in(line)
    host = forge.url.removeprefix("https://")
    for attributes in (
        ("protocol=https", "host=evil.example"),
        ("protocol=https", "host=api.forge.example"),  # a host of the login's, and none that takes Basic
        ("protocol=https", f"host={host}.evil.example"),
        ("protocol=https", "host="),
        ("protocol=ssh", f"host={host}"),
        ("protocol=https", f"host={host}", "wwwauth[]=Bearer realm=x", "wwwauth[]=Negotiate"),
        ("protocol=https", f"host={host}", "username=somebody-else"),
    ):
        assert asked(line, *attributes) == {}, attributes


def test_what_git_may_add_changes_nothing(line: CommandLine, forge: GitServer) -> None:
    log_in(line)
    host = forge.url.removeprefix("https://")
    for extra in (
        ("capability[]=authtype", "capability[]=state"),
        ("wwwauth[]=Bearer realm=x", 'wwwauth[]=basic realm="x"'),
        ("wwwauth[]=Bearer realm=x", "wwwauth[]="),
        ("path=owner/one.git", "ephemeral=1", "a-key-of-the-future=x=y"),
    ):
        answer = asked(line, "protocol=https", f"host={host.upper()}", *extra)
        assert answer == {"username": "x-access-token", "password": TOKEN}, extra
    assert asked(line, "protocol=https", f"host={host}", operation="store") == {}
    assert asked(line, "protocol=https", f"host={host}", operation="capability") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"protocol=https\nhost=github.com\0.evil.example\n\n",
        b"protocol=https\nhost=github.com\r\n\n",
        b"protocol=https\nhost\n\n",
        b"protocol=https\nhost=\xff\n\n",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(line: CommandLine, data: bytes) -> None:
    log_in(line)
    done = line("helper", "git", "get", stdin=data)
    assert (done.status, done.out) == (2, "")


def test_plain_http_is_for_logins_that_were_made_for_it(line: CommandLine, home: Path, tmp_path: Path) -> None:
    log_in(line)
    toml = home / "providers" / "forge.toml"
    host = toml.read_text().split('hosts = ["', 1)[1].split('"', 1)[0]
    done = line("helper", "git", "get", stdin=f"protocol=http\nhost={host}\n\n")
    assert (done.status, done.out) == (4, "")
    assert f"https://{host}" in done.err
    with git_server(tmp_path / "plain", user="x-access-token", password=OTHER, tls=None) as forge:
        forge.make("two.git")
        near = forge.url.removeprefix("http://")
        made = toml.read_text().replace("https://" + host, "http://" + near).replace(host, near)
        (home / "providers" / "near.toml").write_text(
            made.replace('"forge"', '"near"').replace("[api]", "[api]\nallow_http = true", 1)
        )
        login = line("login", "near", "--method", "token", "--key", "-", "--no-verify", stdin=OTHER)
        assert login.status == 0, login.err
        assert line("setup", "git", "near", "--yes").status == 0
        cloned = git(line, "clone", "--quiet", f"{forge.url}/two.git", "copy")
        assert cloned.returncode == 0, cloned.stderr


def test_user_and_path_choose_among_accounts(line: CommandLine, forge: GitServer) -> None:
    log_in(line)
    log_in(line, "Work", OTHER)
    place = ("protocol=https", f"host={forge.url.removeprefix('https://')}")
    assert asked(line, *place)["password"] == TOKEN
    assert asked(line, *place, "username=work")["password"] == OTHER
    assert asked(line, *place, "path=work/one.git")["password"] == OTHER
    assert asked(line, *place, "path=elsewhere/one.git")["password"] == TOKEN
    assert line("auth", "switch", "forge@Work").status == 0
    assert asked(line, *place)["password"] == OTHER
    assert asked(line, *place, "username=x-access-token")["password"] == OTHER


def test_a_restricted_login_is_refused_with_exit_status_4(line: CommandLine, forge: GitServer, home: Path) -> None:
    log_in(line)
    store = open_store(Paths(home=home), clock=SystemClock(), key_source_kind="key-file")
    record = store.load(CredentialRef(provider="forge"))
    assert record is not None
    store.save(replace(record, restricted=True))
    store.close()
    done = line("helper", "git", "get", stdin=f"protocol=https\nhost={forge.url.removeprefix('https://')}\n\n")
    assert (done.status, done.out) == (4, "")


def test_the_environment_serves_where_nothing_is_stored(home: Path) -> None:
    line = CommandLine(home=home, environ={"GH_TOKEN": TOKEN})
    assert asked(line, "protocol=https", "host=github.com") == {"username": "x-access-token", "password": TOKEN}
    done = line("helper", "git", "get", "--json", stdin="protocol=https\nhost=github.com\n\n")
    assert done.json["password"] == TOKEN
