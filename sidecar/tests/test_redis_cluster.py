"""A volume in a Redis Cluster: the node that has its slot is found, and found again when the slot moves, its node dies or comes back.
Real nodes, of Redis and of Valkey, and the real client."""

import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from crash_rig import KillableRedis
from jfs.check import check
from jfs.errors import CredentialsRefused, StoreUnavailable
from jfs.meta.connect import connect
from jfs.meta.engines.redis import link as links
from jfs.meta.engines.redis.connection import Connection
from jfs.meta.engines.redis.failures import ServerError
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import ChunkKey, CounterKey, EdgeKey, NodeKey, SettingKey
from jfs.meta.store.base import Store, Tx
from mount_parts import JFS, REAL, Volume, check_by_real, eventually, mounted, really_mounted, run, tree
from redis_cluster import REDIS, Node, RedisCluster, redis_cluster, valkey
from store_engines import directory, file
from test_dump_load import comparable
from test_redis_tls import certificates
from test_store_golden import opened

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    program = valkey() if request.param == "valkey" else REDIS
    with redis_cluster(tmp_path_factory.mktemp("cluster"), program=program) as started:
        yield started


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The first words of the error replies that clients get."""
    seen: Counter[str] = Counter()
    original = Connection._refusal

    def counting(self: Connection, text: str) -> ServerError:
        seen[text.split()[0]] += 1
        return original(self, text)

    monkeypatch.setattr(Connection, "_refusal", counting)
    return seen


@asynccontextmanager
async def opened_at(url: str, *, use_scripts: bool = True) -> AsyncIterator[RedisStore]:
    store = RedisStore(parse_address(url), use_scripts=use_scripts)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def make_entry(store: Store, name: bytes, ino: int) -> None:
    """A transaction that shows when it is done twice or in part."""

    async def operation(tx: Tx) -> None:
        await tx.get(EdgeKey(1, name), NodeKey(1))
        tx.put(EdgeKey(1, name), Entry(1, ino))
        tx.put(NodeKey(ino), file())
        tx.add(CounterKey("totalInodes"), 1)

    await store.run(operation)


async def listed(store: Store) -> list[bytes]:
    return [name async for page in store.list_directory(1, plus=False) for name in page.names]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what this process or a node does."""
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


def other(cluster: RedisCluster, database: int) -> Node:
    owner = cluster.owner(database)
    return next(node for node in cluster.nodes if node is not owner)


async def test_any_node_leads_to_the_slot(cluster: RedisCluster) -> None:
    """All nodes in the address, or one of them, with the slot or without it."""
    database = cluster.database_at(cluster.nodes[1])
    for number, url in enumerate([cluster.url(database), *(cluster.url(database, first=n) for n in range(3))]):
        async with opened_at(url) as store:
            await make_entry(store, b"f%d" % number, 10 + number)
            assert await store.get(CounterKey("totalInodes")) == (number + 1,)
            assert sorted(await listed(store)) == [b"f%d" % n for n in range(number + 1)]
    assert all(key.startswith(f"{{{database}}}") for key in cluster.keys(database))


async def test_volumes_beside_each_other(cluster: RedisCluster) -> None:
    """Two numbers of which one begins like the other, at one node: neither is seen by the other, nor removed with it."""
    few = cluster.database_at(cluster.nodes[0], apart=10)
    many = few * 10
    async with opened_at(cluster.url(few)) as first, opened_at(cluster.url(many)) as second:
        for number in range(20):
            await make_entry(second, b"f%d" % number, 2 + number)
        assert await first.is_blank()
        assert not await second.is_blank()
        await make_entry(first, b"own", 7)
        assert [ino async for ino, _ in first.nodes()] == [7]
        assert [key async for key, _ in first.scan(EdgeKey)] == [EdgeKey(1, b"own")]
        assert len([ino async for ino, _ in second.nodes()]) == 20
        await first.reset()
        assert await first.is_blank()
        assert len([ino async for ino, _ in second.nodes()]) == 20


