"""Cloud logins: parameters, and sources that are read at each use."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.declarations import BEARER_TOKEN, PROJECT, REGION, ambient, flow, method
from valetkey.credential import Ambient, ApiKey, Identity, Secret
from valetkey.errors import InvalidParameter, RefreshNotSupported, SourceFailed
from valetkey.flow import AuthFlow, EnterFields
from valetkey.http import HttpClient
from valetkey.provider import AuthMethod, Parameter, Source
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import START, FakeClock

TOKEN = "gho_" + "t" * 36
Begin = Callable[..., AuthFlow]


@pytest.fixture
def begin(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> Begin:
    def made(declared: AuthMethod, environ: dict[str, str] | None = None) -> AuthFlow:
        everything = {**os.environ, **(environ or {})}
        return flow(declared, authorization_server.url, http=http, clock=clock, environ=everything)

    return made


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def made(text: str) -> str:
        path = tmp_path / "tool"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        return str(path)

    return made


Script = Callable[[str], str]


async def read(subject: AuthFlow, answer: dict[str, str] | None = None) -> Ambient:
    credential = await subject.complete(await subject.initiate(), answer or {})
    assert isinstance(credential, Ambient)
    return credential


@pytest.mark.anyio
async def test_a_clouds_key_has_parameters(begin: Begin) -> None:
    subject = begin(method("cloud", "http://x"))
    pending = await subject.initiate()
    assert isinstance(pending.action, EnterFields)
    assert pending.action.purpose == "cloud"
    assert [f.key for f in pending.action.fields] == ["project", "region", "key"]
    credential = await subject.complete(pending, {"key": "k" * 30, "project": "abc"})
    assert credential == ApiKey(method="cloud", key=Secret("k" * 30), parameters={"project": "abc", "region": "here"})
    with pytest.raises(RefreshNotSupported):
        await subject.refresh(credential)


@pytest.mark.anyio
async def test_a_command_is_read_at_each_use(
    authorization_server: AuthorizationServer, begin: Begin, script: Script, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\nsecond line\n")
    subject = begin(ambient(script(f"cat {token}")))
    pending = await subject.initiate()
    assert isinstance(pending.action, EnterFields)
    assert pending.action.fields == ()
    credential = await read(subject)
    assert credential.values == {"key": Secret(TOKEN)}
    assert credential.pointer().values == {}
    assert credential.issued_at == START
    token.write_text("another\n")
    renewed = await subject.refresh(credential)
    assert isinstance(renewed, Ambient)
    assert renewed.values == {"key": Secret("another")}
    authorization_server.answers("/api/probe", json={"name": "Ann"})
    assert await subject.validate(credential.pointer()) == Identity(name="Ann")
    assert authorization_server.calls("/api/probe")[0].headers["authorization"] == "Bearer another"


@pytest.mark.anyio
async def test_a_command_gets_parameters_as_words(begin: Begin, script: Script) -> None:
    name = Parameter(key="host", label="Host", pattern=".*")
    declared = replace(ambient(script('printf "%s" "$2"'), "--host", "{host}"), parameters=(name,))
    assert (await read(begin(declared), {"host": "a;b$(c)"})).values == {"key": Secret("a;b$(c)")}


@pytest.mark.anyio
async def test_a_command_may_print_json(begin: Begin, script: Script) -> None:
    said = json.dumps({"token": {"value": TOKEN}, "ends": "2026-11-22T13:00:00Z"})
    source = Source(
        kind="command",
        command=(script(f"echo '{said}'"),),
        json=True,
        values={"access_token": "/token/value"},
        expires_at="/ends",
    )
    credential = await read(begin(replace(ambient("x"), source=source)))
    assert credential.values == {"access_token": Secret(TOKEN)}
    assert credential.expires_at == START + timedelta(hours=1)


@pytest.mark.anyio
async def test_a_source_may_have_a_fixed_life(begin: Begin, script: Script) -> None:
    source = Source(kind="command", command=(script("echo abc"),), life_seconds=60)
    credential = await read(begin(replace(ambient("x"), source=source)))
    assert credential.expires_at == START + timedelta(seconds=60)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 4", "status 4"),
        ("echo secret-on-stderr >&2; exit 1", "status 1"),
        ("true", "nothing that is a credential"),
        ("printf '\\n\\n'", "nothing that is a credential"),
        ("printf 'a\\001b'", "nothing that is a credential"),
        ("printf '\\377'", "nothing that is a credential"),
    ],
)
async def test_a_command_that_gives_nothing_says_so(begin: Begin, script: Script, text: str, message: str) -> None:
    with pytest.raises(SourceFailed, match=message) as caught:
        await read(begin(ambient(script(text))))
    assert "secret-on-stderr" not in str(caught.value.as_dict())


@pytest.mark.anyio
async def test_a_tool_that_is_not_installed_is_named(begin: Begin) -> None:
    with pytest.raises(SourceFailed, match="no-such-tool cannot be started"):
        await read(begin(ambient("no-such-tool", "auth", "token")))


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["not json", "[]", '{"token": 5}', '{"token": "a\\nb"}', "{}", "[" * 50_000])
async def test_rubbish_in_place_of_json_says_so(begin: Begin, tmp_path: Path, text: str) -> None:
    said = tmp_path / "said"
    said.write_text(text)
    source = Source(kind="file", file=str(said), json=True, values={"key": "/token"})
    with pytest.raises(SourceFailed):
        await read(begin(replace(ambient("x"), source=source)))


@pytest.mark.anyio
async def test_a_cancelled_login_ends_the_command(begin: Begin, script: Script, tmp_path: Path) -> None:
    """The pipe is closed when its last writer is gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = script(f"exec 3> {pipe}; echo started >&3; tail -f /dev/null; echo not reached")
    task = asyncio.create_task(read(begin(ambient(command))))
    reading = await asyncio.to_thread(pipe.open)
    with reading:
        assert await asyncio.to_thread(reading.readline) == "started\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(reading.read) == ""


