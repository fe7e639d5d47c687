"""Spans reach a collector, with the stages' times on them."""

import json
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext

from app import tracing
from app.errors import StartError
from tests.serving import served
from tests.support import PICTURE


def test_a_collector_gets_a_span_with_the_stages(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bodies: list[bytes] = []
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    logged = {"access_log": True, "log_level": "info", "log_format": "json"}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
            monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
            with served(model=model_file, **logged) as service:
                headers = {"Content-Type": "image/png", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
                request = urllib.request.Request(f"{service.address}/detect", PICTURE, headers)
                with urllib.request.urlopen(request) as response:
                    assert response.status == 200
                with pytest.raises(urllib.error.HTTPError, match="415") as refused:
                    urllib.request.urlopen(
                        urllib.request.Request(
                            f"{service.address}/detect",
                            PICTURE,
                            {"Content-Type": "text/plain", "X-Request-Id": "the-refused-one"},
                        )
                    )
                refused.value.close()
        finally:
            collector.shutdown()
            thread.join()
    spans = b"".join(bodies)
    assert spans.count(b"POST /detect") == 2
    for text in (
        b"the-refused-one",
        b"POST /detect",
        b"http.route",
        b"fcos.inference_ms",
        b"fcos.queue_ms",
        b"fcos-detect",
    ):
        assert text in spans
    assert bytes.fromhex(trace_id) in spans
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (line, _) = [line for line in lines if line.get("method") == "POST"]
    assert line["trace_id"] == trace_id


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_without_the_extra_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    tracing.configure()
    assert f"{variable} is set, but nothing is traced" in caplog.text


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "fcos-detect"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine,deployment.environment=test"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"}, "fcos-detect"),
    ],
)
def test_spans_are_of_the_service_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    providers: list[TracerProvider] = []
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", providers.append)
    for variable, value in ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | variables).items():
        monkeypatch.setenv(variable, value)
    tracing.configure()
    providers[0].shutdown()
    assert providers[0].resource.attributes["service.name"] == name


def test_a_trace_of_which_nothing_is_kept_has_an_id_for_the_log() -> None:
    assert tracing.note("POST", "/detect", "mine", {}) == ""
    with trace.use_span(NonRecordingSpan(SpanContext(0xABC, 1, is_remote=True))):
        assert tracing.note("POST", "/detect", "mine", {}) == f"{0xABC:032x}"


def test_a_failure_is_on_the_requests_span() -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("POST /detect") as span:
        tracing.note_exception(RuntimeError("out of memory"))
    assert isinstance(span, ReadableSpan)
    assert [dict(event.attributes or {})["exception.message"] for event in span.events] == ["out of memory"]


def test_a_variable_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    with pytest.raises(StartError, match=r"OTEL_\*"):
        tracing.configure()


def test_a_collector_that_is_gone_does_not_hold_up_the_end(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with served(model=model_file) as service:
        headers = {"Content-Type": "image/png"}
        with urllib.request.urlopen(urllib.request.Request(f"{service.address}/detect", PICTURE, headers)):
            pass
        begun_s = time.monotonic()
    assert time.monotonic() < begun_s + tracing.FINISH_S + 2
