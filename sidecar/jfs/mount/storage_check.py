"""Whether the storage that a mount is about to use is its volume's: asked once, before anything is attached.

Who takes over from a predecessor must not wait for a storage that is away: operations that need none would wait too, and the session would
pass for dead meanwhile.
"""

import asyncio
import logging
from typing import Final, Literal

from jfs.errors import ObjectForbidden, ObjectNotFound, ObjectUnavailable, StorageMissing, VolumeError
from jfs.format.setting import Setting
from jfs.object.base import ObjectStorage
from jfs.object.selftest import probe

log = logging.getLogger("jfs.mount")
_PATIENCE: Final = 2.0
# Who begins, or tries other options, needs it in full; who takes over what was served, perhaps with other credentials, only if it can be
# reached; who goes on with the very request of a predecessor not at all.
Check = Literal["full", "reachable", "none"]
UUID_OBJECT: Final = "juicefs_uuid"  # format §9.1


async def check_as(check: Check, storage: ObjectStorage, setting: Setting, *, probing: bool) -> None:
    """`check_storage`, as the mount needs it. With "reachable" a storage that does not answer within two seconds is no error; one that
    refuses, or is another volume's, is."""
    if check == "none":
        return
    if check == "full":
        await check_storage(storage, setting, probing=probing)
        return
    try:
        async with asyncio.timeout(_PATIENCE):
            await check_storage(storage, setting, probing=False)
    except (ObjectForbidden, StorageMissing):
        raise
    except (ObjectUnavailable, TimeoutError) as error:
        log.warning("served all the same, as there are open files: %s", error or f"{storage.describe()} did not answer")


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
