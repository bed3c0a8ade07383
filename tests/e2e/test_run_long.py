"""A run that is longer than the credential it asks with lives: half an hour under `make soak`, three minutes else."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.oidc_provider import OidcProvider, oidc_provider

SECONDS = 1800 if os.environ.get("VALETKEY_SOAK") else 180
TOKEN_SECONDS = 60
# Once a second, as the clock has it: what a request took is no pause.
ASKING = """
import http.client, sys, time
begun = time.monotonic()
for second in range(int(sys.argv[1])):
    time.sleep(max(0.0, begun + second - time.monotonic()))
    connection = http.client.HTTPConnection("127.0.0.1", 3128, timeout=60)
    connection.request("GET", "/idp/probe")
    print(connection.getresponse().status, flush=True)
    connection.close()
"""


@pytest.fixture
def idp() -> Iterator[OidcProvider]:
    """A server that takes a refresh token once; the second time it ends the login."""
    with oidc_provider(access_token_seconds=TOKEN_SECONDS) as running:
        yield running


def log_in(line: CommandLine, idp: OidcProvider) -> None:
    host = idp.issuer.removeprefix("http://")
    line.declare(
        "idp",
        f'[api]\nbase_url = "{idp.issuer}"\nhosts = ["{host}"]\ndialect = "none"\nallow_http = true\n'
        'probe = { get = "/probe" }\n[[auth]]\nid = "device"\nkind = "device"\n'
        f'client_id = "{idp.client_id}"\ndevice_authorization_endpoint = "{idp.device_authorization_endpoint}"\n'
        f'token_endpoint = "{idp.token_endpoint}"\nscope = ["openid", "offline_access"]\n'
        'inject = [{ set = { authorization = "Bearer {access_token}" } }]\n',
    )
    with line.terminal("login", "idp", environ={"TERM": "dumb", "LINES": "60"}) as terminal:
        terminal.expect("and enter the code")
        while (code := re.search(r"enter the code\s+([A-Z0-9]{4}-?[A-Z0-9]{4})\s", terminal.shown)) is None:
            terminal.expect("\n")
        idp.approve_device(code[1])
        terminal.expect("Logged in to idp@default.")
        assert terminal.end() == 0


@pytest.mark.beside
@pytest.mark.timeout(SECONDS + 180)
def test_no_request_of_a_long_run_fails_while_its_credential_ends_again_and_again(
    line: CommandLine, idp: OidcProvider, tmp_path: Path
) -> None:
    log_in(line, idp)
    idp.reset_counts()
    words = ("run", "--grant", "idp", "--workspace", str(tmp_path), "--", "/usr/bin/python3", "-c", ASKING)
    begun = time.monotonic()
    done = line(*words, str(SECONDS), patience_seconds=SECONDS + 120)
    took = int(time.monotonic() - begun)
    counts = idp.counts()
    assert (done.status, done.err) == (0, "")
    assert Counter(done.out.split()) == {"200": SECONDS}
    assert counts.probe == SECONDS, "none was asked twice, for none was refused"
    assert (counts.errors, counts.revoked_grants) == ({}, 0)
    # Renewed at half its life, and at most that often.
    renewals = range(SECONDS // TOKEN_SECONDS, took // (TOKEN_SECONDS // 2) + 2)
    assert counts.refreshes in renewals
    print(f"\na run of {SECONDS} s: {SECONDS} answers, {counts.refreshes} renewals, none failed")  # noqa: T201  # soak's figures
