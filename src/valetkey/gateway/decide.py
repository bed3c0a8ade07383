"""The one decision of the gateway: may this client make this request, and with which account?

`decide` is pure: values in, a value out. Every front end asks it, and so does `valetkey policy explain`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Literal, assert_never
from urllib.parse import urlsplit

from valetkey.address import is_near
from valetkey.credential import CredentialRef
from valetkey.gateway import pattern
from valetkey.gateway.normal import Malformed, Target, normalise
from valetkey.gateway.pattern import Host, Pattern
from valetkey.gateway.policy import Policy, Rule
from valetkey.inject import host_matches

__all__ = [
    "DISGUISES",
    "Client",
    "Decision",
    "Forward",
    "Grant",
    "Hold",
    "Matched",
    "RefusalCode",
    "Refuse",
    "RequestHead",
    "allowing",
    "decide",
    "malformed",
]

_METHOD = re.compile(r"[A-Z]{1,20}")
# With these a server takes the request for another one than the rules saw.
DISGUISES = frozenset(
    ("x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url")
)

# --- what is asked ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RequestHead:
    """A request as it came. `path` is raw, with its query; `header_names` in lower case.

    For CONNECT, `path` is "/" and `scheme` https. `grant` is the account that a base URL or a placeholder named.
    """

    method: str
    scheme: str
    host: str
    port: int | None
    path: str
    header_names: frozenset[str] = frozenset()
    grant: CredentialRef | None = None


@dataclass(frozen=True, kw_only=True)
class Grant:
    """An account that a client may use, and where. `hosts` are the login's sealed ones.

    `signs`: the tool gets keys from an endpoint and signs by itself. Nothing is put in, and its hosts are tunnelled.
    """

    ref: CredentialRef
    base_url: str
    hosts: tuple[str, ...]
    off_limits: tuple[Pattern, ...] = ()
    signs: bool = False

    @functools.cached_property
    def places(self) -> tuple[Host, ...]:
        """The hosts to match: a declared one without a port is on its scheme's port, or on the base URL's."""
        base = urlsplit(self.base_url).netloc.lower()
        hosts = (base, *self.hosts) if host_matches(base, self.hosts) else self.hosts
        return tuple(pattern.read_host(host, stars_anywhere=True) for host in dict.fromkeys(hosts))


@dataclass(frozen=True, kw_only=True)
class Client:
    """Who asks: a valet key or a run. The order of `grants` decides where two of them serve alike.

    `agent` is whom a run was started for, where it is not a bare command.
    """

    id: str
    kind: Literal["key", "run"]
    grants: tuple[Grant, ...]
    agent: str | None = None


# --- what is answered ------------------------------------------------------------------------

RefusalCode = Literal[
    "malformed",
    "method_refused",
    "address_refused",
    "unknown_provider",
    "unknown_server",
    "relay_alone",
    "not_granted",
    "plain_http",
    "off_limits",
    "denied",
]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What decided. `place` is `file:line`, or empty where it is a provider's declaration or a default."""

    text: str
    place: str = ""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Send `target`, and nothing but it. `grant` is the account whose credential goes in, None for none.

    `how`: inject (send with the credential), intercept (answer CONNECT and look into it), tunnel (answer CONNECT and
    pass bytes), relay (send without a credential).
    """

    method: str
    target: Target
    how: Literal["inject", "intercept", "tunnel", "relay"]
    grant: CredentialRef | None
    rule: Matched
    reason: str


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """Answer `status`. `allow_line` is the line of a policy that would let it through, where one would.

    `allows` is what a rule would have to say for that, where a rule is all that it takes. `named` is the account that a
    base URL named, where it is not granted.
    """

    code: RefusalCode
    status: Literal[400, 403, 404]
    reason: str
    rule: Matched | None = None
    allow_line: str | None = None
    target: Target | None = None
    grant: CredentialRef | None = None
    allows: str = ""
    named: str = ""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Wait until a person has decided; `then` is what to do after a yes."""

    then: Forward
    rule: Matched
    reason: str


