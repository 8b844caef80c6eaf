"""A mount goes on with the object storage that the volume's setting names now: other keys, another bucket, other tiers (format §2.3).

Place in the flow: `meta.volume` tells each reloaded setting → here → `chunk.blocks`. What the mount's own options or credentials say goes
before the setting, as at its start. Requests under way end on the storage they began with, which is closed with the mount: settings
change rarely. A storage of another kind, or one that cannot be opened, is not gone over to; the log says so. One event loop.
"""

import logging
from collections.abc import Callable
from typing import Final

from jfs.chunk.blocks import BlockStore
from jfs.errors import JfsError
from jfs.format.setting import Setting
from jfs.object.base import ObjectStorage

log = logging.getLogger("jfs.mount")

_MEMBERS: Final = ("Bucket", "AccessKey", "SecretKey", "SessionToken", "KeyEncrypted", "StorageClass", "Tiers")


class StorageFollower:
    """Call `adopt` with each setting; *open* makes the storage of one, without asking it anything."""

    def __init__(self, blocks: BlockStore, setting: Setting, open: Callable[[Setting], ObjectStorage]) -> None:
        self._blocks = blocks
        self._setting = setting
        self._open = open
        self._former: list[ObjectStorage] = []

    def adopt(self, setting: Setting) -> None:
        """Go over to the storage of *setting* when it is another one."""
        known, self._setting = self._setting, setting
        if setting.storage != known.storage:
            log.error(
                "the storage of volume %s is now %s, no longer %s: mount it again",
                setting.name,
                setting.storage,
                known.storage,
            )
            return
        if all(setting.members.get(name) == known.members.get(name) for name in _MEMBERS):
            return
        try:
            storage = self._open(setting)
        except JfsError as error:
            log.error(
                "the storage that volume %s was given cannot be used, the former one is kept: %s", setting.name, error
            )
            return
        self._former.append(self._blocks.storage)
        self._blocks.storage = storage
        log.info("the storage of volume %s was changed: data use %s", setting.name, storage.describe())

    async def close(self) -> None:
        """Close the storages that were left."""
        for storage in self._former:
            await storage.close()
        self._former.clear()
