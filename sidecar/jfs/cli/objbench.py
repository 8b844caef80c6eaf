"""`jfs objbench BUCKET`: whether an object storage does what a volume needs, and how fast, in the real client's tables. What is put there
lies below a prefix of its own and is removed again. It goes the way of a mount's blocks, not that of a library."""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from jfs.cli.tables import size_text, table
from jfs.errors import ConfigError, ObjectError, ObjectNotFound
from jfs.mount import units
from jfs.object.base import ObjectStorage

_MIB: Final = 1 << 20


class Plan(NamedTuple):
    """Sizes in bytes, and how many."""

    block: int
    big: int
    small: int
    smalls: int
    threads: int


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs objbench",
        description="Check and measure an object storage.",
        epilog="example: ACCESS_KEY=… SECRET_KEY=… jfs objbench --storage s3 https://s3.example.com/mybucket -p 8",
    )
    parser.add_argument("bucket", metavar="BUCKET")
    parser.add_argument("--storage", default="file", help="file or s3 (file)")
    parser.add_argument("--access-key", default="", help="better given as ACCESS_KEY in the environment")
    parser.add_argument("--secret-key", default="", help="better given as SECRET_KEY in the environment")
    parser.add_argument("--session-token", default="", help="better given as SESSION_TOKEN in the environment")
    parser.add_argument(
        "--block-size", default="4M", metavar="SIZE", help="of each object of a big file, in KiB without a unit (4M)"
    )
    parser.add_argument(
        "--big-object-size", default="1G", metavar="SIZE", help="of a big file, in MiB without a unit (1G)"
    )
    parser.add_argument(
        "--small-object-size", default="128K", metavar="SIZE", help="of a small object, in KiB without a unit (128K)"
    )
    parser.add_argument("--small-objects", type=int, default=100, metavar="N", help="how many small objects (100)")
    parser.add_argument("--skip-functional-tests", action="store_true", help="measure only")
    parser.add_argument("-p", "--threads", type=int, default=4, metavar="N", help="how many requests at once (4)")
    parser.add_argument("--storage-class", "--sc", default="", help="of the objects that are put")
    options = parser.parse_args(arguments)
    plan = Plan(
        units.size("--block-size", options.block_size, "K"),
        units.size("--big-object-size", options.big_object_size, "M"),
        units.size("--small-object-size", options.small_object_size, "K"),
        options.small_objects,
        options.threads,
    )
    if plan.block <= 0 or plan.threads < 1 or plan.smalls < 1 or plan.small <= 0:
        raise ConfigError("--block-size, --small-object-size, --small-objects and --threads must be more than 0")
    from jfs.cli.environment import take_storage_keys

    keys = take_storage_keys()
    for name in ("access-key", "secret-key", "session-token"):
        if given := getattr(options, name.replace("-", "_")):
            keys[name] = given
    return asyncio.run(_run(options, plan, keys))


async def _run(options: argparse.Namespace, plan: Plan, keys: dict[str, str]) -> int:
    from jfs.object.connect import StorageOptions, open_storage
    from jfs.object.prefixed import PrefixedStorage

    whole = open_storage(
        options.storage,
        options.bucket,
        access_key=keys.get("access-key", ""),
        secret_key=keys.get("secret-key", ""),
        session_token=keys.get("session-token", ""),
        options=StorageOptions(storage_class=options.storage_class, connections=max(256, plan.threads)),
    )
    prefix = f"__juicefs_benchmark_{time.time_ns()}__/"
    storage = PrefixedStorage(whole, prefix)
    try:
        await whole.create_bucket()
        failed = 0
        if not options.skip_functional_tests:
            print("Start Functional Testing ...")
            rows, failed = await functional(storage)
            print(table(("CATEGORY", "TEST", "RESULT"), rows, ">>>"), end="\n\n")
        print("Start Performance Testing ...")
        rows = await performance(storage, plan)
        sizes = (("block-size", plan.block), ("big-object-size", plan.big), ("small-object-size", plan.small))
        told = ", ".join(f"{name}: {size_text(size)}" for name, size in sizes)
        print(f"Benchmark finished! {told}, small-objects: {plan.smalls}, NumThreads: {plan.threads}")
        print(table(("ITEM", "VALUE", "COST"), rows, ">>>"))
    finally:
        async for info in storage.list():
            await storage.delete(info.key)
        await whole.remove_bucket_parts(prefix)
        await storage.close()
    return 1 if failed else 0


