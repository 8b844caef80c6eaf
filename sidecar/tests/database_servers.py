"""Database servers of this test run, each started by the first test that asks for it; every test has a place of its own there."""

import atexit
import itertools
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from jfs.meta.engines.kv.database import Database
from jfs.meta.engines.kv.proto import etcd_pb2 as pb
from jfs.meta.engines.kv.url import parse_address
from redis_cluster import shared_cluster

from e2e.databases import SERVERS, Server, SqlServer

KV = ("etcd", "tikv")
_NUMBERS = itertools.count(1)


@cache
def server(engine: str) -> Server:
    """The server of an engine. Not to be asked for in a thread that ends: the kernel would end the server with it."""
    place = "/dev/shm" if engine == "etcd" else None
    folder = tempfile.mkdtemp(prefix=f"jfs-{engine}-", dir=place)  # a socket's path must be short
    started = SERVERS[engine](Path(folder))
    atexit.register(started.stop)
    return started


def sql_server(engine: str) -> SqlServer:
    """A server that runs statements."""
    found = server(engine)
    assert isinstance(found, SqlServer)
    return found


def new_name() -> str:
    """A name no other test has."""
    return f"jfs{os.getpid()}_{next(_NUMBERS)}"


def blank(engine: str) -> str:
    """The address of an empty place at a server, or in the Cluster of Redis."""
    if engine == "redis-cluster":
        return shared_cluster().url()
    return server(engine).url(new_name())


def _ask(address: str, method: str, answer: Any, request: Any) -> Any:
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", 64 << 20)]) as channel:
        call = channel.unary_unary(
            f"/etcdserverpb.KV/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=20)


def etcd_load(pairs: list[tuple[bytes, bytes]]) -> None:
    """Put pairs as they are."""
    for start in range(0, len(pairs), 100):
        puts = [
            pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)) for key, value in pairs[start : start + 100]
        ]
        _ask(f"127.0.0.1:{server('etcd').port}", "Txn", pb.TxnResponse, pb.TxnRequest(success=puts))


def etcd_dump() -> list[tuple[bytes, bytes]]:
    """Every pair."""
    request = pb.RangeRequest(key=b"\0", range_end=b"\0")
    answer = _ask(f"127.0.0.1:{server('etcd').port}", "Range", pb.RangeResponse, request)
    return [(one.key, one.value) for one in answer.kvs]


def kv_database(url: str) -> Database:
    """The database of an address, not opened."""
    if url.startswith("etcd:"):
        from jfs.meta.engines.kv.etcd import EtcdDatabase

        return EtcdDatabase(parse_address(url, ""))
    from jfs.meta.engines.kv.tikv import TikvDatabase

    return TikvDatabase(parse_address(url, ""))
