"""A thousand faults of the network: answers stay right, and neither memory nor descriptors nor tasks grow."""

import asyncio
import contextlib
import gc
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from crash_rig import KillableRedis
from fault_proxy import FaultProxy, How
from jfs.chunk.blocks import BlockLimits, BlockStore
from jfs.errors import ObjectError, StoreUnavailable
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.keys import CounterKey, NodeKey
from jfs.meta.store.base import Tx
from jfs.object.base import ObjectStorage
from jfs.object.connect import StorageOptions, open_storage
from seaweed_server import ACCESS_KEY, SECRET_KEY, SeaweedServer

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]
FAULTS = int(os.environ.get("JFS_FAULTS", "200"))
HOWS: list[How] = ["reset", "close", "half-close"]
USED = CounterKey("usedSpace")


class Usage:
    """What this process holds: descriptors, tasks, resident KiB."""

    def __init__(self) -> None:
        gc.collect()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.tasks = len(asyncio.all_tasks())
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        self.memory = int(found[1])


async def assert_no_growth(fault: Callable[[int], Awaitable[None]], *, slack: int) -> None:
    """*fault* causes one; after the first hundred nothing grows any more (by *slack* descriptors at most, connections kept idle)."""
    for number in range(100):
        await fault(number)
    before = Usage()
    for number in range(100, 100 + FAULTS):
        await fault(number)
    after = Usage()
    assert after.descriptors <= before.descriptors + slack
    assert after.tasks <= before.tasks + 2
    assert after.memory <= before.memory + 8192


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[KillableRedis]:
    server = KillableRedis(tmp_path / "redis", "--appendonly", "no")
    yield server
    server.kill()


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "watch"])
async def test_redis(redis: KillableRedis, scripts: bool) -> None:
    """The counter that each transaction raises with a record of its own shows that each was done once."""
    chance = random.Random(1)
    with FaultProxy(redis.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/1?min-retry-backoff=1ms"
        store = RedisStore(parse_address(url), use_scripts=scripts)
        await store.open()
        unknown = 0

        async def fault(number: int) -> None:
            nonlocal unknown

            async def operation(tx: Tx) -> None:
                used, _ = await tx.get(USED, NodeKey(number))
                tx.put(USED, (used or 0) + 1)

            proxy.plan(
                chance.choice(("request", "answer")), "bytes", chance.choice((0, 1, 10, 100, 200)), chance.choice(HOWS)
            )
            try:
                await store.run(operation, near=(1,))
            except StoreUnavailable:
                unknown += 1
            proxy.no_plan()

        try:
            await assert_no_growth(fault, slack=4)
            (used,) = await store.get(USED)
            assert 100 + FAULTS - unknown <= used <= 100 + FAULTS
            assert not unknown
        finally:
            await store.close()


async def test_s3(seaweed: SeaweedServer) -> None:
    """A block comes whole and right or not at all, wherever the connection is cut."""
    chance = random.Random(1)
    data = random.Random(2).randbytes(5000)
    with FaultProxy(seaweed.port) as proxy:
        bucket = seaweed.bucket_url.replace(f":{seaweed.port}/", f":{proxy.port}/")
        storage: ObjectStorage = open_storage(
            "s3",
            bucket,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            options=StorageOptions(first_pause=0.001, tries=2, idle_timeout=5.0),
        )
        blocks = BlockStore(storage, limits=BlockLimits(io_retries=1, pause=lambda tried: 0.001))
        stored = 0

        async def fault(number: int) -> None:
            nonlocal stored
            proxy.plan(chance.choice(("request", "answer")), "bytes", chance.randrange(0, 6000), chance.choice(HOWS))
            with contextlib.suppress(ObjectError):
                await blocks.put_block(number + 1, 0, data)
                stored += 1
                assert bytes(await blocks.get_block(number + 1, len(data), 0)) == data
                assert bytes(await blocks.get_range(number + 1, len(data), 0, 1000, 500)) == data[1000:1500]
            proxy.no_plan()

        try:
            await assert_no_growth(fault, slack=8)
            assert stored > FAULTS // 2
        finally:
            await blocks.close()
