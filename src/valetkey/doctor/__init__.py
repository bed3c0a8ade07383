"""Looks at what a credential goes through, layer by layer: `examine`. Whoever shows it is above."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from valetkey.doctor.finding import LAYERS, Finding, Parts

if TYPE_CHECKING:
    from valetkey.doctor.trial import Trial

__all__ = ["LAYERS", "Finding", "Parts", "examine"]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One look at a layer, which is not taken where another one that it `needs` came to nothing.

    That it failed is the end of what needs it, unless it looks at `several` things, of which each may be well.
    """

    layer: str
    look: Callable[[], Iterator[Finding]]
    needs: tuple[str, ...] = ()
    several: bool = False
    online: bool = False
    name: str = ""


def examine(
    parts: Parts, *, offline: bool = False, whole_audit: bool = False, policy: str | None = None, policy_file: str = ""
) -> Iterator[Finding]:
    """Look at each layer in turn, and give what is found as it is found.

    With `offline` no provider is asked and nothing is started. `policy` is the text of one that the questions through
    the gateway are held to. Whatever was begun for it has ended when the iterator is at its end or closed.
    """
    # `valetkey --help` needs the layers' names alone.
    from valetkey.doctor.trial import Trial

    trial = Trial(parts, policy=policy, policy_file=policy_file)
    try:
        yield from _taken(
            step for step in _steps(parts, trial, whole_audit=whole_audit) if not (offline and step.online)
        )
    finally:
        trial.close()


def _steps(parts: Parts, trial: Trial, *, whole_audit: bool) -> tuple[_Step, ...]:
    from valetkey.doctor import gateway, here, sandboxed, servers, through

    return (
        _Step(layer="home", look=lambda: here.home(parts)),
        _Step(layer="settings", look=lambda: here.settings(parts)),
        _Step(layer="providers", needs=("settings",), several=True, look=lambda: here.providers(parts)),
        _Step(layer="store", needs=("home", "settings"), look=lambda: here.store(parts)),
        _Step(layer="key", needs=("store",), look=lambda: here.key(parts)),
        _Step(layer="audit", needs=("home", "settings"), look=lambda: here.audit(parts, whole=whole_audit)),
        _Step(
            layer="tls", name="authorities", needs=("settings",), online=True, look=lambda: servers.authorities(parts)
        ),
        _Step(
            layer="connection",
            needs=("store", "authorities"),
            several=True,
            online=True,
            look=lambda: servers.reached(parts, trial),
        ),
        _Step(
            layer="account",
            needs=("key", "connection"),
            several=True,
            online=True,
            look=lambda: servers.accounts(parts, trial),
        ),
        _Step(layer="gateway", needs=("home", "settings"), look=lambda: gateway.process(parts, trial)),
        _Step(
            layer="through gateway",
            needs=("account", "gateway"),
            several=True,
            online=True,
            look=lambda: through.asked(parts, trial),
        ),
        _Step(layer="sandbox", look=sandboxed.there),
        _Step(
            layer="inside sandbox",
            needs=("through gateway", "sandbox"),
            several=True,
            online=True,
            look=lambda: sandboxed.asked(parts, trial),
        ),
    )


def _taken(steps: Iterator[_Step]) -> Iterator[Finding]:
    """Take the steps; one that cannot be taken is told with the layer that is the cause of it."""
    causes: dict[str, str] = {}
    for step in steps:
        name = step.name or step.layer
        cause = next((causes[need] for need in step.needs if need in causes), None)
        if cause is not None:
            causes[name] = cause
            yield Finding(layer=step.layer, subject="", skipped=f"not looked at, for this failed: {cause}")
            continue
        for finding in step.look():
            yield finding
            over = finding.error is not None or (finding.skipped and not step.several)
            if over and finding.layer == step.layer and not step.several:
                causes[name] = step.layer
