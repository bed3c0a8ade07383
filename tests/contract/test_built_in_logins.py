"""Every built-in login, whole: the declaration as it is, with its hosts pointed at a server here.

Nothing here knows a provider: what the server answers is made from the declaration. So this shows that a declaration
and its flow fit together, not that the provider's real server agrees.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.declarations import jwt
from valetkey.config import Paths
from valetkey.credential import Credential, CredentialRef, ExchangedKey, OAuthToken
from valetkey.flow import EnterFields, OpenBrowser, PendingAuthorization
from valetkey.flows import flow_for
from valetkey.http import HttpClient
from valetkey.inject import fill, join, reach
from valetkey.login import Logins, poll_until_complete
from valetkey.pointer import look_up
from valetkey.provider import AuthMethod, Provider
from valetkey.providers import BUILT_IN, catalogue
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer
from valetkey.testing.memory_store import MemoryStore

PROVIDERS = [catalogue(Paths(home=Path("/nonexistent"))).get(path.stem) for path in sorted(BUILT_IN.glob("*.toml"))]
# A source is this machine's, not the provider's; it has tests of its own.
LOGINS = [(p, m) for p in PROVIDERS for m in p.auth if m.source is None]
EXAMPLES = ("my-project-1", "github.com", "k" * 40, "A" * 20)
KEY = "key-" + "k" * 40

pytestmark = pytest.mark.anyio


def pointed_at(value: Any, url: str) -> Any:
    """Give the declaration with `url` before every host: https://x/y becomes http://127.0.0.1:port/x/y."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: pointed_at(getattr(value, f.name), url) for f in dataclasses.fields(value)}
        hosts = {"hosts": (urlsplit(url).netloc,)} if changed.get("hosts") else {}
        return replace(value, **{**changed, **hosts})
    if isinstance(value, str):
        return re.sub(r"https?://", f"{url}/", value)
    if isinstance(value, tuple):
        return tuple(pointed_at(v, url) for v in value)
    if isinstance(value, Mapping):
        return {k: pointed_at(v, url) for k, v in value.items()}
    return value


def put(document: dict[str, Any], pointer: str | None, value: object) -> None:
    """Set what the pointer names, with lists where it has numbers."""
    if pointer is None:
        return
    parts = [p.replace("~1", "/").replace("~0", "~") for p in pointer.lstrip("/").split("/")]
    for index, part in enumerate(parts):
        if part.isdecimal():
            return
        if index == len(parts) - 1 or parts[index + 1].isdecimal():
            document[part] = value
            return
        document = document.setdefault(part, {})


def example(parameter: Any) -> str:
    wanted = parameter.pattern or ".*"
    return next((e for e in EXAMPLES if re.fullmatch(wanted, e)), "")


def token_answer(method: AuthMethod) -> dict[str, Any]:
    claims: dict[str, Any] = {"sub": "u1", "exp": 4_000_000_000}
    for pointer in (*method.claims.account_id, *method.claims.email) if method.claims else ():
        put(claims, pointer, "account-1")
    answer: dict[str, Any] = {
        "access_token": jwt(claims) if method.token.expires_from == "access_token" else "at-" + "a" * 40,
        "refresh_token": "rt-" + "r" * 40,
        "id_token": jwt(claims),
        "expires_in": 3600,
    }
    put(answer, method.token.key, KEY)
    return answer


