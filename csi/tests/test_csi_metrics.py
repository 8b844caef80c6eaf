"""What /metrics says of takeovers, and of what is read only when somebody asks."""

from jfs_csi.metrics import Metrics
from prometheus_client import generate_latest


def test_takeovers_stalls_and_replayed_requests() -> None:
    metrics = Metrics()
    metrics.taken_over(2, 0.031, 5)
    metrics.taken_over(1, 12.5, 0)
    text = generate_latest(metrics.registry).decode()
    assert "jfs_csi_takeovers_total 3.0" in text
    assert "jfs_csi_replayed_requests_total 5.0" in text
    assert 'jfs_csi_takeover_stall_seconds_bucket{le="0.05"} 1.0' in text
    assert "jfs_csi_takeover_stall_seconds_count 2.0" in text
    assert "jfs_csi_takeover_stall_seconds_sum 12.531" in text


def test_gauges_are_read_when_asked_for() -> None:
    metrics = Metrics()
    figures = iter(range(100))
    metrics.watch(*([lambda: next(figures)] * 5))
    assert "jfs_csi_attached_volumes 0.0" in generate_latest(metrics.registry).decode()
    assert "jfs_csi_attached_volumes 5.0" in generate_latest(metrics.registry).decode()
