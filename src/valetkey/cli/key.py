"""`key`: create, list, revoke."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from valetkey.cli.frame import State, command, group
from valetkey.cli.output import until
from valetkey.errors import RecordDamaged

if TYPE_CHECKING:
    from valetkey.gateway.keys import Keys, ValetKey
    from valetkey.gateway.limits import Limits

__all__ = ["key"]


@group("key", short_help="Make, list and revoke valet keys.")
def key(state: State) -> None:
    """Make keys that open chosen accounts through the gateway and nothing else, list them, revoke them."""


@command("create", short_help="Make a valet key.")
@click.option(
    "--grant", "names", metavar="PROVIDER[@ACCOUNT]", multiple=True, help="An account that it opens; repeatable."
)
@click.option("--policy", "file", type=click.Path(path_type=Path), help="What it may ask for; without it: all.")
@click.option("--expires", metavar="8h|7d|DATE", help="When it ends; without it: when it is revoked.")
@click.option("--rpm", metavar="N", help="Requests a minute, at most.")
@click.option("--tokens-per-day", metavar="N", help="Tokens a day, at most (a day begins at 0:00 UTC).")
@click.option("--concurrent", metavar="N", help="Requests at a time, at most.")
@click.option("--name", default="", help="A name to list and revoke it by.")
def create(
    state: State,
    *,
    names: tuple[str, ...],
    file: Path | None,
    expires: str | None,
    rpm: str | None,
    tokens_per_day: str | None,
    concurrent: str | None,
    name: str,
) -> None:
    """Make a valet key and print it, this once: only its hash is kept.

    A tool takes it in place of an API key, with the gateway's address in place of the provider's.
    """
    from valetkey.gateway import policy as policies
    from valetkey.gateway.keys import base_urls, read_expiry

    policy = None if file is None else policies.text_of(file)
    if policy is not None:
        policies.read(policy, file=str(file))  # its errors name the whole path, refusals later only the file
    made, token = _keys(state).issue(
        grants=[state.broker.resolve(granted) for granted in names],
        catalogue=state.catalogue,
        environ=state.environ,
        name=name,
        policy=policy,
        policy_file="" if file is None else file.name,
        limits=_limits(rpm, tokens_per_day, concurrent),
        expires_at=None if expires is None else read_expiry(expires, state.clock.now()),
    )
    _tell_gateway(state)
    addresses = base_urls(state.gateway_url, made.grants)
    state.emit(
        {
            "id": made.id,
            "name": made.name,
            "key": token.reveal(),
            "base_url": addresses[made.grants[0]],
            "grants": [str(ref) for ref in made.grants],
            "expires_at": made.expires_at,
        }
    )
    state.say(token.reveal())
    state.hint_at_gateway()
    if state.on_terminal:
        _say_how(state, made, [(str(ref), address) for ref, address in addresses.items()])


def _say_how(state: State, made: ValetKey, addresses: list[tuple[str, str]]) -> None:
    from valetkey.gateway.keys import proxy_url

    state.say()
    state.say("It is shown this once. A tool takes it as its API key, and as the provider's address:")
    width = max(len(name) for name, _ in addresses)
    for name, address in addresses:
        state.say(f"  {name:<{width}}  {address}")
    state.say(f"Or, with KEY being it, as its proxy: HTTPS_PROXY={proxy_url(state.gateway_url, 'KEY')}")
    state.say("  (what it talks to through the proxy is looked into: let it trust `valetkey ca export`)")
    state.say(f"To end it: valetkey key revoke {made.id}")


def _limits(rpm: str | None, tokens_per_day: str | None, concurrent: str | None) -> Limits:
    from valetkey.gateway.keys import MOST_REQUESTS, read_count
    from valetkey.gateway.limits import Limits

    return Limits(
        requests_per_minute=None if rpm is None else read_count(rpm, "--rpm", most=MOST_REQUESTS),
        tokens_per_day=None if tokens_per_day is None else read_count(tokens_per_day, "--tokens-per-day"),
        concurrent=None if concurrent is None else read_count(concurrent, "--concurrent"),
    )


@command("list", short_help="List valet keys.")
@click.option("--all", "ended", is_flag=True, help="Also those that have expired or were revoked.")
def list_keys(state: State, *, ended: bool) -> None:
    """List the valet keys that count; with --all those that do not any more, for 30 days."""
    from valetkey.gateway.ring import Ring

    now = state.clock.now()
    ring = Ring(state.store, state.catalogue, state.clock, state.environ)
    ring.refresh()
    if ring.failed is not None:
        raise ring.failed
    problems, damaged, shown = ring.problems(), [], []
    for key_id, found in _keys(state).each():
        if isinstance(found, RecordDamaged):
            damaged.append(key_id)
        elif ended or found.state(now) == "live":
            shown.append(_as_dict(found, found.state(now), problems.get(key_id)))
    state.emit({"keys": shown, "damaged": damaged})
    for key_id in damaged:
        state.note(f"{problems.get(key_id, key_id)}; it does not count")
    if not shown:
        state.say("There is no valet key. Make one with `valetkey key create --grant PROVIDER`.")
        return
    state.table(
        ["ID", "NAME", "GRANTS", "LIMITS", "UNTIL", "STATE"],
        [
            (
                one["id"],
                one["name"] if one["name"] != one["id"] else "-",
                ", ".join(one["grants"]),
                _limits_in_words(one["limits"]),
                until(one["expires_at"], now),
                "disabled" if one["problem"] else one["state"],
            )
            for one in shown
        ],
        colors={"disabled": "yellow", "revoked": "red", "expired": "red"},
    )
    for one in shown:
        if one["problem"]:
            state.note(f"{one['id']} is disabled: {one['problem']}")


def _as_dict(found: ValetKey, counts: str, problem: str | None) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "grants": [str(ref) for ref in found.grants],
        "policy_file": found.policy_file or None,
        "limits": asdict(found.limits),
        "created_at": found.created_at,
        "expires_at": found.expires_at,
        "revoked_at": found.revoked_at,
        "state": counts,
        "problem": problem,
    }


def _limits_in_words(limits: dict[str, int | None]) -> str:
    units = {"requests_per_minute": "/min", "tokens_per_day": " tokens/day", "concurrent": " at a time"}
    return ", ".join(f"{limits[name]}{unit}" for name, unit in units.items() if limits[name] is not None) or "-"


@command("revoke", short_help="End a valet key for good.")
@click.argument("name", metavar="ID|NAME")
def revoke(state: State, *, name: str) -> None:
    """End a valet key for good: the gateway refuses it within a second and closes what goes on with it."""
    ended = _keys(state).revoke(name)
    _tell_gateway(state)
    state.emit({"id": ended.id, "name": ended.name, "revoked_at": ended.revoked_at})
    state.say(f"The valet key {ended.id} is revoked.")


def _keys(state: State) -> Keys:
    from valetkey.gateway.keys import Keys

    return Keys(state.store, state.clock, state.audit)


# --- the gateway that runs -------------------------------------------------------------------


def _tell_gateway(state: State) -> None:
    """Let the gateway that runs read its keys now; it sees by itself that the store has changed, a little later."""
    from valetkey import serving

    serving.poke(str(state.paths.home))


for _command in (create, list_keys, revoke):
    key.add_command(_command)
