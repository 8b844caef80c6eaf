"""Sessions, dead clients, elections, and volumes that vanish under a mount (format §7), on every engine."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import VolumeError
from jfs.format.setting import Setting, new_setting
from jfs.meta.model.keys import SessionKey, SettingKey
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER, Meta
from meta_volumes import UUID, Volume, audit, new_file, volume, write
from store_engines import ALL


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


async def sids(meta: Meta) -> list[int]:
    return sorted([sid async for sid, _ in meta.store.sessions()])


async def test_a_session_from_start_to_end(made: Volume) -> None:
    meta = await made.client()
    assert meta.sid == 1
    (session,) = await meta.store.get(SessionKey(1))
    info = json.loads(session.info)
    assert list(info) == ["Version", "HostName", "MountPoint", "MountTime", "ProcessID"]
    assert (info["MountPoint"], info["ProcessID"]) == ("/mnt", os.getpid())
    assert session.expire == made.clock() // 10**9 + 60
    made.clock.advance(30)
    await meta.heartbeat()
    (session,) = await meta.store.get(SessionKey(1))
    assert session.expire == made.clock() // 10**9 + 60
    await meta.store.forget_session(1)
    await meta.heartbeat()
    assert await sids(meta) == [1], "a session that others took for dead is written again"
    await meta.close_session()
    assert await sids(meta) == []
    assert (await made.client()).sid == 2


async def test_the_heartbeat_beats_by_itself(made: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = await made.client(heartbeat=0.02)
    await meta.store.forget_session(meta.sid)
    written = asyncio.Event()
    write_session = meta.store.run

    async def notice(*args: Any, **named: Any) -> Any:
        result = await write_session(*args, **named)
        written.set()
        return result

    monkeypatch.setattr(meta.store, "run", notice)
    async with asyncio.timeout(20):
        await written.wait()
    assert await sids(meta) == [1]


async def abandon(meta: Meta) -> None:
    """As if the client were killed: nothing of it runs any more."""
    assert meta._life is not None
    await meta._life.stop()
    meta._life = None
    if meta._jobs is not None:
        await meta._jobs.stop()
        meta._jobs = None


async def test_a_dead_clients_files_and_session_are_cleared(made: Volume) -> None:
    dead, alive = await made.client(), await made.client()
    ino, _, _ = await dead.create(SUPERUSER, 1, b"f", 0o644, os.O_RDWR)
    slices = await write(dead, ino, 0, 100)
    await dead.unlink(SUPERUSER, 1, b"f")
    await abandon(dead)
    made.clock.advance(50)
    await alive.heartbeat()
    assert await sids(alive) == [1, 2]
    made.clock.advance(20)
    await made.beat(alive, beats=4)
    assert await sids(alive) == [1, 2], "its clock may be behind: it is watched for five beats"
    await made.beat(alive, beats=1)
    assert await sids(alive) == [2]
    await alive._deletion.drain(20)
    assert made.deleted == slices
    assert [node async for node in alive.store.nodes() if node[0] == ino] == []
    await audit(alive.store)


async def test_only_one_client_clears_per_heartbeat(made: Volume) -> None:
    first, second, dead = [await made.client() for _ in range(3)]
    dead_sid = dead.sid
    await abandon(dead)
    made.clock.advance(55)
    await first.heartbeat()
    made.clock.advance(8)
    await second.heartbeat()
    assert not second._life._seen, "expired, but first was elected 8 seconds ago"  # type: ignore[union-attr]
    made.clock.advance(3)
    await second.heartbeat()
    assert dead_sid in second._life._seen  # type: ignore[union-attr]
    await made.beat(first, second, beats=5)
    assert await sids(first) == [1, 2]


async def test_a_client_without_background_jobs_clears_nothing(made: Volume) -> None:
    dead, alive = await made.client(), await made.client(no_bgjob=True)
    await abandon(dead)
    made.clock.advance(100)
    await made.beat(alive)
    assert await sids(alive) == [1, 2]


async def test_jobs_run_once_per_period_over_all_clients(made: Volume) -> None:
    first, second = await made.client(no_bgjob=True), await made.client(no_bgjob=True)
    jobs = [first.jobs(), second.jobs()]
    for name in ("deleted_files", "unreferenced_slices", "trash"):
        assert [await getattr(job, name)() for job in jobs] == [True, False]
    made.clock.advance(3000)
    assert not await jobs[1].deleted_files()
    made.clock.advance(300)
    assert await jobs[1].deleted_files()
    assert not await jobs[0].deleted_files()


async def test_files_that_a_killed_client_left_in_the_queue_are_deleted_after_an_hour(made: Volume) -> None:
    meta = await made.client(no_bgjob=True, max_deletes=0)
    slices = []
    for name in (b"a", b"b"):
        slices += await write(meta, await new_file(meta, name), 0, 100)
        await meta.unlink(SUPERUSER, 1, name)
    other = await made.client(no_bgjob=True)
    await other.jobs().deleted_files()
    assert made.deleted == [], "younger than an hour"
    made.clock.advance(3700)
    await other.jobs().deleted_files()
    assert sorted(made.deleted) == sorted(slices)
    assert [queued async for queued in other.store.deleted_files()] == []
    await audit(other.store)


async def replace_setting(meta: Meta, setting: Setting | None) -> None:
    async def write_setting(tx: Tx) -> None:
        if setting is None:
            tx.delete(SettingKey())
        else:
            tx.put(SettingKey(), setting.encode())

    await meta.store.run(write_setting)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("gone", "the volume was destroyed"),
        ("other", "now holds volume other-volume"),
        ("newer", "metadata format 2"),
        ("acl", "POSIX ACLs were turned on"),
    ],
)
async def test_a_mount_ends_when_its_volume_is_no_longer_its_own(
    made: Volume, change: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    meta = await made.client(heartbeat=0.02)
    lost: asyncio.Future[VolumeError] = asyncio.get_running_loop().create_future()
    meta.on_lost = lost.set_result
    changed = {
        "gone": None,
        "other": new_setting("other-volume", UUID[::-1]),
        "newer": meta.setting.replaced(MetaVersion=2),
        "acl": meta.setting.replaced(EnableACL=True),
    }[change]
    with caplog.at_level(logging.CRITICAL):
        await replace_setting(meta, changed)
        async with asyncio.timeout(20):
            assert sentence in str(await lost)


async def test_a_heartbeat_adopts_changed_limits(made: Volume) -> None:
    meta = await made.client()
    await replace_setting(meta, meta.setting.replaced(Capacity=1 << 20, TrashDays=2))
    await meta.heartbeat()
    assert (meta.setting.capacity, meta.setting.trash_days) == (1 << 20, 2)
    assert (await meta.statfs()).total == 1 << 20


async def test_a_volume_that_is_none_or_refused(made: Volume) -> None:
    meta = await made.client()
    await replace_setting(meta, meta.setting.replaced(MinClientVersion="9.9.9"))
    with pytest.raises(VolumeError, match="demands a client of version"):
        await made.client()
    await replace_setting(meta, None)
    with pytest.raises(VolumeError, match="not formatted"):
        await made.client()


async def test_the_session_of_a_volume_that_replaced_ours_is_left_alone(
    made: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    meta = await made.client()
    await replace_setting(meta, new_setting("other-volume", UUID[::-1]))
    with caplog.at_level(logging.CRITICAL):
        await meta.close_session()
    assert await sids(meta) == [1]