@pytest.mark.parametrize("use_scripts", [True, False], ids=["script", "watch"])
async def test_a_slot_that_moves_under_load(cluster: RedisCluster, use_scripts: bool, refusals: Counter[str]) -> None:
    """There and back while transactions and reads go on: each is done once."""
    database = cluster.database_at(cluster.nodes[0])
    numbers = itertools.count(100)
    made: list[bytes] = []
    over = asyncio.Event()
    async with opened_at(cluster.url(database), use_scripts=use_scripts) as store:

        async def worker() -> None:
            while not over.is_set():
                ino = next(numbers)
                await make_entry(store, b"f%d" % ino, ino)
                made.append(b"f%d" % ino)
                assert await store.lookup(1, b"f%d" % ino) == (Entry(1, ino), file())

        working = [asyncio.create_task(worker()) for _ in range(8)]
        try:
            for _ in range(2):
                for _ in range(2):
                    before = len(made)
                    target = other(cluster, database)
                    await asyncio.to_thread(cluster.move, database, target, half=random.choice((20, 50, 80)))
                    await until(lambda most=before + 50: len(made) > most)  # it goes on there
        finally:
            over.set()
        await asyncio.gather(*working)
        assert sorted(await listed(store)) == sorted(made)
        assert await store.get(CounterKey("totalInodes")) == (len(made),)
    assert refusals["MOVED"]
    assert refusals["TRYAGAIN"]
    assert refusals["ASK"]


