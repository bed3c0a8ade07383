"""Finds what in a policy never has an effect: rules behind others that match all of it, openings of nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from valetkey.gateway.pattern import Host, Pattern
from valetkey.gateway.policy import Policy, Rule

__all__ = ["Remark", "remarks"]

# Stands for what a `*` may be: no pattern can hold it literally, so that only a wildcard covers it.
_ANYTHING = "\x01"


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something about a policy that is allowed and hardly meant. `place` is `file:line`."""

    place: str
    message: str


def remarks(policy: Policy, *, providers: Collection[str]) -> list[Remark]:
    """Look at a policy; `providers` are the ids that there are."""
    found = []
    for i, rule in enumerate(policy.rules):
        before = next(
            (r for r in policy.rules[:i] if _covers(r.pattern, rule.pattern, loosely=r.verdict != "allow")), None
        )
        if before is not None:
            found.append(Remark(place=rule.place, message=_never(rule, before)))
    for opening in policy.openings:
        if opening.provider not in providers:
            message = f"allow_off_limits names {opening.provider}, and no provider has this id"
            found.append(Remark(place=opening.place, message=message))
    return found


def _never(rule: Rule, before: Rule) -> str:
    same = " says the same" if rule.pattern.text == before.pattern.text else " matches all of it before"
    return f'{rule.verdict} = "{rule.pattern.text}" never counts: {before.place}{same}'


def _covers(wide: Pattern, narrow: Pattern, *, loosely: bool) -> bool:
    if wide.methods is not None and (narrow.methods is None or not narrow.methods <= wide.methods):
        return False
    if wide.host is not None and (narrow.host is None or not _host_covers(wide.host, narrow.host, loosely=loosely)):
        return False
    # A `**` is none, one or many segments: what is no wildcard of the same reach fails at one of them.
    many = [_ANYTHING, "/".join([_ANYTHING] * 2), "/".join([_ANYTHING] * 5)]
    samples = [narrow.path.replace("**", some).replace("*", _ANYTHING) for some in many]
    return all(wide.strict.fullmatch(sample) for sample in samples)


def _host_covers(wide: Host, narrow: Host, *, loosely: bool) -> bool:
    every_port = wide.port == "*" or (wide.port is None and loosely)
    if not every_port and wide.port != narrow.port:
        return False
    name = narrow.text.lower().removesuffix(f":{narrow.port}")
    return wide.regex.fullmatch(name.replace("*", _ANYTHING)) is not None
