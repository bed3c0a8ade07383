"""Where a declaration lets secrets go: base URLs, hosts, endpoints, and the parameters that are filled into them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from valetkey.address import check_url, without_braces
from valetkey.errors import InvalidBaseUrl
from valetkey.inject import host_matches
from valetkey.provider import Api, AuthMethod, Call, Parameter, Provider
from valetkey.providers.fault import Fault, Key

__all__ = ["check_endpoint", "check_reach", "check_template", "checked_host"]

_BRACES = re.compile(r"\{([^{}]*)\}")
# A parameter that becomes part of an address must not admit what ends a host or a path segment, or begins a login.
_BREAKOUTS = ("a/b", "a@b", "a:b", "a?b", "a#b", "a\\b", "a%2fb", "a b", "a\nb", "a\n", "/a", "..", "")


def check_reach(provider: Provider, method: AuthMethod, key: Key) -> None:
    """Look at each base URL and host list that this login may end up with. Raises: Fault."""
    api = provider.api
    base_key: Key = ("api", "base_url") if method.base_url is None else (*key, "base_url")
    hosts_key: Key = (*key, "hosts") if method.hosts else ("api", "hosts")
    base_url, hosts = method.base_url or api.base_url, method.hosts or api.hosts
    for i, rule in enumerate(method.when):
        for name, value in rule.values.items():
            _check_when_value(method, name, value, (*key, "when", i, name))
        place: Key = (*key, "when", i)
        _check_pair(
            provider,
            method,
            rule.base_url or base_url,
            hosts if rule.hosts is None else rule.hosts,
            place,
            place,
            rule.values,
        )
    _check_pair(provider, method, base_url, hosts, base_key, hosts_key, {})


def _check_when_value(method: AuthMethod, name: str, value: str, key: Key) -> None:
    parameter = next((p for p in method.parameters if p.key == name), None)
    if parameter is None:
        raise Fault(key, "is no parameter of this login", hint=f"declare `{name}` in [[auth.parameters]] or correct it")
    if parameter.options and value not in parameter.options:
        raise Fault(key, f'"{value}" is none of its options', hint=f"write one of {', '.join(parameter.options)}")


def _check_pair(
    provider: Provider,
    method: AuthMethod,
    base_url: str,
    hosts: tuple[str, ...],
    base_key: Key,
    hosts_key: Key,
    fixed: Mapping[str, str],
) -> None:
    names = {p.key for p in method.parameters}
    check_template(base_url, names, base_key)
    for host in hosts:
        check_template(host, names, hosts_key)
    for parameter in method.parameters:
        if any(f"{{{parameter.key}}}" in text for text in (base_url, *hosts)):
            _check_address_parameter(parameter, base_key)
    examples = {p.key: fixed.get(p.key) or p.default or next(iter(p.options), "x") for p in method.parameters}
    filled = without_braces(base_url, examples)
    host = _checked_url(filled, base_key)
    patterns = tuple(checked_host(without_braces(h, examples), hosts_key) for h in hosts)
    netloc = _netloc(filled)
    if not host_matches(netloc, patterns):
        raise Fault(
            hosts_key, f"does not hold {host}, where base_url goes", hint=f'write `hosts = ["{_netloc(base_url)}"]`'
        )
    if filled.startswith("http://") and method.inject and not provider.api.allow_http:
        raise Fault(
            base_key,
            "would send a credential over plain http",
            hint="write `allow_http = true` under [api] if you accept it",
        )
    for call in _calls(provider.api, method):
        for target in (call.get, call.post):
            if target is not None and "://" in target:
                _check_call_host(target, names, examples, patterns, hosts_key)


def _check_call_host(
    target: str, names: set[str], examples: dict[str, str], patterns: tuple[str, ...], key: Key
) -> None:
    check_template(target, names, key)
    filled = without_braces(target, examples)
    host = _checked_url(filled, key, query=True)
    if not host_matches(_netloc(filled), patterns):
        raise Fault(key, f"does not hold {host}, where a call of the declaration goes", hint=f'add "{host}" to hosts')


def _calls(api: Api, method: AuthMethod) -> Iterable[Call]:
    profile = method.claims.profile if method.claims is not None else None
    return (call for call in (api.probe, api.models, method.probe, profile) if call is not None)


def _netloc(url: str) -> str:
    return url.split("://", 1)[-1].split("/", 1)[0].split("?", 1)[0].lower()


def _checked_url(url: str, key: Key, *, query: bool = False) -> str:
    try:
        return check_url(url, query=query)
    except InvalidBaseUrl as error:
        raise Fault(key, f"is refused: {error.message}", hint=error.hint) from None


def checked_host(pattern: str, key: Key) -> str:
    """Give the pattern in lower case. A wildcard stands only in front, over at least two labels. Raises: Fault."""
    name = pattern.lower()
    bare = name.removeprefix("*.")
    if "*" in bare or (bare != name and "." not in bare.strip(".")):
        raise Fault(
            key,
            f'holds "{pattern[:60]}", a wildcard over too much',
            hint='write each host, or one `"*."` in front of a name with a dot: "*.example.com"',
        )
    if "/" in bare or "@" in bare:
        raise Fault(key, f'holds "{pattern[:60]}"', hint="write hosts without scheme and path: api.example.com")
    _checked_url(f"https://{bare}", key)
    return name


def _check_address_parameter(parameter: Parameter, key: Key) -> None:
    if parameter.options:
        return
    if parameter.pattern is None:
        raise Fault(
            key, f"holds {{{parameter.key}}}, which has no pattern", hint='give the parameter `pattern = "[a-z0-9-]+"`'
        )
    admitted = [text for text in _BREAKOUTS if re.fullmatch(parameter.pattern, text)]
    if admitted:
        raise Fault(
            key,
            f"holds {{{parameter.key}}}, whose pattern admits {admitted[0]!r}",
            hint='narrow the pattern, such as `"[a-z0-9-]+"`: it decides where the credential goes',
        )


def check_endpoint(address: str, parameters: tuple[Parameter, ...], key: Key) -> None:
    """Look at an address that gets tokens, codes or verifiers. Raises: Fault."""
    for parameter in parameters:
        if f"{{{parameter.key}}}" in address:
            _check_address_parameter(parameter, key)
    _checked_url(without_braces(address, {p.key: p.default or "x" for p in parameters}), key, query=True)


def check_template(template: str, names: set[str], key: Key) -> None:
    """See that only these names stand in braces. Raises: Fault."""
    rest = _BRACES.sub("", template)
    unknown = [name for name in _BRACES.findall(template) if name not in names]
    if unknown or "{" in rest or "}" in rest:
        known = ", ".join(f"{{{name}}}" for name in sorted(names)) or "none"
        what = f"names {{{unknown[0][:40]}}}, which is not known here" if unknown else "has a brace without its partner"
        raise Fault(key, what, hint=f"write one of the names known here: {known}")
