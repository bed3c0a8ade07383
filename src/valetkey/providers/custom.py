"""The user's own providers: servers that speak a known dialect, written to `<home>/providers/<id>.toml`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from valetkey.address import check_url, is_near
from valetkey.errors import (
    BuiltInProvider,
    InvalidBaseUrl,
    InvalidName,
    ProviderError,
    ProviderExists,
    StoreUnwritable,
    UsageError,
)
from valetkey.provider import Api, AuthMethod, Call, DialectId, Inject, Provider
from valetkey.providers import Catalogue
from valetkey.providers.reader import read
from valetkey.providers.writer import dumps

__all__ = [
    "KeyHeader",
    "check_base_url",
    "check_free",
    "declare",
    "inject_for",
    "models_path",
    "name_to_id",
    "normalise",
    "remove",
]

KeyHeader = Literal["authorization", "x-api-key", "x-goog-api-key", "api-key"]
LONGEST_ID = 64
# What people paste: the address of one call in place of the base. The longest first.
_CALLS = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/responses",
    "/messages/count_tokens",
    "/messages",
    "/models",
)
_GEMINI_CALL = re.compile(r"/models/[^/]+$")


def name_to_id(name: str) -> str:
    """Make an id of a display name: "My Läb #2" becomes "my-lab-2".

    Raises: InvalidName when nothing is left or it is too long.
    """
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    made = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")
    if not made or len(made) > LONGEST_ID:
        raise InvalidName(
            f"{name[:40]!r} makes no id" if not made else "the name is too long",
            hint=f"use a name with letters or digits from a to z, at most {LONGEST_ID}",
        )
    return made


# --- base URLs -------------------------------------------------------------------------------


def normalise(base_url: str, dialect: DialectId) -> str:
    """Bring a pasted address into the form that the dialect's SDKs want: `…/v1` for OpenAI's, without it for others.

    A whole endpoint (`…/v1/chat/completions`) becomes its base. A public host without a path stays as it is: some serve
    the API there (DeepSeek, Perplexity); a server near by never does. Raises: InvalidBaseUrl.
    """
    text = base_url.strip()
    host = check_url(text)
    parts = urlsplit(text)
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    while (shorter := _base_path(path, dialect)) != path:
        path = shorter
    if dialect in ("openai-chat", "openai-responses") and not path and (parts.scheme == "http" or is_near(host)):
        path = "/v1"
    return urlunsplit((parts.scheme, _netloc(parts.scheme, parts.netloc), path, "", ""))


def _base_path(path: str, dialect: DialectId) -> str:
    """Take the end off that a base does not have: one call's path, the version that this dialect's SDKs add."""
    path = path.rstrip("/")
    if dialect == "gemini":
        path = re.sub(r"/v1(beta\d*|alpha\d*)?$", "", _GEMINI_CALL.sub("", path))
    if dialect == "anthropic-messages":
        path = path.removesuffix("/v1")
    return next((path.removesuffix(call) for call in _CALLS if path.endswith(call)), path)


def _netloc(scheme: str, netloc: str) -> str:
    return netloc.lower().removesuffix(":443" if scheme == "https" else ":80").removesuffix(":")


def check_base_url(base_url: str, *, with_key: bool, allow_http: bool) -> None:
    """Refuse a key over plain http without an explicit yes. Raises: InvalidBaseUrl."""
    host = check_url(base_url)
    if base_url.startswith("http://") and with_key and not allow_http:
        raise InvalidBaseUrl(
            f"the key would go to {host} over plain http, readable on the way",
            hint="use https, or say yes with --allow-http",
        )


# --- declarations ----------------------------------------------------------------------------


def models_path(dialect: DialectId) -> str:
    """Give the path, joined to a normalised base URL, where servers of this dialect list their models."""
    match dialect:
        case "openai-chat" | "openai-responses" | "none":
            return "/models"
        case "anthropic-messages":
            return "/v1/models"
        case "gemini":
            return "/v1beta/models"


def inject_for(dialect: DialectId, key_header: KeyHeader | None = None) -> Inject:
    """Say where the key goes: into the dialect's own header, or into this one."""
    own: dict[DialectId, KeyHeader] = {"anthropic-messages": "x-api-key", "gemini": "x-goog-api-key"}
    header = key_header or own.get(dialect, "authorization")
    headers: dict[str, str] = {header: "Bearer {key}" if header == "authorization" else "{key}"}
    if dialect == "anthropic-messages":
        headers["anthropic-version?"] = "2023-06-01"
    others: tuple[KeyHeader, ...] = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
    return Inject(set=headers, remove=tuple(name for name in others if name != header))


