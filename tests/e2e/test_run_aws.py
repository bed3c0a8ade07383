"""boto3 and the aws command in a run, the real ones: they get keys of a role from moto's STS, and never see ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.aws_tools import put_into
from tests.support.command_line import ORDINARY, CommandLine
from tests.support.connect_proxy import ConnectProxy
from tests.support.gateway_process import end, kill
from tests.support.moto_process import Moto, moto
from tests.support.sts import Sts
from tests.support.tls import CertificateAuthority
from valetkey.clock import SystemClock
from valetkey.testing.canary import holding, holds
from valetkey.testing.command_line import Done
from valetkey.testing.place import PYTHON

HOST = "sts.us-east-1.amazonaws.com"
ROLE = "arn:aws:iam::123456789012:role/Reader"
PATIENCE_SECONDS = 120
# Of the form of AWS's, with the signs that URLs escape, and made at run time.
KEY_ID = "AKIA" + "CANARY" + os.urandom(5).hex().upper()
KEY = "valetkey+" + "canary/" + os.urandom(12).hex()
LOGIN = ("login", "aws", "--method", "keys", "--key", "-", "--no-verify")
KEYS = f"access_key_id={KEY_ID}\nsecret_access_key={KEY}\n"

# What is in environments, arguments and files, in plain, base64 (on three offsets) and URL form. The forms are put
# together here, so that this text is no hit itself.
SEARCH = r"""
import base64, os, sys
from urllib.parse import quote
marks = ["valetkey+" + "canary/", "AKIA" + "CANARY"]
forms = []
for mark in marks:
    forms += [mark.encode(), quote(mark, safe="").encode(), mark.lower().encode()]
    forms += [base64.b64encode(b"\0" * before + mark.encode())[4:-4] for before in range(3)]
hits, read = [], 0
def look(place, path):
    global read
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return
    read += 1
    if any(form in data for form in forms):
        hits.append(place)
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        look(f"{name} of {pid}", f"/proc/{pid}/{name}")
for top in ("/etc", "/home", "/opt", "/run", "/tmp", "/var", "/dev/shm", "/workspace"):
    for at, _, names in os.walk(top):
        for name in names:
            path = os.path.join(at, name)
            if os.path.isfile(path):
                look(path, path)
sys.stdout.write(f"{read} {len(hits)} {' '.join(hits)}\n")
"""
BOTO3 = """
import boto3, json, sys
sys.stdout.write(boto3.client("sts").get_caller_identity()["Arn"] + "\\n")
"""


@dataclass
class Place:
    """A home whose gateway reaches AWS's names by a proxy of the tests, and a workspace with the programs in it."""

    line: CommandLine
    workspace: Path
    aws: Moto
    outside: ConnectProxy

    def words(self, *more: str) -> list[str]:
        """Give the beginning of a run."""
        packages = ("--env", "PYTHONPATH=/workspace/packages", "--env", "PYTHONDONTWRITEBYTECODE=1")
        return ["run", "--grant", "aws", "--workspace", str(self.workspace), *packages, *more]

    def run(self, script: str, *more: str) -> Done:
        return self.line(*self.words(*more), "--", "sh", "-c", script, patience_seconds=PATIENCE_SECONDS)

    def log_in(self, *parameters: str) -> None:
        given = [word for parameter in parameters for word in ("--param", parameter)]
        done = self.line(*LOGIN, *given, stdin=KEYS)
        assert done.status == 0, done.err

    def only_run(self) -> str:
        (kept,) = self.line("runs", "list", "--json").json["runs"]
        return str(kept["id"])

    def shows(self, *said: str) -> list[str]:
        """Name where the account's keys are to be seen: in what was said, in what is kept of runs, in the trace."""
        found = []
        kept = [self.line.home / "trace.db", *(self.line.home / "runs").rglob("*"), *self.workspace.rglob("*")]
        for secret in (KEY, KEY_ID):
            found += [text[:40] for text in said if holds(secret, text.encode())]
            found += holding(secret, kept)
        return found


