"""Whether the storage that a mount is about to use is its volume's: asked once, before anything is attached."""

import logging
from typing import Final

from jfs.errors import ObjectNotFound, VolumeError
from jfs.format.setting import Setting
from jfs.object.base import ObjectStorage
from jfs.object.selftest import probe

log = logging.getLogger("jfs.mount")
UUID_OBJECT: Final = "juicefs_uuid"  # format §9.1


async def check_storage(storage: ObjectStorage, setting: Setting, *, probing: bool) -> None:
    """Ask for the object that names the volume; with *probing* also put, get and delete one. VolumeError when it is another
    volume's, ObjectError when it cannot be reached."""
    try:
        uuid = bytes(await storage.get(UUID_OBJECT)).decode("ascii", "replace").strip()
    except ObjectNotFound:  # volumes of old clients have none; an empty bucket shows when data is read
        log.warning("%s holds no %s: is it the bucket of volume %s?", storage.describe(), UUID_OBJECT, setting.name)
    else:
        if uuid != setting.uuid:
            raise VolumeError(f"{storage.describe()} belongs to volume {uuid}, not to {setting.name} ({setting.uuid})")
    if probing:
        await probe(storage)
