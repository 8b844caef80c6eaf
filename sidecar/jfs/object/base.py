"""The interface of an object storage.

Invariants: a key names nothing or one complete object, never a part of one; an object that `put` has acknowledged is seen
by every later `get`, `head` and `list` of every client. Keys use `/`, never begin with it, and are relative to the volume's
prefix for storages made by `for_volume`.
Concurrency: every method may run in any number of tasks of one event loop; none blocks the loop for more than the copy of
a block. Retries and time-outs of blocks belong to the caller (`chunk.blocks`); a storage only repeats what its protocol
calls transient.
Errors: `ObjectNotFound`, `ObjectForbidden` (credentials or rights), `ObjectUnavailable` (everything else from outside).
"""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, TypeAlias

Data: TypeAlias = bytes | bytearray | memoryview


class ObjectInfo(NamedTuple):
    """An object in a listing: its key, size in bytes, and modification time in unix seconds of the storage's clock."""

    key: str
    size: int
    mtime: float


class ObjectStorage(Protocol):
    """A bucket, a directory or a dictionary of objects."""

    @property
    def cheap_ranges(self) -> bool:
        """Whether reading many small ranges of an object costs no more than reading it once (a local directory): the reader
        then neither caches blocks nor reads ahead, since the kernel already does both."""
        ...

    @property
    def at_once(self) -> int:
        """Up to how many bytes a put never waits for anything (0: it always may), so that nobody need limit its time."""
        ...

    @property
    def whole_only(self) -> bool:
        """Whether a range of an object is had by reading all of it (encrypted objects): then nothing is gained by asking for one."""
        ...

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        """The bytes [offset, offset+size) of an object, up to its end when *size* is negative; fewer where the object ends
        earlier. The caller must not change what it gets. ObjectNotFound when there is none."""
        ...

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        """Store a whole object, replacing any of this key; *data* must not change until this returns. *tier* is the volume's storage
        tier that it belongs to, which storages without classes ignore."""
        ...

    async def change_tier(self, key: str, tier: int) -> None:
        """Give an object the class and tags of a tier, its content unchanged and at every moment there; nothing happens on storages
        without classes. ObjectNotFound."""
        ...

    async def thaw(self, key: str, days: int) -> None:
        """Have an archived object made readable for *days*, which takes the storage hours; one that is readable is success.
        ObjectNotFound; ObjectUnavailable on storages without archives."""
        ...

    def advise(self, key: str) -> None:
        """The whole object will be read soon: a local directory has the disk read it meanwhile, others do nothing."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; a missing one is success."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Size and time of an object; ObjectNotFound when there is none."""
        ...

    def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        """All objects whose keys begin with *prefix* and are greater than *after*, in the byte order of their keys (an S3 server
        decides: SeaweedFS sorts `a/` before `a-`). Objects put or deleted meanwhile may or may not appear. A missing bucket
        yields nothing or raises ObjectUnavailable."""
        ...

    async def create_bucket(self) -> None:
        """Make the bucket or directory when it is missing; existing is success."""
        ...

    async def remove_bucket_parts(self, prefix: str) -> None:
        """Remove what a storage leaves besides objects below *prefix* (empty directories); objects stay. For `destroy`."""
        ...

    async def close(self) -> None:
        """Give up connections. Idempotent; no other method may be called afterwards."""
        ...

    def describe(self) -> str:
        """Where the objects are, for messages (`file:///var/jfs/`, `s3://host/bucket/`); never with credentials."""
        ...
