"""The browser login with a port of this machine, which no container has a browser for: driven here without one."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

import httpx2
import pytest

from tests.support.oidc_provider import OidcProvider
from valetkey.cli.frame import State
from valetkey.cli.login import Wanted
from valetkey.cli.ways import go
from valetkey.credential import CredentialRef
from valetkey.errors import CompletionFailed, LoginDenied, LoginTimeout, UsageError
from valetkey.method_choice import Choice

DECLARATION = """
id = "web"
name = "Web"
[api]
base_url = "{issuer}"
hosts = ["{host}"]
allow_http = true
probe = {{ get = "{probe}" }}
[[auth]]
id = "browser"
kind = "authorization-code"
client_id = "{client_id}"
authorization_endpoint = "{authorization}"
token_endpoint = "{token}"
scope = ["openid", "offline_access"]
redirect = {{ loopback = {{ path = "/callback"{ports} }} }}
inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]
"""


def declare(home: Path, oidc: OidcProvider, ports: str = "") -> None:
    (home / "providers").mkdir(mode=0o700)
    text = DECLARATION.format(
        issuer=oidc.issuer,
        host=oidc.issuer.removeprefix("http://"),
        probe=oidc.probe_endpoint,
        client_id=oidc.client_id,
        authorization=oidc.authorization_endpoint,
        token=oidc.token_endpoint,
        ports=ports,
    )
    (home / "providers" / "web.toml").write_text(text)


def state() -> State:
    return State(environ={**os.environ, "VALETKEY_STORE_KEY_SOURCE": "key-file"})


def wanted(made: State, *, timeout_seconds: float = 60) -> Wanted:
    method = made.catalogue.get("web").auth[0]
    return Wanted(
        ref=CredentialRef(provider="web", account="me"),
        parameters={},
        given=None,
        from_environment=False,
        choice=Choice(method=method, way="loopback", open_browser=False),
        verify=True,
        timeout_seconds=timeout_seconds,
    )


async def address(capsys: pytest.CaptureFixture[str]) -> str:
    shown = ""
    while (found := re.search(r"http://\S+/auth\?\S+", shown)) is None:
        shown += capsys.readouterr().err
        await asyncio.sleep(0)
    return found[0]


async def bring(location: str) -> int:
    async with httpx2.AsyncClient(trust_env=False) as browser:
        return (await browser.get(location)).status_code


@pytest.mark.anyio
@pytest.mark.parametrize("deny", [False, True])
async def test_the_browsers_answer_ends_the_login(
    home: Path, oidc: OidcProvider, capsys: pytest.CaptureFixture[str], deny: bool
) -> None:
    declare(home, oidc)
    made = state()
    login = asyncio.create_task(go(made, made.catalogue.get("web"), wanted(made)))
    url = await address(capsys)
    location = await asyncio.to_thread(oidc.approve_in_browser, url, deny=deny)
    # A stranger's request is answered 400 and waited past.
    assert await bring(location.partition("?")[0] + "?code=x&state=foreign") == 400
    await bring(location)
    if deny:
        with pytest.raises((LoginDenied, CompletionFailed)):
            await login
        assert list(made.store.accounts()) == []
    else:
        account = await login
        assert str(account.ref) == "web@me"
        assert account.kind == "oauth-token"
    port = int(location.partition("127.0.0.1:")[2].partition("/")[0])
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    made.close()


@pytest.mark.anyio
async def test_a_browser_that_never_comes_back_is_a_time_limit(home: Path, oidc: OidcProvider) -> None:
    declare(home, oidc)
    made = state()
    with pytest.raises(LoginTimeout):
        await go(made, made.catalogue.get("web"), wanted(made, timeout_seconds=0.3))
    assert list(made.store.accounts()) == []
    made.close()


@pytest.mark.anyio
async def test_a_busy_port_leads_to_paste(home: Path, oidc: OidcProvider, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        declare(home, oidc, ports=f", ports = [{busy.getsockname()[1]}]")
        made = state()
        with pytest.raises(UsageError, match="is pasted"):
            await go(made, made.catalogue.get("web"), wanted(made))
    assert "paste the answer instead" in capsys.readouterr().err
    made.close()