Decision = Forward | Refuse | Hold

# --- the decision ----------------------------------------------------------------------------


def decide(request: RequestHead, client: Client, policy: Policy) -> Decision:
    """Decide on one request. Off-limits paths come first, then the rules in their order, then the default."""
    target = normalise(scheme=request.scheme, host=request.host, port=request.port, path=request.path)
    if isinstance(target, Malformed):
        return malformed(target)
    refused = _look_at_head(request, target)
    if refused is not None:
        return refused
    serving = [grant for grant in client.grants if any(host.matches(target, loosely=False) for host in grant.places)]
    if request.grant is not None:
        serving = [grant for grant in serving if grant.ref == request.grant]
        if not serving:
            return Refuse(
                code="not_granted",
                status=403,
                reason=f"{request.grant} is not granted for {target.authority}",
                target=target,
            )
    if not serving:
        return _without_grant(request.method, target, policy)
    grant, why = _choose(serving, target)
    if target.scheme == "http" and not grant.base_url.startswith("http:"):
        return Refuse(
            code="plain_http",
            status=403,
            reason=f"{grant.ref} is for https, and plain http would be read on the way",
            target=target,
            grant=grant.ref,
        )
    if request.method == "CONNECT" and grant.signs:
        return _without_grant(request.method, target, policy, signing=grant)
    if request.method == "CONNECT":
        matched = Matched(text="every request inside is decided on its own")
        return Forward(method="CONNECT", target=target, how="intercept", grant=grant.ref, rule=matched, reason=why)
    return _with_grant(request.method, target, grant, why, policy)


def _look_at_head(request: RequestHead, target: Target) -> Refuse | None:
    if not _METHOD.fullmatch(request.method):
        return Refuse(code="malformed", status=400, reason="the request has no method that there is", target=target)
    if request.method == "TRACE":
        # RFC 9110 section 9.3.8: the answer holds the request, the credential with it.
        return Refuse(code="method_refused", status=403, reason="TRACE would send the credential back", target=target)
    disguises = sorted(DISGUISES & request.header_names)
    if disguises:
        return Refuse(
            code="method_refused",
            status=403,
            reason=f"the header {disguises[0]} would make another request of this one behind the rules",
            target=target,
        )
    return None


def _with_grant(method: str, target: Target, grant: Grant, why: str, policy: Policy) -> Decision:
    forbidden = next((p for p in grant.off_limits if p.matches(method, target, loosely=True)), None)
    opened = any(
        opening.provider == grant.ref.provider and opening.pattern.matches(method, target, loosely=False)
        for opening in policy.openings
    )
    if forbidden is not None and not opened:
        return Refuse(
            code="off_limits",
            status=403,
            reason=f"{grant.ref.provider} keeps this path off limits: {forbidden.text}",
            rule=Matched(text=forbidden.text, place=f"off_limits of {grant.ref.provider}"),
            allow_line=f'allow_off_limits = ["{grant.ref.provider}: {method} {target.path}"]',
            target=target,
            grant=grant.ref,
        )
    forward = Forward(
        method=method, target=target, how="inject", grant=grant.ref, rule=_by_default(policy.default), reason=why
    )
    for rule in policy.rules:
        if rule.pattern.matches(method, target, loosely=rule.verdict != "allow"):
            return _by_rule(rule, forward)
    return forward if policy.default == "allow" else _denied(forward, "no rule of the policy allows it")


