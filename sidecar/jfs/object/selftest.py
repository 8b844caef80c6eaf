"""What is checked of a storage before a volume trusts it (format §2.3, §9.1): a small object can be put, read and deleted.

The object is `testing/<10 random letters>`, 100 bytes, as the real client's; nothing is left behind unless deleting fails.
"""

import contextlib
import random
import string

from jfs.errors import ObjectError, ObjectForbidden, ObjectNotFound, ObjectUnavailable
from jfs.object.base import ObjectStorage

TESTING = "testing/"


async def probe(storage: ObjectStorage) -> None:
    """Put, read, look at and delete a test object; ObjectError of the first step that fails."""
    key = TESTING + "".join(random.choices(string.ascii_letters + string.digits, k=10))
    data = random.randbytes(100)
    await storage.put(key, data)
    try:
        for got, wanted in ((await storage.get(key), data), (await storage.get(key, 10, 20), data[10:30])):
            if bytes(got) != wanted:
                raise ObjectUnavailable(f"{storage.describe()} returned other bytes than were written")
    except ObjectNotFound as error:
        raise ObjectUnavailable(f"{storage.describe()} does not find an object right after it was written") from error
    except ObjectForbidden as error:
        raise ObjectForbidden(f"{storage.describe()} can be written but not read: {error}") from error
    finally:
        with contextlib.suppress(ObjectError):  # what failed before says more
            await storage.delete(key)
            await storage.remove_bucket_parts(TESTING)
    with contextlib.suppress(ObjectNotFound):
        await storage.head(key)
        raise ObjectForbidden(f"{storage.describe()} keeps objects that were deleted: check the right to delete")
