"""Who asks the storage whether it is the volume's, and what is done when that is away or refuses."""

import asyncio

import pytest
from jfs.errors import ObjectForbidden, ObjectUnavailable, StorageMissing, VolumeError
from jfs.format.setting import new_setting
from jfs.mount import storage_check
from jfs.mount.storage_check import UUID_OBJECT, Check, check_as
from jfs.object.base import Data
from jfs.object.memory import MemoryStorage

SETTING = new_setting("demo", "11111111-2222-3333-4444-555555555555", trash_days=0, bucket="/var/jfs/")


class Away(MemoryStorage):
    """A storage that fails every read, once `until` has happened."""

    def __init__(self, error: Exception, until: asyncio.Event | None = None) -> None:
        super().__init__()
        self._error, self._until = error, until

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        if self._until is not None:
            await self._until.wait()
        raise self._error


async def test_who_begins_needs_the_storage() -> None:
    with pytest.raises(ObjectUnavailable):
        await check_as("full", Away(ObjectUnavailable("away")), SETTING, probing=False)


async def test_who_takes_over_needs_none_that_is_away() -> None:
    await check_as("reachable", Away(ObjectUnavailable("away")), SETTING, probing=True)
    for error in (ObjectForbidden("no"), StorageMissing("gone")):
        with pytest.raises(type(error)):
            await check_as("reachable", Away(error), SETTING, probing=False)
        await check_as("none", Away(error), SETTING, probing=False)


async def test_who_takes_over_does_not_wait_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_check, "_PATIENCE", 0.01)
    storage = Away(ObjectUnavailable("away"), asyncio.Event())
    await check_as("reachable", storage, SETTING, probing=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await check_as("full", storage, SETTING, probing=False)


@pytest.mark.parametrize("how", ["full", "reachable"])
async def test_another_volumes_storage_is_refused(how: Check) -> None:
    storage = MemoryStorage()
    await storage.put(UUID_OBJECT, b"another")
    with pytest.raises(VolumeError, match="belongs to volume another"):
        await check_as(how, storage, SETTING, probing=False)
