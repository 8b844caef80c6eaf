"""What the parts of a mounted volume share: setting, rules, caches, open files, ids. `Meta` is built on it in layers:
`state` ← `reads` ← `entries` ← `contents` ← `ranges` ← `meta`.

Invariant: whatever a commit changed is in the caches before the next await of the task that committed it, so own changes are seen
at once. One event loop.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jfs.errors import FsError, StoreError, VolumeError
from jfs.format.constants import INODE_BATCH, ROOT, SLICE_BATCH, TRASH
from jfs.format.setting import Setting
from jfs.meta.model.acl import AclKey, Rule
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import DirStat, DirStatKey, NodeKey
from jfs.meta.model.quota import DIRECTORY, Quota, QuotaKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.operations.acls import Acls, Numbered, missing
from jfs.meta.operations.quotas import Ledger, Quotas
from jfs.meta.operations.rules import Rules
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume.cache import NodeCache
from jfs.meta.volume.compaction import Compaction
from jfs.meta.volume.deletion import DeleteObjects, Deletion
from jfs.meta.volume.held import HeldAttrs
from jfs.meta.volume.ids import IdBatch
from jfs.meta.volume.leaving import Leaving
from jfs.meta.volume.locking import Locks
from jfs.meta.volume.opened import OpenTable
from jfs.meta.volume.options import MetaOptions
from jfs.meta.volume.prefetch import Prefetch
from jfs.meta.volume.usage import Usage

log = logging.getLogger(__name__)
T = TypeVar("T")

_STATS_KNOWN = 50_000


class MountState:
    """See the module."""

    def __init__(
        self,
        store: Store,
        setting: Setting,
        options: MetaOptions,
        delete_objects: DeleteObjects,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.store = store
        self.options = options
        self.sid = 0
        self.root = ROOT
        self.on_entry_changed: Callable[[int, bytes], None] | None = None
        self.on_inode_changed: Callable[[int], None] | None = None
        self.on_setting: Callable[[Setting], None] | None = None  # with each heartbeat
        self._setting = setting
        self._clock = clock
        self._cache = NodeCache(
            attr=options.attr_timeout,
            entry=options.entry_timeout,
            dir_entry=options.dir_entry_timeout,
            negative=options.negative_timeout,
        )
        self._roots: dict[int, Attr] = {}  # as last seen
        self._prefetch = Prefetch()
        self._listings: dict[int, asyncio.Task[None]] = {}
        self._opened = OpenTable(trust=options.open_cache, limit=options.open_cache_limit)
        self._held = HeldAttrs()
        self.locks = Locks(store, lambda: self.sid, tick=self._cache.tick, learn=self._learn)
        self._sustained: set[int] = set()
        self._leaving = Leaving(self._opened.is_open)
        self._letting_go: set[asyncio.Task[None]] = set()  # removals of what lingered
        self._gone: dict[int, tuple[Attr, bytes]] = {}
        self._usage = Usage()
        self._deletion = Deletion(store, delete_objects, options.max_deletes)
        self._compaction: Compaction | None = None  # while the mount compacts in the background
        self._inode_ids = IdBatch(store, "nextInode", INODE_BATCH, first=2)
        self._slice_ids = IdBatch(store, "nextChunk", SLICE_BATCH)
        self._hour = (b"", 0)  # name and inode of the trash's last hour directory
        self._stats_known: set[int] = set()
        self._acls = Acls() if setting.enable_acl else None
        self._quotas: Quotas | None = None  # None on volumes without
        self._rules_made = self._make_rules()

    @property
    def setting(self) -> Setting:
        """The setting record as last loaded."""
        return self._setting

    # -- rules ----------------------------------------------------------------------------------------------------

    def _make_rules(self) -> Rules:
        return Rules(
            dir_stats=self._setting.dir_stats,
            skip_dir_mtime=int(self.options.skip_dir_mtime * common.SECOND),
            check_access=self.options.check_access,
            sid=self.sid,
            acls=self._acls,
        )

    def _rules(self) -> Rules:
        """The rules in force now for one operation, without a trash. What a ledger in it has charged is settled after the commit."""
        rules = self._rules_made
        if self._setting.capacity or self._setting.inodes:
            rules = rules._replace(
                space_left=self._usage.space_left(self._setting), inodes_left=self._usage.inodes_left(self._setting)
            )
        if self._quotas is not None:
            rules = rules._replace(quotas=Ledger(self._quotas))
        return rules

    async def _load_quotas(self) -> None:
        """Learn limits and usage as they are in the database now."""
        known = {key: quota async for key, quota in self.store.scan(QuotaKey) if isinstance(quota, Quota)}
        owners = self._setting.user_group_quota
        needed = owners or any(key.what == DIRECTORY for key in known)
        self._quotas = Quotas(known, owners=owners) if needed else None

    def _adopt(self, setting: Setting) -> None:
        """Go on with a reloaded setting. VolumeError when it turned on what only a new mount can do."""
        if setting.enable_acl and self._acls is None:
            raise VolumeError(f"POSIX ACLs were turned on for volume {setting.name}: mount it again")
        self._setting = setting
        self._rules_made = self._make_rules()
        if self.on_setting is not None:
            self.on_setting(setting)

    def _check_writable(self) -> None:
        if self.options.read_only:
            raise FsError(errno.EROFS)

    def _real(self, ino: int) -> int:
        """Inode 1 is the root that the mount shows (format §5.2)."""
        return self.root if ino == ROOT else ino

    # -- caches ---------------------------------------------------------------------------------------------------

    def _learn(self, ino: int, attr: Attr, started: int) -> Attr:
        """Fresh attributes from a read that began at tick *started*; what is to be shown of them."""
        if self._opened.observe(ino, attr) and self.on_inode_changed is not None:
            self.on_inode_changed(ino)
        if self._held:
            attr = self._held.shown(ino, attr)
        self._cache.learn_attr(ino, attr, started)
        return attr

    async def _fresh_attr(self, ino: int) -> Attr:
        """Attributes from the database; FsError(ENOENT) when there are none."""
        started = self._cache.tick()
        if ino in (self.root, TRASH):
            attr = await self._root_attr(ino)
        else:
            (attr,) = await self.store.get(NodeKey(ino))
        if attr is None:
            raise FsError(errno.ENOENT)
        return self._learn(ino, attr, started)

    async def _root_attr(self, ino: int) -> Attr:
        """Attributes of a root, so that a mountpoint never fails nor hangs: those last seen for what takes 300 ms; defaults for what is
        missing or was never seen."""

        async def read() -> Attr | None:
            attr: Attr | None
            (attr,) = await self.store.get(NodeKey(ino))
            return attr

        try:
            attr = await within(read(), 0.3)
        except (StoreError, TimeoutError) as error:
            last = self._roots.get(ino)
            what = "those last seen are shown" if last is not None else "defaults are shown"
            log.warning("attributes of directory %d were not answered, %s: %s", ino, what, error)
            return last if last is not None else common.default_attr(ino)
        if attr is None:
            return common.default_attr(ino)
        self._roots[ino] = attr
        return attr

    # -- ACLs -----------------------------------------------------------------------------------------------------

    async def _load_acls(self) -> None:
        """Learn the rules that there are, so that equal ones are not stored again."""
        if self._acls is not None:
            async for key, rule in self.store.scan(AclKey):
                if isinstance(rule, Rule):
                    self._acls.learn(key.id, rule)

    async def _acl(self, id: int) -> Rule | None:
        """The rule with number *id*; None for 0. CorruptRecord when it is missing."""
        if not id or self._acls is None:
            return None
        rule = self._acls.rule(id)
        if rule is None:
            (rule,) = await self.store.get(AclKey(id))
            if rule is None:
                raise missing(id)
            self._acls.learn(id, rule)
        return rule

    def _learn_acl(self, numbered: Numbered | None) -> None:
        """An own commit made or used a rule."""
        if numbered is not None and self._acls is not None:
            self._acls.learn(*numbered)

    # -- usage of directories -------------------------------------------------------------------------------------

    async def _ensure_stats(self, *directories: int) -> None:
        """Make the usage records of directories that lack one, before something is added to them (format §5.3 quota).

        Records are missing in volumes of old clients, and of the root of a volume that was only formatted.
        """
        if not self._setting.dir_stats:
            return
        for directory in directories:
            if directory in self._stats_known or directory == TRASH:
                continue
            (stat,) = await self.store.get(DirStatKey(directory))
            if stat is None:
                await self._count_directory(directory)
            self._know_stats(directory)

    def _know_stats(self, directory: int) -> None:
        if len(self._stats_known) >= _STATS_KNOWN:
            self._stats_known.clear()
        self._stats_known.add(directory)

    async def _count_directory(self, directory: int) -> None:
        total = DirStat(0, 0, 0)
        async for page in self.store.list_directory(directory, plus=True):
            for attr in page.attrs or ():
                if attr is not None:
                    total = DirStat(*map(sum, zip(total, common.usage(attr), strict=True)))

        async def write(tx: Tx) -> None:
            node, stat = await tx.get(NodeKey(directory), DirStatKey(directory))
            if stat is None and node is not None:
                tx.put(DirStatKey(directory), total)
                journal.counted(tx, directory, total)

        await self.store.run(write)


async def within(awaitable: Awaitable[T], seconds: float) -> T:
    """The result of *awaitable*, or TimeoutError after *seconds*; it goes on in the background then, undisturbed."""
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(_ignore_late)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if done:
        return task.result()
    raise TimeoutError(f"no answer within {seconds:g} s")


def _ignore_late(task: "asyncio.Future[T]") -> None:
    if not task.cancelled():
        task.exception()