def prepare(server: AuthorizationServer, provider: Provider, method: AuthMethod, parameters: Mapping[str, str]) -> None:
    """Answer at every address of the declaration as it says that its server does."""

    def answers(address: str | None, body: object, *, status: int = 200) -> None:
        if address:
            content = json.dumps(body).encode()
            path = urlsplit(fill(address, parameters)).path
            server.replies(path, Answer(status=status, headers={"content-type": "application/json"}, body=content))

    device = method.device
    codes = {"device_code": "dc", "user_code": "ABCD", "verification_uri": "https://x.example/", "interval": "5"}
    answers(
        method.device_authorization_endpoint,
        {device.fields.get(name, (name,))[-1]: value for name, value in codes.items()},
    )
    if device.poll:
        answers(device.poll, {"error": {"code": "unknown"}}, status=(*method.token.pending_status, 400)[0])
        answers(device.poll, {"authorization_code": "the-code", "code_verifier": "the-verifier"})
    elif method.kind in ("device", "device-exchange"):
        answers(
            method.token_endpoint, {"error": "authorization_pending"}, status=200 if method.token.errors_in_200 else 400
        )
    answers(method.token_endpoint, token_answer(method))
    base_url, _ = reach(provider, method, parameters)
    if method.exchange is not None:
        bought: dict[str, Any] = {}
        put(bought, method.exchange.key, KEY)
        put(bought, method.exchange.refresh_in, 1500)
        put(bought, method.exchange.base_url, base_url)
        answers(method.exchange.get or method.exchange.post, bought)
    if method.create_key is not None:
        created: dict[str, Any] = {}
        put(created, method.create_key.key, KEY)
        answers(method.create_key.post, created)
    probe = method.probe or provider.api.probe
    if probe is not None:
        whose: dict[str, Any] = {}
        for pointer in (probe.name, probe.email, probe.plan, probe.account_id):
            put(whose, pointer, "someone")
        answers(join(base_url, fill(probe.get or probe.post or "", parameters)), whose)
    if method.claims is not None and method.claims.profile is not None:
        answers(join(base_url, method.claims.profile.get or ""), {})


def answer_to(pending: PendingAuthorization, method: AuthMethod) -> dict[str, str]:
    match pending.action:
        case EnterFields():
            secrets = {p.key: example(p) for p in method.secrets} or {"key": (method.prefix or "") + "k" * 40}
            return {**secrets, **{p.key: example(p) for p in method.parameters if p.required and p.default is None}}
        case OpenBrowser():
            return {"pasted": f"{pending.action.redirect_uri}?code=the-code&state={pending.private['state']}"}
        case _:
            return {}


class Catalogue:
    """One provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def get(self, id: str) -> Provider:
        assert id == self._provider.id
        return self._provider


@pytest.mark.parametrize(("provider", "method"), LOGINS, ids=[f"{p.id}-{m.id}" for p, m in LOGINS])
async def test_a_built_in_login_works_as_declared(
    authorization_server: AuthorizationServer,
    http: HttpClient,
    clock: FakeClock,
    provider: Provider,
    method: AuthMethod,
) -> None:
    url = authorization_server.url
    pointed: Provider = pointed_at(provider, url)
    here = pointed.method(method.id)
    assert here is not None
    if here.client_id == "":
        here = replace(here, client_id="our-own-app")
        pointed = replace(pointed, auth=(here,))
    required = {p.key: example(p) for p in here.parameters if p.required and p.default is None}
    parameters = {p.key: required.get(p.key, p.default or "") for p in here.parameters}
    prepare(authorization_server, pointed, here, parameters)
    store = MemoryStore(clock=clock)
    logins = Logins(store=store, catalogue=Catalogue(pointed), http=http, clock=clock, environ={})

    # No command of this machine is asked for a default.
    pending = await logins.begin(pointed.id, method=method.id, parameters=required, accept_restricted=True)
    if method.kind in ("device", "device-exchange"):
        account = await poll_until_complete(logins, pending, clock=clock)
    else:
        answer = {k: v for k, v in answer_to(pending, here).items() if k not in required}
        account = await logins.complete(pending, answer)

    record = store.load(CredentialRef(provider=pointed.id))
    assert record is not None
    assert account.method == method.id
    assert record.restricted is (method.standing == "restricted")
    assert record.hosts
    await renewed(authorization_server, http, clock, pointed, here, record.credential)


async def renewed(
    server: AuthorizationServer,
    http: HttpClient,
    clock: FakeClock,
    provider: Provider,
    method: AuthMethod,
    credential: Credential,
) -> None:
    """Renew what can be renewed, in the form that the declaration says."""
    if not isinstance(credential, OAuthToken | ExchangedKey):
        return
    flow = flow_for(provider, method, parameters=credential.parameters, http=http, clock=clock, environ={})
    again = await flow.refresh(credential)
    assert type(again) is type(credential)
    request = server.requests[-1]
    if isinstance(credential, OAuthToken):
        body = method.token.refresh_body or method.token.body
        sent: Mapping[str, object] = request.json if body == "json" else request.form
        assert sent["grant_type"] == "refresh_token"
        assert look_up(dict(sent), "client_id") == method.client_id
