"""`valetkey helper` for AWS's tools, Claude Code and docker: what each of them reads, from the real command line."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.session  # type: ignore[import-untyped]  # it ships no types
import pytest

from tests.support.command_line import CommandLine
from tests.support.forking import start_child, wait_for
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from valetkey.cli.fast import fast
from valetkey.cli.frame import run
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, CredentialRef, OAuthToken, Secret
from valetkey.store import Record, Store
from valetkey.stores import open_store
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.canary import holding
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply

CLAUDE = Path(__file__).parents[2] / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64" / "claude"
KEY = "lab-" + "k3y" * 12
VENDED = (
    'expires_at = "/ends", '
    'values = { access_key_id = "/id", secret_access_key = "/secret", session_token = "/session" }'
)


@pytest.fixture
def line(home: Path, authorization_server: AuthorizationServer) -> CommandLine:
    made = CommandLine(home=home)
    made.declare(
        "lab",
        f"""
        [api]
        base_url = "https://lab.example/v1"
        hosts = ["lab.example", "registry.lab.example:5000"]
        [[auth]]
        id = "token"
        kind = "api-key"
        inject = [{{ basic = "lab:{{key}}" }}]
        [[auth]]
        id = "oauth"
        kind = "device"
        client_id = "client"
        device_authorization_endpoint = "{authorization_server.url}/device"
        token_endpoint = "{authorization_server.url}/token"
        inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]
        [[auth]]
        id = "vending"
        kind = "cloud"
        source = {{ kind = "command", command = ["cat", "{home}/vended"], json = true, VALUES }}
        inject = []
        """.replace("VALUES", VENDED),
    )
    return made


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    opened = open_store(Paths(home=home), clock=SystemClock(), key_source_kind="key-file")
    yield opened
    opened.close()


def save(
    store: Store, credential: Credential, *, renews_at: AuthorizationServer | None = None, restricted: bool = False
) -> None:
    store.save(
        Record(
            ref=CredentialRef(provider="lab"),
            credential=credential,
            hosts=("lab.example", "registry.lab.example:5000"),
            endpoints=() if renews_at is None else (renews_at.url.removeprefix("http://"),),
            base_url="https://lab.example/v1",
            restricted=restricted,
        )
    )


def oauth(*, left: float, life: float = 3600, renewable: bool = True) -> OAuthToken:
    ends = datetime.now(UTC) + timedelta(seconds=left)
    return OAuthToken(
        method="oauth",
        access_token=Secret("old-token"),
        refresh_token=Secret("refresh") if renewable else None,
        issued_at=ends - timedelta(seconds=life),
        expires_at=ends,
    )


# --- AWS -------------------------------------------------------------------------------------


def vend(line: CommandLine, *, left: float | None, identity: str = "1") -> None:
    ends = None if left is None else (datetime.now(UTC) + timedelta(seconds=left)).isoformat()
    (line.home / "vended").write_text(
        json.dumps(
            {"id": f"ASIA{identity}", "secret": f"secret-{identity}", "session": f"session-{identity}", "ends": ends}
        )
    )


def test_botocore_takes_the_keys_and_asks_again_before_they_end(
    line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vend(line, left=3600)
    assert line("login", "lab", "--method", "vending", "--no-verify").status == 0
    config = tmp_path / "aws-config"
    done = line("setup", "aws", "lab", "--profile", "work", "--yes", environ={"AWS_CONFIG_FILE": str(config)})
    assert done.status == 0, done.err
    for name, value in {**line.environ, "AWS_CONFIG_FILE": str(config)}.items():
        monkeypatch.setenv(name, value)
    credentials = botocore.session.Session(profile="work").get_credentials()
    assert credentials is not None
    assert credentials.method == "custom-process"
    first = credentials.get_frozen_credentials()
    assert (first.access_key, first.secret_key, first.token) == ("ASIA1", "secret-1", "session-1")
    # Within 15 minutes of the end botocore asks anew; the second vending is found then.
    credentials._expiry_time = datetime.now(UTC) + timedelta(minutes=9)
    vend(line, left=3600, identity="2")
    assert credentials.get_frozen_credentials().access_key == "ASIA2"


def test_keys_that_do_not_change_have_no_end(line: CommandLine) -> None:
    keys = f"access_key_id=AKIA{'A' * 16}\nsecret_access_key={'s' * 40}\n"
    assert line("login", "aws", "--method", "keys", "--key", "-", "--no-verify", stdin=keys).status == 0
    assert line("helper", "aws", "aws").json == {
        "Version": 1,
        "AccessKeyId": "AKIA" + "A" * 16,
        "SecretAccessKey": "s" * 40,
    }


def test_what_is_wrong_is_told_on_stderr_with_a_status_of_its_kind(line: CommandLine) -> None:
    vend(line, left=3600)
    assert line("login", "lab", "--method", "vending", "--no-verify").status == 0
    cases = []
    vend(line, left=100)
    cases.append((line("helper", "aws", "lab"), 3, "ends in less than 5 minutes"))
    (line.home / "vended").write_text("{}")
    cases.append((line("helper", "aws", "lab"), 1, "the source of lab gave nothing"))
    cases.append((line("helper", "aws", "aws@nobody"), 3, "valetkey login aws"))
    line("login", "openai", "--key", "-", "--no-verify", stdin="sk-" + "a" * 40)
    cases.append((line("helper", "aws", "openai"), 4, "holds no access key id"))
    for done, status, words in cases:
        assert (done.status, done.out) == (status, ""), done.err
        assert words in done.err


# --- Claude Code -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "life", "short_way"),
    [
        (3600, 3600, True),
        (1000, 3600, True),
        (800, 3600, False),  # due for renewal: a quarter of its life is left
        (365, 720, True),
        (355, 720, False),
        (400, 600, True),
        (340, 600, False),  # fresh for `token`, and too short for a tool that keeps it
        (-10, 3600, False),
    ],
)
def test_the_short_way_gives_nothing_that_ends_within_six_minutes(
    store: Store, capsys: pytest.CaptureFixture[str], left: float, life: float, short_way: bool
) -> None:
    save(store, oauth(left=left, life=life))
    assert fast(["helper", "claude", "lab"]) == (0 if short_way else None)
    assert capsys.readouterr().out == ("old-token\n" if short_way else "")
    if left == 340:
        assert fast(["token", "lab"]) == 0


def test_the_short_way_of_the_helper_imports_nothing_heavy(store: Store) -> None:
    save(store, ApiKey(method="token", key=Secret(KEY)))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "valetkey", "helper", "claude", "lab"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout == f"{KEY}\n"
    imported = {row.rsplit("|", 1)[-1].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}
    heavy = {"click", "asyncio", "httpx2", "dataclasses", "tomllib", "logging", "keyring", "socket", "subprocess"}
    assert imported & heavy == set()


def renewing(server: AuthorizationServer, *, expires_in: int = 3600) -> None:
    count = 0

    def renewed(_: Received) -> Reply:
        nonlocal count
        count += 1
        body = {"access_token": f"new-{count}", "refresh_token": f"r-{count}", "expires_in": expires_in}
        return Answer(headers={"content-type": "application/json"}, body=json.dumps(body).encode())

    server.replies("/token", renewed)


@pytest.mark.parametrize("left", [300, 30, -60])
def test_what_would_end_too_soon_is_renewed_first(
    line: CommandLine, store: Store, authorization_server: AuthorizationServer, left: float
) -> None:
    renewing(authorization_server)
    save(store, oauth(left=left), renews_at=authorization_server)
    done = line("helper", "claude", "lab")
    assert (done.status, done.out) == (0, "new-1\n"), done.err
    assert len(authorization_server.calls("/token")) == 1


def test_what_cannot_be_renewed_or_not_for_long_enough_is_an_error(
    line: CommandLine, store: Store, authorization_server: AuthorizationServer
) -> None:
    save(store, oauth(left=300, renewable=False))
    done = line("helper", "claude", "lab")
    assert (done.status, done.out) == (3, "")
    assert "ends in less than 6 minutes" in done.err
    renewing(authorization_server, expires_in=240)
    store.delete(CredentialRef(provider="lab"))
    save(store, oauth(left=300), renews_at=authorization_server)
    done = line("helper", "claude", "lab")
    assert (done.status, done.out) == (3, "")
    authorization_server.forget("/token")
    authorization_server.answers("/token", status=503)
    store.delete(CredentialRef(provider="lab"))
    save(store, oauth(left=300), renews_at=authorization_server)
    done = line("helper", "claude", "lab")
    assert (done.status, done.out) == (1, "")


def test_a_hundred_calls_at_once_make_one_renewal(
    store: Store, line: CommandLine, authorization_server: AuthorizationServer, tmp_path: Path
) -> None:
    renewing(authorization_server)
    save(store, oauth(left=300), renews_at=authorization_server)
    store.close()

    def call(number: int) -> None:
        out = os.open(tmp_path / f"out-{number}", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        sys.stdout = os.fdopen(1, "w")
        status = fast(["helper", "claude", "lab"])
        status = run(["helper", "claude", "lab"], environ=line.environ) if status is None else status
        sys.stdout.flush()
        os._exit(status)

    children = [start_child(lambda n=number: call(n)) for number in range(100)]  # type: ignore[misc]  # n is a default
    assert [wait_for(child) for child in children] == [0] * 100
    assert {(tmp_path / f"out-{number}").read_text() for number in range(100)} == {"new-1\n"}
    assert len(authorization_server.calls("/token")) == 1


def test_without_a_name_it_is_the_provider_that_names_the_tool(line: CommandLine) -> None:
    line("login", "anthropic", "--method", "api-key", "--key", "-", "--no-verify", stdin=KEY)
    assert line("helper", "claude").out == f"{KEY}\n"
    told = line("helper", "claude", "--json").json
    assert (told["provider"], told["key"], told["expires_at"]) == ("anthropic", KEY, None)


def test_a_login_that_is_only_for_its_own_client_is_refused(line: CommandLine, store: Store) -> None:
    save(store, ApiKey(method="token", key=Secret(KEY)), restricted=True)
    done = line("helper", "claude", "lab")
    assert (done.status, done.out) == (4, "")


@pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code has no build for this machine")
def test_claude_code_takes_its_key_from_the_helper(line: CommandLine, aimock: ApiMock, tmp_path: Path) -> None:
    login = line("login", "anthropic", "--method", "api-key", "--key", "-", "--no-verify", stdin=aimock.api_key)
    assert login.status == 0, login.err
    done = line("setup", "claude", "--yes")
    assert done.status == 0, done.err
    environ = {
        **line.environ,
        "ANTHROPIC_BASE_URL": aimock.url,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }
    said = subprocess.run(
        [str(CLAUDE), "-p", "Say hello."],
        env=environ,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert aimock.reply in said.stdout, said.stdout + said.stderr
    assert holding(aimock.api_key, (tmp_path / "user").rglob("*")) == []


# --- docker ----------------------------------------------------------------------------------


def docker(line: CommandLine, operation: str, given: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-credential-valetkey", path=str(Path(sys.executable).parent))
    assert program is not None
    return subprocess.run(
        [program, operation], input=given, env=line.environ, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "server", ["registry.lab.example:5000", "https://registry.lab.example:5000/v2/", "Registry.Lab.Example:5000/team\n"]
)
def test_docker_gets_user_and_password_for_its_registry(line: CommandLine, store: Store, server: str) -> None:
    save(store, ApiKey(method="token", key=Secret(KEY)))
    done = docker(line, "get", server)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ServerURL": server.strip(), "Username": "lab", "Secret": KEY}


def test_docker_is_told_in_its_own_words_that_there_is_none(line: CommandLine, store: Store) -> None:
    save(store, ApiKey(method="token", key=Secret(KEY)))
    for server in ("https://index.docker.io/v1/", "registry.lab.example.evil.example", "ftp://lab.example", "[", "@"):
        done = docker(line, "get", server)
        assert (done.returncode, done.stdout) == (1, "credentials not found in native keychain\n"), server
    done = docker(line, "get", "")
    assert (done.returncode, done.stdout) == (2, "no credentials server URL\n")
    done = docker(line, "get", "http://lab.example")
    assert done.returncode == 4
    assert KEY not in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker's command is not here")
def test_docker_itself_sends_what_the_helper_gives(
    line: CommandLine, tmp_path: Path, certificate_authority: CertificateAuthority
) -> None:
    def respond(request: Received) -> Reply:
        known = "authorization" in request.headers
        return Answer(status=404 if known else 401, headers={} if known else {"www-authenticate": 'Basic realm="x"'})

    with LocalServer(respond, tls=certificate_authority.context()) as registry:
        host = registry.url.removeprefix("https://")
        toml = line.home / "providers" / "lab.toml"
        toml.write_text(toml.read_text().replace("registry.lab.example:5000", host))
        login = line("login", "lab", "--method", "token", "--key", "-", "--no-verify", stdin=KEY)
        assert login.status == 0, login.err
        done = line("setup", "docker", "lab", "--yes")
        assert done.status == 0, done.err
        environ = {
            **line.environ,
            "PATH": f"{Path(sys.executable).parent}:{line.environ['PATH']}",
            "SSL_CERT_FILE": str(certificate_authority.ca_file),
        }
        subprocess.run(
            ["docker", "manifest", "inspect", f"{host}/team/image:latest"],
            env=environ,
            capture_output=True,
            check=False,
            timeout=120,
        )
    pair = base64.b64encode(f"lab:{KEY}".encode()).decode()
    sent = [request.headers.get("authorization") for request in registry.requests if "manifests" in request.path]
    assert sent
    assert set(sent) == {f"Basic {pair}"}


def test_docker_may_keep_what_is_kept_anyway_and_nothing_else(line: CommandLine, store: Store) -> None:
    save(store, ApiKey(method="token", key=Secret(KEY)))
    same = {"ServerURL": "registry.lab.example:5000", "Username": "lab", "Secret": KEY}
    done = docker(line, "store", json.dumps(same))
    assert (done.returncode, done.stdout) == (0, "")
    for other in ({**same, "Secret": "x"}, {**same, "Username": "x"}, {**same, "ServerURL": "elsewhere.example"}):
        done = docker(line, "store", json.dumps(other))
        assert (done.returncode, done.stdout) == (1, "valetkey does not store logins for docker\n")
    assert docker(line, "store", "{}").returncode == 2
    assert docker(line, "erase", "registry.lab.example:5000").returncode == 1
    assert docker(line, "nonsense", "").returncode == 2
    assert json.loads(docker(line, "list", "").stdout) == {
        "lab.example": "lab@default",
        "registry.lab.example:5000": "lab@default",
    }
    assert docker(line, "version", "").stdout.startswith("docker-credential-valetkey ")
