"""Questions about names and inodes: lookup, attributes, listings, links, xattrs, room (format §5.3). Nothing is changed, but atime.

A question whose answer is in the caches completes without suspending.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator

from jfs.errors import FsError, StoreError
from jfs.format.constants import DIRECTORY, FILE, MAX_NAME, ROOT, SYMLINK, TRASH, TRASH_NAME
from jfs.format.slices import Slice, unpack
from jfs.meta.model.acl import ACCESS, ACL_NAMES, DEFAULT, to_xattr
from jfs.meta.model.attr import Attr, unpack_attr, unpack_entry
from jfs.meta.model.keys import ChunkKey, NodeKey, SymlinkKey, XattrKey
from jfs.meta.model.quota import Quota
from jfs.meta.operations import rules as common
from jfs.meta.operations import xattrs
from jfs.meta.operations.access import EXECUTE, READ, Caller, check_access
from jfs.meta.operations.attributes import touch_atime, wants_atime
from jfs.meta.operations.quotas import Ledger, Quotas
from jfs.meta.store.base import DirectoryPage, Tx
from jfs.meta.volume.cache import MISSING
from jfs.meta.volume.compaction import PIECES
from jfs.meta.volume.options import StatFS
from jfs.meta.volume.state import MountState, within


class Reads(MountState):
    """See the module."""

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> tuple[int, Attr]:
        """Inode and attributes of an entry. FsError: ENOENT, ENOTDIR, ENAMETOOLONG, EACCES."""
        parent = self._real(parent)
        if name == b".":  # of a file as well: the kernel has a handle and no inode
            return (ROOT if parent == self.root else parent), await self.getattr(parent)
        if self.options.check_access or caller.checked:
            await self._permit(caller, await self._directory(parent), EXECUTE)
        if name == b"..":
            return await self._parent(parent)
        if parent == ROOT and name == TRASH_NAME and self._setting.trash_days and self.root == ROOT:
            return TRASH, await self.getattr(TRASH)
        cached = self._cached_entry(parent, name)
        if cached is not None:
            self._prefetch.hit(parent)
            return cached
        if len(name) > MAX_NAME:
            raise FsError(errno.ENAMETOOLONG)
        if self._prefetch.wanted(parent) or parent in self._listings:
            await self._list_ahead(parent)
            cached = self._cached_entry(parent, name)
            if cached is not None:
                return cached
        started = self._cache.tick()
        found = await self.store.lookup(parent, name)
        if found is None:
            self._cache.learn_entry(parent, name, MISSING, 0, started)
            self._prefetch.not_found(parent)
            raise FsError(errno.ENOENT)
        entry, attr = found
        if attr is None:
            return entry.ino, common.placeholder(entry.kind, parent)
        self._prefetch.found(parent)
        self._cache.learn_entry(parent, name, entry.ino, entry.kind, started)
        return entry.ino, self._learn(entry.ino, attr, started)

    def missed(self, ino: int) -> None:
        """An inode turned out to be gone: entries of it are not believed any more."""
        self._cache.drop_attr(ino)

    def _cached_entry(self, parent: int, name: bytes) -> tuple[int, Attr] | None:
        ino = self._cache.entry(parent, name)
        if ino is None:
            return None
        if ino == MISSING:
            raise FsError(errno.ENOENT)
        attr = self._cache.attr(ino)
        return None if attr is None else (ino, attr)

    async def _parent(self, ino: int) -> tuple[int, Attr]:
        attr = await self._directory(ino)
        if ino != self.root:
            ino = attr.parent
            attr = await self._directory(ino)
        return (ROOT if ino == self.root else ino), attr

    async def _list_ahead(self, parent: int) -> None:
        """Fill the caches with the directory's listing; those who come meanwhile wait for the same one."""
        task = self._listings.get(parent)
        if task is None:
            limit = self._prefetch.limit(parent)
            self._prefetch.begin(parent)
            task = self._listings[parent] = asyncio.create_task(self._fill(parent, limit), name="list ahead")
            task.add_done_callback(lambda _: self._listings.pop(parent, None))
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the lookup itself asks again and reports what is wrong

    async def _fill(self, parent: int, limit: int) -> None:
        started = self._cache.tick()
        size = 0
        async for page in self.store.list_directory(parent, plus=True):
            size += len(page.names)
            if size > limit:
                break
            for name, entry, attr in zip(page.names, page.entries, page.attrs or (), strict=True):
                if attr is not None:
                    self._cache.learn_entry(parent, name, entry.ino, entry.kind, started)
                    self._learn(entry.ino, attr, started)
        self._prefetch.end(parent, size)

    async def getattr(self, ino: int) -> Attr:
        """Attributes of an inode. FsError: ENOENT."""
        ino = self._real(ino)
        attr = self._cache.attr(ino)
        return attr if attr is not None else await self._fresh_attr(ino)

    async def refresh(self, ino: int) -> Attr:
        """Attributes as the database has them now, whatever is cached. FsError: ENOENT."""
        return await self._fresh_attr(self._real(ino))

    async def _directory(self, ino: int) -> Attr:
        attr = await self.getattr(ino)
        if attr.kind != DIRECTORY:
            raise FsError(errno.ENOTDIR)
        return attr

    async def access(self, caller: Caller, ino: int, mask: int) -> None:
        """FsError(EACCES) unless the caller has all bits of *mask* (4 read, 2 write, 1 execute)."""
        await self._permit(caller, await self.getattr(ino), mask)

    async def _permit(self, caller: Caller, attr: Attr, mask: int) -> None:
        check_access(caller, attr, mask, await self._acl(attr.access_acl) if attr.access_acl else None)

    async def list_directory(self, caller: Caller, ino: int, *, plus: bool) -> AsyncIterator[DirectoryPage]:
        """The stored entries in pages, without `.`, `..` and virtual names; attributes when *plus* and the caller may search.
        FsError: ENOENT, ENOTDIR, EACCES."""
        ino = self._real(ino)
        attr = await self._directory(ino)
        if self.options.check_access or caller.checked:
            await self._permit(caller, attr, READ)
            if plus:
                try:
                    await self._permit(caller, attr, EXECUTE)
                except FsError:
                    plus = False
        await self._read_at(ino, attr)
        started = self._cache.tick()
        async for page in self.store.list_directory(ino, plus=plus):
            if plus:
                self._learn_directories(page, started)
            yield page

    def _learn_directories(self, page: DirectoryPage, started: int) -> None:
        """What a walk through the tree asks for next."""
        raw, stored = page.raw_entries, page.raw_attrs
        if raw is not None and stored is not None:
            for entry, packed in zip(raw, stored, strict=True):
                if entry[0] == DIRECTORY and packed is not None:
                    self._learn(unpack_entry(entry).ino, unpack_attr(packed), started)
        else:
            for (kind, ino), attr in zip(page.entries, page.attrs or (), strict=True):
                if kind == DIRECTORY and attr is not None:
                    self._learn(ino, attr, started)

    async def readlink(self, ino: int) -> bytes:
        """Target of a symbolic link. FsError: ENOENT, EINVAL."""
        target, attr = await self.store.get(SymlinkKey(ino), NodeKey(ino))
        if attr is None:
            raise FsError(errno.ENOENT)
        if attr.kind != SYMLINK:
            raise FsError(errno.EINVAL)
        await self._read_at(ino, attr)
        return target or b""

    async def _read_at(self, ino: int, attr: Attr) -> None:
        """Write atime when the mount's mode wants it (format §5.4)."""
        now = self._clock()
        if self.options.read_only or not wants_atime(attr, self.options.atime_mode, now):
            return

        async def touch(tx: Tx) -> Attr | None:
            return await touch_atime(tx, ino, now)

        touched = await self.store.run(touch, near=(ino,))
        if touched is not None:
            self._cache.set_attr(ino, touched)

    async def read_slices(self, ino: int, indx: int, *, fresh: bool = False) -> list[Slice]:
        """Slice records of a chunk, oldest first; *fresh* asks the database whatever is kept, after objects were missing: a
        compaction may have replaced them. FsError: ENOENT, EPERM (no file). The list must not be changed."""
        if fresh:
            self._opened.forget_chunks(ino)
        kept = self._opened.slices(ino, indx)
        if kept is not None:
            if len(kept) >= PIECES and self._compaction is not None:
                self._compaction.read(ino, indx, kept)
            return kept
        version = self._opened.version(ino)
        (raw,) = await self.store.get(ChunkKey(ino, indx))
        if raw is None:
            attr = await self.getattr(ino)
            if attr.kind != FILE:
                raise FsError(errno.EPERM)
        slices = unpack(raw or b"")
        self._opened.keep(ino, indx, slices, version)
        if self._compaction is not None:
            self._compaction.read(ino, indx, slices)
        return slices

    async def permit_xattr(self, caller: Caller, ino: int, name: bytes, *, write: bool) -> None:
        """Whether *caller* may read or write the attribute. FsError: EPERM, EACCES, ENODATA, ENOENT."""
        attr = await self.getattr(ino)
        rule = await self._acl(attr.access_acl) if attr.access_acl else None
        xattrs.check_permission(caller, attr, name, write=write, rule=rule)

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """Value of an extended attribute. FsError: ENODATA."""
        if name in ACL_NAMES:
            attr = await self.getattr(ino)
            rule = await self._acl(attr.access_acl if name == ACCESS else attr.default_acl)
            if rule is None:
                raise FsError(errno.ENODATA)
            return to_xattr(rule)
        (value,) = await self.store.get(XattrKey(self._real(ino), name))
        if value is None:
            raise FsError(errno.ENODATA)
        return bytes(value)

    async def listxattr(self, ino: int) -> list[bytes]:
        """Names of all extended attributes."""

        async def names(tx: Tx) -> list[bytes]:
            return await tx.xattr_names(self._real(ino))

        found = await self.store.run(names)
        if self._acls is not None:
            attr = await self.getattr(ino)
            found += [name for name, id in ((ACCESS, attr.access_acl), (DEFAULT, attr.default_acl)) if id]
        return found

    async def statfs(self, ino: int = ROOT) -> StatFS:
        """Room of the volume, as the quotas above directory *ino* (or above a file) leave it; the counters as last known when they are
        not answered within 150 ms."""
        # Every df asks this: one slow answer must not fail it.
        with contextlib.suppress(StoreError, TimeoutError):
            self._usage.refresh(*await within(self.store.get(common.USED_SPACE, common.TOTAL_INODES), 0.15))
        room = self._usage.room(self._setting)
        if self._quotas is None or not self._quotas.has_directories:
            return room
        with contextlib.suppress(FsError, StoreError, TimeoutError):
            return await within(self._quota_room(self._real(ino), self._quotas, room), 0.15)
        return room

    async def _quota_room(self, ino: int, quotas: Quotas, room: StatFS) -> StatFS:
        """*room* within the quotas above *ino*: the least of what they leave; total and usage are those of the nearest (format §5.3)."""
        attr = await self.getattr(ino)
        directory = ino if attr.kind == DIRECTORY else attr.parent

        async def read(tx: Tx) -> list[Quota]:
            chain = await Ledger(quotas).above(tx, directory)
            return [quota for quota in await tx.get(*chain) if quota is not None] if chain else []

        found = await self.store.run(read)
        if not found:
            return room
        space, inodes = room.total - room.used, room.free_inodes
        for quota in found:
            if quota.max_space > 0:
                space = min(space, max(quota.max_space - quota.used_space, 0))
            if quota.max_inodes > 0:
                inodes = min(inodes, max(quota.max_inodes - quota.used_inodes, 0))
        used_space, used_inodes = max(found[0].used_space, 0), max(found[0].used_inodes, 0)
        return StatFS(used_space + space, used_space, used_inodes, inodes)

    async def file_chunks(self, ino: int) -> list[tuple[int, list[Slice]]]:
        """(index, records) of all chunks of a file that have a list."""
        attr = await self.getattr(ino)
        chunks = []
        for indx in await self.store.chunk_indexes(ino, attr.length):
            (raw,) = await self.store.get(ChunkKey(ino, indx))
            chunks.append((indx, unpack(raw or b"")))
        return chunks

    async def path_of(self, ino: int) -> list[bytes]:
        """All paths of an inode from the volume's root, by searching its directories; empty when it is unlinked."""
        ino = self._real(ino)
        if ino in (ROOT, TRASH):
            return [b"/" if ino == ROOT else b"/" + TRASH_NAME]
        attr = await self._fresh_attr(ino)
        parents = [attr.parent]
        if not attr.parent:

            async def read(tx: Tx) -> dict[int, int]:
                return await tx.parents(ino)

            parents = list(await self.store.run(read))
        paths: list[bytes] = []
        for parent in parents:
            names = []
            async for page in self.store.list_directory(parent, plus=False):
                names += [name for name, entry in zip(page.names, page.entries, strict=True) if entry.ino == ino]
            for above in await self.path_of(parent) if names else ():
                paths += [above.rstrip(b"/") + b"/" + name for name in names]
        return paths
