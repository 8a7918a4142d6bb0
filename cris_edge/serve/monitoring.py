"""Metrics of the service in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Mapping


class Monitoring:
    """Counters and histograms of one service.

    Raises:
        RuntimeMissingError: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        buckets = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "cris_edge_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "cris_edge_request_seconds",
            "Seconds from request to response.",
            ("route",),
            buckets=buckets,
            registry=self._registry,
        )
        self.stages = Histogram(
            "cris_edge_stage_seconds",
            "Seconds of each stage of a prediction.",
            ("stage",),
            buckets=buckets,
            registry=self._registry,
        )
        self.prompts = Counter("cris_edge_prompts", "Prompts answered.", registry=self._registry)
        self.pending = Gauge("cris_edge_pending", "Requests that wait or run.", registry=self._registry)
        self.images = Gauge("cris_edge_kept_images", "Images kept by id.", registry=self._registry)
        self.image_bytes = Gauge("cris_edge_kept_image_bytes", "Memory of the kept images.", registry=self._registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def prediction(self, timings: Mapping[str, float]) -> None:
        """Count a prompt, with the seconds of its stages."""
        self.prompts.inc()
        for stage, seconds in timings.items():
            self.stages.labels(stage).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """All metrics, and the media type they are in."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
