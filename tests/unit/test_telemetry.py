"""Spans for OpenTelemetry: what arrives at a collector, and when none is made."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from tests.support.collector import Collector, attributes
from tests.support.rows import row
from valetkey.errors import ConfigError, GatewayFailed
from valetkey.gateway.row import Row
from valetkey.gateway.telemetry import telemetry
from valetkey.testing.clock import START
from valetkey.testing.local_server import Hang, LocalServer


def exported(*rows: Row) -> list[Span]:
    with Collector() as collector:
        exporter = telemetry(endpoint=collector.url, environ={})
        assert exporter is not None
        exporter(rows)
        assert exporter.close()
        assert set(collector.paths) == {"/v1/traces"}
        assert {resource["service.name"] for resource in collector.resources} == {"valetkey"}
        return collector.spans


def test_a_request_becomes_a_span() -> None:
    (span,) = exported(row())
    start = int(START.timestamp() * 1e9)
    assert (span.name, span.kind, span.status.code) == ("POST acme", Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET)
    assert span.start_time_unix_nano == pytest.approx(start, abs=1000)
    assert span.end_time_unix_nano == pytest.approx(start + 2_500_000, abs=1000)
    assert span.parent_span_id == b""
    assert attributes(span) == {
        "http.request.method": "POST",
        "server.address": "api.acme.example",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "http.request.body.size": 100,
        "http.response.body.size": 488,
        "valetkey.client": "k1",
        "valetkey.account": "acme@default",
        "valetkey.outcome": "ok",
        "valetkey.way": "base-url",
        "valetkey.first_byte_ms": 1.25,
        "gen_ai.response.model": "small",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 22,
    }


def test_each_request_has_a_trace_of_its_own_and_what_is_unknown_is_left_out() -> None:
    bare = row(account="", model=None, input_tokens=None, output_tokens=None, first_byte_ms=None)
    current = SpanContext(trace_id=1, span_id=1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with use_span(NonRecordingSpan(current)):  # whatever the process itself traces
        spans = exported(bare, row())
    assert {span.parent_span_id for span in spans} == {b""}
    assert len({span.trace_id for span in spans}) == 2
    assert spans[0].name == "POST"
    assert not {"gen_ai.response.model", "gen_ai.usage.input_tokens"} & set(attributes(spans[0]))


@pytest.mark.parametrize(
    ("given", "error", "status"),
    [
        ({"status": 403, "outcome": "denied"}, "denied", Status.STATUS_CODE_UNSET),
        ({"status": 404}, "404", Status.STATUS_CODE_UNSET),
        ({"status": 500}, "500", Status.STATUS_CODE_ERROR),
        ({"status": 502, "outcome": "unreachable"}, "unreachable", Status.STATUS_CODE_ERROR),
    ],
)
def test_what_went_wrong_is_told_as_the_conventions_say(given: dict[str, Any], error: str, status: int) -> None:
    (span,) = exported(row(**given))
    assert attributes(span)["error.type"] == error
    assert span.status.code == status


def test_the_standard_variable_names_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        exporter = telemetry(endpoint=None, environ=os.environ)
        assert exporter is not None
        exporter([row()])
        exporter.close()
        assert len(collector.spans) == 1
        assert collector.resources[0]["service.name"] == "mine"


def test_nothing_is_loaded_or_made_where_nobody_asked() -> None:
    assert telemetry(endpoint=None, environ={}) is None
    assert telemetry(endpoint=None, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    disabled = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}
    assert telemetry(endpoint=None, environ=disabled) is None


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(GatewayFailed) as caught:
        telemetry(endpoint="http://127.0.0.1:4318", environ={})
    assert "pip install 'valetkey[otel]'" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", ""])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"trace\.otlp_endpoint"):
        telemetry(endpoint=endpoint, environ={})


def test_a_collector_that_never_answers_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    before = set(threading.enumerate())
    with LocalServer(lambda request: Hang()) as silent:
        exporter = telemetry(endpoint=silent.url, environ={})
        assert exporter is not None
        exporter([row()])
        assert not exporter.close(patience_seconds=0.01)
        for thread in set(threading.enumerate()) - before:
            if not thread.name.startswith("Thread-"):  # the server's own
                thread.join()
