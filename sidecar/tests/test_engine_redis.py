"""What only the Redis engine has: addresses, the server's settings and permissions, key names, scripts (format §4.1)."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import store_engines as engines
from jfs.errors import ConfigError, CorruptRecord, CredentialsRefused, FsError, StoreUnavailable
from jfs.format.slices import Slice
from jfs.meta.connect import connect
from jfs.meta.engines.redis.connection import Command, Connection, pack
from jfs.meta.engines.redis.failures import ConnectionLost
from jfs.meta.engines.redis.link import Link
from jfs.meta.engines.redis.remembered import RecordCache
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.redis.url import RedisAddress, parse_address
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    Session,
    SessionKey,
    SettingKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.model.quota import DIRECTORY, USER, Quota, QuotaKey
from jfs.meta.store.base import Tx
from jfs.meta.store.page import StoredPage
from jfs.meta.store.remembered import UNKNOWN


class TestAddress:
    """The URL."""

    def test_forms(self) -> None:
        assert parse_address("redis://host") == RedisAddress(host="host")
        assert parse_address("redis://host:7000/3") == RedisAddress(host="host", port=7000, db=3)
        assert parse_address("redis://[::1]:7000/3") == RedisAddress(host="::1", port=7000, db=3)
        assert parse_address("redis://:p%40ss@host/1") == RedisAddress(host="host", db=1, password="p@ss")
        assert parse_address("redis://me:pass@host/1") == RedisAddress(host="host", db=1, user="me", password="pass")
        assert parse_address("unix:///run/redis.sock?db=4") == RedisAddress(socket_path="/run/redis.sock", db=4)
        assert parse_address("rediss://host/1?insecure-skip-verify=true&tls-server-name=other") == RedisAddress(
            host="host", db=1, tls=True, insecure_skip_verify=True, tls_server_name="other"
        )
        assert parse_address(
            "redis://host?min-retry-backoff=5ms&max-retry-backoff=1m30s&read-timeout=10&write-timeout=1.5s"
        ) == RedisAddress(
            host="host", min_retry_backoff=0.005, max_retry_backoff=90.0, read_timeout=10.0, write_timeout=1.5
        )

    def test_nodes_of_a_cluster(self) -> None:
        nodes = (("host1", 7000), ("host2", 6379), ("::1", 7001))
        address = parse_address("rediss://me:pass@host1:7000,host2,[::1]:7001/5?read-timeout=5s")
        assert address == RedisAddress(nodes=nodes, db=5, user="me", password="pass", tls=True, read_timeout=5.0)
        assert str(address) == "rediss://host1:7000,host2:6379,[::1]:7001/5"

    def test_password_from_outside(self) -> None:
        assert parse_address("redis://host/1", "secret").password == "secret"
        assert parse_address("redis://:own@host/1", "secret").password == "own"

    def test_the_password_is_not_shown(self) -> None:
        address = parse_address("redis://me:secret@host/1", "secret")
        assert "secret" not in f"{address} {address!r}"
        assert str(address) == "redis://host:6379/1"

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("redis://:secret@host1:6379,host2:x/1", "node in the Redis address"),
            ("redis://:secret@host1:6379,,host2:6379/1", "node in the Redis address"),
            ("redis://host:port/1", "malformed"),
            ("redis://host/name", "must be a number"),
            ("redis:///1", "names no host"),
            ("unix://?db=1", "names no socket"),
            ("redis://host/1?route-read=replica", "replicas"),
            ("redis://host/1?client-cache=true", "not supported"),
            ("redis://host/1?read-timeout=soon", "no duration"),
            ("redis://host/1?read-timeout=0s", "more than 0"),
            ("rediss://host/1?tls-key-file=key.pem", "tls-cert-file"),
        ],
    )
    def test_what_is_refused(self, url: str, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence) as caught:
            parse_address(url)
        assert "secret" not in str(caught.value)

    def test_missing_tls_files(self, tmp_path: Path) -> None:
        address = parse_address(f"rediss://host/1?tls-ca-cert-file={tmp_path}/missing.pem")
        with pytest.raises(ConfigError, match="TLS files"):
            address.tls_context()

    async def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await connect(f"unix://{tmp_path}/missing.sock")

    async def test_something_else_there(self) -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(StoreUnavailable, match="does not speak"):
                await connect(f"redis://127.0.0.1:{port}/1")


async def ask(path: Path, *commands: Command) -> list[Any]:
    """Raw replies."""
    link = Link(parse_address(f"unix://{path}?db=1"))
    try:
        return await link.change(commands)
    finally:
        await link.close()


@pytest.fixture
async def server() -> AsyncIterator[Path]:
    async with engines.redis_server() as path:
        yield path


@pytest.mark.real
class TestServer:
    """Start-up."""

    async def test_passwords(self) -> None:
        async with engines.redis_server("--requirepass", "right") as path:
            store = await connect(f"unix://{path}", password="right")
            await store.close()
            for password in ("", "wrong"):
                with pytest.raises(CredentialsRefused, match="refuses the user or the password") as caught:
                    await connect(f"unix://{path}", password=password)
                assert "wrong" not in str(caught.value)

    async def test_a_password_that_is_not_needed(self, server: Path) -> None:
        with pytest.raises(CredentialsRefused):
            await connect(f"unix://{server}", password="secret")

    async def test_users(self) -> None:
        async with engines.redis_server("--user", "me", "on", ">pass", "~*", "+@all") as path:
            store = RedisStore(parse_address(f"unix://me:pass@{path}"))
            await store.open()
            await store.close()
            with pytest.raises(CredentialsRefused):
                await RedisStore(parse_address(f"unix://me:other@{path}")).open()

    async def test_a_database_that_is_not_there(self, server: Path) -> None:
        with pytest.raises(StoreUnavailable, match="no database 99"):
            await connect(f"unix://{server}?db=99")

    async def test_a_cluster(self) -> None:
        async with engines.redis_server("--cluster-enabled", "yes") as path:
            with pytest.raises(StoreUnavailable, match="part of a cluster"):
                await connect(f"unix://{path}")

    async def test_settings_that_lose_data(self, caplog: pytest.LogCaptureFixture) -> None:
        async with engines.redis_server("--maxmemory-policy", "allkeys-lru") as path:
            with caplog.at_level(logging.WARNING):
                store = await connect(f"unix://{path}")
            await store.close()
            assert "AOF is off" in caplog.text
            assert "is noeviction now" in caplog.text
            (policy,) = await ask(path, (b"CONFIG", b"GET", b"maxmemory-policy"))
            assert policy == [b"maxmemory-policy", b"noeviction"]

    async def test_no_memory_left(self) -> None:
        async with engines.redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction") as path:
            for use_scripts in (True, False):
                store = RedisStore(parse_address(f"unix://{path}"), use_scripts=use_scripts)
                await store.open()

                async def operation(tx: Tx) -> None:
                    await tx.get(EdgeKey(1, b"old"))
                    tx.delete(EdgeKey(1, b"old"))
                    tx.put(EdgeKey(1, b"new"), Entry(1, 7))

                with pytest.raises(FsError, match="ENOSPC"):
                    await store.run(operation)
                await store.close()

    async def test_a_key_of_another_type(self, server: Path) -> None:
        await ask(server, (b"SET", b"d1", b"x"), (b"RPUSH", b"c7_0", b"too short"), (b"SET", b"i7", b"short"))
        for use_scripts in (True, False):
            store = RedisStore(parse_address(f"unix://{server}?db=1"), use_scripts=use_scripts)
            await store.open()
            for key in (EdgeKey(1, b"a"), ChunkKey(7, 0), NodeKey(7)):
                with pytest.raises(CorruptRecord):
                    await store.get(key)
                with pytest.raises(CorruptRecord):
                    await store.run(lambda tx, key=key: tx.get(key))  # type: ignore[misc]
            await store.close()


@pytest.mark.real
class TestPermissions:
    """Users that may not use everything."""

    async def test_without_scripts(self, caplog: pytest.LogCaptureFixture) -> None:
        async with engines.redis_server("--user", "me", "on", ">pass", "~*", "+@all", "-@scripting") as path:
            store = RedisStore(parse_address(f"unix://me:pass@{path}"))
            await store.open()
            await exercise(store)
            await store.close()
            assert caplog.text.count("does not let us use scripts") == 1

    async def test_scripts_forbidden_later(self, caplog: pytest.LogCaptureFixture) -> None:
        async with engines.redis_server("--user", "me", "on", ">pass", "~*", "+@all") as path:
            store = RedisStore(parse_address(f"unix://me:pass@{path}?db=1"))
            await store.open()
            await ask(path, (b"ACL", b"SETUSER", b"me", b"-evalsha"))
            await exercise(store)
            await store.close()
            assert caplog.text.count("does not let us use scripts") == 1

    async def test_scripts_flushed(self, server: Path) -> None:
        store = await connect(f"unix://{server}?db=1")
        await ask(server, (b"SCRIPT", b"FLUSH"))
        await exercise(store)
        await ask(server, (b"SCRIPT", b"FLUSH"))
        assert await store.lookup(1, b"a") == (Entry(1, 7), None)
        await store.close()

    async def test_no_commands_at_all(self) -> None:
        async with engines.redis_server("--user", "me", "on", ">pass", "~*", "+ping", "+select") as path:
            store = RedisStore(parse_address(f"unix://me:pass@{path}"))
            await store.open()
            with pytest.raises(CredentialsRefused, match="does not allow"):
                await store.get(NodeKey(1))
            with pytest.raises(CredentialsRefused, match="does not allow"):
                await exercise(store)
            await store.close()


async def exercise(store: Any) -> None:
    async def operation(tx: Tx) -> None:
        entry, _ = await tx.get(EdgeKey(1, b"a"), NodeKey(1))
        assert entry is None
        tx.put(EdgeKey(1, b"a"), Entry(1, 7))
        tx.put(DirStatKey(1), DirStat(0, 0, 0))

    async def more(tx: Tx) -> None:
        tx.add_stat(DirStatKey(1), DirStat(1, 4096, 1))
        tx.add_stat(DirStatKey(2), DirStat(1, 4096, 1))

    await store.run(operation)
    await store.run(more)
    assert await store.get(DirStatKey(1), DirStatKey(2)) == (DirStat(1, 4096, 1), None)
    assert await store.lookup(1, b"a") == (Entry(1, 7), None)
    assert await store.lookup(1, b"b") is None


@pytest.mark.real
class TestKeys:
    """The layout, as the table of the format has it."""

    async def test_names_types_and_values(self, server: Path) -> None:
        store = await connect(f"unix://{server}?db=1")

        async def write(tx: Tx) -> None:
            tx.put(SettingKey(), b"{}")
            tx.put(NodeKey(7), engines.file())
            tx.put(EdgeKey(1, b"name"), Entry(1, 7))
            tx.put(SymlinkKey(8), b"target")
            tx.put(XattrKey(7, b"user.a"), b"value")
            tx.put(ChunkKey(7, 2), Slice(0, 1, 10, 0, 10).pack() * 2)
            tx.add(ParentKey(7, 1), 1)
            tx.put(SliceRefKey(5, 10), 3)
            tx.add(SliceRefKey(6, 10), -1)
            tx.put(DirStatKey(1), DirStat(10, 4096, 1))
            tx.put(SessionKey(3), Session(1_700_000_000, b"{}"))
            tx.put(SustainedKey(3, 7), True)
            tx.put(DeletedFileKey(9, 100), 1_700_000_001)
            tx.put(DelayedKey(5, 77), bytes(12))
            for name in ("nextInode", "nextChunk", "nextSession", "nextTrash", "usedSpace", "lastCleanupFiles"):
                tx.put(CounterKey(name), 5)

        await store.run(write)
        await store.close()
        found: dict[bytes, Any] = {}
        (names,) = await ask(server, (b"KEYS", b"*"))
        for name in names:
            (kind,) = await ask(server, (b"TYPE", name))
            command: dict[str, Command] = {
                "string": (b"GET", name),
                "hash": (b"HGETALL", name),
                "list": (b"LRANGE", name, 0, -1),
                "set": (b"SMEMBERS", name),
                "zset": (b"ZRANGE", name, 0, -1, b"WITHSCORES"),
            }
            (found[name],) = await ask(server, command[kind if isinstance(kind, str) else kind.decode()])
        assert found == {
            b"setting": b"{}",
            b"i7": engines.file().pack(),
            b"d1": [b"name", bytes([1, 0, 0, 0, 0, 0, 0, 0, 7])],
            b"s8": b"target",
            b"x7": [b"user.a", b"value"],
            b"c7_2": [Slice(0, 1, 10, 0, 10).pack()] * 2,
            b"p7": [b"1", b"1"],
            b"sliceRef": [b"k5_10", b"2", b"k6_10", b"-1"],
            b"dirDataLength": [b"1", b"10"],
            b"dirUsedSpace": [b"1", b"4096"],
            b"dirUsedInodes": [b"1", b"1"],
            b"allSessions": [b"3", b"1700000000"],
            b"sessionInfos": [b"3", b"{}"],
            b"session3": [b"7"],
            b"delfiles": [b"9:100", b"1700000001"],
            b"delSlices": [b"5_77", bytes(12)],
            **dict.fromkeys((b"nextinode", b"nextchunk", b"nextsession"), b"5"),
            **dict.fromkeys((b"nextTrash", b"usedSpace", b"lastCleanupFiles"), b"5"),
        }

    async def test_foreign_keys_stay(self, server: Path) -> None:
        await ask(server, (b"SET", b"mine", b"1"), (b"SET", b"session", b"1"), (b"SET", b"item7", b"1"))
        store = await connect(f"unix://{server}?db=1")
        assert await store.is_blank()
        await exercise(store)
        assert not await store.is_blank()
        await store.reset()
        assert await store.is_blank()
        await store.close()
        (names,) = await ask(server, (b"KEYS", b"*"))
        assert sorted(names) == [b"item7", b"mine", b"session"]

    @pytest.mark.parametrize("scripts", [True, False])
    async def test_nothing_is_counted_for_a_directory_whose_quota_is_gone(self, server: Path, scripts: bool) -> None:
        """The real client takes usage without limits for a quota, and makes its record anew."""
        store = RedisStore(parse_address(f"unix://{server}?db=1"), use_scripts=scripts)
        await store.open()

        async def count(tx: Tx) -> None:
            tx.add_quota(QuotaKey(DIRECTORY, 5), 4096, 1)
            tx.add_quota(QuotaKey(USER, 5), 4096, 1)

        async def limit(tx: Tx) -> None:
            tx.put(QuotaKey(DIRECTORY, 5), Quota(max_inodes=9))

        await store.run(count)
        found = await ask(server, (b"SELECT", b"1"), (b"KEYS", b"dirQuota*"), (b"KEYS", b"userQuota*"))
        assert (found[1], len(found[2])) == ([], 3)
        await store.run(limit)
        await store.run(count)
        assert await store.get(QuotaKey(DIRECTORY, 5)) == (Quota(max_inodes=9, used_space=4096, used_inodes=1),)
        await store.close()

    async def test_locks_of_a_session_go_with_it(self, server: Path) -> None:
        await ask(
            server,
            (b"HSET", b"lockf7", b"3_00000000000000AB", b"W", b"33_00000000000000AB", b"R"),
            (b"HSET", b"lockp7", b"3_00000000000000AB", b"x"),
            (b"SADD", b"locked3", b"lockf7", b"lockp7"),
            (b"ZADD", b"allSessions", 1, 3, 1, 33),
            (b"ZADD", b"sessions", 1000, 4),
            (b"HSET", b"sessionInfos", 3, b"{}", 33, b"{}", 4, b"{}"),
        )
        store = await connect(f"unix://{server}?db=1")
        assert sorted([found async for found in store.sessions()]) == [
            (3, Session(1, b"{}")),
            (4, Session(1300, b"{}")),
            (33, Session(1, b"{}")),
        ]
        await store.forget_session(3)
        await store.forget_session(4)
        assert [sid async for sid, _ in store.sessions()] == [33]
        await store.close()
        (flocks, plocks, locked) = await ask(
            server, (b"HKEYS", b"lockf7"), (b"EXISTS", b"lockp7"), (b"EXISTS", b"locked3")
        )
        assert (flocks, plocks, locked) == ([b"33_00000000000000AB"], 0, 0)


@pytest.mark.real
async def test_a_transaction_on_remembered_records_is_one_request(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await connect(f"unix://{server}?db=1")
    requests: list[int] = []
    send = Connection.request

    def counting(self: Connection, packet: bytes, count: int) -> Any:
        requests.append(count)
        return send(self, packet, count)

    async def prepare(tx: Tx) -> None:
        tx.put(NodeKey(1), engines.directory())

    async def create(tx: Tx) -> None:
        parent, entry = await tx.get(NodeKey(1), EdgeKey(1, b"a"))
        assert parent is not None
        if entry is not None:
            raise FsError(errno.EEXIST)
        tx.put(EdgeKey(1, b"a"), Entry(1, 7))
        tx.put(NodeKey(1), parent)

    await store.run(prepare)
    monkeypatch.setattr(Connection, "request", counting)
    assert await store.lookup(1, b"a") is None
    await store.run(create)
    assert requests == [1, 1]
    with pytest.raises(FsError, match="EEXIST"):
        await store.run(create)
    assert requests == [1, 1, 1]
    await store.close()


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))


class TestConnection:
    """Pipelining."""

    @pytest.fixture
    async def wire(self) -> Wire:
        return Wire()

    @pytest.fixture
    async def connection(self, wire: Wire) -> AsyncIterator[Connection]:
        connection = Connection("test", 10, 10)
        connection.connection_made(wire)
        yield connection
        connection.connection_lost(None)

    async def test_requests_of_one_turn_share_a_packet(self, connection: Connection, wire: Wire) -> None:
        answers = [connection.request(pack((b"GET", number)), 1) for number in range(4)]
        assert wire.written == [pack((b"GET", 0))]  # an idle connection sends at once
        await asyncio.sleep(0)
        assert wire.written[1:] == [b"".join(pack((b"GET", number)) for number in (1, 2, 3))]
        connection.data_received(b"$1\r\na\r\n:1\r\n$-1\r")
        connection.data_received(b"\n-ERR no\r\n")
        assert [await answer for answer in answers[:3]] == [[b"a"], [1], [None]]
        assert str((await answers[3])[0]) == "ERR no"

    async def test_a_cancelled_request_keeps_its_place(self, connection: Connection) -> None:
        first, second = connection.request(b"x", 1), connection.request(b"y", 2)
        first.cancel()
        connection.data_received(b":1\r\n:2\r\n:3\r\n")
        assert await second == [2, 3]

    async def test_a_loss_fails_what_waits_and_what_comes_later(self, connection: Connection) -> None:
        waiting = connection.request(b"x", 1)
        connection.connection_lost(OSError("reset"))
        with pytest.raises(ConnectionLost, match="reset") as caught:
            await waiting
        assert caught.value.sent
        with pytest.raises(ConnectionLost) as later:
            connection.request(b"x", 1)
        assert not later.value.sent


@pytest.mark.real
async def test_what_a_listing_showed_is_removed_by_one_request_each(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await connect(f"unix://{server}?db=1"), await connect(f"unix://{server}?db=1")

    async def fill(tx: Tx) -> None:
        for ino in range(10, 40):
            tx.put(EdgeKey(1, b"%d" % ino), Entry(1, ino))
            tx.put(NodeKey(ino), engines.file())

    async def remove(tx: Tx, ino: int) -> None:
        entry, attr = await tx.get(EdgeKey(1, b"%d" % ino), NodeKey(ino))
        if entry is None or attr is None:
            raise FsError(errno.ENOENT)
        tx.delete(EdgeKey(1, b"%d" % ino))
        tx.delete(NodeKey(ino))

    await other.run(fill)
    assert [len(page.names) async for page in one.list_directory(1, plus=True)] == [30]
    await other.run(lambda tx: remove(tx, 39))  # what was shown is not true any more
    requests = 0
    send = Connection.request

    def counting(self: Connection, packet: bytes, count: int) -> Any:
        nonlocal requests
        requests += 1
        return send(self, packet, count)

    monkeypatch.setattr(Connection, "request", counting)
    for ino in range(10, 39):
        await one.run(lambda tx, ino=ino: remove(tx, ino))  # type: ignore[misc]
    assert requests == 29
    with pytest.raises(FsError, match="ENOENT"):
        await one.run(lambda tx: remove(tx, 39))
    assert [page async for page in one.list_directory(1, plus=True)] == []
    await one.close()
    await other.close()


@pytest.mark.real
async def test_a_private_connection_survives_a_conflict(server: Path) -> None:
    store = RedisStore(parse_address(f"unix://{server}?db=1"), use_scripts=False)
    other = await connect(f"unix://{server}?db=1")
    await store.open()

    async def put(tx: Tx) -> None:
        tx.put(NodeKey(7), engines.file())

    attempts = 0

    async def disturbed(tx: Tx) -> None:
        nonlocal attempts
        attempts += 1
        (attr,) = await tx.get(NodeKey(7))
        if attempts < 4:
            await other.run(change)
        tx.put(NodeKey(8), attr or engines.file())
        if attempts == 4:
            raise FsError(errno.EACCES)

    async def change(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(7))
        assert attr is not None
        tx.put(NodeKey(7), attr._replace(length=attr.length + 1))

    await store.run(put)
    before = await connections(server)
    with pytest.raises(FsError, match="EACCES"):
        await store.run(disturbed)
    await store.run(put)
    assert await connections(server) == before + 1  # the one that asks
    await store.close()
    await other.close()


async def connections(server: Path) -> int:
    """How many connections the server has accepted."""
    (info,) = await ask(server, (b"INFO", b"stats"))
    return int(
        next(line for line in info.decode().splitlines() if line.startswith("total_connections_received")).split(":")[1]
    )


class TestRecordCache:
    """What is remembered for transactions."""

    def test_old_records_go(self) -> None:
        cache = RecordCache()
        for ino in range(100_000):
            cache.put(NodeKey(ino), b"%d" % ino)
        assert cache.get(NodeKey(99_999)) == b"99999"
        assert cache.get(NodeKey(0)) is UNKNOWN
        cache.drop(NodeKey(99_999))
        assert cache.get(NodeKey(99_999)) is UNKNOWN

    def test_what_is_known_is_newer_than_a_listing(self) -> None:
        cache = RecordCache()
        entries = [Entry(1, ino).pack() for ino in (7, 8, 9)]
        cache.put(EdgeKey(1, b"a"), None)
        cache.offer(1, StoredPage([b"a", b"b", b"c"], entries, [b"node 7", b"node 8", None]))
        assert cache.get(NodeKey(8)) is UNKNOWN  # not taken apart yet
        assert cache.get(EdgeKey(1, b"b")) == entries[1]
        assert cache.get(EdgeKey(1, b"a")) is None
        assert cache.get(NodeKey(8)) == b"node 8"
        assert cache.get(NodeKey(9)) is UNKNOWN
        assert cache.get(EdgeKey(1, b"d")) is UNKNOWN

    def test_listings_are_bounded(self) -> None:
        cache = RecordCache()
        for ino in range(1, 6):
            for piece in range(4):
                names = [b"%d-%d" % (piece, number) for number in range(4096)]
                cache.offer(ino, StoredPage(names, [Entry(1, 7).pack()] * 4096, [None] * 4096))
        assert cache.get(EdgeKey(1, b"3-0")) is UNKNOWN
        assert cache.get(EdgeKey(5, b"0-0")) is UNKNOWN
        assert cache.get(EdgeKey(5, b"3-0")) == Entry(1, 7).pack()

    def test_a_directory_that_is_listed_again_stays(self) -> None:
        cache = RecordCache()
        for ino in (1, 2, 1, 3, 1):
            names = [b"%d" % number for number in range(4096)]
            cache.offer(ino, StoredPage(names, [Entry(1, 7).pack()] * 4096, [None] * 4096))
        assert cache.get(EdgeKey(1, b"0")) == Entry(1, 7).pack()
        assert cache.get(EdgeKey(2, b"0")) is UNKNOWN
