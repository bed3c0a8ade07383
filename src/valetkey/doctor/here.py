"""The layers on this machine's disk: home, settings, declarations, store, key, audit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from valetkey import agents, endpoints
from valetkey.doctor.finding import Finding, Parts, looked
from valetkey.errors import StoreUnwritable, ValetkeyError, WrongMode
from valetkey.flows import package_flows, package_problems
from valetkey.provider import Provider

__all__ = ["audit", "home", "key", "providers", "settings", "store"]

_MOST_ACCOUNTS = 1000


def home(parts: Parts) -> Iterator[Finding]:
    """Look at the folder: is it there, ours, and ours alone?"""
    yield looked("home", str(parts.paths.home), lambda: _home(parts))


def _home(parts: Parts) -> str:
    from valetkey.stores import modes

    folder = str(parts.paths.home)
    if not modes.check_folder(folder):
        return "not there yet; whatever opens the store first makes it"
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreUnwritable(f"{folder} cannot be written", hint=f"check who owns it: ls -ld {folder}")
    for path in (parts.paths.database, parts.paths.key_file):
        modes.check_file(str(path))
    if parts.paths.config.exists() and parts.paths.config.stat().st_mode & 0o022:
        raise WrongMode(f"{parts.paths.config} can be written by others", hint=f"run `chmod 600 {parts.paths.config}`")
    return "there, and yours alone"


def settings(parts: Parts) -> Iterator[Finding]:
    """Read config.toml and the environment."""

    def read() -> str:
        given = len(parts.config.given)
        return f"{given} set" if given else "all defaults"

    yield looked("settings", str(parts.paths.config), read)


def providers(parts: Parts) -> Iterator[Finding]:
    """Read every declaration, and what packages bring."""
    problems, found = parts.catalogue.problems, parts.catalogue.all()
    for problem in problems:
        yield Finding(layer="providers", subject=problem.path, error=problem.error)
    for subject, error in _broken_packages(found):
        yield Finding(layer="providers", subject=subject, error=error)
    notices = {
        "in place of the built-in one": [p.id for p in found if p.override],
        "from plugins": [p.id for p in found if p.origin == "plugin"],
        "flows of packages": _named(package_flows()),
        "endpoints of packages": _named(endpoints.BROUGHT.installed()),
        "agents of packages": _named(agents.BROUGHT.installed()),
    }
    notice = "; ".join(f"{what}: {', '.join(names)}" for what, names in notices.items() if names)
    count = len(parts.catalogue.ids()) - len(problems)
    yield Finding(layer="providers", subject="declarations", detail=f"{count} usable", notice=notice)


def _broken_packages(providers: Sequence[Provider]) -> Iterator[tuple[str, ValetkeyError]]:
    """Give what is wrong with packages' code: (flow, endpoint or agent, error). What a declaration names is loaded."""
    for kind, problem in package_problems(providers):
        yield f"flow {kind}", problem
    for name, problem in endpoints.BROUGHT.taken(endpoints.BUILT_IN):
        yield f"endpoint {name}", problem
    for name in sorted({method.endpoint for p in providers for method in p.auth if method.endpoint}):
        try:
            endpoints.endpoint_for(name)
        except ValetkeyError as error:
            yield f"endpoint {name}", error
    for name, problem in agents.BROUGHT.taken(agents.BUILT_IN):
        yield f"agent {name}", problem


def _named(shipped: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name} ({package})" for name, package in shipped]


def store(parts: Parts) -> Iterator[Finding]:
    """Open the database."""
    yield looked(
        "store",
        str(parts.paths.database),
        lambda: f"opens, {len(parts.store.accounts(limit=_MOST_ACCOUNTS))} accounts",
    )


def key(parts: Parts) -> Iterator[Finding]:
    """Get the key from where it is, and open every record with it."""
    from valetkey.stores.check import check

    try:
        kind = parts.store.source_kind()
        if kind is None:
            yield Finding(layer="key", subject="key source", detail="none yet; the first login makes one")
            return
        problems = check(parts.store)
        notice = parts.store.notice()
    except ValetkeyError as error:
        yield Finding(layer="key", subject="key source", error=error)
        return
    if problems:
        damaged = StoreUnwritable(
            "; ".join(problems[:5]), hint="put a backup back (`valetkey store restore FILE`), or log in again"
        )
        yield Finding(layer="store", subject=str(parts.paths.database), error=damaged)
        return
    yield Finding(layer="key", subject="key source", detail=f"{kind}, opens every record", notice=notice)


def audit(parts: Parts, *, whole: bool) -> Iterator[Finding]:
    """Verify the end of the chain, which takes no time, or the whole of it."""
    yield looked("audit", str(parts.paths.audit), lambda: _audit(parts, whole=whole))


def _audit(parts: Parts, *, whole: bool) -> str:
    from valetkey.audit.ending import verify_end
    from valetkey.audit.reader import lines
    from valetkey.audit.signing import pinned_key
    from valetkey.audit.verify import verify

    pinned = pinned_key(parts.paths)
    if whole:
        found = verify(lines(parts.paths.audit), key=pinned, anchor=None, whole=False)
        return f"{found.entries} entries, none changed; signed up to {found.signed}"
    end = verify_end(parts.paths.audit, pinned)
    if end.entries == 0:
        return "nothing is recorded yet"
    looked_at = f"the last {end.looked_at} of {end.entries} entries are as they were written"
    return f"{looked_at}; signed up to {end.signed}"
