"""Declarations that lead to a server on loopback: a fake provider's own, and another provider's with its address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

from valetkey.provider import Api, AuthMethod, Call, Device, DialectId, Inject, Loopback, Provider, Redirect, Sandbox
from valetkey.testing.provider_logins import AUTHORIZE, DEVICE, REVOKE, TOKEN

__all__ = ["declaration_of", "redirected"]

_REMOVED = ("x-api-key",)


def declaration_of(
    id: str,
    url: str,
    *,
    dialect: DialectId,
    key: str | None,
    logins: Sequence[Literal["device", "authorization-code"]],
) -> Provider:
    """Give the declaration of a fake provider with these ways to log in."""
    api = Api(
        base_url=f"{url}/v1",
        dialect=dialect,
        hosts=(urlsplit(url).netloc,),
        probe=Call(get="/me", name="/name", email="/email", plan="/plan"),
        models=Call(get="/models"),
        allow_http=True,
    )
    variable = f"{id.upper().replace('-', '_')}_API_KEY"
    inside = Sandbox(environment={variable: "{placeholder}"}, placeholder=f"{id}-valetkey-placeholder")
    methods = []
    if key is not None or not logins:
        methods.append(
            AuthMethod(
                id="api-key",
                kind="api-key",
                environment=(variable,),
                optional=key is None,
                inject=(Inject(set={"authorization": "Bearer {key}"}, remove=_REMOVED),),
                sandbox=inside,
            )
        )
    for login in logins:
        method = AuthMethod(
            id="device" if login == "device" else "browser",
            kind=login,
            client_id="valetkey-test",
            scope=("api",),
            inject=(Inject(set={"authorization": "Bearer {access_token}"}, remove=_REMOVED),),
            sandbox=inside,
            redirect=None if login == "device" else Redirect(loopback=Loopback()),
        )
        methods.append(_at(method, url))
    return Provider(id=id, name=f"Fake {id}", api=api, auth=tuple(methods), default_model="fake-model")


def redirected(provider: Provider, url: str) -> Provider:
    """Give a declaration with every address of it on this server; see FakeProvider.declared_by."""
    host = urlsplit(url).netloc
    api = replace(
        provider.api,
        base_url=_moved(provider.api.base_url, url),
        hosts=(host,),
        probe=_call(provider.api.probe, url),
        models=_call(provider.api.models, url),
        allow_http=True,
    )
    kept = [
        replace(
            _at(method, url),
            base_url=None if method.base_url is None else _moved(method.base_url, url),
            hosts=(),
            when=(),
            inject=tuple(replace(rule, hosts=()) for rule in method.inject),
            probe=_call(method.probe, url),
        )
        for method in provider.auth
        if method.kind in ("api-key", "device", "authorization-code") and not method.token.key and not method.create_key
    ]
    return replace(provider, api=api, auth=tuple(kept), origin="user", path="")


def _at(method: AuthMethod, url: str) -> AuthMethod:
    """Give a login by tokens with the fake's endpoints."""
    if method.kind == "api-key":
        return method
    method = replace(method, token_endpoint=url + TOKEN, revocation_endpoint=url + REVOKE, issuer=None)
    if method.kind == "device":
        return replace(method, device_authorization_endpoint=url + DEVICE, device=Device())
    return replace(method, authorization_endpoint=url + AUTHORIZE)


def _call(call: Call | None, url: str) -> Call | None:
    if call is None:
        return None
    return replace(
        call,
        get=None if call.get is None else _moved(call.get, url),
        post=None if call.post is None else _moved(call.post, url),
    )


def _moved(address: str, url: str) -> str:
    """Give a whole address with this server in place of its own; a path stays."""
    if "://" not in address:
        return address
    _, _, path = address.split("://", 1)[1].partition("/")
    return f"{url}/{path}" if path else url
