"""What Prometheus is told, and that no label can hold what somebody sends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.rows import row
from valetkey.gateway.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(providers={"acme", "other"})


def told(metrics: Metrics) -> dict[str, float]:
    """Read the text as Prometheus does: names with their labels in order, and values."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_requests_are_counted_by_provider_method_and_outcome(metrics: Metrics) -> None:
    metrics([row(), row(account="acme@work"), row(method="GET"), row(status=502, outcome="unreachable")])
    metrics([row()])
    found = told(metrics)
    assert found["valetkey_requests_total{method=POST,outcome=ok,provider=acme}"] == 3
    assert found["valetkey_requests_total{method=GET,outcome=ok,provider=acme}"] == 1
    assert found["valetkey_requests_total{method=POST,outcome=unreachable,provider=acme}"] == 1
    assert not any(name.startswith("valetkey_refusals") for name in found)


def test_refusals_are_counted_by_code_and_are_no_injections(metrics: Metrics) -> None:
    metrics([row(status=403, outcome="denied"), row(status=429, outcome="rate_limited", account="")])
    found = told(metrics)
    assert found["valetkey_refusals_total{code=denied,provider=acme}"] == 1
    assert found["valetkey_refusals_total{code=rate_limited,provider=none}"] == 1
    assert not any(name.startswith(("valetkey_injections", "valetkey_request_seconds")) for name in found)


@pytest.mark.parametrize(
    ("given", "injected"),
    [
        ({}, True),
        ({"status": 500}, True),
        ({"account": ""}, False),
        ({"way": "tunnel"}, False),
        ({"status": 502, "outcome": "unreachable", "first_byte_ms": None}, False),
        ({"status": 200, "outcome": "cut_off"}, True),
    ],
)
def test_an_injection_is_a_request_that_was_sent_with_a_credential(
    metrics: Metrics, given: dict[str, Any], injected: bool
) -> None:
    metrics([row(**given)])
    assert told(metrics).get("valetkey_injections_total{provider=acme}", 0) == injected


def test_tokens_are_summed(metrics: Metrics) -> None:
    metrics([row(), row(input_tokens=None), row(input_tokens=4, output_tokens=0)])
    found = told(metrics)
    assert found["valetkey_tokens_total{kind=input,provider=acme}"] == 15
    assert found["valetkey_tokens_total{kind=output,provider=acme}"] == 44


def test_times_are_histograms_in_seconds(metrics: Metrics) -> None:
    metrics([row(duration_ms=5, first_byte_ms=5), row(duration_ms=5.1, first_byte_ms=None), row(duration_ms=10**7)])
    found = told(metrics)
    assert found["valetkey_request_seconds_bucket{le=0.005,provider=acme}"] == 1
    assert found["valetkey_request_seconds_bucket{le=0.01,provider=acme}"] == 2
    assert found["valetkey_request_seconds_bucket{le=600.0,provider=acme}"] == 2
    assert found["valetkey_request_seconds_bucket{le=+Inf,provider=acme}"] == 3
    assert found["valetkey_request_seconds_count{provider=acme}"] == 3
    assert found["valetkey_request_seconds_sum{provider=acme}"] == pytest.approx(10000.0101)
    assert found["valetkey_first_byte_seconds_count{provider=acme}"] == 2


def test_renewals_are_counted(metrics: Metrics) -> None:
    metrics.renewal("acme", "ok")
    metrics.renewal("acme", "refresh_rejected")
    found = told(metrics)
    assert found["valetkey_renewals_total{outcome=ok,provider=acme}"] == 1
    assert found["valetkey_renewals_total{outcome=refresh_rejected,provider=acme}"] == 1


def test_what_is_under_way_and_what_was_dropped_is_asked_for_when_it_is_told(metrics: Metrics) -> None:
    assert (told(metrics)["valetkey_open_requests"], told(metrics)["valetkey_trace_dropped_total"]) == (0, 0)
    metrics.open_requests, metrics.dropped = lambda: 7, lambda: 3
    assert (told(metrics)["valetkey_open_requests"], told(metrics)["valetkey_trace_dropped_total"]) == (7, 3)


def test_labels_are_ours_whatever_is_sent(metrics: Metrics) -> None:
    for number in range(100):
        odd = f"X{number}-" + 'sk"\n' * 5
        metrics([row(method=odd, account=f"{odd}@{odd}", outcome=odd, host=odd, path=odd, client=odd, model=odd)])
        metrics.renewal(odd, odd)
    found = told(metrics)
    assert found["valetkey_requests_total{method=other,outcome=other,provider=none}"] == 100
    assert found["valetkey_renewals_total{outcome=other,provider=none}"] == 100
    assert "sk" not in metrics.text().decode()


def test_the_text_ends_with_its_last_line(metrics: Metrics) -> None:
    assert metrics.text().endswith(b"\n")


def test_the_document_names_each_metric_with_its_labels(metrics: Metrics) -> None:
    text = (Path(__file__).parents[2] / "docs" / "trace.md").read_text()
    rows = re.findall(r"^\| `(valetkey_\w+)`.*? \|(.*)\|$", text, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels.partition("(")[0])) for name, labels in rows}
    metrics([row(), row(status=403, outcome="denied")])
    metrics.renewal("acme", "ok")
    made: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        made[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert documented == made
