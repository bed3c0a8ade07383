"""The corpus of decisions through the running engine, by every way in: what it answers, and what a provider gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.decisions import OF_KEYS, PROVIDERS, Case, decided, example, policy
from tests.support.everywhere import Everywhere, answered, everywhere, place_of
from tests.support.gateway import Raw
from valetkey.gateway.decide import Decision, Forward, Hold, Refuse
from valetkey.gateway.policy import read
from valetkey.provider import Provider

# Tunnels of the corpus end at these.
OTHER_HOSTS = ("example.com", "cdn.example.com", "asked.example.org", "git.example.org")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everywhere]:
    with everywhere(tmp_path_factory.mktemp("engine"), more_hosts=OTHER_HOSTS) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_so_far(engine: Everywhere) -> None:
    engine.secure.requests.clear()
    engine.plain.requests.clear()


def key_for(engine: Everywhere, case: Case) -> str:
    # A key has to be for something; what this is for needs no login and is in no case without a grant.
    return engine.key(case.grants or ("ollama",), case.policy)


def check_refusal(engine: Everywhere, client: Raw, case: Case, decision: Refuse) -> None:
    got = answered(client)
    rule = decision.rule
    assert got.status == decision.status
    assert got.error["code"] == decision.code == case.expected.get("code", decision.code)
    assert got.error.get("allow_line") == decision.allow_line
    assert got.error["message"] == decision.reason
    assert got.error["hint"]
    assert got.error.get("provider") == (decision.grant and decision.grant.provider)
    told = got.error.get("rule") or {"text": None, "place": None, "name": None}
    assert told == {key: getattr(rule, key, None) for key in ("text", "place", "name")}
    assert told["text"] == case.expected.get("rule", told["text"])
    if "line" in case.expected:
        assert told["place"] == f"policy.toml:{case.expected['line']}"
    assert engine.seen == []


def check_sent(engine: Everywhere, client: Raw, case: Case, forward: Forward) -> None:
    got = answered(client)
    assert got.status == 200
    [request] = engine.seen
    assert request.method == case.method
    assert engine.sent(request) == forward.target.url == case.expected.get("sent", forward.target.url)
    everything = repr((request.target, request.headers))
    assert "vk_" not in everything
    if forward.grant is None or str(forward.grant) not in engine.secrets:
        assert not any(secret in everything for secret in engine.secrets.values())
    else:
        assert engine.carries(request, str(forward.grant))


def approve(engine: Everywhere, hold: Hold, case: Case) -> None:
    approvals = engine.running.gateway.approvals
    engine.secure.until(lambda: engine.running.do(approvals.pending))
    assert engine.seen == []
    [pending] = engine.running.do(approvals.pending)
    assert (pending.method, pending.rule, pending.place) == (case.method, hold.rule.text, hold.rule.place)
    assert pending.account == ("" if hold.then.grant is None else str(hold.then.grant))
    engine.running.do(lambda: approvals.settle(pending.id, True, "tester"))


def check(engine: Everywhere, ask: Callable[[], Raw | None], case: Case, decision: Decision) -> None:
    client = ask()
    if client is None:
        return
    if isinstance(decision, Refuse):
        check_refusal(engine, client, case, decision)
        return
    if isinstance(decision, Hold):
        approve(engine, decision, case)
        decision = decision.then
    check_sent(engine, client, case, decision)


def may_be_granted(provider: Provider) -> bool:
    return any(method.standing != "restricted" for method in provider.auth)


# What no key can have is decided on, but never by the engine.
POSSIBLE = [c for c in OF_KEYS if all(may_be_granted(PROVIDERS.get(name.partition("@")[0])) for name in c.grants)]
REQUESTS = [case for case in POSSIBLE if case.method != "CONNECT"]
AT_OUR_ADDRESS = [case for case in REQUESTS if case.url.startswith("/")]
ELSEWHERE = [case for case in REQUESTS if not case.url.startswith("/")]
TUNNELS = [case for case in POSSIBLE if case.method == "CONNECT"]


@pytest.mark.parametrize("case", AT_OUR_ADDRESS, ids=lambda case: case.name)
def test_by_base_url_the_engine_does_as_the_corpus_says(engine: Everywhere, case: Case) -> None:
    key = key_for(engine, case)
    check(engine, lambda: engine.base_url(key, case.method, case.url), case, decided(case, policy(case.policy)))


@pytest.mark.parametrize("case", ELSEWHERE, ids=lambda case: case.name)
def test_as_a_proxy_the_engine_does_as_the_corpus_says(engine: Everywhere, case: Case) -> None:
    key = key_for(engine, case)
    check(engine, lambda: engine.absolute(key, case.method, case.url), case, decided(case, policy(case.policy)))


def tunnel_for(case: Case) -> Case:
    authority = case.url.partition("://")[2].partition("/")[0]
    authority = authority if ":" in authority else f"{authority}:443"
    return Case(name="", method="CONNECT", url=authority, grants=case.grants, policy=case.policy, expected={})


LOOKED_INTO = [
    case
    for case in ELSEWHERE
    if case.url.startswith("https:")
    and isinstance(opened := decided(tunnel_for(case), policy(case.policy)), Forward)
    and opened.how == "intercept"
]


@pytest.mark.parametrize("case", LOOKED_INTO, ids=lambda case: case.name)
def test_in_a_tunnel_the_engine_does_as_the_corpus_says(engine: Everywhere, case: Case) -> None:
    key = key_for(engine, case)
    check(engine, lambda: engine.inside(key, case.method, case.url), case, decided(case, policy(case.policy)))


def test_most_of_the_corpus_comes_in_a_tunnel_too() -> None:
    assert len(LOOKED_INTO) > 15


@pytest.mark.parametrize("case", TUNNELS, ids=lambda case: case.name)
def test_the_engine_opens_the_tunnels_that_the_corpus_says(engine: Everywhere, case: Case) -> None:
    decision = decided(case, policy(case.policy))
    client = engine.connect(key_for(engine, case), case.url)
    if isinstance(decision, Refuse):
        check_refusal(engine, client, case, decision)
        return
    if isinstance(decision, Hold):
        approve(engine, decision, case)
        decision = decision.then
    assert decision.how == case.expected.get("how", decision.how)
    host = case.url.partition(":")[0]
    with client:
        assert client.head()[0] == 200
        # Who vouches for the host says whether it was looked into.
        looked_into = decision.how == "intercept"
        client.tls(engine.trusts_gateway if looked_into else engine.trusts_provider, host)
        status, _, _ = client.send(f"GET /inside HTTP/1.1\r\nHost: {host}\r\n\r\n").answer()
        if looked_into:
            inside = Case(**{**vars(case), "method": "GET", "url": f"https://{host}/inside"})
            assert status == (403 if isinstance(decided(inside, policy(case.policy)), Refuse) else 200)
        else:
            [request] = engine.secure.requests
            assert (status, request.target, request.headers) == (200, "/inside", [("host", host)])


# --- what every provider keeps off limits -------------------------------------------------------

GUARDED = [provider for provider in PROVIDERS.all() if provider.api.off_limits and may_be_granted(provider)]


@pytest.mark.parametrize("provider", GUARDED, ids=lambda provider: provider.id)
def test_what_a_provider_keeps_off_limits_is_refused_by_every_way(engine: Everywhere, provider: Provider) -> None:
    name = provider.id
    key = engine.key((name,), 'default = "allow"')
    grant = place_of(provider)
    for text in provider.api.off_limits:
        method, path = example(text, near=False)
        host = text.partition(" ")[2].partition("/")[0] or grant.base_url.partition("://")[2].partition("/")[0]
        asks: list[Raw | None] = [
            engine.absolute(key, method, f"https://{host}{path}"),
            engine.inside(key, method, f"https://{host}{path.upper()}"),
        ]
        base = grant.base_url.partition("://")[2]
        if f"{host}{path}".startswith(base):
            asks.append(engine.base_url(key, method, f"/{name}{f'{host}{path}'.removeprefix(base)}/"))
        for ask in asks:
            assert ask is not None
            got = answered(ask)
            assert (got.status, got.error["code"], got.error["provider"]) == (403, "off_limits", name), (text, method)
            line = got.error["allow_line"]
            assert line.startswith("allow_off_limits")
            read(f'default = "allow"\n{line}\n', file="policy.toml")
    assert engine.seen == []
