"""etcd and a server of TiKV's protocol for tests: one of each for the whole run, a path of its own for each test.

The kernel ends a server with the test process.
"""

import asyncio
import atexit
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from typing import Any

import grpc
from jfs.meta.engines.kv.database import Database
from jfs.meta.engines.kv.proto import etcd_pb2 as pb
from jfs.meta.engines.kv.url import parse_address

from e2e import tools

KV = ("etcd", "tikv")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@cache
def _etcd() -> str:
    folder = tempfile.mkdtemp(prefix="jfs-etcd-", dir="/dev/shm")  # its fsync would be the slowest part of the tests
    client, peer = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "etcd",
        "--data-dir",
        folder,
        "--log-level",
        "error",
        "--unsafe-no-fsync",
    ]
    command += ["--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}"]
    command += ["--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}"]
    command += ["--initial-cluster", f"default=http://{peer}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return client


@cache
def _tikv() -> str:
    """A server of TiKV's protocol, whose data lives in memory: client-go's mock behind gRPC (`e2e/tools/tikv`)."""
    client = f"127.0.0.1:{_free_port()}"
    command = ["setpriv", "--pdeathsig", "KILL", str(tools.path("tikv")), "-listen", client]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.kill()
        process.wait()

    atexit.register(end)
    return client


async def tikv_server() -> str:
    """Host and port of the placement driver, when it accepts connections."""
    return await _accepting(_tikv())


async def etcd_server() -> str:
    """Host and port of etcd, when it accepts connections."""
    return await _accepting(_etcd())  # not in a thread: the kernel would end the server with it


async def _accepting(client: str) -> str:
    host, port = client.split(":")
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return client


def _stub(address: str, method: str, answer: Any, request: Any) -> Any:
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", 64 << 20)]) as channel:
        call = channel.unary_unary(
            f"/etcdserverpb.KV/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=20)


def etcd_load(address: str, pairs: list[tuple[bytes, bytes]]) -> None:
    """Put pairs as they are."""
    for start in range(0, len(pairs), 100):
        puts = [
            pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)) for key, value in pairs[start : start + 100]
        ]
        _stub(address, "Txn", pb.TxnResponse, pb.TxnRequest(success=puts))


def etcd_dump(address: str) -> list[tuple[bytes, bytes]]:
    """Every pair."""
    answer = _stub(address, "Range", pb.RangeResponse, pb.RangeRequest(key=b"\0", range_end=b"\0"))
    return [(one.key, one.value) for one in answer.kvs]


def kv_database(url: str) -> Database:
    """The database of an address, not opened."""
    if url.startswith("etcd:"):
        from jfs.meta.engines.kv.etcd import EtcdDatabase

        return EtcdDatabase(parse_address(url, ""))
    from jfs.meta.engines.kv.tikv import TikvDatabase

    return TikvDatabase(parse_address(url, ""))
