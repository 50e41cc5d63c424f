"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

_STEP_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_REQUEST_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


class Metrics:
    """One server's counters, in a registry of its own.

    waiting, drawing: pictures that are accepted and have no step yet, and that have one.
    step_s: between two steps of a drawing.
    request_s: from a request to its pictures.
    preview_s: from a step to its preview.
    images: pictures that were drawn; its rate is the pictures a second.
    ended: accepted requests by what became of them.
    refused: requests by why they were not accepted.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.waiting = Gauge("stal_waiting_images", "Accepted, without a step.", registry=registry)
        self.drawing = Gauge("stal_rows", "Pictures that are being drawn.", registry=registry)
        self.step_s = Histogram(
            "stal_step_seconds", "Between two steps.", buckets=_STEP_S, registry=registry
        )
        self.request_s = Histogram(
            "stal_request_seconds",
            "From a request to its pictures.",
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.preview_s = Histogram(
            "stal_preview_seconds",
            "From a step to its preview.",
            buckets=_STEP_S,
            registry=registry,
        )
        self.images = Counter("stal_images", "Pictures that were drawn.", registry=registry)
        self.ended = Counter(
            "stal_requests", "Accepted requests that ended.", ["outcome"], registry=registry
        )
        self.refused = Counter("stal_refusals", "Refused requests.", ["reason"], registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
