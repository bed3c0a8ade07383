"""`doctor`: looks at what a credential goes through, layer by layer, and names the one that fails.

The exit status says which failed first: 10 home, 11 settings, 12 providers, 13 store, 14 key, 15 name resolution,
16 TLS, 17 connection, 18 clock, 19 account, 20 gateway.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import click

from valetkey.cli.frame import State, command, stop
from valetkey.credential import Health
from valetkey.errors import (
    ConfigError,
    NameNotResolved,
    StoreUnwritable,
    TlsFailed,
    TransportError,
    ValetkeyError,
    WrongMode,
)

if TYPE_CHECKING:
    from valetkey.http import Response
    from valetkey.provider import Provider

__all__ = ["LAYERS", "doctor"]

LAYERS = {
    "home": 10,
    "settings": 11,
    "providers": 12,
    "store": 13,
    "key": 14,
    "name resolution": 15,
    "tls": 16,
    "connection": 17,
    "clock": 18,
    "account": 19,
    "gateway": 20,
}
_ASK_SECONDS = 10.0
# Servers date tokens by their own clock and allow a minute or two (RFC 7519 section 4.1.4: "a few minutes").
_MOST_SKEW = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one look at a layer gave: with an `error` it failed, with a `notice` the user should know something."""

    layer: str
    subject: str
    detail: str = ""
    notice: str = ""
    error: ValetkeyError | None = None

    def as_dict(self) -> dict[str, object]:
        """Give the JSON form."""
        return {
            "layer": self.layer,
            "subject": self.subject,
            "ok": self.error is None,
            "detail": self.detail,
            "notice": self.notice,
            "error": None if self.error is None else self.error.as_dict(),
        }


@command("doctor", short_help="Find out what is wrong.")
@click.option("--offline", is_flag=True, help="Ask no provider.")
def doctor(state: State, *, offline: bool) -> None:
    """Look at what a credential goes through, layer by layer, and name the one that fails.

    Exit status: 0 all is well, else 10 home, 11 settings, 12 providers, 13 store, 14 key, 15 name resolution, 16 TLS,
    17 connection, 18 clock, 19 account, 20 gateway, whichever comes first.
    """
    found: list[Finding] = []
    for finding in _findings(state, offline=offline):
        found.append(finding)
        if not state.json:
            _show(state, finding)
    failed = [f for f in found if f.error is not None]
    first = min(failed, key=lambda f: LAYERS[f.layer], default=None)
    state.emit(
        {
            "ok": first is None,
            "layer": None if first is None else first.layer,
            "findings": [f.as_dict() for f in found],
        }
    )
    if first is not None:
        state.say(f"The first layer that fails: {first.layer}", fg="red", bold=True)
    stop(0 if first is None else LAYERS[first.layer])


def _show(state: State, finding: Finding) -> None:
    good = finding.error is None
    state.say(
        f"{'ok  ' if good else 'FAIL'}  {finding.layer:<15}  {finding.subject}"
        + (f": {finding.detail}" if finding.detail else ""),
        fg="green" if good else "red",
    )
    if finding.error is not None:
        state.say(f"      {finding.error.message}")
        state.say(f"      {finding.error.hint}")
    if finding.notice:
        state.say(f"      note: {finding.notice}")


def _findings(state: State, *, offline: bool) -> Iterator[Finding]:
    yield _looked("home", str(state.paths.home), lambda: _home(state))
    settings = _looked("settings", str(state.paths.config), lambda: _settings(state))
    yield settings
    if settings.error is not None:
        # Everything below is told by them where to look.
        return
    yield from _providers(state)
    store = _looked("store", str(state.paths.database), lambda: _store(state))
    yield store
    if store.error is not None:
        return
    yield _key(state)
    yield _gateway(state)
    if not offline:
        yield from _online(state)


