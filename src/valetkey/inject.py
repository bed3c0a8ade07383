"""Puts a credential into a request's headers, as a declaration says."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, assert_never
from urllib.parse import quote, unquote_plus, urlsplit

from valetkey.address import check_url, is_near
from valetkey.credential import Credential, secrets_of
from valetkey.errors import HostsNotAccepted, InvalidParameter, InvalidProvider
from valetkey.provider import AuthMethod, Provider

__all__ = [
    "Step",
    "check_place",
    "endpoint_hosts",
    "fill",
    "headers_for",
    "host_matches",
    "join",
    "placed",
    "reach",
    "steps_for",
    "variables_of",
    "with_cookie",
    "with_parameter",
]

_BRACES = re.compile(r"\{([A-Za-z0-9_-]+)\}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Fill in the braces. Raises: InvalidProvider for a name that has no value."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            raise InvalidProvider(f"nothing is known for {{{name}}}", hint=f"declare `{name}` or correct the template")
        return values[name]

    return _BRACES.sub(value, template)


def variables_of(credential: Credential, *, account_id: str | None = None) -> dict[str, str]:
    """Give what templates may name, revealed: the secrets, the parameters, `account_id`."""
    values = dict(credential.parameters)
    if account_id is not None:
        values["account_id"] = account_id
    values.update({name: secret.reveal() for name, secret in secrets_of(credential).items()})
    return values


def host_matches(host: str, patterns: tuple[str, ...]) -> bool:
    """Say whether `host` (lower case, no port unless the pattern has one) is one of these; `*.` takes subdomains."""
    bare = host.rsplit(":", 1)[0] if not host.startswith("[") else host.split("]")[0] + "]"
    for pattern in patterns:
        if pattern in (host, bare):
            return True
        if pattern.startswith("*.") and bare.endswith(pattern[1:]):
            return True
    return False


def check_place(url: str, hosts: tuple[str, ...]) -> str:
    """Give the host, with its port, of a URL that may get a credential.

    Raises: HostsNotAccepted for another host, for plain http that leaves the private network, and for whatever two
    readers of URLs could read differently.
    """
    try:
        parts = urlsplit(url)
        host, name = parts.netloc.lower(), parts.hostname or ""
    except ValueError:
        parts, host, name = urlsplit(""), "", ""
    plain = url.startswith(("https://", "http://")) and url.isprintable() and not set("@\\ ") & set(host)
    if not plain or not host_matches(host, hosts):
        raise HostsNotAccepted(
            f"this login may not be used at {host.rpartition('@')[2]}",
            hint="log in again, or accept the provider's new hosts",
        )
    if parts.scheme == "http" and not is_near(name):
        raise HostsNotAccepted(
            f"this login may not be used at {host} over plain http, readable for everybody on the way",
            hint=f"use https://{host}",
        )
    return host


def headers_for(
    credential: Credential,
    *,
    method: AuthMethod,
    url: str,
    hosts: tuple[str, ...],
    headers: Mapping[str, str],
    account_id: str | None = None,
) -> dict[str, str]:
    """Give `headers` with whatever credential they held taken out and this one put in. Names come back in lower case.

    `hosts` are the account's sealed hosts. Raises: HostsNotAccepted as `check_place` does; InvalidParameter when what
    is filled in would break the header.
    """
    result = {name.lower(): value for name, value in headers.items()}
    for step in steps_for(credential, method=method, url=url, hosts=hosts, account_id=account_id):
        match step.kind:
            case "remove":
                result.pop(step.name, None)
            case "set":
                result[step.name] = step.value
            case "if absent":
                result.setdefault(step.name, step.value)
            case "append":
                result[step.name] = _appended(result.get(step.name, ""), step.value)
            case "cookie":
                result["cookie"] = with_cookie(result.get("cookie", ""), step.name, step.value)
            case "query" | "replace":
                continue  # no header: `placed` and the gateway do these
            case _:
                assert_never(step.kind)
    return result


StepKind = Literal["remove", "set", "if absent", "append", "query", "cookie", "replace"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that a credential does to a request; steps are done in their order.

    `name` is that of a header, in lower case; of a parameter for `query` and `cookie`; "path" or "body" for `replace`.
    """

    kind: StepKind
    name: str
    value: str = field(default="", repr=False)


def steps_for(
    credential: Credential,
    *,
    method: AuthMethod,
    url: str,
    hosts: tuple[str, ...],
    account_id: str | None = None,
) -> list[Step]:
    """Give what has to be done to the headers of any request there. Raises as `headers_for` does."""
    host = check_place(url, hosts)
    values = variables_of(credential, account_id=account_id)
    steps: list[Step] = []
    for rule in method.inject:
        if rule.hosts and not host_matches(host, tuple(fill(h, credential.parameters).lower() for h in rule.hosts)):
            continue
        steps += [Step(kind="remove", name=name.lower()) for name in rule.remove]
        if rule.basic is not None and not _names_empty(rule.basic, values):
            pair = fill(rule.basic, values).encode()
            steps.append(Step(kind="set", name="authorization", value="Basic " + base64.b64encode(pair).decode()))
        for name, template in rule.set.items():
            if not _names_empty(template, values):
                steps.append(_step(name.lower(), _one_line(name, fill(template, values))))
        others: tuple[tuple[StepKind, Mapping[str, str]], ...] = (
            ("query", rule.query),
            ("cookie", rule.cookie),
            ("replace", {str(place): template for place, template in rule.replace.items()}),
        )
        for kind, templates in others:
            for name, template in templates.items():
                if not _names_empty(template, values):
                    steps.append(Step(kind=kind, name=name, value=_one_line(name, fill(template, values))))
    return steps


