"""What a declaration must be beyond its types: where secrets may go, what each kind of login needs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import assert_never, get_args

from valetkey.address import without_braces
from valetkey.provider import BUILT_IN_KINDS, AuthKind, AuthMethod, Call, Parameter, Provider, Sandbox
from valetkey.providers.fault import Fault, Key
from valetkey.providers.reach import check_endpoint, check_reach, check_template, checked_host

__all__ = ["ID", "check"]

# A run asks the gateway itself below this, where the base URLs of providers are.
OURS = "valetkey"
ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*^_`|~.-]+[?+]?")
_OFF_LIMITS = re.compile(r"(\*|[A-Z]+(?:,[A-Z]+)*) (?P<host>[A-Za-z0-9.*{}_-]*)/\S*")
# Below one of the two, without `.` and `..`; a `+` behind it says that others may add to it.
_FILE = re.compile(r"(?:/etc|~)(?:/(?!\.\.?(?:/|\+?\Z))[A-Za-z0-9._-]+)+\+?")
_POINTER = re.compile(r"(/([^~/]|~[01])*)*")


def check(provider: Provider, *, stem: str) -> None:
    """Look at a declaration whose types are right. Raises: Fault."""
    _check_names(provider, stem)
    for i, method in enumerate(provider.auth):
        _check_method(provider, method, ("auth", i))
    _check_api(provider)


def _check_names(provider: Provider, stem: str) -> None:
    for key, name in (("id", provider.id), *(("aliases", alias) for alias in provider.aliases)):
        if not ID.fullmatch(name):
            raise Fault(
                (key,),
                f'"{name[:40]}" is not an id',
                hint="write it with lower-case letters, digits and hyphens, at most 64",
            )
        if name == OURS:
            raise Fault((key,), f'"{name}" is the gateway\'s own', hint="choose another one")
    if provider.id != stem:
        raise Fault(("id",), f'is "{provider.id}" in a file named {stem}.toml', hint=f'write `id = "{stem}"`')
    if not provider.name.strip():
        raise Fault(("name",), "is empty", hint="write the name that a person knows it by")
    if provider.checked is not None:
        _check_page(provider.checked.at, ("checked", "at"))
    if not provider.auth:
        raise Fault(
            ("auth",), "is empty", hint='write at least one `[[auth]]`, such as id = "api-key", kind = "api-key"'
        )
    ids = [method.id for method in provider.auth]
    for i, name in enumerate(ids):
        if not ID.fullmatch(name) or name in ids[:i]:
            raise Fault(
                ("auth", i, "id"), f'"{name[:40]}" is no id or is used twice', hint="give each way to log in its own id"
            )


# --- the API ---------------------------------------------------------------------------------


def _check_api(provider: Provider) -> None:
    api = provider.api
    for name in ("probe", "models"):
        call: Call | None = getattr(api, name)
        if call is not None:
            _check_call(call, ("api", name), known_counts=name == "models")
    for i, text in enumerate(api.off_limits):
        if not _OFF_LIMITS.fullmatch(text):
            raise Fault(
                ("api", "off_limits", i), f'is "{text[:60]}"', hint='write method and path: `"POST /v1/keys/**"`'
            )
    for i, rewrite in enumerate(api.rewrite):
        if not rewrite.path.startswith("/"):
            raise Fault(("api", "rewrite", i, "path"), "does not begin with /", hint="write the path of the request")
    _check_headers(api.headers, (), ("api", "headers"))
    shared = set.intersection(*({p.key for p in m.parameters} for m in provider.auth))
    for i, model in enumerate(api.models.known if api.models is not None else ()):
        check_template(model, shared, ("api", "models", "known", i))
    for i, shape in enumerate(api.shapes):
        for name in ("path", "whole_path"):
            path: str | None = getattr(shape, name)
            if path is not None:
                check_template(path, {*shared, "model"}, ("api", "shapes", i, name))


def _check_call(call: Call, key: Key, *, known_counts: bool = False) -> None:
    asked = [name for name in ("get", "post") if getattr(call, name) is not None]
    if len(asked) != 1 and not (known_counts and call.known and not asked):
        extra = ", or the list itself in `known`" if known_counts else ""
        raise Fault(key, "needs just one of get and post", hint=f'write `get = "/v1/models"`{extra}')
    for name in asked:
        target: str = getattr(call, name)
        if not target.startswith(("/", "https://", "http://")):
            raise Fault((*key, name), f'is "{target[:60]}"', hint="write a path that begins with /, or a whole URL")
    _check_headers(call.headers, (), (*key, "headers"))
    for name in ("account_id", "name", "email", "plan", "items", "id"):
        pointer: str | None = getattr(call, name)
        if pointer is not None:
            _check_pointer(pointer, (*key, name))


# --- one way to log in -----------------------------------------------------------------------


def _check_method(provider: Provider, method: AuthMethod, key: Key) -> None:
    for part in ("parameters", "secrets"):
        for i, parameter in enumerate(getattr(method, part)):
            _check_parameter(parameter, (*key, part, i))
    check_reach(provider, method, key)
    _check_kind(method, key)
    _check_standing(method, key)
    parameters = {p.key for p in method.parameters}
    _check_injection(method, {*parameters, *_secret_names(method), "account_id"}, key)
    _check_endpoints(method, parameters, key)
    for name in (*method.environment, *method.exports, *(method.sandbox.environment if method.sandbox else ())):
        if not _VARIABLE.fullmatch(name):
            raise Fault((*key, "environment"), f'"{name[:40]}" is no variable name', hint="write it like ACME_API_KEY")
    if method.endpoint is not None and method.inject:
        raise Fault(
            (*key, "endpoint"),
            "stands beside inject",
            hint="take out one: an endpoint is for what headers cannot carry",
        )
    if method.probe is not None:
        _check_call(method.probe, (*key, "probe"))
    for word in method.source.command if method.source is not None else ():
        check_template(word, parameters, (*key, "source", "command"))
    for name, template in method.device.poll_parameters.items():
        asked = {*parameters, "device_code", "user_code", "client_id"}
        check_template(template, asked, (*key, "device", "poll_parameters", name))
    for at, pointer in _pointers(method):
        _check_pointer(pointer, (*key, *at))


def _check_parameter(parameter: Parameter, key: Key) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", parameter.key):
        raise Fault((*key, "key"), f'is "{parameter.key[:40]}"', hint="write letters, digits, _ and - only")
    if parameter.pattern is not None:
        try:
            form = re.compile(parameter.pattern)
        except re.error as error:
            raise Fault((*key, "pattern"), f"is no regular expression: {error}", hint="correct it") from None
        if parameter.default is not None and not form.fullmatch(parameter.default):
            raise Fault((*key, "default"), "does not have the form that `pattern` asks for", hint="correct one of them")
    if parameter.options and parameter.default is not None and parameter.default not in parameter.options:
        raise Fault((*key, "default"), "is none of the options", hint=f"write one of {', '.join(parameter.options)}")
    if parameter.secret and parameter.default is not None:
        raise Fault((*key, "default"), "would be a secret in a file", hint="take it out; secrets are asked for")


def _check_kind(method: AuthMethod, key: Key) -> None:
    needed: tuple[str, ...]
    match method.built_in_kind:
        case None:
            _check_package_kind(method.kind, (*key, "kind"))
            needed = ()
        case "api-key" | "cloud" | "custom":
            needed = ()
        case "device":
            needed = ("client_id", "device_authorization_endpoint", "token_endpoint")
        case "device-exchange":
            needed = ("client_id", "device_authorization_endpoint", "token_endpoint", "exchange")
        case "authorization-code":
            needed = ("authorization_endpoint", "token_endpoint", "redirect")
            needed += ("client_id",) if method.token.send_client_id else ()
        case _:
            assert_never(method.built_in_kind)
    for name in needed:
        if getattr(method, name) is None:
            raise Fault((*key, name), f"is missing, which {method.kind} needs", hint=f"write `{name} = …` there")
    if method.redirect is not None and method.redirect.loopback is None and method.redirect.paste is None:
        raise Fault(
            (*key, "redirect"), "names no place", hint='write `{ paste = "https://…" }` or `{ loopback = { } }`'
        )
    if method.exchange is not None and (method.exchange.get is None) == (method.exchange.post is None):
        raise Fault((*key, "exchange"), "needs just one of get and post", hint='write `get = "https://…"`')
    if method.source is not None:
        wanted = {"command": method.source.command, "file": method.source.file}.get(method.source.kind, "nothing")
        if not wanted:
            raise Fault(
                (*key, "source", method.source.kind), "is missing", hint=f"write `{method.source.kind} = …` there"
            )


def _check_package_kind(kind: str, key: Key) -> None:
    """See that it is a package's flow that is meant: what is nearly built in is a slip."""
    if not ID.fullmatch(kind) or difflib.get_close_matches(kind, BUILT_IN_KINDS, n=1, cutoff=0.85):
        options = ", ".join(f'"{k}"' for k in get_args(AuthKind))
        raise Fault(
            key,
            f'is "{kind[:40]}", which is no kind',
            hint=f"write one of {options}, or the name of a package's flow: lower-case letters, digits and hyphens",
        )


