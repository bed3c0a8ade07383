"""`policy`: check, explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import click

from valetkey.cli.frame import State, command, group, stop
from valetkey.credential import CredentialRef, login_command
from valetkey.errors import NotLoggedIn, ProviderError, RecordDamaged, UsageError

if TYPE_CHECKING:
    from valetkey.gateway.decide import Client, Decision, Grant, Matched
    from valetkey.gateway.policy import Policy

__all__ = ["policy"]

_REFUSED = 4


@group("policy", short_help="Check a policy, and explain what it decides.")
def policy(state: State) -> None:
    """Check the file of a policy, and say what it decides on a request and why."""


@command("check", short_help="Read a policy and tell what is wrong with it.")
@click.argument("file", type=click.Path(path_type=Path))
def check(state: State, *, file: Path) -> None:
    """Read a policy; name the line of what is wrong, and rules that never count."""
    from valetkey.gateway.coverage import remarks
    from valetkey.gateway.policy import read_file

    found = read_file(file)
    warnings = remarks(found, providers=[provider.id for provider in state.catalogue.all()])
    state.emit(
        {
            "file": str(file),
            "default": found.default,
            "other_hosts": found.other_hosts,
            "rules": len(found.rules),
            "warnings": [{"place": w.place, "message": w.message} for w in warnings],
        }
    )
    for warning in warnings:
        state.note(f"{warning.place}: {warning.message}")
    count = len(found.rules)
    state.say(f"{file} can be used: {count} rule{'' if count == 1 else 's'}, default {found.default}.")


@command("explain", short_help="Say whether a request would be let through, and why.")
@click.argument("method")
@click.argument("url")
@click.option("--policy", "file", type=click.Path(path_type=Path), help="The policy; without it: all that is granted.")
@click.option("--grant", "names", metavar="PROVIDER[@ACCOUNT]", multiple=True, help="An account that is granted.")
@click.option("--run", metavar="RUN", help="A run that lives: its grants, its policy, and what it was approved.")
def explain(state: State, *, method: str, url: str, file: Path | None, names: tuple[str, ...], run: str | None) -> None:
    """Say what the gateway would do with a request, by which rule, and which line would allow it.

    URL is https://host/path, or /provider/path as a tool with a base URL sends it; for CONNECT it is host:port.
    Nothing is sent.
    """
    from valetkey.gateway.decide import Client
    from valetkey.gateway.policy import GRANTED_ALONE, read_file
    from valetkey.gateway.route import decided

    if method.upper() != "CONNECT" and not url.startswith("/") and "://" not in url:
        raise UsageError(f"{url[:60]!r} is no URL", hint=f"write https://{url[:60]}")
    if run is None:
        chosen = GRANTED_ALONE if file is None else read_file(file)
        grants = [_named(state, name) for name in names] if names else _all(state)
        client = Client(id="explain", kind="key", grants=tuple(grants))
    elif file is None and not names:
        client, chosen = _of_run(state, run)
    else:
        raise UsageError("a run has its own grants and policy", hint="leave --policy and --grant out, or --run")
    answer = _as_dict(decided(method.upper(), url, client, chosen), method.upper(), url)
    state.emit(answer)
    _say(state, answer, chosen, of_run=run is not None)
    if answer["verdict"] == "refuse":
        stop(_REFUSED)


# --- what is granted -------------------------------------------------------------------------


def _of_run(state: State, name: str) -> tuple[Client, Policy]:
    """Give a run that lives as the gateway knows it."""
    from valetkey.gateway.runs import Runs, client_of
    from valetkey.runs.record import Records

    run = Runs(state.store, state.clock).find(Records(state.paths, state.clock).find(name).id)
    # As the gateway has it: none of this shell's variables.
    return client_of(run, store=state.store, catalogue=state.catalogue, environ={}), run.whole_policy


def _named(state: State, name: str) -> Grant:
    from valetkey.gateway import grants

    ref = state.broker.resolve(name)
    provider, record = state.catalogue.get(ref.provider), state.store.load(ref)
    grant = grants.declared(ref, provider) if record is None else grants.stored(record, provider)
    if grant is None:
        raise NotLoggedIn(
            f"{ref} has no address before it is logged in", provider=ref.provider, hint=f"run `{login_command(ref)}`"
        )
    return grant


def _all(state: State) -> list[Grant]:
    """Give every stored account, then every other provider as it is declared."""
    from valetkey.gateway import grants

    found: list[Grant | None] = []
    stored = [account.ref for account in state.store.accounts()]
    providers = {provider.id: provider for provider in state.catalogue.all()}
    for ref in stored:
        try:
            record = state.store.load(ref)
            if record is not None and ref.provider in providers:
                found.append(grants.stored(record, providers[ref.provider]))
        except (RecordDamaged, ProviderError) as error:
            state.note(f"left out: {ref}: {error.message}")
    for provider in providers.values():
        if provider.id not in {ref.provider for ref in stored}:
            try:
                found.append(grants.declared(CredentialRef(provider=provider.id), provider))
            except ProviderError as error:
                state.note(f"left out: {error.message}")
    return [grant for grant in found if grant is not None]


# --- the answer ------------------------------------------------------------------------------


def _as_dict(decision: Decision, method: str, url: str) -> dict[str, Any]:
    from valetkey.gateway.decide import Forward, Hold, Refuse

    match decision:
        case Forward():
            verdict, sent, rule = "allow", decision, decision.rule
        case Hold():
            verdict, sent, rule = "ask", decision.then, decision.rule
        case Refuse():
            return {
                "verdict": "refuse",
                "code": decision.code,
                "status": decision.status,
                "method": method,
                "url": url if decision.target is None else decision.target.url,
                "grant": None if decision.grant is None else str(decision.grant),
                "how": None,
                "rule": None if decision.rule is None else _rule(decision.rule),
                "reason": decision.reason,
                "allow_line": decision.allow_line,
            }
        case _:
            assert_never(decision)
    return {
        "verdict": verdict,
        "code": None,
        "status": None,
        "method": method,
        "url": sent.target.url,
        "grant": None if sent.grant is None else str(sent.grant),
        "how": sent.how,
        "rule": _rule(rule),
        "reason": decision.reason,
        "allow_line": None,
    }


def _rule(matched: Matched) -> dict[str, str]:
    return {"place": matched.place, "name": matched.name, "text": matched.text}


def _say(state: State, answer: dict[str, Any], chosen: Policy, *, of_run: bool) -> None:
    color = {"allow": "green", "ask": "yellow", "refuse": "red"}[answer["verdict"]]
    state.say(f"{answer['verdict']}: {answer['method']} {answer['url']}", fg=color)
    rule = answer["rule"]
    rows = [("account", answer["grant"] or "none"), ("reason", answer["reason"])]
    if rule is not None:
        rows.append(("rule", ": ".join(part for part in (rule["place"], rule["text"]) if part)))
    if rule is not None and rule["name"] not in ("", "default"):
        rows.append(("named", rule["name"]))
    if answer["allow_line"] is not None:
        rows.append(("to allow", answer["allow_line"]))
    for name, value in rows:
        state.say(f"  {name:<9} {value}")
    if of_run and answer["code"] == "denied":
        state.say("  The run may ask for it: its refusal says how, and `valetkey approvals approve` lets it.")
    elif answer["code"] == "denied":
        state.say(f"  Put that line below a [[rule]] before the other rules{_of(chosen)}.")


def _of(chosen: Policy) -> str:
    return f" of {chosen.file}" if chosen.file else " of a policy"


for _command in (check, explain):
    policy.add_command(_command)
