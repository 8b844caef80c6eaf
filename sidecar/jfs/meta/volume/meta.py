"""`Meta`: a mounted volume's metadata, as the file system layer uses it.

Place: below `vfs`, above `meta.operations`. It adds to the layers it is built on what has a life of its own: session, heartbeat,
background jobs, the mount's root. Order: `open` (checks the volume) → `start_session` → use → `close_session` → `close`.
Inode 1 always means the mount's root. A call whose answer is cached completes without suspending. One event loop.
"""

import errno
import logging
import time
from collections.abc import Callable

from jfs.errors import FsError, JfsError, VolumeError
from jfs.format.constants import DIRECTORY, ROOT
from jfs.format.usable import check_usable
from jfs.meta.operations.access import SUPERUSER, Caller
from jfs.meta.store.base import Store
from jfs.meta.volume.cloning import Clones
from jfs.meta.volume.compaction import Compaction, CopySlice, compact_tree
from jfs.meta.volume.deletion import DeleteObjects
from jfs.meta.volume.jobs import Jobs
from jfs.meta.volume.options import MetaOptions, SessionInfo
from jfs.meta.volume.session import SessionLife, load_setting
from jfs.meta.volume.tree import remove_tree

log = logging.getLogger(__name__)


class Meta(Clones):
    """See the module. *on_lost* is called once, with the reason, when the mount must end (format §2.3)."""

    on_lost: Callable[[VolumeError], None] | None = None
    _life: SessionLife | None = None
    _jobs: Jobs | None = None
    _info: SessionInfo
    _delete_objects: DeleteObjects
    _copy_slice: CopySlice | None = None

    @classmethod
    async def load(
        cls,
        store: Store,
        options: MetaOptions,
        *,
        delete_objects: DeleteObjects,
        copy_slice: CopySlice | None = None,
        clock: Callable[[], int] = time.time_ns,
        info: SessionInfo | None = None,
    ) -> "Meta":
        """The volume in *store*, which belongs to it from now on (`close` closes it). *delete_objects* gets (slice id, size).
        Without *copy_slice* chunks are not compacted.
        VolumeError when there is none or this client must not touch it; FsError when the subdirectory cannot be used."""
        setting = await load_setting(store)
        check_usable(setting)
        meta = cls(store, setting, options, delete_objects, clock)
        meta._info = info or SessionInfo()
        meta._delete_objects = delete_objects
        meta._copy_slice = copy_slice
        try:
            await meta._load_acls()
            await meta._load_quotas()
            await meta._find_root()
        except BaseException:
            await meta._stop_ids()
            raise
        return meta

    async def _find_root(self) -> None:
        """Walk to the mount's subdirectory, made when missing and the mount may write."""
        at = ROOT
        for name in self.options.subdir.encode().split(b"/"):
            if name in (b"", b"."):
                continue
            try:
                at, attr = await self.lookup(SUPERUSER, at, name)
            except FsError:
                if self.options.read_only:
                    raise VolumeError(
                        f"subdirectory {self.options.subdir!r} does not exist in volume {self.setting.name}, "
                        "and a read-only mount cannot make it"
                    ) from None
                at, attr = await self.mkdir(SUPERUSER, at, name, 0o777)
            if attr.kind != DIRECTORY:
                raise VolumeError(
                    f"{self.options.subdir!r} of volume {self.setting.name} is no directory: it cannot be mounted"
                )
        self.root = at

    async def start_session(self, sid: int = 0) -> None:
        """Register this client, or go on with session *sid* of a dead predecessor, and begin its heartbeat and, unless the options
        say no, the background jobs."""
        life = SessionLife(
            self.store,
            self.setting.uuid,
            self._info,
            heartbeat=self.options.heartbeat,
            clean=not self.options.no_bgjob,
            usage=self._usage,
            deletion=self._deletion,
            clock=self._clock,
            adopt=self._adopt,
            reload=self._load_quotas,
            rules=self._rules,
            on_lost=self._lost,
        )
        self.sid = await life.start(read_only=self.options.read_only, sid=sid)
        self._life = life
        self._rules_made = self._make_rules()
        if not self.options.read_only and not self.options.no_bgjob:
            self._jobs = self.jobs()
            self._jobs.start()
            if self._copy_slice is not None:
                self._compaction = self.compaction()

    def jobs(self) -> Jobs:
        """The background jobs, to be run once or started."""

        async def remove(parent: int, name: bytes) -> None:
            await remove_tree(self, SUPERUSER, parent, name, skip_trash=True)

        return Jobs(self.store, self._deletion, setting=lambda: self._setting, remove_tree=remove, clock=self._clock)

    def compaction(self) -> Compaction:
        """Compaction of chunks, for the background or by hand. Only for a volume that was loaded with *copy_slice*."""
        assert self._copy_slice is not None
        return Compaction(
            self.store,
            self._deletion,
            copy=self._copy_slice,
            delete_objects=self._delete_objects,
            new_id=self.new_slice_id,
            trash=lambda: self._setting.trash_days > 0,
            changed=self._opened.forget_chunk,
            clock=self._clock,
        )

    async def compact(self, ino: int, at_once: int) -> tuple[int, int]:
        """Compact a file, or all files below a directory, *at_once* at the same time; the chunks looked at, and the bytes of those that
        became shorter. FsError: ENOENT, EROFS, ENOTSUP; ObjectError and StoreError of the first failure."""
        self._check_writable()
        if self._copy_slice is None:
            raise FsError(errno.ENOTSUP)
        return await compact_tree(self, self._compaction or self.compaction(), self._real(ino), at_once)

    async def heartbeat(self) -> None:
        """One heartbeat now. VolumeError when the mount must end, StoreError when the database does not answer."""
        if self._life is not None:
            await self._life.beat()

    def _lost(self, reason: VolumeError) -> None:
        log.error("the mount ends: %s", reason)
        if self.on_lost is not None:
            self.on_lost(reason)

    async def close_session(self, *, drain: float = 10.0, leave: bool = False) -> None:
        """Let running deletions end within *drain* seconds, remove what this session sustains, and the session itself; or *leave*
        the session with its open files and locks to a successor."""
        await self._stop_settling()
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            await jobs.stop()
        compaction, self._compaction = self._compaction, None
        if compaction is not None:
            await compaction.close()
        await self._stop_lingering()
        life, self._life = self._life, None
        if life is not None:
            await (life.leave() if leave else life.end())
        self._sustained.clear()
        await self.locks.forget()
        await self._deletion.drain(drain)
        self.sid = 0
        self._rules_made = self._make_rules()

    async def close(self) -> None:
        """End the session when it still runs, stop everything, close the store. Idempotent; errors of the store are logged."""
        try:
            await self.close_session()
        except JfsError as error:
            log.warning("the session was not closed cleanly, it will expire: %s", error)
        await self._stop_ids()
        await self.store.close()

    async def _stop_ids(self) -> None:
        for task in list(self._listings.values()):
            task.cancel()
        await self._inode_ids.close()
        await self._slice_ids.close()

    async def remove_tree(
        self,
        caller: Caller,
        parent: int,
        name: bytes,
        *,
        skip_trash: bool = False,
        workers: int = 50,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Remove an entry with everything below (rmr); the number of entries removed, which *progress* gets on the way.
        FsError: that of the first failure."""
        return await remove_tree(self, caller, parent, name, skip_trash=skip_trash, workers=workers, progress=progress)
