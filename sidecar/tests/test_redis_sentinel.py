"""A master that Sentinels name: found at the start, and its successor after it died. Real servers, a real failover."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jfs.errors import ConfigError, StoreUnavailable
from jfs.meta.connect import connect
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.keys import CounterKey
from jfs.meta.store.base import Store, Tx


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("prime,a,b:26380", (("a", 26380), ("b", 26380))),
        ("prime,a:1,b", (("a", 1), ("b", 26379))),
        ("prime,a", (("a", 26379),)),
    ],
)
def test_addresses(hosts: str, expected: tuple[tuple[str, int], ...]) -> None:
    address = parse_address(f"redis://:pw@{hosts}/3?read-timeout=5s", sentinel_password="other")
    assert (address.master, address.sentinels, address.db, address.password) == ("prime", expected, 3, "pw")
    assert address.read_timeout == 5
    assert "pw" not in str(address)
    assert "other" not in repr(address)


def test_a_wrong_address() -> None:
    with pytest.raises(ConfigError, match="Sentinel"):
        parse_address("redis://prime,a:x/1")


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[str, subprocess.Popen[bytes], int]]:
    """The address by way of a Sentinel, the master's process, and the port of a replica in step."""
    master, replica, sentinel = free_port(), free_port(), free_port()
    processes = []

    def start(name: str, *options: str) -> subprocess.Popen[bytes]:
        folder = tmp_path / name
        folder.mkdir()
        process = subprocess.Popen(["redis-server", *options, "--dir", str(folder)], stdout=subprocess.DEVNULL)
        processes.append(process)
        return process

    settings = ("--save", "", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
    first = start("master", "--port", str(master), *settings)
    start("replica", "--port", str(replica), "--replicaof", f"127.0.0.1 {master}", *settings)
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {sentinel}\nsentinel monitor prime 127.0.0.1 {master} 1\nsentinel down-after-milliseconds prime 500\n"
        "sentinel failover-timeout prime 3000\nrequirepass guard\n"
    )
    start("sentinel", str(config), "--sentinel")
    try:
        async with asyncio.timeout(20):
            while True:
                if await in_step(master, sentinel):
                    break
                await asyncio.sleep(0.05)
        yield f"redis://prime,127.0.0.1:{sentinel}/2", first, replica
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def in_step(master: int, sentinel: int) -> bool:
    """Whether the replica follows and the Sentinel knows it."""
    if b"state=online" not in await told(master, "info replication"):
        return False
    return b"slaves=1" in await told(sentinel, "info sentinel", "guard")


async def told(port: int, command: str, password: str = "") -> bytes:
    words = [
        "redis-cli",
        "-p",
        str(port),
        *(["-a", password, "--no-auth-warning"] if password else []),
        *command.split(),
    ]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return (await process.communicate())[0]


async def add(store: Store) -> None:
    async def operation(tx: Tx) -> None:
        tx.add(CounterKey("usedSpace"), 1)

    await store.run(operation)


@pytest.mark.real
@pytest.mark.timeout(90)
async def test_a_failover(servers: tuple[str, subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch) -> None:
    url, master, replica = servers
    with pytest.raises(StoreUnavailable, match="SENTINEL_PASSWORD"):
        await connect(url)
    monkeypatch.setenv("SENTINEL_PASSWORD", "guard")
    store = await connect(url)
    try:
        await add(store)
        assert await store.get(CounterKey("usedSpace")) == (1,)
        async with asyncio.timeout(20):
            while True:  # the replica has it
                if await told(replica, "-n 2 get usedSpace") == b"1\n":
                    break
                await asyncio.sleep(0.05)
        master.kill()
        async with asyncio.timeout(60):
            while True:
                try:
                    await add(store)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.2)
        (counted,) = await store.get(CounterKey("usedSpace"))
        assert counted >= 2
    finally:
        await store.close()
