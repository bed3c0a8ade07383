"""What every front end of the gateway decides: the corpus, held against `decide` and against `policy explain`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.decisions import CASES, OF_KEYS, PROVIDERS, Case, answered, client, decided, example, policy
from valetkey.cli.frame import run
from valetkey.gateway.decide import Decision, Forward, Hold, Refuse, RequestHead, decide
from valetkey.gateway.route import read_target


def shown(decision: Decision) -> dict[str, Any]:
    """Give a decision in the words of the corpus."""
    rule = decision.rule and {"text": decision.rule.text, "place": decision.rule.place}
    if isinstance(decision, Refuse):
        told = {"verdict": "refuse", "code": decision.code, "how": None, "rule": rule}
        target, account = decision.target, decision.grant
    else:
        sent = decision.then if isinstance(decision, Hold) else decision
        verdict = "ask" if isinstance(decision, Hold) else "allow"
        told = {"verdict": verdict, "code": None, "how": sent.how, "rule": rule}
        target, account = sent.target, sent.grant
    return {**told, "grant": account and str(account), "url": target and target.url}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decide_answers_as_the_corpus_says(case: Case) -> None:
    assert answered(case, shown(decided(case, policy(case.policy, case.allow, case.approved)))) == case.expected


@pytest.mark.parametrize("case", OF_KEYS, ids=lambda case: case.name)
def test_explain_answers_as_the_corpus_says(
    case: Case, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["policy", "explain", case.method, case.url, "--json"]
    for name in case.grants or ("ollama",):
        words += ["--grant", name]
    if case.policy:
        file = tmp_path / "policy.toml"
        file.write_text(case.policy)
        words += ["--policy", str(file)]
    status = run(words, environ={**os.environ, "VALETKEY_STORE_KEY_SOURCE": "key-file"})
    answer = json.loads(capsys.readouterr().out)
    assert answered(case, answer) == case.expected
    assert status == (4 if case.expected["verdict"] == "refuse" else 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_line_that_a_refusal_names_lets_it_through(case: Case) -> None:
    refused = decided(case, policy(case.policy, case.allow, case.approved))
    if not isinstance(refused, Refuse) or refused.allow_line is None:
        assert not isinstance(refused, Refuse) or refused.code not in ("denied", "off_limits")
        return
    text = case.policy or 'default = "allow"\nother_hosts = "deny"\n'
    if refused.code == "denied":
        top, mark, rest = text.partition("[[rule]]")
        text = f"{top}\n[[rule]]\n{refused.allow_line}\n{mark}{rest}"
    else:
        # Beside what is opened already; tried alone here.
        kept = text.partition("allow_off_limits")[0] + "[[rule]]" + text.partition("[[rule]]")[2]
        text = f"{refused.allow_line}\n{kept if '[[rule]]' in text else text}"
    assert not isinstance(decided(case, policy(text, case.allow, case.approved)), Refuse)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_sent_is_decided_on_alike(case: Case) -> None:
    chosen = policy(case.policy, case.allow, case.approved)
    first = decided(case, chosen)
    if isinstance(first, Refuse) or case.method == "CONNECT":
        return
    sent = first if isinstance(first, Forward) else first.then
    request = read_target(sent.method, sent.target.url)
    assert isinstance(request, RequestHead)
    again = decide(request, client(case.grants), chosen)
    assert isinstance(again, Forward | Hold)
    assert (again if isinstance(again, Forward) else again.then).target == sent.target


# --- what every provider keeps off limits -------------------------------------------------------

OFF_LIMITS = [(p.id, text) for p in PROVIDERS.all() for text in p.api.off_limits]


@pytest.mark.parametrize(("id", "text"), OFF_LIMITS)
def test_each_off_limits_path_is_refused_and_a_near_miss_is_not(id: str, text: str) -> None:
    asking = client((id,))
    # A provider on this machine has its port, and plain HTTP.
    host, _, port = (text.partition(" ")[2].partition("/")[0] or asking.grants[0].places[0].text).partition(":")
    scheme = asking.grants[0].base_url.partition(":")[0]
    allow = policy('default = "allow"')
    for near in (False, True):
        method, path = example(text, near=near)
        for spelling in (path, path.upper(), path + "/", path.replace("a", "%61")):
            request = RequestHead(
                method=method, scheme=scheme, host=host, port=int(port) if port else None, path=spelling
            )
            decision = decide(request, asking, allow)
            refused = isinstance(decision, Refuse) and decision.code == "off_limits"
            assert refused is not near, (method, host, spelling)


def test_the_providers_with_accounts_to_lose_keep_paths_off_limits() -> None:
    assert len({provider for provider, _ in OFF_LIMITS}) > 10