def _check_standing(method: AuthMethod, key: Key) -> None:
    if method.standing == "restricted" and not method.notice.strip():
        raise Fault((*key, "notice"), "is missing", hint="write what the provider's terms say, and the page")
    if method.for_agents and method.standing != "restricted":
        raise Fault((*key, "for_agents"), "is only for restricted logins", hint='write `standing = "restricted"` too')


def _secret_names(method: AuthMethod) -> set[str]:
    """Give what the credential of this login calls its secrets."""
    if method.secrets:
        return {p.key for p in method.secrets}
    if method.source is not None:
        match method.source.kind:
            case "command" | "file":
                return set(method.source.values) or {"key"}
            case "gcloud-adc":
                return set(method.source.values) or {"access_token"}
            case "aws-profile" | "aws-role":
                return {"access_key_id", "secret_access_key", "session_token"}
            case _:
                assert_never(method.source.kind)
    ends_in_key = method.create_key is not None or method.token.key is not None or method.exchange is not None
    if method.kind in ("device", "authorization-code") and not ends_in_key:
        return {"access_token"}
    # A package's flow ends in what it likes.
    return {"key"} if method.built_in_kind is not None else {"access_token", "key"}


def _check_injection(method: AuthMethod, names: set[str], key: Key) -> None:
    for i, rule in enumerate(method.inject):
        place = (*key, "inject", i)
        _check_headers(rule.set, names, (*place, "set"))
        if rule.basic is not None:
            check_template(rule.basic, names, (*place, "basic"))
            if ":" not in rule.basic:
                raise Fault((*place, "basic"), "has no colon", hint='write `"user:{key}"`')
        for kind, templates in (("query", rule.query), ("cookie", rule.cookie), ("replace", rule.replace)):
            for name, template in templates.items():
                if not _HEADER_NAME.fullmatch(name) or name.endswith(("?", "+")):
                    raise Fault((*place, kind, name), "is no name", hint="write a name such as key")
                check_template(template, names, (*place, kind, name))
        for host in rule.hosts:
            check_template(host, {p.key for p in method.parameters}, (*place, "hosts"))
            checked_host(
                without_braces(host, {p.key: p.default or "x.x" for p in method.parameters}), (*place, "hosts")
            )
    for name, template in method.exports.items():
        check_template(template, {*names, "base_url"}, (*key, "exports", name))
    if method.sandbox is not None:
        _check_sandbox(method, method.sandbox, (*key, "sandbox"))