def placed(
    credential: Credential,
    *,
    method: AuthMethod,
    url: str,
    hosts: tuple[str, ...],
    account_id: str | None = None,
) -> str:
    """Give the URL with what the credential puts into its query. Raises as `headers_for` does."""
    if not any(rule.query for rule in method.inject):
        return url
    for step in steps_for(credential, method=method, url=url, hosts=hosts, account_id=account_id):
        if step.kind == "query":
            url = with_parameter(url, step.name, step.value)
    return url


def with_parameter(url: str, name: str, value: str) -> str:
    """Give a URL, or a request target, whose query has this parameter, and no other of its name."""
    path, _, query = url.partition("?")
    kept = [pair for pair in query.split("&") if pair and unquote_plus(pair.partition("=")[0]) != name]
    added = f"{quote(name, safe='')}={quote(value, safe='')}"
    return f"{path}?{'&'.join([*kept, added])}"


def with_cookie(present: str, name: str, value: str) -> str:
    """Give a Cookie header (RFC 6265 section 4.2) with this cookie, and no other of its name."""
    kept = [pair.strip() for pair in present.split(";") if pair.strip() and pair.partition("=")[0].strip() != name]
    return "; ".join([*kept, f"{name}={value}"])


def _appended(present: str, value: str) -> str:
    """Add a value to a comma list that may hold it already (RFC 9110 section 5.6.1)."""
    parts = [part.strip() for part in present.split(",") if part.strip()]
    return ", ".join([*parts, *([] if value in parts else [value])])


def _step(name: str, value: str) -> Step:
    if name.endswith("?"):
        return Step(kind="if absent", name=name[:-1], value=value)
    if name.endswith("+"):
        return Step(kind="append", name=name[:-1], value=value)
    return Step(kind="set", name=name, value=value)


def _one_line(name: str, value: str) -> str:
    # An account id is the provider's word, a key of the environment anybody's.
    if value.isascii() and value.isprintable():
        return value
    raise InvalidParameter(
        f"what goes into the header {name.rstrip('?+')} holds a line break or a character outside of ASCII",
        hint="copy the key and the parameters again, each alone and whole",
    )


def _names_empty(template: str, values: Mapping[str, str]) -> bool:
    # A key that may be left out (a local server's): no header is better than `Bearer ` with nothing behind it.
    return any(values.get(name) == "" for name in _BRACES.findall(template))


def join(base_url: str, path: str) -> str:
    """Join a path to a base URL.

    A version that both have (`…/v1` and `/v1/messages`) stands once; a whole URL stays as it is.
    """
    if path.startswith(("https://", "http://")):
        return path
    base = base_url.rstrip("/")
    first, _, rest = path.lstrip("/").partition("/")
    if re.fullmatch(r"v\d+(?:beta\d*|alpha\d*)?", first) and base.endswith("/" + first):
        return f"{base}/{rest}"
    return f"{base}/{path.lstrip('/')}"


def reach(provider: Provider, method: AuthMethod, parameters: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Give base_url and hosts of a login, filled in. Both are sealed into its record.

    Call it only with parameters that passed their patterns: they decide where the credential goes.
    Raises: InvalidBaseUrl when what they make of the address is a metadata service's or leaves by plain http.
    """
    base_url = method.base_url or provider.api.base_url
    hosts = method.hosts or provider.api.hosts
    for rule in method.when:
        if all(parameters.get(name) == value for name, value in rule.values.items()):
            base_url = rule.base_url or base_url
            hosts = hosts if rule.hosts is None else rule.hosts
            break
    filled = fill(base_url, parameters)
    check_url(filled)
    return filled, tuple(fill(host, parameters).lower() for host in hosts)


def endpoint_hosts(method: AuthMethod, parameters: Mapping[str, str]) -> tuple[str, ...]:
    """Give the hosts that get this login's tokens to renew, exchange or revoke; with a port where one is named.

    Raises: InvalidBaseUrl as `reach` does.
    """
    exchange = method.exchange
    addresses = (
        method.token_endpoint,
        method.revocation_endpoint,
        (exchange.get or exchange.post) if exchange is not None else None,
    )
    filled = [fill(address, parameters) for address in addresses if address]
    for address in filled:
        check_url(address, query=True)
    return tuple(sorted({urlsplit(address).netloc.lower() for address in filled}))