def _without_grant(method: str, target: Target, policy: Policy, *, signing: Grant | None = None) -> Decision:
    """Decide where no credential goes in: no account is for the host, or `signing` is, whose tool signs by itself."""
    if is_near(target.host.strip("[]")):
        return Refuse(
            code="address_refused",
            status=403,
            reason=f"{target.host} is on this machine or a private network, and no granted account is for it",
            target=target,
        )
    # Without a grant nothing is intercepted, so that only the tunnel can be decided on.
    tunnel = method == "CONNECT" or target.scheme == "https"
    default = policy.other_hosts if signing is None else policy.default
    why = f"no granted account is for {target.authority}"
    if signing is not None:
        why = f"what goes to {target.authority} is signed with keys of {signing.ref} by the tool itself"
    forward = Forward(
        method=method,
        target=target,
        how="tunnel" if tunnel else "relay",
        grant=None,
        rule=_by_default(default, other=signing is None),
        reason=why,
    )
    for rule in policy.rules:
        if tunnel and rule.verdict == "allow":
            applies = rule.pattern.allows_tunnel(target)
        elif tunnel:
            applies = rule.pattern.touches_tunnel(target)
        else:
            applies = rule.pattern.matches(method, target, loosely=rule.verdict != "allow")
        if applies:
            return _by_rule(rule, forward)
    if default == "allow":
        return forward
    return _denied(forward, f"{why}, and no rule of the policy allows it")


def _by_rule(rule: Rule, forward: Forward) -> Decision:
    matched = Matched(text=f'{rule.verdict} = "{rule.pattern.text}"', place=rule.place, name=rule.name)
    match rule.verdict:
        case "allow":
            return replace(forward, rule=matched)
        case "ask":
            reason = rule.reason or "the policy lets a person decide on this"
            return Hold(then=replace(forward, rule=matched), rule=matched, reason=reason)
        case "deny":
            reason = rule.reason or "a rule of the policy denies it"
            path = rule.pattern.path
            if forward.how == "tunnel" and (rule.pattern.methods is not None or path != "/**"):
                reason += "; a tunnel could carry it, and nobody can look into a tunnel"
            return _denied(forward, reason, matched)
    assert_never(rule.verdict)


def allowing(forward: Forward) -> str:
    """Give what a rule would have to say to let this through, and as little else as it can."""
    target = forward.target
    if forward.how == "tunnel":
        return f"CONNECT {target.authority}/**"
    return f"{forward.method} {target.authority}{target.path}"


def _denied(forward: Forward, reason: str, matched: Matched | None = None) -> Refuse:
    what = allowing(forward)
    return Refuse(
        code="denied",
        status=403,
        reason=reason,
        rule=matched or forward.rule,
        allow_line=f'allow = "{what}"',
        target=forward.target,
        grant=forward.grant,
        allows=what,
    )


def _by_default(verdict: str, *, other: bool = False) -> Matched:
    return Matched(text=f'other_hosts = "{verdict}"' if other else f'default = "{verdict}"', name="default")


def _choose(serving: list[Grant], target: Target) -> tuple[Grant, str]:
    """Choose by base URL (the longest that the path is below), then a host named exactly, then the grants' order."""
    if len(serving) == 1:
        return serving[0], f"{serving[0].ref} is for {target.authority}"

    def fits(grant: Grant) -> tuple[int, bool]:
        base = urlsplit(grant.base_url)
        prefix = base.path.rstrip("/")
        below = base.hostname == target.host.strip("[]") and (target.path + "/").startswith(prefix + "/")
        exact = any(host.is_exact and host.matches(target, loosely=False) for host in grant.places)
        return (len(prefix) + 1 if below else 0), exact

    best = max(serving, key=fits)  # the first of equals
    others = ", ".join(str(grant.ref) for grant in serving if grant is not best)
    equal = sum(fits(grant) == fits(best) for grant in serving) > 1
    return best, f"{best.ref} {'was granted before' if equal else 'is nearer to this address than'} {others}"


def malformed(found: Malformed) -> Refuse:
    """Give the answer to an address that cannot be used."""
    reason = f"the request {found.reason}"
    if found.code == "address_refused":
        return Refuse(code="address_refused", status=403, reason=reason)
    return Refuse(code="malformed", status=400, reason=reason)