async def functional(storage: ObjectStorage) -> tuple[list[tuple[str, str, str]], int]:
    """A row for each thing a volume needs of a storage, and how many do not work."""
    data = os.urandom(1000)
    big = os.urandom(5 * _MIB)

    async def expect(key: str, wanted: bytes, offset: int = 0, size: int = -1) -> None:
        if bytes(await storage.get(key, offset, size)) != wanted:
            raise ObjectError("other bytes came back than were put")

    async def missing(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except ObjectNotFound:
            return
        raise ObjectError("an object that does not exist was found")

    async def head() -> None:
        if (await storage.head("put")).size != len(data):
            raise ObjectError("the size is not that of what was put")

    async def gone() -> None:
        await storage.delete("put")
        await missing(lambda: storage.head("put"))

    async def listed() -> None:
        keys = [f"list/{number:02}" for number in range(12)]
        for key in keys:
            await storage.put(key, b"x")
        if [info.key async for info in storage.list("list/")] != keys:
            raise ObjectError("the listing is not what was put, in order")

    async def special() -> None:
        key = "special/a b+c%25~é"
        await storage.put(key, data)
        await expect(key, data)

    async def put_big() -> None:
        await storage.put("one-big", big)
        await expect("one-big", big)

    async def put_empty() -> None:
        await storage.put("empty", b"")
        await expect("empty", b"")

    tests: list[tuple[str, str, Callable[[], Awaitable[object]]]] = [
        ("basic", "create a bucket", storage.create_bucket),
        ("basic", "put an object", lambda: storage.put("put", data)),
        ("basic", "get an object", lambda: expect("put", data)),
        ("basic", "get non-exist", lambda: missing(lambda: storage.get("nothing"))),
        ("basic", "get partial object", lambda: expect("put", data[10:30], 10, 20)),
        ("basic", "head an object", head),
        ("basic", "delete an object", gone),
        ("basic", "delete non-exist", lambda: storage.delete("nothing")),
        ("basic", "list objects", listed),
        ("blocks", "special key", special),
        ("blocks", "put a big object", put_big),
        ("blocks", "put an empty object", put_empty),
    ]
    rows, failed = [], 0
    for category, name, test in tests:
        try:
            await test()
            rows.append((category, name, "pass"))
        except ObjectError as error:
            failed += 1
            rows.append((category, name, f"failed: {error}"[:80]))
    return rows, failed


async def performance(storage: ObjectStorage, plan: Plan) -> list[tuple[str, str, str]]:
    """A row for each kind of request."""
    blocks = [f"big/{number}" for number in range(max(1, plan.big // plan.block))] if plan.big else []
    smalls = [f"small/{number}" for number in range(plan.smalls)]
    block, small = os.urandom(min(plan.block, plan.big) or 1), os.urandom(plan.small)
    rows: list[tuple[str, str, str]] = []

    async def timed(keys: Sequence[str], call: Callable[[str], Awaitable[object]]) -> float:
        left = iter(keys)
        started = time.perf_counter()

        async def worker() -> None:
            for key in left:
                await call(key)

        await asyncio.gather(*(worker() for _ in range(plan.threads)))
        return max(time.perf_counter() - started, 1e-9)

    def row(name: str, keys: Sequence[str], seconds: float, size: int = 0) -> None:
        amount = f"{len(keys) * size / _MIB / seconds:.2f} MiB/s" if size else f"{len(keys) / seconds:.2f} objects/s"
        rows.append((name, amount, f"{seconds * plan.threads / len(keys) * 1000:.2f} ms/object"))

    if blocks:
        row("upload objects", blocks, await timed(blocks, lambda key: storage.put(key, block)), len(block))
        row("download objects", blocks, await timed(blocks, storage.get), len(block))
    row("put small objects", smalls, await timed(smalls, lambda key: storage.put(key, small)))
    row("get small objects", smalls, await timed(smalls, storage.get))
    started = time.perf_counter()
    count = len([info async for info in storage.list()])
    seconds = time.perf_counter() - started
    rows.append(("list objects", f"{count / seconds:.2f} objects/s", f"{seconds * 1000:.2f} ms/ {count} objects"))
    row("head objects", smalls, await timed(smalls, storage.head))
    everything = [*blocks, *smalls]
    row("delete objects", everything, await timed(everything, storage.delete))
    return rows
