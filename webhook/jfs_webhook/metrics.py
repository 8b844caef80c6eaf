"""Prometheus metrics of the webhook, in a registry of their own so that two servers in one process do not collide."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The webhook's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "jfs_webhook_reviews",
            "Admission reviews by result: injected, unchanged, valid, skipped, refused, failed, malformed.",
            ["result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "jfs_webhook_review_seconds",
            "Time from a review's arrival to its answer.",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self.certificate_ends = Gauge(
            "jfs_webhook_certificate_expiry_timestamp_seconds",
            "Unix time at which the served certificate stops being valid; 0 before there is one.",
            registry=self.registry,
        )
