"""Automatic metadata backups (format §9.3): one per period whoever makes it, thinned out, read by the real client."""

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jfs.errors import ConfigError, VolumeError
from jfs.meta.connect import connect
from jfs.meta.model.keys import XattrKey
from jfs.meta.store.base import Store
from jfs.meta.volume import Meta, MetaOptions
from jfs.mount.backup import Backups, outdated
from jfs.mount.config import MountConfig, from_list, parse
from jfs.object.file import FileStorage
from mount_parts import REAL, Volume, mounted, run

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = 3600 * 10**9


def name(age: timedelta) -> str:
    return (NOW - age).strftime("dump-%Y-%m-%d-%H%M%S.json.gz")


def test_what_is_kept_of_hourly_backups() -> None:
    names = {name(timedelta(hours=hour)): hour for hour in range(1, 800 * 24)}
    gone = set(outdated([*names, "dump-1.json.gz", "dump-2026-99-99-000000.json.gz", "notes"], NOW))
    kept = sorted(hour for one, hour in names.items() if one not in gone)
    assert kept[:48] == list(range(1, 49))
    assert kept[48:60] == [24 * day for day in range(3, 15)]  # the earliest of each day
    assert kept[60:67] == [24 * (14 + 7 * week) for week in range(1, 8)]
    assert [hour // 24 for hour in kept[67:]] == list(range(93, 754, 30))
    assert gone <= set(names)


def test_backups_that_are_rare_are_all_kept() -> None:
    names = [name(timedelta(days=days)) for days in (1, 5, 20, 100, 400)]
    assert outdated(names, NOW) == []
    assert outdated([name(timedelta(days=800))], NOW) == [name(timedelta(days=800))]


def test_the_interval() -> None:
    assert parse([]).backup_meta == 3600
    assert parse([("backup-meta", "0")]).backup_meta == 0
    assert from_list([]).backup_meta == 0
    assert from_list(["backup-meta=5m", "backup-skip-trash"]) == MountConfig(backup_meta=300, backup_skip_trash=True)
    with pytest.raises(ConfigError, match="must be 5m or more"):
        parse([("backup-meta", "10s")])


class Client:
    """One client of a volume that backs up each hour; its clock is moved by tests."""

    def __init__(self, store: Store, meta: Meta, volume: Volume, url: str = "") -> None:
        self.now = int(NOW.timestamp()) * 10**9
        self.store = store
        storage = FileStorage(f"{volume.bucket}/{volume.name}")
        source: dict[str, str | bool] = {"url": url or volume.url, "password": "", "skip_trash": False}
        self.backups = Backups(meta, lambda: storage, source, 3600.0, clock=lambda: self.now)

    @classmethod
    async def of(cls, volume: Volume, url: str = "") -> "Client":
        store = await connect(volume.url)

        async def nothing(slice_id: int, size: int) -> None:
            return

        return cls(store, await Meta.load(store, MetaOptions(no_bgjob=True), delete_objects=nothing), volume, url)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()


def made(volume: Volume) -> list[str]:
    folder = volume.bucket / volume.name / "meta"
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.real
async def test_one_client_backs_up_each_period(volume: Volume) -> None:
    one, two = await Client.of(volume), await Client.of(volume)
    assert await one.backups.turn()
    assert not await two.backups.turn()
    two.now += HOUR - 10**9
    assert not await two.backups.turn()
    two.now += 10**9
    assert await two.backups.turn()
    assert made(volume) == ["dump-2026-11-25-120000.json.gz", "dump-2026-11-25-130000.json.gz"]
    assert await one.store.get(XattrKey(1, b"lastBackup")) == (b"2026-11-25T13:00:00Z",)
    one.now += 30 * 24 * HOUR
    assert await one.backups.turn()
    assert made(volume) == ["dump-2026-11-25-120000.json.gz", "dump-2026-12-25-120000.json.gz"]
    for client in (one, two):
        await client.store.close()


@pytest.mark.real
async def test_a_dump_that_fails_leaves_nothing(volume: Volume, tmp_path: Path) -> None:
    client = await Client.of(volume, url=f"sqlite3://{tmp_path}/none/meta.db")
    with pytest.raises(VolumeError):
        await client.backups.turn()
    assert made(volume) == []
    await client.store.close()


@pytest.mark.real
async def test_the_real_client_loads_it(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt") as where:
        (where / "d").mkdir()
        (where / "d" / "f").write_bytes(b"contents")
        (where / "link").symlink_to("d/f")
    client = await Client.of(volume)
    await client.backups.turn()
    await client.store.close()
    (backup,) = (volume.bucket / volume.name / "meta").iterdir()
    root = json.loads(gzip.decompress(backup.read_bytes()))["FSTree"]
    assert root["xattrs"] == [{"name": "lastBackup", "value": "2026-11-25T12:00:00Z"}]
    again = Volume(f"sqlite3://{tmp_path}/again.db", volume.bucket)
    run(REAL, "load", again.url, str(backup))
    run(REAL, "config", again.url, "--bucket", f"{volume.bucket}/", "--yes")
    with mounted(again, tmp_path / "mnt") as where:
        assert (where / "link").read_bytes() == b"contents"