def _check_sandbox(method: AuthMethod, sandbox: Sandbox, key: Key) -> None:
    # Neither the credential nor a parameter that is sealed like one.
    names = {"placeholder", "base_url", *(p.key for p in method.parameters if not p.secret)} - _secret_names(method)
    for name, template in sandbox.environment.items():
        check_template(template, names, (*key, "environment", name))
    for path, lines in sandbox.files.items():
        for i, line in enumerate(lines):
            check_template(line, names, (*key, "files", path, i))
        if not _FILE.fullmatch(path):
            raise Fault((*key, "files"), f'holds "{path[:60]}"', hint='write a path such as "/etc/NAME" or "~/NAME"')


def _check_headers(headers: Mapping[str, str], names: Iterable[str], key: Key) -> None:
    for name, template in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise Fault((*key, name), "is no header name", hint="write a name such as x-api-key")
        check_template(template, set(names), (*key, name))


def _check_endpoints(method: AuthMethod, parameters: set[str], key: Key) -> None:
    exchange, create = method.exchange, method.create_key
    addresses: tuple[tuple[Key, str | None], ...] = (
        (("authorization_endpoint",), method.authorization_endpoint),
        (("device_authorization_endpoint",), method.device_authorization_endpoint),
        (("token_endpoint",), method.token_endpoint),
        (("revocation_endpoint",), method.revocation_endpoint),
        (("issuer",), method.issuer),
        (("redirect", "paste"), method.redirect.paste if method.redirect else None),
        (("device", "poll"), method.device.poll),
        (("device", "verification_uri"), method.device.verification_uri),
        (("device", "redirect_uri"), method.device.redirect_uri),
        (("exchange",), (exchange.get or exchange.post) if exchange else None),
        (("create_key", "post"), create.post if create else None),
    )
    for at, address in addresses:
        if address is not None:
            check_template(address, parameters, (*key, *at))
            check_endpoint(address, method.parameters, (*key, *at))
    if method.keys_url is not None:
        _check_page(method.keys_url, (*key, "keys_url"))
    loopback = method.redirect.loopback if method.redirect else None
    if loopback is not None and (
        loopback.host not in ("127.0.0.1", "localhost", "[::1]") or not loopback.path.startswith("/")
    ):
        raise Fault(
            (*key, "redirect", "loopback"),
            "is not on this machine",
            hint='write host = "127.0.0.1", path = "/callback"',
        )
    if exchange is not None:
        _check_headers(exchange.headers, {*parameters, "access_token"}, (*key, "exchange", "headers"))
    if create is not None:
        _check_headers(create.headers, {*parameters, "access_token"}, (*key, "create_key", "headers"))


