"""Changes of the tree: make, link, remove, rename. Each is one transaction, then the caches learn its result."""

import errno
import os
from collections.abc import Sequence
from functools import partial

from jfs.errors import FsError
from jfs.format import constants
from jfs.format.constants import CHAR_DEVICE, DIRECTORY, FILE, SYMLINK, TRASH
from jfs.meta.model.acl import Rule
from jfs.meta.model.attr import Attr
from jfs.meta.model.quota import QuotaChange
from jfs.meta.operations import create as making
from jfs.meta.operations import removal, renaming
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import READ, WRITE, Caller, check_access
from jfs.meta.operations.create import Linked, Made, New
from jfs.meta.operations.quotas import Ledger
from jfs.meta.operations.removal import Removed
from jfs.meta.operations.renaming import Moved, Side
from jfs.meta.operations.rules import Rules
from jfs.meta.store.base import Tx
from jfs.meta.volume import replay
from jfs.meta.volume.dropping import Dropping
from jfs.meta.volume.jobs import hour_name
from jfs.meta.volume.summary import summary


class Entries(Dropping):
    """See the module."""

    # -- making ---------------------------------------------------------------------------------------------------

    async def mknod(
        self, caller: Caller, parent: int, name: bytes, kind: int, mode: int, rdev: int = 0
    ) -> tuple[int, Attr]:
        """Make a file, FIFO, socket or device (*kind*: type code). FsError: EEXIST, ENOENT, ENOTDIR, EACCES, EPERM, ENOSPC, EROFS…"""
        made = await self._make(caller, parent, name, kind, mode, rdev)
        return made.ino, made.attr

    async def mkdir(self, caller: Caller, parent: int, name: bytes, mode: int) -> tuple[int, Attr]:
        """Make a directory; errors as `mknod`."""
        made = await self._make(caller, parent, name, DIRECTORY, mode)
        return made.ino, made.attr

    async def symlink(self, caller: Caller, parent: int, name: bytes, target: bytes) -> tuple[int, Attr]:
        """Make a symbolic link; errors as `mknod`, and EINVAL for a target that is empty, too long or holds a NUL."""
        made = await self._make(caller, parent, name, SYMLINK, 0o777, target=target)
        return made.ino, made.attr

    async def _make(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        kind: int,
        mode: int,
        rdev: int = 0,
        *,
        target: bytes = b"",
        open_existing: bool = False,
    ) -> Made:
        async def do() -> Made:
            return await self._make_now(
                caller, parent, name, kind, mode, rdev, target=target, open_existing=open_existing
            )

        return await replay.once(caller.request, lambda what: replay.made(self.store, what, self._real(parent)), do)

    async def _make_now(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        kind: int,
        mode: int,
        rdev: int,
        *,
        target: bytes,
        open_existing: bool,
    ) -> Made:
        parent = self._real(parent)
        making.check_new(parent, name, kind, target)
        self._check_writable()
        await self._ensure_stats(parent)
        new = New(await self._inode_ids.take(), kind, mode, rdev, target)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Made:
            made = await making.make(tx, caller, rules, parent, name, new, now, open_existing=open_existing)
            if caller.request is not None and made.created:
                caller.request.intend(made.ino)
            return made

        made = await self.store.run(operation, directory=parent)
        if rules.quotas is not None:
            rules.quotas.settle()
        self._learn_acl(made.acl)
        self._cache.set_attr(parent, made.parent)
        self._cache.set_attr(made.ino, made.attr)
        self._cache.set_entry(parent, name, made.ino, kind)
        if made.created:
            self._usage.add(constants.align4k(0), 1)
            if kind == DIRECTORY:
                self._know_stats(made.ino)
        return made

    async def link(self, caller: Caller, ino: int, parent: int, name: bytes, *, nameless: bool = False) -> Attr:
        """Another entry for a file; the first one of a *nameless* file (O_TMPFILE). FsError: EEXIST, ENOENT, ENOTDIR, EACCES, EPERM
        (a directory), EROFS…"""
        parent = self._real(parent)

        async def do() -> Attr:
            return await self._link_now(caller, ino, parent, name, nameless)

        return await replay.once(caller.request, lambda what: replay.linked(self.store, what, parent, name), do)

    async def _link_now(self, caller: Caller, ino: int, parent: int, name: bytes, nameless: bool) -> Attr:
        making.check_link(parent, name)
        self._check_writable()
        await self._ensure_stats(parent)
        now, rules = self._clock(), self._rules()

        async def operation(tx: Tx) -> Linked:
            linked = await making.link(tx, caller, rules, ino, parent, name, now, nameless=nameless)
            if caller.request is not None:
                caller.request.intend(ino)
            return linked

        linked = await self.store.run(operation, near=(parent, ino))
        if rules.quotas is not None:
            rules.quotas.settle()
        self._cache.set_attr(parent, linked.parent)
        attr = self._relinked(ino, linked.attr)
        self._cache.set_entry(parent, name, ino, attr.kind)
        self._sustained.discard(ino)
        return attr

    # -- removing -------------------------------------------------------------------------------------------------

    async def unlink(self, caller: Caller, parent: int, name: bytes, *, skip_trash: bool = False) -> int:
        """Remove an entry that is no directory. The inode when its record is gone or it has no name left, else 0.
        FsError: ENOENT, EPERM (a directory), EACCES, ENOTDIR, EROFS…"""
        parent = self._real(parent)

        async def do() -> int:
            return await self._unlink_now(caller, parent, name, skip_trash=skip_trash)

        return await replay.once(caller.request, lambda what: replay.removed(self.store, what, parent, name), do)

    async def _unlink_now(self, caller: Caller, parent: int, name: bytes, *, skip_trash: bool) -> int:
        removal.check_removal(caller, parent, name)
        self._check_writable()
        now = self._clock()
        rules = await self._removal_rules(parent, now, skip_trash)
        hint = self._cache.hint(parent, name)

        with self._leaving.removal() as is_open:

            async def operation(tx: Tx) -> Removed:
                removed = await removal.unlink(tx, caller, rules, parent, name, now, is_open, hint=hint)
                if caller.request is not None:
                    caller.request.intend(removed.dropped.ino)
                return removed

            removed = await self.store.run(operation, near=(hint,) if hint else (), directory=parent)
        if rules.quotas is not None:
            rules.quotas.settle()
        self._cache.set_attr(parent, removed.parent)
        self._cache.drop_entry(parent, name)
        return await self._dropped(removed.dropped)

    async def rmdir(self, caller: Caller, parent: int, name: bytes, *, skip_trash: bool = False) -> None:
        """Remove an empty directory. FsError: ENOENT, ENOTDIR, ENOTEMPTY, EINVAL (`.`), EACCES, EPERM, EROFS…"""
        parent = self._real(parent)

        async def do() -> int:
            return await self._rmdir_now(caller, parent, name, skip_trash=skip_trash)

        await replay.once(caller.request, lambda what: replay.removed(self.store, what, parent, name), do)

    async def _rmdir_now(self, caller: Caller, parent: int, name: bytes, *, skip_trash: bool) -> int:
        removal.check_rmdir(caller, parent, name)
        self._check_writable()
        now = self._clock()
        rules = await self._removal_rules(parent, now, skip_trash)
        hint = self._cache.hint(parent, name)

        async def operation(tx: Tx) -> Removed:
            removed = await removal.rmdir(tx, caller, rules, parent, name, now, hint=hint)
            if caller.request is not None:
                caller.request.intend(removed.dropped.ino)
            return removed

        removed = await self.store.run(operation, near=(parent, hint) if hint else (parent,))
        if rules.quotas is not None:
            rules.quotas.settle()
        self._cache.set_attr(parent, removed.parent)
        self._cache.drop_entry(parent, name)
        await self._dropped(removed.dropped)
        if removed.node is not None and removed.dropped.attr is None:
            self._remember(removed.dropped.ino, removed.node, now)
        if parent == TRASH:
            self._hour = (b"", 0)  # it may have been the hour that removed entries go to
        return removed.dropped.ino

    async def unlink_many(
        self, caller: Caller, parent: int, entries: Sequence[tuple[bytes, int]], *, skip_trash: bool = False
    ) -> None:
        """Remove (name, inode) of one directory that are no directories, as many as possible in one transaction; what is gone
        already is left out. For the removal of whole trees. Errors as `unlink`, when nothing of a transaction is removed."""
        parent = self._real(parent)
        for name, _ in entries:
            removal.check_removal(caller, parent, name)
        self._check_writable()
        while entries:
            now = self._clock()
            rules = await self._removal_rules(parent, now, skip_trash)
            batch = entries
            with self._leaving.removal() as is_open:
                operation = partial(
                    removal.unlink_many,
                    caller=caller,
                    rules=rules,
                    parent=parent,
                    entries=batch,
                    now=now,
                    is_open=is_open,
                )
                dropped, entries, directory = await self.store.run(operation, near=(parent,))
            if rules.quotas is not None:
                rules.quotas.settle()
            self._cache.set_attr(parent, directory)
            for name, _ in batch:
                self._cache.drop_entry(parent, name)
            for one in dropped:
                await self._dropped(one)

    async def _removal_rules(self, parent: int, now: int, skip_trash: bool = False) -> Rules:
        """The rules for a removal from *parent*: with the hour directory of *now* when the volume keeps removed entries."""
        await self._ensure_stats(parent)
        rules = self._rules()
        if skip_trash or not self._setting.trash_days or common.is_trash(parent):
            return rules
        name = hour_name(now)
        if self._hour[0] != name:
            found = await self.store.lookup(TRASH, name)
            if found is not None:
                self._hour = name, found[0].ino
            else:
                ino = TRASH + await self.store.next_id("nextTrash")

                async def operation(tx: Tx) -> int:
                    return await making.make_hour_directory(tx, rules, name, ino, now)

                self._hour = name, await self.store.run(operation, near=(TRASH,))
                if rules.quotas is not None:
                    rules.quotas.settle()
                if self._hour[1] == ino:
                    self._usage.add(constants.align4k(0), 1)
        return rules._replace(trash=self._hour[1])

    # -- renaming -------------------------------------------------------------------------------------------------

    async def rename(
        self, caller: Caller, parent: int, name: bytes, newparent: int, newname: bytes, flags: int = 0
    ) -> None:
        """Move an entry; *flags* 0, NOREPLACE (1), EXCHANGE (2), WHITEOUT (4) or its sum with NOREPLACE. FsError: ENOENT, EEXIST,
        ENOTDIR, EISDIR, ENOTEMPTY, EPERM, EACCES, EINVAL (into itself, or flags), EROFS…"""
        parent, newparent = self._real(parent), self._real(newparent)

        async def do() -> bool:
            await self._rename_now(caller, parent, name, newparent, newname, flags)
            return True

        await replay.once(caller.request, lambda what: replay.moved(self.store, what, parent, name, flags), do)

    async def _rename_now(
        self, caller: Caller, parent: int, name: bytes, newparent: int, newname: bytes, flags: int
    ) -> None:
        source = Side(parent, name, self._cache.hint(parent, name))
        target = Side(newparent, newname, self._cache.hint(newparent, newname))
        renaming.check_rename(caller, source, target, flags)
        self._check_writable()
        now = self._clock()
        await self._ensure_stats(parent)
        # The trash is only prepared when something may be replaced: a rename onto a new name needs none.
        replaces = not flags & (renaming.NOREPLACE | renaming.EXCHANGE)
        rules = await self._removal_rules(newparent, now) if replaces else self._rules()

        trees = await self._moving_trees(source, target, flags) if rules.quotas is not None else {}
        whiteout = await self._inode_ids.take() if flags & renaming.WHITEOUT else 0

        near = [ino for ino in (parent, newparent, source.hint, target.hint) if ino]
        with self._leaving.removal() as is_open:
            lingers = self.lingering.on
            stays = (lambda _: True) if lingers else is_open

            async def operation(tx: Tx) -> Moved:
                moved = await renaming.rename(tx, caller, rules, source, target, flags, now, stays, trees, whiteout)
                if caller.request is not None and moved.ino:
                    caller.request.intend(moved.ino, moved.other.ino if moved.other is not None else 0)
                return moved

            moved = await self.store.run(operation, near=near)
        if rules.quotas is not None:
            rules.quotas.settle()
            if parent != newparent and self._quotas is not None:
                self._quotas.forget_chains()
        if moved.entry is None or moved.attr is None or moved.source is None or moved.target is None:
            return
        self._cache.set_attr(parent, moved.source)
        self._cache.set_attr(newparent, moved.target)
        self._relinked(moved.ino, moved.attr)
        self._cache.set_entry(newparent, newname, moved.ino, moved.entry.kind)
        if moved.other is not None and moved.other_attr is not None:
            self._cache.set_entry(parent, name, moved.other.ino, moved.other.kind)
            self._relinked(moved.other.ino, moved.other_attr)
        elif whiteout:
            self._cache.set_entry(parent, name, whiteout, CHAR_DEVICE)
            self._usage.add(constants.align4k(0), 1)
        else:
            self._cache.drop_entry(parent, name)
        if moved.replaced is not None:
            if moved.replaced.attr is None and moved.replaced.kind != FILE and moved.replaced_node is not None:
                self._remember(moved.replaced.ino, moved.replaced_node, now, moved.replaced_text)
            await self._dropped(moved.replaced, lingers=lingers)

    async def _moving_trees(self, source: Side, target: Side, flags: int) -> dict[int, QuotaChange]:
        """What lies below the directories that a rename moves from under one quota to under another, or out of the trash."""
        quotas = self._quotas
        if quotas is None or not quotas.has_directories or source.parent == target.parent:
            return {}

        async def above(tx: Tx) -> bool:
            ledger = Ledger(quotas)
            return await ledger.above(tx, source.parent) != await ledger.above(tx, target.parent)

        trees: dict[int, QuotaChange] = {}
        if await self.store.run(above):
            for side in (source, target) if flags & renaming.EXCHANGE else (source,):
                found = await self.store.lookup(side.parent, side.name)
                if found is not None and found[0].kind == DIRECTORY:
                    stat = await summary(self.store, found[0].ino, strict=not self._setting.dir_stats)
                    trees[found[0].ino] = QuotaChange(stat.space, stat.inodes)
        return trees

    # -- opening --------------------------------------------------------------------------------------------------

    async def create(self, caller: Caller, parent: int, name: bytes, mode: int, flags: int) -> tuple[int, Attr, bool]:
        """Make a file and open it, or without O_EXCL open the one that is there: (inode, attributes, whether it was made).
        Errors as `mknod` and `open`; O_TRUNC of an existing file is the caller's."""
        made = await self._make(caller, parent, name, FILE, mode, open_existing=not flags & os.O_EXCL)
        if not made.created:
            self._check_open(caller, made.attr, flags, await self._acl(made.attr.access_acl))
        self._opened.open(made.ino, made.attr)
        if made.created:
            self._held.born(made.ino, made.attr)
        return made.ino, made.attr, made.created

    def _check_open(self, caller: Caller, attr: Attr, flags: int, rule: Rule | None = None) -> None:
        """FsError(EACCES, EPERM, EROFS, EISDIR) when a file of *attr* may not be opened with *flags* (format §5.3 open)."""
        reads, writes = OPEN_MODES[flags & os.O_ACCMODE]
        if writes and self.options.read_only:
            raise FsError(errno.EROFS)
        if self.options.check_access or caller.checked:
            check_access(caller, attr, (READ if reads else 0) | (WRITE if writes else 0), rule)
        if writes and (common.in_trash(attr) or attr.flags & constants.IMMUTABLE):
            raise FsError(errno.EPERM)
        if attr.flags & constants.APPEND and writes and (not flags & os.O_APPEND or flags & os.O_TRUNC):
            raise FsError(errno.EPERM)


OPEN_MODES = {os.O_RDONLY: (True, False), os.O_WRONLY: (False, True), os.O_RDWR: (True, True), 3: (True, True)}