def _looked(layer: str, subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(layer=layer, subject=subject, detail=look())
    except ValetkeyError as error:
        return Finding(layer=layer, subject=subject, error=error)


# --- here ------------------------------------------------------------------------------------


def _home(state: State) -> str:
    from valetkey.stores import modes

    home = str(state.paths.home)
    if not modes.check_folder(home):
        return "not there yet; whatever opens the store first makes it"
    if not os.access(home, os.W_OK | os.X_OK):
        raise StoreUnwritable(f"{home} cannot be written", hint=f"check who owns it: ls -ld {home}")
    for path in (state.paths.database, state.paths.key_file):
        modes.check_file(str(path))
    if state.paths.config.exists() and state.paths.config.stat().st_mode & 0o022:
        raise WrongMode(f"{state.paths.config} can be written by others", hint=f"run `chmod 600 {state.paths.config}`")
    return "there, and yours alone"


def _settings(state: State) -> str:
    given = len(state.config.given)
    return f"{given} set" if given else "all defaults"


def _providers(state: State) -> Iterator[Finding]:
    from valetkey.flows import package_flows, package_problems

    problems = state.catalogue.problems
    for problem in problems:
        yield Finding(layer="providers", subject=problem.path, error=problem.error)
    for kind, error in package_problems(state.catalogue.all()):
        yield Finding(layer="providers", subject=f"flow {kind}", error=error)
    overridden = [p.id for p in state.catalogue.all() if p.override]
    plugins = [p.id for p in state.catalogue.all() if p.origin == "plugin"]
    notices = [f"in place of the built-in one: {', '.join(overridden)}"] if overridden else []
    notices += [f"from plugins: {', '.join(plugins)}"] if plugins else []
    flows = package_flows()
    notices += [f"flows of packages: {', '.join(f'{kind} ({package})' for kind, package in flows)}"] if flows else []
    count = len(state.catalogue.ids()) - len(problems)
    yield Finding(layer="providers", subject="declarations", detail=f"{count} usable", notice="; ".join(notices))


def _store(state: State) -> str:
    return f"opens, {len(state.store.accounts(limit=1000))} accounts"


def _key(state: State) -> Finding:
    from valetkey.stores.check import check

    try:
        kind = state.store.source_kind()
        if kind is None:
            return Finding(layer="key", subject="key source", detail="none yet; the first login makes one")
        problems = check(state.store)
        notice = state.store.notice()
    except ValetkeyError as error:
        return Finding(layer="key", subject="key source", error=error)
    if problems:
        damaged = StoreUnwritable(
            "; ".join(problems[:5]), hint="put a backup back (`valetkey store restore FILE`), or log in again"
        )
        return Finding(layer="store", subject=str(state.paths.database), error=damaged)
    return Finding(layer="key", subject="key source", detail=f"{kind}, opens every record", notice=notice)


def _gateway(state: State) -> Finding:
    """Look whether it runs, answers and is of this version; where it does not run, whether its port is free."""
    import valetkey
    from valetkey import serving

    home = str(state.paths.home)
    try:
        about = serving.running(home)
        if about is None:
            notice = _port_taken(state)
            return Finding(layer="gateway", subject="not running", detail="`valetkey up` starts it", notice=notice)
        told = serving.ask(home, "GET", "/status", patience_seconds=_ASK_SECONDS)
    except ValetkeyError as error:
        return Finding(layer="gateway", subject="control socket", error=error)
    notices = ["the store is locked: run `valetkey unlock`"] if told["locked"] else []
    if about["version"] != valetkey.__version__:
        notices.append(f"it is of version {about['version']}, this is {valetkey.__version__}: run `valetkey up`")
    notices += [f"the valet key {key} does not count: {reason}" for key, reason in told["problems"].items()]
    detail = f"process {about['pid']}, version {about['version']}"
    return Finding(layer="gateway", subject=about["url"], detail=detail, notice="; ".join(notices))


def _port_taken(state: State) -> str:
    import socket

    host, port = state.config.text("gateway.host") or "", state.config.port("gateway.port")
    try:
        socket.create_server((host, port), reuse_port=False).close()
    except OSError as error:
        return f"it could not listen on {host}, port {port}: {(error.strerror or str(error)).lower()}"
    return ""


# --- out there -------------------------------------------------------------------------------


def _online(state: State) -> Iterator[Finding]:
    from valetkey import sdk

    accounts = sdk.accounts(limit=1000, broker=state.broker)
    used = {a.ref.provider for a in accounts} | {p.id for p in state.catalogue.custom()}
    reachable: set[str] = set()
    for provider in state.catalogue.all():
        if provider.id in used and "{" not in provider.api.base_url:
            for finding in _server(state, provider):
                if finding.layer != "clock" and finding.error is None:
                    reachable.add(provider.id)
                yield finding
    names = [str(a.ref) for a in accounts if a.source == "stored"]
    names += [a.ref.provider for a in accounts if a.source == "environment" and not a.shadowed]
    # What cannot be reached was told above.
    unreachable = {p.id for p in state.catalogue.all() if p.id not in reachable and "{" not in p.api.base_url}
    for name in names:
        if name.partition("@")[0] not in unreachable:
            yield _account(state, name)


def _server(state: State, provider: Provider) -> Iterator[Finding]:
    base_url = provider.api.base_url
    try:
        answer = state.http.send("GET", base_url, timeout_seconds=_ASK_SECONDS)
    except NameNotResolved as error:
        yield Finding(layer="name resolution", subject=base_url, error=error)
    except TlsFailed as error:
        yield Finding(layer="tls", subject=base_url, error=error)
    except TransportError as error:
        yield Finding(layer="connection", subject=base_url, error=error)
    else:
        yield Finding(layer="connection", subject=base_url, detail=f"answers (HTTP {answer.status})")
        skew = _skew(answer, state.clock.now())
        if skew is not None and abs(skew) > _MOST_SKEW:
            ahead = "behind" if skew > timedelta(0) else "ahead"
            wrong = ConfigError(
                f"this machine's clock is {abs(skew).total_seconds():.0f} s {ahead} of {provider.id}'s",
                hint="set the clock: `sudo timedatectl set-ntp true`",
            )
            yield Finding(layer="clock", subject=base_url, error=wrong)


def _skew(answer: Response, now: datetime) -> timedelta | None:
    try:
        then = parsedate_to_datetime(answer.headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return then.replace(tzinfo=then.tzinfo or UTC) - now


def _account(state: State, name: str) -> Finding:
    from valetkey import sdk

    try:
        found = state.run(sdk.check(name, broker=state.broker))
    except ValetkeyError as error:
        return Finding(layer="account", subject=name, error=error)
    if found.health in (Health.OK, Health.EXPIRING):
        return Finding(layer="account", subject=name, detail=found.health.value, notice=found.reason)
    problem = ValetkeyError(
        found.reason or f"its health is {found.health.value}",
        hint=f"run `valetkey login {found.ref.provider} --account {found.ref.account}`"
        if found.health in (Health.NEEDS_LOGIN, Health.EXPIRED)
        else "try again later; `valetkey status` asks again",
        provider=found.ref.provider,
    )
    return Finding(layer="account", subject=name, detail=found.health.value, error=problem)