def _check_page(address: str, key: Key) -> None:
    """Look at a page for a person's browser: nothing of ours goes there, but a click does."""
    if not re.fullmatch(r"https://[!-~]+", address):
        raise Fault(key, f'is "{address[:60]}"', hint="write the page's whole address, beginning with https://")


def _pointers(method: AuthMethod) -> Iterable[tuple[Key, str]]:
    if method.token.key is not None:
        yield ("token", "key"), method.token.key
    if method.exchange is not None:
        for name in ("key", "expires_at", "expires_in", "refresh_in", "base_url"):
            if (pointer := getattr(method.exchange, name)) is not None:
                yield ("exchange", name), pointer
    if method.create_key is not None:
        yield ("create_key", "key"), method.create_key.key
    if method.claims is not None:
        for name in ("account_id", "name", "email", "plan"):
            for pointer in getattr(method.claims, name):
                yield ("claims", name), pointer
    if method.source is not None:
        for name, pointer in method.source.values.items():
            yield ("source", "values", name), pointer
        if method.source.expires_at is not None:
            yield ("source", "expires_at"), method.source.expires_at


def _check_pointer(pointer: str, key: Key) -> None:
    if not _POINTER.fullmatch(pointer):
        raise Fault(
            key,
            f'is "{pointer[:60]}", which is no JSON pointer (RFC 6901)',
            hint=f'begin with a slash, such as "/{pointer.lstrip("/.$")[:40]}"; in a name write ~1 for a slash',
        )