@pytest.mark.anyio
async def test_a_file_is_found_below_home_or_where_a_variable_says(begin: Begin, tmp_path: Path) -> None:
    home = tmp_path / "someone"
    home.mkdir()
    (home / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "other").write_text("other\n")
    source = Source(kind="file", file="~/token", variable="TEST_TOKEN_FILE")
    declared = replace(ambient("x"), source=source)
    assert (await read(begin(declared, {"HOME": str(home)}))).values == {"key": Secret(TOKEN)}
    environ = {"HOME": str(home), "TEST_TOKEN_FILE": str(tmp_path / "other")}
    assert (await read(begin(declared, environ))).values == {"key": Secret("other")}
    with pytest.raises(SourceFailed, match="no such file"):
        await read(begin(declared, {"HOME": str(tmp_path)}))


@pytest.mark.anyio
async def test_an_ambient_login_takes_no_key(begin: Begin, script: Script) -> None:
    with pytest.raises(InvalidParameter):
        await read(begin(ambient(script("echo abc"))), {"key": "x"})


# --- Google and AWS, with their own libraries against a server here -------------------------------


@pytest.mark.anyio
async def test_google_gives_a_token_for_its_default_credentials(
    authorization_server: AuthorizationServer, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = tmp_path / "account.json"
    account.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "robot@project.example",
                "private_key_id": "1",
                "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
                "token_uri": f"{authorization_server.url}/google",
                "project_id": "project",
            }
        )
    )
    authorization_server.answers("/google", json={"access_token": "ya29." + "g" * 40, "expires_in": 3600})
    source = Source(kind="gcloud-adc", scope=("https://www.googleapis.com/auth/cloud-platform",))
    declared = replace(ambient("x"), inject=BEARER_TOKEN, source=source, parameters=(PROJECT, REGION))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    subject = begin(declared)
    credential = await read(subject, {"project": "abc"})
    assert credential.values == {"access_token": Secret("ya29." + "g" * 40)}
    assert credential.expires_at is not None
    assert credential.parameters == {"project": "abc", "region": "here"}
    authorization_server.forget("/google")
    authorization_server.answers("/google", status=400, json={"error": "invalid_grant"})
    with pytest.raises(SourceFailed, match="gave no token"):
        await subject.refresh(credential)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    with pytest.raises(SourceFailed) as caught:
        await read(begin(declared), {"project": "abc"})
    assert "application-default login" in caught.value.hint


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authorization_server: AuthorizationServer) -> None:
    """Put a profile where boto3 looks, and STS at the server here."""
    config = tmp_path / "aws"
    config.write_text(f"[profile work]\naws_access_key_id = AKIA{'A' * 16}\naws_secret_access_key = {'s' * 40}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"{authorization_server.url}/sts")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


ROLE = "arn:aws:iam::123456789012:role/Test"
PROFILE = Parameter(key="profile", label="Profile", required=False)
AWS_REGION = Parameter(key="region", label="Region", default="eu-west-1")


@pytest.mark.anyio
@pytest.mark.usefixtures("aws")
async def test_aws_gives_the_keys_of_a_profile(begin: Begin) -> None:
    declared = replace(ambient("x"), source=Source(kind="aws-profile"), parameters=(PROFILE, AWS_REGION))
    credential = await read(begin(declared), {"profile": "work"})
    assert credential.values == {
        "access_key_id": Secret("AKIA" + "A" * 16),
        "secret_access_key": Secret("s" * 40),
        "session_token": Secret(""),
    }
    with pytest.raises(SourceFailed):
        await read(begin(declared), {"profile": "nobody"})
    with pytest.raises(SourceFailed, match="no credentials"):
        await read(begin(declared))


ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>session</SessionToken>
<Expiration>2026-11-22T13:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
DENIED = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"


@pytest.mark.anyio
@pytest.mark.usefixtures("aws")
async def test_aws_gives_the_keys_of_a_role(authorization_server: AuthorizationServer, begin: Begin) -> None:
    role = Parameter(key="role_arn", label="Role")
    external = Parameter(key="external_id", label="External id", required=False)
    duration = Parameter(key="duration_seconds", label="Duration", default="900")
    parameters = (role, PROFILE, external, duration, AWS_REGION)
    declared = replace(ambient("x"), source=Source(kind="aws-role"), parameters=parameters)
    authorization_server.answers("/sts", text=ASSUMED.format(secret="s" * 40), content_type="text/xml")
    asked = {"role_arn": ROLE, "profile": "work", "external_id": "ext"}
    credential = await read(begin(declared), asked)
    assert credential.values["session_token"] == Secret("session")
    assert credential.expires_at == datetime(2026, 11, 22, 13, tzinfo=UTC)
    sent = authorization_server.calls("/sts")[0].form
    assert {name: sent[name] for name in ("RoleArn", "ExternalId", "DurationSeconds", "RoleSessionName")} == {
        "RoleArn": ROLE,
        "ExternalId": "ext",
        "DurationSeconds": "900",
        "RoleSessionName": "valetkey",
    }
    authorization_server.forget("/sts")
    authorization_server.answers("/sts", status=403, text=DENIED, content_type="text/xml")
    with pytest.raises(SourceFailed) as caught:
        await read(begin(declared), asked)
    assert "trust policy" in caught.value.hint


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("module", "kind", "extra"), [("boto3", "aws-profile", "aws"), ("google.auth", "gcloud-adc", "google")]
)
async def test_an_extra_that_is_missing_is_named(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, module: str, kind: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    source = Source(kind=kind)  # type: ignore[arg-type]  # a table's
    with pytest.raises(SourceFailed, match="needs the package") as caught:
        await read(begin(replace(ambient("x"), source=source)))
    assert caught.value.hint == f"pip install 'valetkey[{extra}]'"