async def test_while_a_slot_is_on_its_way(
    cluster: RedisCluster, refusals: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single records are read wherever they are; what would find half of them waits, and says so in the end."""
    monkeypatch.setattr(links, "_TRIES", 3)
    database = cluster.database_at(cluster.nodes[0])
    async with opened_at(cluster.url(database)) as store:
        for ino in range(2, 62):
            await make_entry(store, b"f%d" % ino, ino)

        async def midway() -> None:
            assert await store.get(*(NodeKey(ino) for ino in range(2, 62))) == (file(),) * 60
            assert await store.get(NodeKey(1000), SettingKey()) == (None, None)
            assert refusals["ASK"]
            for ino in (2, 31, 61):
                assert await store.lookup(1, b"f%d" % ino) == (Entry(1, ino), file())
            assert len(await listed(store)) == 60
            with pytest.raises(StoreUnavailable, match="being moved between nodes"):
                [ino async for ino, _ in store.nodes()]
            with pytest.raises(StoreUnavailable, match="being moved between nodes"):
                await store.reset()
            with pytest.raises(StoreUnavailable, match="being moved between nodes"):
                await store.next_id("nextSession")
            async with opened_at(cluster.url(database)) as late:
                assert await late.get(NodeKey(2)) == (file(),)

        loop = asyncio.get_running_loop()
        target = other(cluster, database)
        await asyncio.to_thread(
            cluster.move, database, target, midway=lambda: asyncio.run_coroutine_threadsafe(midway(), loop).result()
        )
        assert len([ino async for ino, _ in store.nodes()]) == 60
        assert await store.next_id("nextSession") == 1


async def fill(store: Store, entries: int) -> None:
    async def operation(tx: Tx) -> None:
        for ino in range(2, entries + 2):
            tx.put(EdgeKey(1, b"name%d" % ino), Entry(1, ino))
            tx.put(NodeKey(ino), directory())

    await store.run(operation)


async def test_searches_while_the_slot_moves(cluster: RedisCluster) -> None:
    """A cursor means nothing to the node that has the slot after the first page: nothing is left out for that."""
    database = cluster.database_at(cluster.nodes[0])
    async with opened_at(cluster.url(database)) as store:
        await fill(store, 9000)
        names: list[bytes] = []
        async for page in store.list_directory(1, plus=True):
            if not names:
                await asyncio.to_thread(cluster.move, database, other(cluster, database))
            names += page.names
        assert Counter(names) == Counter(b"name%d" % ino for ino in range(2, 9002))
        inodes: list[int] = []
        async for ino, _ in store.nodes():
            if not inodes:
                await asyncio.to_thread(cluster.move, database, other(cluster, database))
            inodes.append(ino)
        assert Counter(inodes) == Counter(range(2, 9002))


async def test_searches_while_a_server_is_started_again(tmp_path: Path) -> None:
    """The same at a single server: another process has other tables."""
    redis = KillableRedis(tmp_path / "redis", "--appendfsync", "no")
    try:
        async with opened_at(f"{redis.url}/1") as store:
            await fill(store, 9000)
            names: list[bytes] = []
            async for page in store.list_directory(1, plus=True):
                if not names:
                    redis.kill()
                    redis.restart()
                names += page.names
            assert Counter(names) == Counter(b"name%d" % ino for ino in range(2, 9002))
            inodes: list[int] = []
            async for ino, _ in store.nodes():
                if not inodes:
                    redis.kill()
                    redis.restart()
                inodes.append(ino)
            assert Counter(inodes) == Counter(range(2, 9002))
    finally:
        redis.kill()


DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.mark.parametrize("use_scripts", [True, False], ids=["script", "watch"])
async def test_a_failover_under_load(tmp_path: Path, use_scripts: bool) -> None:
    """The owner dies and its replica takes over. What the replica had is kept, and every transaction was made once or not at all."""
    with redis_cluster(tmp_path / "cluster", replicas=1) as cluster:
        owner, replica = cluster.nodes[0], cluster.nodes[-1]
        database = cluster.database_at(owner)
        numbers = itertools.count(100)
        made: list[bytes] = []
        over = asyncio.Event()
        async with opened_at(cluster.url(database), use_scripts=use_scripts) as store:

            async def worker() -> None:
                while not over.is_set():
                    ino = next(numbers)
                    try:
                        await make_entry(store, b"f%d" % ino, ino)
                    except StoreUnavailable:
                        continue
                    made.append(b"f%d" % ino)

            working = [asyncio.create_task(worker()) for _ in range(4)]
            try:
                await until(lambda: len(made) > 200)
                safe = list(made)
                # What was written before is with the replica when this is.
                words = ["redis-cli", "-p", str(owner.port)]
                said = await asyncio.to_thread(run, *words, input=f"SET {{{database}}}mark 1\nWAIT 1 20000\n")
                assert said.stdout.split() == ["OK", "1"]
                owner.kill()
                await until(lambda: "myself,master" in replica.ask("CLUSTER", "NODES"))
                before = len(made)
                await until(lambda: len(made) > before + 100)
            finally:
                over.set()
            await asyncio.gather(*working)
            names = await listed(store)
            assert set(safe) <= set(names)
            assert set(made[-50:]) <= set(names)
            assert await store.get(CounterKey("totalInodes")) == (len(names),)
            owner.start()  # as a replica now
            await make_entry(store, b"after", 50)


async def test_a_node_that_comes_back(tmp_path: Path, refusals: Counter[str]) -> None:
    """Nobody takes over: requests wait until it is there again."""
    with redis_cluster(tmp_path / "cluster", *DURABLE) as cluster:
        owner = cluster.nodes[0]
        database = cluster.database_at(owner)
        async with opened_at(cluster.url(database)) as store:
            await make_entry(store, b"a", 2)
            owner.kill()
            late = asyncio.create_task(make_entry(store, b"b", 3))
            reading = asyncio.create_task(store.get(NodeKey(2)))
            survivor = cluster.nodes[1]
            await until(lambda: "cluster_state:fail" in survivor.ask("CLUSTER", "INFO"))
            owner.start()
            await late
            assert await reading == (file(),)
            assert sorted(await listed(store)) == [b"a", b"b"]
            survivor.kill()  # which has nothing of this volume, but whole Clusters stop
            await until(lambda: "cluster_state:fail" in owner.ask("CLUSTER", "INFO"))
            late = asyncio.create_task(make_entry(store, b"c", 4))
            await until(lambda: refusals["CLUSTERDOWN"])
            survivor.start()
            await late
            assert await store.get(CounterKey("totalInodes")) == (3,)


async def test_what_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one sentence that says where and what to do."""
    monkeypatch.setattr(links, "_TRIES", 2)
    with redis_cluster(tmp_path / "cluster") as cluster:
        owner = cluster.nodes[0]
        database = cluster.database_at(owner)
        url = cluster.url(database)
        slot = str(cluster.slot(database))
        async with opened_at(url) as store:
            await make_entry(store, b"a", 2)
            for node in cluster.nodes:
                node.ask("CLUSTER", "DELSLOTS", slot)
            with pytest.raises(StoreUnavailable, match=r"is down \(CLUSTERDOWN .*have its slots assigned"):
                await store.get(NodeKey(2))
        with pytest.raises(StoreUnavailable, match=rf"where slot {slot} is.*have the slot assigned") as refused:
            await connect(url)
        assert f"/{database} tells" in str(refused.value)
        for node in cluster.nodes:
            node.kill()
        with pytest.raises(StoreUnavailable, match=r"Connect call failed.*start the Cluster's nodes"):
            await connect(url)
    with pytest.raises(StoreUnavailable, match="Connect call failed"):
        await connect(cluster.url(database, first=0))
    redis = KillableRedis(tmp_path / "single")
    try:
        with pytest.raises(StoreUnavailable, match="is no node of a Redis Cluster"):
            await connect(f"redis://127.0.0.1:{redis.port},127.0.0.1:{redis.port}/1")
    finally:
        redis.kill()


async def test_tls_and_a_user_of_few_rights(tmp_path: Path) -> None:
    """The user may use the keys of its volume and what the volume needs, and nothing else."""
    certificates(tmp_path)
    own = {name: f"{tmp_path}/own.{name}" for name in ("crt", "key")}
    options = ["--tls-cert-file", own["crt"], "--tls-key-file", own["key"], "--tls-ca-cert-file", f"{tmp_path}/ca.crt"]
    words = ("--tls", "--cacert", f"{tmp_path}/ca.crt", "--cert", own["crt"], "--key", own["key"])
    options += ["--tls-cluster", "yes", "--tls-replication", "yes"]
    with redis_cluster(tmp_path / "cluster", *options, tls=True, words=words) as cluster:
        database = cluster.database_at(cluster.nodes[2])
        rights = ["on", ">secret", f"~{{{database}}}*", "+@all", "-@admin", "-@dangerous", "+info", "+cluster|slots"]
        for node in cluster.nodes:
            node.ask("ACL", "SETUSER", "volume", *rights)
            node.ask("ACL", "SETUSER", "default", "off")
        files = f"tls-ca-cert-file={tmp_path}/ca.crt&tls-cert-file={own['crt']}&tls-key-file={own['key']}"
        url = cluster.url(database, scheme="rediss").replace("//", "//volume@")
        store = await connect(f"{url}?{files}", password="secret")
        try:
            await make_entry(store, b"a", 2)
            assert [ino async for ino, _ in store.nodes()] == [2]
            assert [session async for session in store.sessions()] == []
            await store.forget_session(1)
        finally:
            await store.close()
        with pytest.raises(CredentialsRefused, match="password"):
            await connect(f"{url}?{files}", password="wrong")
        another = url.replace(f"/{database}", f"/{database + 1}")
        with pytest.raises(CredentialsRefused, match="does not allow"):
            await connect(f"{another}?{files}", password="secret")


def shapes(cluster: RedisCluster, database: int) -> dict[str, str]:
    """The keys of a volume with their types, numbers left out."""
    owner = cluster.owner(database)
    assert all(key.startswith(f"{{{database}}}") for key in cluster.keys(database))
    return {
        re.sub(r"\d+", "0", key.removeprefix(f"{{{database}}}")): owner.ask("TYPE", key)
        for key in cluster.keys(database)
    }


def work(top: Path) -> None:
    """Something of every kind."""
    (top / "d/e").mkdir(parents=True)
    for number in range(5):
        (top / f"d/f{number}").write_bytes(b"x" * 100_000 * number)
    (top / "link").symlink_to("d/f1")
    (top / "d/hard").hardlink_to(top / "d/f2")
    (top / "gone").write_bytes(b"y")
    (top / "gone").unlink()


def test_both_clients_make_the_same_keys(cluster: RedisCluster, tmp_path: Path) -> None:
    made = []
    for by_real in (True, False):
        database = cluster.database_at(cluster.nodes[2 * by_real])
        volume = Volume(cluster.url(database), tmp_path / f"bucket{by_real}").format(by_real=by_real)
        mount = really_mounted if by_real else mounted
        with mount(volume, tmp_path / f"mount{by_real}", "--enable-xattr") as top:
            work(top)
            shapes_mounted = shapes(cluster, database)
        made.append((shapes_mounted, shapes(cluster, database)))
    (real_mounted, real), (ours_mounted, ours) = made
    jobs = {
        "lastCleanupSessions",
        "lastCleanupFiles",
        "lastCleanupTrash",
        "nextCleanupSlices",
    }  # which may not have run
    assert {key: kind for key, kind in ours_mounted.items() if key not in jobs} == {
        key: kind for key, kind in real_mounted.items() if key not in jobs
    }
    assert {key: kind for key, kind in ours.items() if key not in jobs} == {
        key: kind for key, kind in real.items() if key not in jobs
    }


@pytest.mark.parametrize("by_real", [True, False], ids=["formatted by the real one", "formatted by us"])
def test_with_the_real_client(cluster: RedisCluster, by_real: bool, tmp_path: Path) -> None:
    """Each writes what the other reads, both mounted; fsck, gc, status and dump of either find a whole volume."""
    database = cluster.database_at(cluster.nodes[1])
    volume = Volume(cluster.url(database), tmp_path / "bucket").format("--trash-days", "0", by_real=by_real)
    # Valkey's Clusters have numbered databases of their own, at which the real client stumbles when it is given one node.
    first = 0 if cluster.program == REDIS else None
    some_nodes = Volume(cluster.url(database, first=first), tmp_path / "bucket")
    with (
        mounted(volume, tmp_path / "ours") as ours,
        really_mounted(some_nodes, tmp_path / "theirs", "--attr-cache", "0", "--entry-cache", "0") as theirs,
    ):
        (ours / "a").mkdir()
        work(ours / "a")
        (theirs / "b").mkdir()
        work(theirs / "b")
        assert tree(ours) == tree(theirs)
        status = json.loads(run(*JFS, "status", volume.url).stdout)
        assert len(status["Sessions"]) == 2
        real_status = run(REAL, "status", volume.url).stdout
        assert len(json.loads(real_status[real_status.index("{") :])["Sessions"]) == 2
    check_by_real(volume)
    run(*JFS, "dump", volume.url, f"{tmp_path}/ours.json")
    run(REAL, "dump", volume.url, f"{tmp_path}/theirs.json")
    ours_dumped, theirs_dumped = (
        comparable(json.loads((tmp_path / f"{n}.json").read_text())) for n in ("ours", "theirs")
    )
    assert ours_dumped["FSTree"] == theirs_dumped["FSTree"]
    refused = run(
        *JFS, "format", "--storage", "file", "--bucket", f"{tmp_path}/bucket/", volume.url, "other", check=False
    )
    assert refused.returncode
    uuid = json.loads(run(*JFS, "status", volume.url).stdout)["Setting"]["UUID"]
    run(*JFS, "destroy", "--yes", volume.url, uuid)
    assert cluster.keys(database) == []


# Writes files until its input ends. A process of its own: programs that this one starts would inherit the open file, and their
# start would wait for the flush that waits for what they are started for.
WRITER = """
import itertools, pathlib, select, sys
top = pathlib.Path(sys.argv[1])
for number in itertools.count():
    if select.select([sys.stdin], [], [], 0)[0]:
        break
    (top / f"f{number}").write_bytes(b"%d" % number * 1000)
print(number)
"""


def test_mounts_while_the_slot_moves(cluster: RedisCluster, tmp_path: Path) -> None:
    """Both clients' mounts go on through migrations; what was closed is there, at both."""
    database = cluster.database_at(cluster.nodes[1])
    volume = Volume(cluster.url(database), tmp_path / "bucket").format("--trash-days", "0")
    with mounted(volume, tmp_path / "ours") as ours, really_mounted(volume, tmp_path / "theirs") as theirs:
        command = [sys.executable, "-c", WRITER, str(ours)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(4):
                before = len(os.listdir(ours))
                cluster.move(database, other(cluster, database))
                eventually(lambda most=before + 20: len(os.listdir(ours)) > most, "it goes on")
            count, _ = writer.communicate()
        expected = {f"f{number}": b"%d" % number * 1000 for number in range(int(count))}
        for top in (ours, theirs):
            assert {path.name: path.read_bytes() for path in top.glob("f*")} == expected
    check_by_real(volume)


@pytest.mark.parametrize("by_real", [True, False], ids=["loaded by the real one", "loaded by us"])
async def test_a_golden_volume(cluster: RedisCluster, by_real: bool, tmp_path: Path) -> None:
    """From a single server into the Cluster and back out."""
    url = cluster.url(cluster.database_at(cluster.nodes[0]))
    async with opened("redis-clone", tmp_path) as golden:
        await asyncio.to_thread(run, *JFS, "dump", golden, f"{tmp_path}/before.json")
    await asyncio.to_thread(run, *([REAL] if by_real else JFS), "load", url, f"{tmp_path}/before.json")
    store = await connect(url)
    try:
        damages = [damage.text for damage in await check(store)]
        assert [text for text in damages if not (by_real and text.startswith("references of"))] == []
        assert (await store.get(ChunkKey(1, 0))) == (None,)
    finally:
        await store.close()
    await asyncio.to_thread(run, *([REAL] if not by_real else JFS), "dump", url, f"{tmp_path}/after.json")
    before, after = (comparable(json.loads((tmp_path / f"{n}.json").read_text())) for n in ("before", "after"))
    assert before["FSTree"] == after["FSTree"]
