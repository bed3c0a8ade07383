"""Registers a server of the user's own: name, base_url, model, optional key, health check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from valetkey.address import check_url
from valetkey.credential import ApiKey, Credential, Identity, Secret
from valetkey.errors import (
    InvalidBaseUrl,
    InvalidParameter,
    MissingParameter,
    PollFailed,
    ProviderCheckFailed,
    RefreshNotSupported,
    TransportError,
)
from valetkey.flow import EnterFields, Input, PendingAuthorization
from valetkey.flows import form
from valetkey.flows.context import Context
from valetkey.flows.pending import pending
from valetkey.http import Response
from valetkey.inject import join
from valetkey.provider import Parameter

__all__ = ["CustomFlow"]

DIALECTS = ("openai-chat", "openai-responses", "anthropic-messages", "gemini")
LONGEST_NAME_CHARS = 64
CHECK_SECONDS = 10.0
KEY = Parameter(key="key", label="API key", secret=True, required=False)


class CustomFlow:
    """An AuthFlow that ends in an ApiKey whose parameters describe the server; the key may be empty.

    `login` and `sdk` write the declaration from them.
    """

    kind = "custom"

    def __init__(self, context: Context) -> None:
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Ask what the server is."""
        context = self._context
        form.check_known(context.parameters, [f.key for f in self._fields()], context)
        dialect = context.provider.api.dialect
        action = EnterFields(
            label=context.method.label or context.provider.name,
            description="A server of your own that speaks one of the known dialects",
            purpose="custom",
            fields=self._fields(),
            dialect=None if dialect == "none" else dialect,
        )
        return pending(context, action, parameters=context.parameters)

    def _fields(self) -> tuple[Input, ...]:
        given = self._context.parameters
        declared = self._context.provider.api.dialect
        return (
            Input(key="name", label="Name", description="as you will call it", default=given.get("name")),
            Input(key="base_url", label="Base URL", description="with or without /v1", default=given.get("base_url")),
            Input(
                key="model", label="Model", description="the default one", default=given.get("model"), required=False
            ),
            Input(key="key", label="API key", description="empty if it wants none", required=False, secret=True),
            Input(
                key="dialect",
                label="Dialect",
                default=given.get("dialect") or (DIALECTS[0] if declared == "none" else declared),
                options=DIALECTS,
            ),
            Input(
                key="allow_http",
                label="Send the key over plain HTTP",
                default=given.get("allow_http") or "no",
                required=False,
                options=("no", "yes"),
            ),
        )

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Refuse: there is nobody to ask."""
        raise PollFailed(
            "registering a server has nothing to wait for",
            hint="complete it with the fields",
            provider=self._context.id,
        )

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """Take the filled-in form. Raises: MissingParameter, InvalidParameter, InvalidBaseUrl."""
        context = self._context
        fields = self._fields()
        form.check_known(answer, [f.key for f in fields], context)
        key = form.check_secret(answer.get("key", ""), KEY, context)
        values = {}
        for asked in fields:
            if asked.key == "key":
                continue
            value = answer.get(asked.key, "").strip() or asked.default or ""
            values[asked.key] = _checked(value, asked, context)
        allow_http = values["allow_http"] == "yes"
        values["base_url"] = check_base_url(values["base_url"], with_key=bool(key), allow_http=allow_http)
        return ApiKey(method=context.method.id, key=Secret(key), parameters=values)

    async def refresh(self, credential: Credential) -> Credential:
        """Refuse: a key has no renewal."""
        raise RefreshNotSupported(
            f"the key of {self._context.id} cannot be renewed",
            hint=f"run `{self._context.login}` with a new key",
            provider=self._context.id,
        )

    async def validate(self, credential: Credential) -> Identity:
        """Ask the server for its models, as its health check.

        Raises: ProviderCheckFailed, whatever is wrong: the message says which.
        """
        values = credential.parameters
        key = credential.key.reveal() if isinstance(credential, ApiKey) else ""
        url, headers = _health_request(values["base_url"], values["dialect"], key)
        try:
            response = await self._context.http.request("GET", url, headers=headers, timeout_seconds=CHECK_SECONDS)
        except TransportError as error:
            raise ProviderCheckFailed(error.message, hint=error.hint, provider=self._context.id) from error
        self._judge(response, url)
        return Identity(name=values["name"])

    def _judge(self, response: Response, url: str) -> None:
        host, status = urlsplit(url).netloc, response.status
        html = response.headers.get("content-type", "").startswith("text/html")
        if status == 429 or (200 <= status < 300 and not html):
            return
        if status in (401, 403):
            problem, hint = f"rejected the key (HTTP {status})", "enter the key that this server wants"
        elif status >= 500:
            problem, hint = f"has a fault (HTTP {status})", "look at the server's log, then try again"
        elif html:
            problem, hint = "answers with a web page", "check the base URL; the API may be below another path"
        else:
            problem, hint = f"lists no models (HTTP {status})", "check the base URL and the dialect"
        raise ProviderCheckFailed(f"{host} {problem}", hint=hint, provider=self._context.id)


def _checked(value: str, asked: Input, context: Context) -> str:
    if not value and asked.required:
        raise MissingParameter(
            f"no {asked.label.lower()} was given", hint=f"give it with --param {asked.key}=VALUE", provider=context.id
        )
    if asked.options and value not in asked.options:
        raise InvalidParameter(
            f"{value[:40]!r} is not a {asked.label.lower()}",
            hint=f"use one of: {', '.join(asked.options)}",
            provider=context.id,
        )
    if not value.isprintable() or (asked.key == "name" and len(value) > LONGEST_NAME_CHARS):
        raise InvalidParameter(
            f"the {asked.label.lower()} is too long or has control characters in it",
            hint="use one short line",
            provider=context.id,
        )
    return value


def _health_request(base_url: str, dialect: str, key: str) -> tuple[str, dict[str, str]]:
    match dialect:
        case "anthropic-messages":
            headers = {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
        case "gemini":
            headers = {"x-goog-api-key": key} if key else {}
        case _:
            headers = {"authorization": f"Bearer {key}"} if key else {}
    versioned = re.search(r"/v\d+\w*\Z", base_url) is not None
    path = "/v1beta/models" if dialect == "gemini" else "/v1/models"
    return join(base_url, "/models" if versioned else path), headers


def check_base_url(text: str, *, with_key: bool, allow_http: bool) -> str:
    """Give the URL without trailing slashes. Raises: InvalidBaseUrl, also for a key over plain HTTP without a yes."""
    url = text.strip().rstrip("/")
    host = check_url(url)
    if url.startswith("http:") and with_key and not allow_http:
        raise InvalidBaseUrl(
            f"the key would go to {host} over plain HTTP",
            hint="use https, or say yes with --param allow_http=yes",
        )
    return url
