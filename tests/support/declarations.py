"""Providers for the tests, one of each kind, pointed at a server on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from valetkey.flow import AuthFlow
from valetkey.flows import flow_for
from valetkey.http import HttpClient
from valetkey.provider import (
    Api,
    AuthKind,
    AuthMethod,
    Call,
    Claims,
    Exchange,
    Inject,
    Loopback,
    Parameter,
    Provider,
    Redirect,
    Source,
    Token,
)
from valetkey.testing.clock import FakeClock

__all__ = ["KINDS", "ambient", "flow", "jwt", "method", "provider"]

KINDS: tuple[AuthKind, ...] = ("api-key", "device", "device-exchange", "authorization-code", "cloud", "custom")
REGION = Parameter(key="region", label="Region", default="here", pattern="[a-z0-9-]+", environment=("TEST_REGION",))
PROJECT = Parameter(key="project", label="Project", pattern="[a-z]+")
BEARER_KEY = (Inject(set={"authorization": "Bearer {key}"}),)
BEARER_TOKEN = (Inject(set={"authorization": "Bearer {access_token}"}),)


def provider(url: str, *methods: AuthMethod, probe: Call | None = None, name: str = "Test") -> Provider:
    """Give a provider whose API is at `url`, below /api."""
    host = urlsplit(url).netloc
    api = Api(
        base_url=f"{url}/api", dialect="openai-chat", hosts=(host,), probe=probe or Call(get="/probe", name="/name")
    )
    return Provider(id="test", name=name, api=api, auth=methods)


def method(kind: AuthKind, url: str) -> AuthMethod:
    """Give a plain declaration of this kind with every endpoint at `url`."""
    common = AuthMethod(id=kind, kind=kind, inject=BEARER_KEY)
    oauth = replace(
        common,
        inject=BEARER_TOKEN,
        client_id="client",
        scope=("openid", "api"),
        token_endpoint=f"{url}/token",
        device_authorization_endpoint=f"{url}/device",
        authorization_endpoint=f"{url}/authorize",
        revocation_endpoint=f"{url}/revoke",
    )
    match kind:
        case "api-key" | "custom":
            return common
        case "cloud":
            return replace(common, parameters=(PROJECT, REGION))
        case "device":
            return oauth
        case "device-exchange":
            exchange = Exchange(
                get=f"{url}/exchange",
                expires_at="/expires_at",
                refresh_in="/refresh_in",
                base_url="/endpoints/api",
            )
            return replace(oauth, inject=BEARER_KEY, exchange=exchange)
        case "authorization-code":
            return replace(
                oauth,
                redirect=Redirect(loopback=Loopback(path="/callback")),
                claims=Claims(account_id=("/sub",), email=("/email",)),
                token=Token(),
            )


def ambient(*command: str) -> AuthMethod:
    """Give a cloud login whose secret is what this command prints."""
    source = Source(kind="command", command=command)
    return AuthMethod(id="ambient", kind="cloud", inject=BEARER_KEY, source=source)


def flow(
    declared: AuthMethod,
    url: str,
    *,
    http: HttpClient,
    clock: FakeClock,
    parameters: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    probe: Call | None = None,
) -> AuthFlow:
    """Give the flow of this declaration, at a provider of its own."""
    return flow_for(
        provider(url, declared, probe=probe),
        declared,
        parameters=parameters or {},
        http=http,
        clock=clock,
        environ={} if environ is None else environ,
    )


def jwt(claims: Mapping[str, object]) -> str:
    """Give an unsigned JWT, without padding as RFC 7515 has it."""
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, dict(claims)))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), "c2ln"])
