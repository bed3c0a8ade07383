"""A stand-in for an OpenTelemetry collector: takes spans over OTLP/HTTP (protobuf) and decodes them."""

from __future__ import annotations

import gzip
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from valetkey.testing.local_server import Answer, LocalServer, Received

__all__ = ["Collector", "attributes"]


class Collector:
    """Keeps `spans`, their `resources`, and all bytes as they came. Use it with `with`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.received = b""
        self._server = LocalServer(self._take)
        self.url = self._server.url

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.__exit__(kind, error, tb)

    def _take(self, request: Received) -> Answer:
        body = gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
        message = ExportTraceServiceRequest.FromString(body)
        self.paths.append(request.path)
        self.received += body
        for resource_spans in message.resource_spans:
            self.resources.append({a.key: _value(a.value) for a in resource_spans.resource.attributes})
            self.spans += [span for scope in resource_spans.scope_spans for span in scope.spans]
        return Answer(headers={"content-type": "application/x-protobuf"}, body=b"")


def attributes(span: Span) -> dict[str, Any]:
    """Give a span's attributes as a dictionary."""
    return {a.key: _value(a.value) for a in span.attributes}


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")