@pytest.fixture
def place(certificate_authority: CertificateAuthority, tmp_path: Path) -> Iterator[Place]:
    (workspace := tmp_path / "project").mkdir()
    put_into(workspace)
    (workspace / "search.py").write_text(SEARCH)
    (workspace / "identity.py").write_text(BOTO3)
    with contextlib.ExitStack() as stack:
        aws = stack.enter_context(moto(certificate_authority, HOST))
        outside = stack.enter_context(ConnectProxy({f"{HOST}:443": aws.port}))
        # Its path is short, so that sockets are in it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vk"))
        (home := Path(folder, "home")).mkdir(mode=0o700)
        authority = str(certificate_authority.ca_file)
        environ = {
            "HTTPS_PROXY": f"http://127.0.0.1:{outside.port}",
            "NO_PROXY": "127.0.0.1",
            # Of what the SDK asks outside, and of what is believed inside.
            "AWS_CA_BUNDLE": authority,
            "SSL_CERT_FILE": authority,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        line = CommandLine(home=home, through=ORDINARY, environ=environ)
        yield Place(line, workspace, aws, outside)
        end(line)


AWS_COMMAND = f"{PYTHON} -m awscli"


def test_boto3_and_the_aws_command_get_keys_of_the_role_and_ours_are_not_inside(place: Place) -> None:
    place.log_in(f"role_arn={ROLE}", "external_id=ext")
    script = f"{AWS_COMMAND} sts get-caller-identity --query Arn --output text && {PYTHON} identity.py"
    done = place.run(f"{script} && {PYTHON} search.py && env")
    assert done.status == 0, done.err
    run = place.only_run()
    by_command, by_boto3, searched, *_ = done.out.splitlines()
    assert by_command == by_boto3 == f"arn:aws:sts::123456789012:assumed-role/Reader/valetkey-{run}"
    # One role taken for both tools, with the account's own keys; they asked with what they were given.
    assert place.aws.asked("AssumeRole") == [
        {"action": "AssumeRole", "key_id": KEY_ID, "session": f"valetkey-{run}"},
    ]
    assert {call["key_id"][:4] for call in place.aws.asked("GetCallerIdentity")} == {"ASIA"}
    read, hits, *where = searched.split(" ")
    assert (hits, where) == ("0", [""])
    assert int(read) > 10
    assert place.shows(done.out, done.err) == []
    assert {head.split(b" ")[1] for head in place.outside.heads} == {f"{HOST}:443".encode()}
    entries = place.line("audit", "show", "--limit", "100", "--json").json["entries"]
    uses = {(entry["who"], entry["account"]) for entry in entries if entry["kind"] == "use"}
    assert uses == {(f"run:{run}", "aws@default")}
    rows = place.line("runs", "trace", run, "--json").json["requests"]
    assert ("GET", "/credentials", 200) in [(row["method"], row["path"], row["status"]) for row in rows]


def test_the_search_finds_what_it_looks_for(place: Place) -> None:
    place.log_in(f"role_arn={ROLE}")
    encoded = subprocess.run(["base64", "-w0"], input=f"x{KEY}".encode(), capture_output=True, check=True).stdout
    (place.workspace / "leak").write_bytes(b"some " + encoded)
    done = place.run(f"{PYTHON} search.py", "--env", f"LEAK={KEY_ID}")
    assert done.status == 0, done.err
    assert "environ of" in done.out
    assert "/workspace/leak" in done.out


def test_a_gateway_that_was_killed_is_followed_by_one_that_serves_the_same_run(place: Place) -> None:
    # By a profile this time: the SDK outside reads it.
    folder = Path(place.line.environ["HOME"], ".aws")
    folder.mkdir(parents=True)
    (folder / "config").write_text(
        f"[profile work]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {KEY}\nregion = us-east-1\n"
    )
    given = ("--param", f"role_arn={ROLE}", "--param", "profile=work")
    done = place.line("login", "aws", "--method", "role", *given, "--no-verify")
    assert done.status == 0, done.err
    before = len(place.aws.asked("AssumeRole"))
    script = f"{PYTHON} identity.py && until test -e go; do sleep 0.05; done; {PYTHON} identity.py; {PYTHON} search.py"
    process = subprocess.Popen(
        [*place.line.through, sys.executable, "-m", "valetkey", *place.words(), "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=place.line.environ,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        kill(place.line)
        assert place.line("up").status == 0
        (place.workspace / "go").touch()
        second, searched = process.stdout.readline(), process.stdout.readline()
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with process:
            process.wait(PATIENCE_SECONDS)
    assert first == second == f"arn:aws:sts::123456789012:assumed-role/Reader/valetkey-{place.only_run()}\n".encode()
    assert searched.split()[1] == b"0"
    taken = place.aws.asked("AssumeRole")[before:]
    assert {(call["key_id"], call["session"]) for call in taken} == {(KEY_ID, f"valetkey-{place.only_run()}")}
    assert len(taken) == 2, "what is in memory alone is asked for anew"
    assert place.shows(first.decode(), second.decode()) == []


def test_why_there_are_no_keys_is_what_the_aws_command_says(place: Place) -> None:
    with Sts(SystemClock()) as sts:
        place.line.environ["AWS_ENDPOINT_URL_STS"] = sts.url
        place.log_in(f"role_arn={ROLE}")
        sts.refusal = ("AccessDenied", 403)
        done = place.run(f"{AWS_COMMAND} sts get-caller-identity")
    assert done.status != 0
    assert "role_denied" in done.err
    assert f"may not take the role {ROLE} (AccessDenied)" in done.err
    assert "trust policy" in done.err
    assert place.shows(done.out, done.err) == []


def test_an_account_without_a_role_starts_no_run(place: Place) -> None:
    place.log_in()
    done = place.run("touch started")
    assert (done.status, done.out) == (1, "")
    assert "aws@default names no role" in done.err
    assert "valetkey login aws --param role_arn=" in done.err
    assert not (place.workspace / "started").exists()
    assert place.line("runs", "list", "--json").json == {"runs": []}
