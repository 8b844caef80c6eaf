"""Attributes and extended attributes: each change is one transaction, but for those of young files, which are held back a moment.

What `held` may keep is decided here, and when it is committed at the latest. One event loop.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from jfs.errors import FsError, JfsError
from jfs.format.constants import APPEND, IMMUTABLE, TRASH
from jfs.meta.model.acl import ACL_NAMES, Rule, from_xattr
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey
from jfs.meta.operations import rules as common
from jfs.meta.operations import xattrs
from jfs.meta.operations.access import Caller
from jfs.meta.operations.acls import Numbered
from jfs.meta.operations.attributes import AttrChange, merged, setattr
from jfs.meta.store.base import DirectoryPage, Tx
from jfs.meta.volume import replay
from jfs.meta.volume.held import Held
from jfs.meta.volume.reads import Reads
from jfs.survival.attributes import SetAttributes

log = logging.getLogger(__name__)


class Attributes(Reads):
    """See the module. *write_back* commits what the mount has written of a file and not committed yet."""

    write_back: Callable[[int], Awaitable[None]] | None = None
    _settling: asyncio.TimerHandle | None = None
    _late: asyncio.Task[None] | None = None

    async def setattr(self, caller: Caller, ino: int, change: AttrChange) -> Attr:
        """Change mode, owner, times or flags. FsError: ENOENT, EPERM, EACCES, EROFS."""
        ino = self._real(ino)
        self._check_writable()
        if ino >= TRASH:
            raise FsError(errno.EPERM)
        if self._held:
            await self._end_youth(ino)
        now, acls, rules = self._clock(), self._acls, self._rules()

        async def operation(tx: Tx) -> tuple[Attr, Numbered | None]:
            return await setattr(tx, caller, ino, change, now, acls=acls, quotas=rules.quotas)

        attr, acl = await self.store.run(operation, near=(ino,))
        if rules.quotas is not None:
            rules.quotas.settle()
        self._learn_acl(acl)
        self._cache.set_attr(ino, attr)
        self._opened.changed(ino, attr, attr, None)
        return attr

    async def list_directory(self, caller: Caller, ino: int, *, plus: bool) -> AsyncIterator[DirectoryPage]:
        """As `Reads.list_directory`; with attributes, what is held is committed first."""
        if plus and self._held:
            await self.settle_all_attrs()
        async for page in super().list_directory(caller, ino, plus=plus):
            yield page

    # -- young files ----------------------------------------------------------------------------------------------

    def hold_attrs(self, caller: Caller, ino: int, change: AttrChange) -> Attr | None:
        """Change mode, owner or times of a young file at once and commit them later: the attributes as they are now. None when that
        cannot be: call `setattr`. FsError as there."""
        held = self._held.get(ino)
        # Followers of a change log want each change.
        logged = self.store.change_log is not None
        if held is None or logged or not self.options.hold_attrs or change.flags is not None or held.base.access_acl:
            return None
        if held.unknown:
            return None
        if self._quotas is not None and (change.uid, change.gid) != (None, None):
            return None
        now = self._clock()
        attr = merged(caller, held.want, change, now)
        if change.mtime is not None:
            held.mtime = True
        if attr is held.want:
            return attr
        held.want = attr = common.with_ctime(attr, now)
        self._held.changed(ino)
        self._cache.set_attr(ino, attr)
        self._settle_soon(self.options.hold_attrs)
        return attr

    def keep_attrs(self, kept: SetAttributes) -> None:
        """Let what is held survive the process, and go on with what a predecessor left."""
        if self._held.keep(kept):
            self._settle_soon(self.options.hold_attrs)

    def holds_attrs(self, ino: int) -> bool:
        """Whether `settle_attrs` has anything to do."""
        held = self._held.get(ino)
        return held is not None and not held.is_clean

    def holds_mtime(self, ino: int) -> bool:
        """Whether the time of the last write was set after it, and stays when what was written before is committed."""
        held = self._held.get(ino)
        return held is not None and held.mtime

    def wrote(self, ino: int) -> None:
        """Data were written: their time replaces one that was set before."""
        held = self._held.get(ino)
        if held is not None and held.mtime:
            held.mtime = False
            self._held.changed(ino)

    def _relinked(self, ino: int, attr: Attr) -> Attr:
        """An own commit about the names of *ino* has left *attr*, which the caches learn; with what is held of a young file."""
        held = self._held.get(ino)
        if held is not None:
            held.relinked(attr, held.base)
            attr = held.want
        self._cache.set_attr(ino, attr)
        return attr

    async def settle_attrs(self, ino: int) -> None:
        """Returns when what was set on a young file is committed. StoreError."""
        held = self._held.get(ino)
        if held is None or held.is_clean:
            return
        if self.write_back is not None:
            await self.write_back(
                ino
            )  # what was written before must not set its times afterwards; it may take all with it
        if not held.is_clean:
            await self._commit_held(ino, held)

    async def _commit_held(self, ino: int, held: Held) -> None:
        now = self._clock()

        async def operation(tx: Tx) -> tuple[Attr | None, Attr]:
            (node,) = await tx.get(NodeKey(ino))
            taken = held.want
            if node is None or node.flags & (IMMUTABLE | APPEND) or common.in_trash(node):
                return node, taken
            attr = held.onto(node, node)
            if attr != node:
                attr = common.with_ctime(attr, now)
                tx.put(NodeKey(ino), attr)
            return attr, taken

        held.unknown += 1
        attr, taken = await self.store.run(operation, near=(ino,))
        if attr is None:
            self._held.forget(ino)
            return
        held.committed(attr, taken)
        self._held.changed(ino)
        self._cache.set_attr(ino, held.want)
        self._opened.changed(ino, attr, attr, None)

    async def _end_youth(self, ino: int) -> None:
        """The file is about to be changed otherwise, or nobody has it open any more: commit what is held and hold nothing again."""
        try:
            await self.settle_attrs(ino)
        finally:
            self._held.forget(ino)

    async def settle_all_attrs(self) -> None:
        """`settle_attrs` of all young files."""
        for ino in self._held.waiting():
            await self.settle_attrs(ino)

    def _settle_soon(self, seconds: float) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(seconds, self._settle_now)

    def _settle_now(self) -> None:
        self._settling = None
        if self._late is None and self._held.waiting():
            self._late = asyncio.create_task(self._settle_late(), name="held attributes")

    async def _settle_late(self) -> None:
        try:
            await self.settle_all_attrs()
        except JfsError as error:
            log.warning("attributes of files that are being written are not stored yet, tried again: %s", error)
            self._settle_soon(1.0)
        finally:
            self._late = None
            if self._held.waiting():
                self._settle_soon(self.options.hold_attrs)

    async def _stop_settling(self) -> None:
        """Commit what is held, and stop the clock. Errors are logged."""
        if self._late is not None:
            await asyncio.wait([self._late])
        try:
            await self.settle_all_attrs()
        except JfsError as error:
            log.warning("attributes of files that were being written are lost: %s", error)
        self._held.clear()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    # -- extended attributes --------------------------------------------------------------------------------------

    async def setxattr(self, caller: Caller, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute. FsError: ERANGE, EINVAL, ENOTSUP, EEXIST, ENODATA, ENOENT, EPERM, EROFS."""
        ino = self._real(ino)
        if name in ACL_NAMES and self._acls is not None:
            await self._set_acl(caller, ino, name, from_xattr(value))
            return
        xattrs.check_set(name, value, flags)
        self._check_writable()
        if self._held:
            await self._end_youth(ino)
        now = self._clock()

        async def operation(tx: Tx) -> Attr:
            attr = await xattrs.set_xattr(tx, ino, name, value, flags, now)
            if caller.request is not None and flags == xattrs.CREATE:
                caller.request.intend(ino)
            return attr

        async def do() -> bool:
            self._set_attr(ino, await self.store.run(operation, near=(ino,)))
            return True

        await replay.once(caller.request, lambda what: replay.xattr(self.store, what, name, wanted=True), do)

    async def removexattr(self, caller: Caller, ino: int, name: bytes) -> None:
        """Remove an extended attribute. FsError: ENODATA, EINVAL, EPERM, EROFS."""
        ino = self._real(ino)
        if name in ACL_NAMES and self._acls is not None:
            await self._set_acl(caller, ino, name, Rule())
            return
        self._check_writable()
        if self._held:
            await self._end_youth(ino)
        now = self._clock()

        async def operation(tx: Tx) -> Attr:
            attr = await xattrs.remove_xattr(tx, ino, name, now)
            if caller.request is not None:
                caller.request.intend(ino)
            return attr

        async def do() -> bool:
            self._set_attr(ino, await self.store.run(operation, near=(ino,)))
            return True

        await replay.once(caller.request, lambda what: replay.xattr(self.store, what, name, wanted=False), do)

    def _set_attr(self, ino: int, attr: Attr) -> None:
        """Attributes that an own commit has left, of which none is about content."""
        self._cache.set_attr(ino, attr)
        self._opened.changed(ino, attr, attr, None)

    async def _set_acl(self, caller: Caller, ino: int, name: bytes, rule: Rule) -> None:
        self._check_writable()
        if self._held:
            await self._end_youth(ino)
        acls = self._acls
        assert acls is not None
        now = self._clock()

        async def operation(tx: Tx) -> tuple[Attr, Numbered | None]:
            return await xattrs.set_acl(tx, acls, caller, ino, name, rule, now)

        attr, acl = await self.store.run(operation, near=(ino,))
        self._learn_acl(acl)
        self._cache.set_attr(ino, attr)
        self._opened.changed(ino, attr, attr, None)