def declare(
    catalogue: Catalogue,
    *,
    name: str,
    base_url: str,
    dialect: DialectId | None = None,
    model: str | None = None,
    key_needed: bool = True,
    like: str | None = None,
    allow_http: bool = False,
    key_header: KeyHeader | None = None,
    replace_existing: bool = False,
) -> Provider:
    """Write the declaration of a server and give it as it reads. `like` copies another provider but for its address.

    Raises: UsageError (neither dialect nor like), InvalidName, InvalidBaseUrl, BuiltInProvider, ProviderExists,
    UnknownProvider (of `like`), StoreUnwritable.
    """
    provider_id = name_to_id(name)
    check_free(catalogue, provider_id, replace_existing=replace_existing)
    model_of = catalogue.get(like) if like is not None else None
    spoken = dialect or (model_of.api.dialect if model_of is not None else None)
    if spoken is None:
        raise UsageError("no dialect is given", hint="add --dialect openai-chat, or --like vllm")
    url = normalise(base_url, spoken)
    check_base_url(url, with_key=key_needed, allow_http=allow_http)
    # An http server without a key gets no place to put one in.
    plain = url.startswith("http://")
    declared = Provider(
        id=provider_id,
        name=" ".join(name.split()),
        default_model=model,
        api=_api(url, spoken, model, model_of, allow_http=allow_http and plain),
        auth=(
            _method(provider_id, spoken, model_of, key_header, key_needed=key_needed, keyless=plain and not key_needed),
        ),
    )
    path = catalogue.paths.providers / f"{provider_id}.toml"
    text = dumps(declared)
    result = read(text, path=path, origin="user")
    _write(path, text)
    catalogue.forget(provider_id)
    return result


def _api(url: str, dialect: DialectId, model: str | None, like: Provider | None, *, allow_http: bool) -> Api:
    hosts = (urlsplit(url).netloc,)
    models = Call(get=models_path(dialect), known=() if model is None else (model,))
    fresh = Api(
        base_url=url,
        dialect=dialect,
        hosts=hosts,
        allow_http=allow_http,
        probe=Call(get=models_path(dialect)),
        models=models,
    )
    if like is None or like.api.dialect != dialect:
        return fresh
    # Whole URLs and parameters of the other provider lead to its own servers.
    kept = {name: call for name in ("probe", "models") if (call := getattr(like.api, name)) and _is_own(call)}
    return replace(fresh, dialects=like.api.dialects, headers=like.api.headers, off_limits=like.api.off_limits, **kept)


def _is_own(call: Call) -> bool:
    target = call.get or call.post or ""
    return target.startswith("/") and "{" not in target


def _method(
    provider_id: str,
    dialect: DialectId,
    like: Provider | None,
    key_header: KeyHeader | None,
    *,
    key_needed: bool,
    keyless: bool,
) -> AuthMethod:
    inject: tuple[Inject, ...] = (inject_for(dialect, key_header),)
    if like is not None and key_header is None:
        keyed = next((m for m in like.auth if m.kind == "api-key" and m.inject and not m.parameters), None)
        inject = keyed.inject if keyed is not None else inject
    # No `environment`: a variable that another provider's tools read would send its key to this server.
    prefix = provider_id.replace("-", "_").upper()
    exports = {} if prefix[0].isdigit() else {f"{prefix}_API_KEY": "{key}", f"{prefix}_BASE_URL": "{base_url}"}
    return AuthMethod(
        id="api-key",
        kind="api-key",
        optional=not key_needed,
        inject=() if keyless else inject,
        exports=exports,
    )


def check_free(catalogue: Catalogue, provider_id: str, *, replace_existing: bool = False) -> None:
    """Refuse an id that is taken. Raises: BuiltInProvider, ProviderExists."""
    if provider_id in catalogue.built_in():
        raise BuiltInProvider(
            f"{provider_id} is a built-in provider",
            hint=f"use another name, or log in to it: `valetkey login {provider_id}`",
            provider=provider_id,
        )
    if provider_id in catalogue.ids() and not replace_existing:
        raise ProviderExists(
            f"a provider {provider_id} is there already",
            hint=f"use another name, or take it away first: `valetkey providers remove {provider_id}`",
            provider=provider_id,
        )


def remove(catalogue: Catalogue, name: str) -> None:
    """Delete the user's file of this id; a file that replaced a built-in provider gives that one back.

    The accounts of the provider are the caller's to delete first.
    Raises: BuiltInProvider, ProviderError (a plugin's), UnknownProvider, StoreUnwritable.
    """
    path = next((path for path in catalogue.files() if path.stem == name), None)
    if path is not None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnwritable(f"{path} cannot be deleted: {_reason(error)}", hint="check who owns it") from error
        catalogue.forget(name)
        return
    provider = catalogue.get(name)
    if provider.origin == "built-in":
        raise BuiltInProvider(
            f"{provider.id} is built in and stays", hint=f"run `valetkey logout {provider.id}` to drop its accounts"
        )
    raise ProviderError(f"{provider.id} comes from a plugin", hint="uninstall the package that ships it")


def _write(path: Path, text: str) -> None:
    """Write it whole or not at all, for the owner alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise StoreUnwritable(
            f"{path} cannot be written: {_reason(error)}", hint="check the folder's owner and the free space"
        ) from error


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
