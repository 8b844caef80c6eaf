"""Metrics: the registry's two texts, and the server at `--metrics`."""

import asyncio
import socket

import pytest
from jfs.errors import ConfigError
from jfs.metrics import Registry, linear
from jfs.mount.metrics_server import MetricsServer, split_address


def registry() -> Registry:
    made = Registry()
    made.counter("fuse_ops_total", "Requests.", method="read").value += 3
    made.counter("fuse_ops_total", "Requests.", method="create").value += 1
    histogram = made.histogram("fuse_read_size_bytes", linear(4096, 4096, 2), "Bytes.")
    for value in (1, 4096, 5000, 100_000):
        histogram.observe(value)
    made.gauge("uptime", lambda: 1.5, "Seconds.")
    made.gauge("dir_quota_used", lambda: {"7": 2}, "Quota.", label="inode")
    return made


def test_stats_joins_labels_to_names() -> None:
    assert registry().stats() == (
        "juicefs_dir_quota_used_7 2\n"
        "juicefs_fuse_ops_total_create 1\n"
        "juicefs_fuse_ops_total_read 3\n"
        "juicefs_fuse_read_size_bytes_total 4\n"
        "juicefs_fuse_read_size_bytes_sum 109097\n"
        "juicefs_uptime 1.5\n"
    )


def test_prometheus_text_has_labels_and_cumulative_buckets() -> None:
    lines = registry().prometheus({"vol_name": "v", "mp": '/a"b'}).splitlines()
    assert 'juicefs_fuse_ops_total{method="read",vol_name="v",mp="/a\\"b"} 3' in lines
    assert 'juicefs_fuse_read_size_bytes_bucket{vol_name="v",mp="/a\\"b",le="4096"} 2' in lines
    assert 'juicefs_fuse_read_size_bytes_bucket{vol_name="v",mp="/a\\"b",le="8192"} 3' in lines
    assert 'juicefs_fuse_read_size_bytes_bucket{vol_name="v",mp="/a\\"b",le="+Inf"} 4' in lines
    assert "# TYPE juicefs_fuse_read_size_bytes histogram" in lines
    assert "# TYPE juicefs_uptime gauge" in lines


def test_asking_twice_gives_the_same_counter() -> None:
    made = Registry()
    made.counter("x", a="1").value += 1
    made.counter("x", a="1").value += 1
    assert made.stats() == "juicefs_x_1 2\n"


async def ask(address: str, path: str) -> str:
    host, port = split_address(address)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


async def text() -> str:
    return "juicefs_x 1\n"


async def test_server_answers_metrics_only() -> None:
    server = MetricsServer(text)
    await server.start("127.0.0.1:0")
    try:
        answer = await ask(server.address, "/metrics")
        assert answer.startswith("HTTP/1.1 200 OK\r\n")
        assert answer.endswith("\r\n\r\njuicefs_x 1\n")
        assert (await ask(server.address, "/")).startswith("HTTP/1.1 404")
    finally:
        await server.close()


async def test_a_taken_port_is_not_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = MetricsServer(text)
        await server.start(f"127.0.0.1:{port}")
        try:
            assert split_address(server.address)[1] > port
            assert "juicefs_x 1" in await ask(server.address, "/metrics")
        finally:
            await server.close()


async def test_bad_addresses_are_refused() -> None:
    for bad in ("nonsense", "host:port", "127.0.0.1:70000"):
        with pytest.raises(ConfigError, match="is not an address"):
            split_address(bad)
    with pytest.raises(ConfigError, match="metrics cannot be served"):
        await MetricsServer(text).start("203.0.113.1:9567")
