"""What the service measures about itself, for Prometheus: base units, and labels whose values are few and known."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.gc_collector import GCCollector

from app.addresses import KEYED
from app.errors import KINDS
from app.session import BATCH_SIZES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("read", "decode", "queue", "inference", "postprocess", "draw", "total")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
OBJECTS = (0, 1, 2, 3, 5, 10, 20, 50, 100)
OTHER = "other"  # any address but the service's own


class Metrics:
    """One service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        stages = Histogram(
            "fcos_stage_seconds",
            "Time of an answered picture in each stage: reading its request, decoding it, waiting for a thread or the "
            "session, the batch it was in, post-processing, drawing if that was wanted; and the whole request.",
            ["stage"],
            registry=registry,
            buckets=SECONDS,
        )
        self.stages = {stage: stages.labels(stage) for stage in STAGES}
        self.batch_size = Histogram(
            "fcos_batch_size", "Pictures in a batch that the session ran.", registry=registry, buckets=BATCH_SIZES
        )
        self.pictures = Counter("fcos_pictures_inferred", "Pictures that the session ran.", registry=registry)
        self.detections = Histogram(
            "fcos_detections", "Objects found in a picture, with its request's parameters.", registry=registry,
            buckets=OBJECTS,
        )  # fmt: skip
        self.failed_batches = Counter(
            "fcos_batches_failed", "Batches on which the session failed; if of several pictures, each is run again.",
            registry=registry,
        )  # fmt: skip
        self.dropped = Counter(
            "fcos_pictures_dropped", "Pictures dropped before the session: too late, or no longer waited for.",
            registry=registry,
        )  # fmt: skip
        responses = Counter(
            "fcos_responses", "Responses by address (all others as `other`) and class of status.", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._responses = {
            (path, number): responses.labels(path, f"{number}xx") for path in (*KEYED, OTHER) for number in range(1, 6)
        }
        refusals = Counter("fcos_refusals", "Refused requests and pictures, by reason.", ["reason"], registry=registry)
        self.refusals = {code: refusals.labels(code) for code in KINDS}
        self.waiting = Gauge(
            "fcos_queue_pictures", "Pictures that wait to be decoded, or for the session.", registry=registry
        )
        self.in_flight = Gauge(
            "fcos_in_flight_pictures", "Pictures that are accepted and not answered.", registry=registry
        )
        self.pixels = Gauge("fcos_in_flight_pixels", "Decoded pixels that are held.", registry=registry)
        self.ready = Gauge("fcos_ready", "1 if /readyz says ready.", registry=registry)
        self._model = Gauge(
            "fcos_model_info", "The served model; always 1.", ["name", "version", "provider", "precision"],
            registry=registry,
        )  # fmt: skip
        self.largest_batch = Gauge(
            "fcos_largest_batch", "The most pictures in a batch, as set or as found at the start.", registry=registry
        )
        reloads = Counter("fcos_model_reloads", "Reloads by outcome.", ["outcome"], registry=registry)
        # Both from the start: to Prometheus, a counter that first appears at 1 never rose.
        self.reloads = {outcome: reloads.labels(outcome) for outcome in ("done", "refused")}
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    def serve_model(self, name: str, version: str, provider: str, precision: str) -> None:
        self._model.clear()
        self._model.labels(name, version, provider, precision).set(1)

    def answer(self, path: str, status: int) -> None:
        """Counts a response; its status is 0 if it never began, which counts for none."""
        counter = self._responses.get((path if path in KEYED else OTHER, status // 100))
        if counter is not None:
            counter.inc()

    def text(self) -> bytes:
        """Returns: All metrics, in Prometheus's text format."""
        return generate_latest(self._registry)
