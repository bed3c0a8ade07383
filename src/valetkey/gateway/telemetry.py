"""Exports each row of the trace as an OpenTelemetry span, where somebody asked for it (extra `otel`)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from valetkey.errors import ConfigError, GatewayFailed
from valetkey.gateway.row import Row, is_failure, is_refusal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Telemetry", "telemetry"]

# The variables of the OpenTelemetry specification ("OpenTelemetry Protocol Exporter"); the exporter reads them itself.
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def telemetry(*, endpoint: str | None, environ: Mapping[str, str]) -> Telemetry | None:
    """Give the exporter to `endpoint` (`trace.otlp_endpoint`), else to where the environment says; None for neither.

    Raises: ConfigError for an endpoint that is no address, GatewayFailed when the extra is not installed.
    """
    if endpoint is None and not any(environ.get(name) for name in _VARIABLES):
        return None
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if endpoint is not None and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc):
        raise ConfigError(
            "trace.otlp_endpoint is no address of a collector",
            hint="set it to an address such as http://127.0.0.1:4318",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise GatewayFailed(
            "OpenTelemetry is configured, and its exporter is not installed",
            hint="run `pip install 'valetkey[otel]'`, or unset trace.otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error

    # As the exporter does with OTEL_EXPORTER_OTLP_ENDPOINT: it names the collector, and each signal has its path.
    exporter = OTLPSpanExporter(endpoint=None if endpoint is None else endpoint.rstrip("/") + "/v1/traces")
    name = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "valetkey"}
    provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Telemetry(provider)


class Telemetry:
    """An observer of the trace. The SDK's own thread sends; what its queue has no room for is not exported."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.context import Context

        self._provider = provider
        self._tracer = provider.get_tracer("valetkey.gateway")
        # Each request is the root of its own trace, whatever is under way in this thread.
        self._nothing = Context()

    def __call__(self, rows: Sequence[Row]) -> None:
        """Hand a batch of the trace to the exporter."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        for row in rows:
            provider = row.account.partition("@")[0]
            span = self._tracer.start_span(
                f"{row.method} {provider}".strip(),
                context=self._nothing,
                kind=SpanKind.SERVER,
                attributes=_attributes(row),
                start_time=int(row.at * 1e9),
            )
            if is_failure(row) or is_refusal(row):
                span.set_attribute("error.type", row.outcome if row.outcome != "ok" else str(row.status))
            # A refusal is an answer: to a server's span 4xx is no error (semantic conventions for HTTP spans).
            if is_failure(row) and (row.outcome != "ok" or row.status >= 500):
                span.set_status(Status(StatusCode.ERROR))
            span.end(end_time=int((row.at + row.duration_ms / 1000) * 1e9))

    def close(self, *, patience_seconds: float = 2.0) -> bool:
        """Send what is left, and say whether that is done: the SDK tries for 8 s, for which nothing has to wait."""
        ending = threading.Thread(target=self._provider.shutdown, name="valetkey-telemetry", daemon=True)
        ending.start()
        ending.join(patience_seconds)
        return not ending.is_alive()


def _attributes(row: Row) -> dict[str, str | int | float]:
    given: dict[str, str | int | float | None] = {
        "http.request.method": row.method,
        "server.address": row.host,
        "url.path": row.path,
        "http.response.status_code": row.status,
        "http.request.body.size": row.bytes_in,
        "http.response.body.size": row.bytes_out,
        "valetkey.client": row.client,
        "valetkey.account": row.account,
        "valetkey.outcome": row.outcome,
        "valetkey.way": row.way,
        "valetkey.first_byte_ms": row.first_byte_ms,
        "gen_ai.response.model": row.model,
        "gen_ai.usage.input_tokens": row.input_tokens,
        "gen_ai.usage.output_tokens": row.output_tokens,
    }
    return {name: value for name, value in given.items() if value is not None}
