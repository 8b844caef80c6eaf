"""Prometheus metrics and health of the node service, on an optional HTTP port.

`/metrics` text format, `/healthz` answers while the event loop turns, `/readyz` once the kubelet registered the driver.
Figures that exist elsewhere (attached volumes, sessions) are read when asked for, not kept twice.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Publish is to take at most 50 ms: the buckets are fine around that.
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5, 30)
# In a sidecar a successor stands ready; a container waits for the kubelet's back-off.
_STALLS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """All metrics of the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "jfs_csi_calls",
            "Calls of the kubelet, by method and gRPC status.",
            ["method", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "jfs_csi_call_seconds", "Duration of calls.", ["method"], buckets=_BUCKETS, registry=self.registry
        )
        self._publishes = Histogram(
            "jfs_csi_publish_seconds",
            "Duration of first publishes (not repetitions), by kind of volume.",
            ["kind"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._restarts = Counter(
            "jfs_csi_takeovers", "Times that a new process took over a living mount.", registry=self.registry
        )
        self._replayed = Counter(
            "jfs_csi_replayed_requests", "Requests that a successor answered again.", registry=self.registry
        )
        self._stalls = Histogram(
            "jfs_csi_takeover_stall_seconds",
            "How long operations waited for a new process.",
            buckets=_STALLS,
            registry=self.registry,
        )
        self._events = Counter("jfs_csi_events", "Events reported, by reason.", ["reason"], registry=self.registry)

    def observe(self, method: str, code: str, seconds: float) -> None:
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def published(self, kind: str, seconds: float) -> None:
        self._publishes.labels(kind).observe(seconds)

    def event(self, reason: str) -> None:
        self._events.labels(reason).inc()

    def taken_over(self, restarts: int, stall_seconds: float, replayed: int) -> None:
        """Mounts went on with a new process, so many times; the figures are of the last time. None: with a new container, whose stall is
        not known here."""
        self._restarts.inc(restarts)
        self._replayed.inc(replayed)
        if restarts:
            self._stalls.observe(stall_seconds)

    def watch(
        self,
        attached: Callable[[], int],
        sessions: Callable[[], int],
        published: Callable[[], int],
        dirty_bytes: Callable[[], int],
        kept: Callable[[], int],
    ) -> None:
        """Take these figures at each scrape."""
        for name, text, figure in (
            ("jfs_csi_attached_volumes", "Volumes that a connected sidecar has mounted.", attached),
            ("jfs_csi_sidecar_sessions", "Connected sidecars.", sessions),
            ("jfs_csi_published_volumes", "Published data volumes.", published),
            ("jfs_csi_dirty_bytes", "Bytes the connected sidecars have not stored yet, by their beats.", dirty_bytes),
            ("jfs_csi_kept_connections", "FUSE connections whose descriptor the node service keeps.", kept),
        ):
            Gauge(name, text, registry=self.registry).set_function(figure)


def application(metrics: Metrics, ready: Callable[[], bool]) -> web.Application:
    """The HTTP application for the metrics and health ports."""

    async def serve_metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the kubelet has not registered the driver yet\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", serve_metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app
