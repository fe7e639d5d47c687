"""Traces over OpenTelemetry, with the extra `otel`: FastAPI's span per request, with the stages' times on it.

OpenTelemetry's own variables say where spans go, how many and under which name: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME. Without an endpoint, or without the extra, nothing is traced.
"""

import importlib.util
import logging
import os
import threading
from collections.abc import Mapping

from opentelemetry import trace

from app.errors import StartError, first_line

log = logging.getLogger(__name__)

FINISH_S = 2.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def endpoint() -> str | None:
    """Returns: The variable that says where spans go; None if nothing is traced."""
    return next((name for name in _ENDPOINTS if os.environ.get(name)), None)


def configure() -> None:
    """Starts tracing if the environment names an endpoint, as some clusters do for every process.

    Raises:
        StartError: One of OpenTelemetry's variables cannot be used.
    """
    named = endpoint()
    if named is None:
        return
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        log.warning("%s is set, but nothing is traced: that needs the extra `otel`.", named)
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        resource = Resource.create()
        # OpenTelemetry's own, if neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES gives one.
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "fcos-detect"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:  # each of its parts reads variables of its own
        raise StartError(f"One of OpenTelemetry's variables, OTEL_*, cannot be used: {first_line(error)}.") from None
    trace.set_tracer_provider(provider)


def close() -> None:
    """Sends the spans that are left, if the collector takes them within `FINISH_S`."""
    shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)  # without the extra there is none
    if shutdown is not None:
        thread = threading.Thread(target=shutdown, daemon=True)
        thread.start()
        thread.join(FINISH_S)


def note(method: str, route: str | None, request_id: str, timing_ms: Mapping[str, float]) -> str:
    """Puts a request's id, its address and the times of its stages on its span, if there is one.

    Returns:
        The trace's id; empty if there is no trace.
    """
    span = trace.get_current_span()
    trace_id = f"{span.get_span_context().trace_id:032x}" if span.get_span_context().is_valid else ""
    if not span.is_recording():
        return trace_id
    span.set_attribute("fcos.request_id", request_id)
    span.set_attributes({f"fcos.{stage}_ms": value for stage, value in timing_ms.items()})
    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    return trace_id


def note_exception(error: Exception) -> None:
    """Puts the error that the service failed with on the request's span."""
    trace.get_current_span().record_exception(error)
