"""Puts a mount together and keeps it: database → metadata → storage → data path → handlers → host, and the way back.

`Mount.start` raises one sentence for whatever is missing and leaves nothing behind; after it `Mount.serve` answers the kernel
until the file system is unmounted or `stop` is called. Stopping loses nothing that was written: new requests end with the
unmount, what is buffered is uploaded and committed, then the session is closed. Order of the way back is the reverse of the
way in, each step on its own, so that one that fails does not keep the others from happening.
Concurrency: one event loop per mount; `stop` may be called any number of times, `abandon` ends without waiting for uploads.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from jfs.chunk.blocks import BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.compaction import SliceCopier
from jfs.chunk.reader import Reader, ReadLimits
from jfs.chunk.writer import Writer
from jfs.errors import ConfigError, FsError, ObjectUnavailable, VolumeError
from jfs.format.constants import CLIENT_VERSION, ROOT
from jfs.format.setting import Setting
from jfs.format.slices import Segment
from jfs.fuse.accounting import Accounting
from jfs.fuse.connection import Connection
from jfs.fuse.handlers import Handlers
from jfs.fuse.mounting import MountSpec
from jfs.fuse.requests import Host, Timeouts
from jfs.fuse.succession import restore
from jfs.meta.connect import connect
from jfs.meta.volume import Meta, MetaOptions, SessionInfo
from jfs.meta.volume.compaction import CopySlice
from jfs.meta.volume.deletion import DeleteObjects
from jfs.metrics import REGISTRY, SIZES
from jfs.mount import config_file, measuring
from jfs.mount.addresses import addresses
from jfs.mount.backup import Backups
from jfs.mount.config import LEAST_BUFFER, MountConfig, with_changes
from jfs.mount.data_path import open_blocks, prefetcher
from jfs.mount.hosts import make_host
from jfs.mount.memory import trim_when_idle
from jfs.mount.metrics_server import MetricsServer
from jfs.mount.storage_change import StorageFollower
from jfs.mount.storage_check import Check, check_as
from jfs.mount.succession import begin_session
from jfs.object.base import ObjectStorage
from jfs.object.connect import StorageOptions, open_volume
from jfs.survival.state_directory import StateDirectory
from jfs.vfs.access_log import AccessLog
from jfs.vfs.commands import Commands
from jfs.vfs.information import Informant
from jfs.vfs.virtual import VirtualFiles, VirtualOptions

if TYPE_CHECKING:
    from jfs.meta.store.base import Store

log = logging.getLogger("jfs.mount")
_DRAIN_SECONDS: Final = 3.0
_LEAVING_DRAIN: Final = 0.5  # deletions that do not end meanwhile are queued in the database


@dataclass(frozen=True, slots=True)
class StorageKeys:
    """Storage and credentials that replace those of the setting record where given."""

    storage: str = ""
    bucket: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where. *meta_url* may hold a password and never gets into a message; *name* is the volume expected, "" any.
    With *connection* a FUSE connection that exists is served instead; *check* says how the storage is looked at before; *state* is the
    directory of what survives this process.
    With *drain* staged blocks are uploaded before `stop` unmounts: their directory may go with the pod."""

    meta_url: str = field(repr=False)
    mountpoint: str
    config: MountConfig = field(default_factory=MountConfig)
    password: str = field(default="", repr=False)
    keys: StorageKeys = field(default_factory=StorageKeys, repr=False)
    name: str = ""
    passphrase: str = field(default="", repr=False)
    connection: Connection | None = None
    check: Check = "full"
    state: str | None = None
    drain: bool = False


class Mount:
    """One mount of this process."""

    def __init__(self, request: MountRequest) -> None:
        self.request = request
        self.sid = 0
        self._config = request.config
        self._undo = contextlib.AsyncExitStack()
        self._host: Host | None = None
        self._writer: Writer | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._served = asyncio.Event()
        self._lost: VolumeError | None = None
        self._unstored: FsError | None = None
        self._opened_storage: ObjectStorage | None = None
        self._blocks: BlockStore | None = None
        self._metrics: MetricsServer | None = None
        self._volume: measuring.Volume | None = None
        self._state = StateDirectory()
        self._handlers_made: Handlers | None = None
        self._leaving = False

    @property
    def inflight(self) -> int:
        """Requests being worked on."""
        return self._host.inflight if self._host is not None else 0

    @property
    def oldest(self) -> float:
        """Seconds that the oldest of them has been waiting."""
        return self._host.oldest if self._host is not None else 0.0

    @property
    def repeated(self) -> int:
        """Requests that came a second time, since a predecessor had not answered them."""
        return self._host.repeated if self._host is not None else 0

    @property
    def connection(self) -> Connection | None:
        """What a successor of this process needs; None when the host cannot be succeeded."""
        return self._host.connection if self._host is not None else None

    @property
    def dirty_bytes(self) -> int:
        """Bytes written and not committed yet."""
        return self._writer.dirty_bytes if self._writer is not None else 0

    async def flush(self) -> None:
        """Upload and commit everything written so far; FsError of the first failure."""
        if self._writer is not None:
            await self._writer.flush_all()

    # -- the way in ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up to an attached mountpoint. JfsError in one sentence; nothing is left behind then."""
        try:
            await self._start()
        except BaseException:
            self._leaving = self.request.connection is not None  # it is not ours alone: the next one tries
            await self._close()
            raise

    async def _start(self) -> None:
        request, config = self.request, self._config
        if request.connection is not None:
            self._undo.callback(_close_descriptor, request.connection.fd)  # the host has its own
        self._state = StateDirectory(request.state)
        self._undo.callback(self._close_state)
        if config.without_effect:
            log.warning("has no effect yet: %s", ", ".join(config.without_effect))
        if config.buffer_size < LEAST_BUFFER:
            log.warning("buffer-size is too small: %d MiB are used", LEAST_BUFFER >> 20)
            config = self._config = with_changes(config, buffer_size=LEAST_BUFFER)
        self._undo.push_async_callback(self._close_storage)  # after the metadata: its last deletions need the storage
        store = await connect(request.meta_url, password=request.password)
        blocks: BlockStore | None = None

        async def delete_objects(slice_id: int, size: int) -> None:
            if blocks is not None:
                await blocks.delete_slice(slice_id, size)

        compacted = measuring.compacted_sizes(REGISTRY)

        async def copy_slice(slice_id: int, size: int, segments: Sequence[Segment], tier: int) -> None:
            assert blocks is not None  # nothing is compacted before the session starts
            await SliceCopier(blocks).copy(slice_id, size, segments, tier)
            compacted.observe(size)

        meta = await self._load(store, delete_objects, copy_slice)
        measuring.measure_operations(REGISTRY, meta)
        setting = meta.setting
        if request.name and setting.name != request.name:
            raise VolumeError(
                f"the database holds volume {setting.name}, not {request.name}: check the metadata address"
            )
        storage = await self._storage(setting)
        blocks = self._blocks = await open_blocks(storage, config, lambda: meta.setting)
        follower = StorageFollower(blocks, setting, self._open_storage)
        self._undo.push_async_callback(follower.close)
        meta.on_setting = follower.adopt
        budget = Budget(config.buffer_size)
        arena = None if config.read_only else self._state.arena(setting.block_size)
        writer = self._writer = Writer(blocks, meta, budget, arena=arena)
        reader = Reader(
            blocks,
            meta,
            budget,
            ReadLimits(max_readahead=config.max_readahead or None, io_retries=config.io_retries),
            prefetcher(blocks, config),
        )
        self._undo.push_async_callback(reader.close)
        host = self._host = self._handlers(meta, writer, reader)
        self._undo.push_async_callback(self._finish_writes, writer)
        await begin_session(meta, self._state, request.connection, writer)
        self.sid = meta.sid
        meta.on_lost = self._volume_lost
        root = meta.root

        def entry_changed(parent: int, name: bytes) -> None:
            host.invalidator.entry(ROOT if parent == root else parent, name)

        def inode_changed(ino: int) -> None:
            host.invalidator.inode(ROOT if ino == root else ino)

        meta.on_entry_changed, meta.on_inode_changed = entry_changed, inode_changed
        self._back_up(meta, blocks)
        await self._serve_metrics(setting)
        if self._handlers_made is not None and request.connection is not None:
            restored = await restore(self._handlers_made)
            if request.connection.resume:
                log.info("took over session %d with %d open files and directories", self.sid, restored)
        await host.mount()
        self._undo.push_async_callback(host.close)
        read, written = (REGISTRY.histogram(f"fuse_{name}_size_bytes", SIZES) for name in ("read", "written"))
        trimming = asyncio.create_task(trim_when_idle(lambda: read.sum + written.sum))
        self._undo.callback(trimming.cancel)

    async def _load(self, store: "Store", delete_objects: DeleteObjects, copy_slice: CopySlice) -> Meta:
        config = self._config
        options = MetaOptions(
            read_only=config.read_only,
            no_bgjob=config.no_bgjob,
            heartbeat=config.heartbeat,
            atime_mode=config.atime_mode,
            skip_dir_mtime=config.skip_dir_mtime,
            subdir=config.subdir,
            max_deletes=config.max_deletes,
            check_access=config.non_default_permission,
            attr_timeout=config.attr_cache,
            entry_timeout=config.entry_cache,
            dir_entry_timeout=config.dir_entry_cache,
            negative_timeout=config.negative_entry_cache,
            open_cache=config.open_cache,
            open_cache_limit=config.open_cache_limit,
        )
        try:
            meta = await Meta.load(
                store,
                options,
                delete_objects=delete_objects,
                copy_slice=copy_slice,
                info=SessionInfo(mount_point=self.request.mountpoint, addresses=addresses(config.network_interfaces)),
            )
        except BaseException:
            await store.close()
            raise
        self._undo.push_async_callback(meta.close)
        self._undo.push_async_callback(self._end_session, meta)
        return meta

    async def _end_session(self, meta: Meta) -> None:
        if self._leaving:
            await meta.close_session(leave=True, drain=_LEAVING_DRAIN)

    async def _storage(self, setting: Setting) -> ObjectStorage:
        """The volume's storage, checked as the request says. ConfigError, ObjectError, VolumeError."""
        config = self._config
        storage = self._open_storage(setting)
        self._opened_storage = storage
        probing = config.check_storage and not config.read_only
        await check_as(self.request.check, storage, setting, probing=probing)
        return storage

    def _open_storage(self, setting: Setting) -> ObjectStorage:
        config, keys = self._config, self.request.keys
        return open_volume(
            setting,
            storage=config.storage or keys.storage,
            bucket=config.bucket or keys.bucket,
            access_key=keys.access_key,
            secret_key=keys.secret_key,
            session_token=keys.session_token,
            passphrase=self.request.passphrase,
            options=StorageOptions(storage_class=config.storage_class),
        )

    def _handlers(self, meta: Meta, writer: Writer, reader: Reader) -> Host:
        config, setting = self._config, meta.setting
        if setting.enable_acl:  # the kernel checks permissions by them, and asks for them as extended attributes
            if config.fuse_host != "kernel":
                raise ConfigError(
                    f"volume {setting.name} has POSIX ACLs, which need --fuse-host kernel: leave option fuse-host out"
                )
            config = with_changes(config, enable_xattr=True, non_default_permission=False)
        access_log = AccessLog()
        allow_other = os.geteuid() == 0 if config.allow_other is None else config.allow_other
        volume: measuring.Volume | None = None

        async def stats() -> str:
            return await volume.stats() if volume is not None else ""

        async def running_config() -> str:
            return config_file.text(
                config,
                meta.setting.redacted(),
                mountpoint=self.request.mountpoint,
                sid=meta.sid,
                block_size=setting.block_size,
                allow_other=allow_other,
                metrics=self._metrics.address if self._metrics is not None else "",
            )

        async def settle() -> None:
            try:
                await writer.flush_all()
            except FsError as error:  # whose file it is learns of it by its own handle
                log.warning("not everything written could be stored before a clone: %s", error)

        def changed(parent: int, name: bytes) -> None:
            handlers.entry_changed(parent, name)

        informant = Informant(meta, name=setting.name, block_size=setting.block_size, hash_prefix=setting.hash_prefix)
        commands = Commands(meta, reader, informant, settle=settle, changed=changed)
        self._undo.push_async_callback(commands.close)
        virtual = VirtualFiles(
            access_log,
            commands,
            stats=stats,
            config=running_config,
            options=VirtualOptions(
                prefix=config.prefix_internal,
                hidden=config.hide_internal,
                trash=setting.trash_days > 0 and meta.root == ROOT,
            ),
        )
        handlers = self._handlers_made = Handlers(
            meta,
            writer,
            reader,
            access_log,
            virtual,
            timeouts=Timeouts(
                config.attr_cache, config.entry_cache, config.dir_entry_cache, config.negative_entry_cache
            ),
            xattrs=config.enable_xattr,
            ioctls=config.enable_ioctl,
            security=config.security_xattrs,
            sort_dir=config.sort_dir,
            umask=config.umask,
            acls=setting.enable_acl,
            readdir_cache=config.readdir_cache,
            access_checked=not config.non_default_permission,
            table=self._state.handles,
            snapshots=self._state.snapshots,
        )
        volume = self._volume = measuring.Volume(
            REGISTRY, meta, writer, lambda: len(handlers.files), subdir=config.subdir
        )
        spec = MountSpec(
            mountpoint=self.request.mountpoint,
            fsname=f"JuiceFS:{setting.name}",
            allow_other=allow_other,
            default_permissions=not config.non_default_permission,
            flags=config.mount_flags,
            max_read=config.max_fuse_io,
        )
        journal = self._state.journal if self._state.path is not None else None
        host = make_host(config, handlers, Accounting(REGISTRY, access_log), spec, self.request.connection, journal)
        handlers.invalidator = host.invalidator
        return host

    def _back_up(self, meta: Meta, blocks: BlockStore) -> None:
        request, config = self.request, self._config
        if not config.backup_meta or config.read_only or config.no_bgjob:
            return
        source: dict[str, str | bool] = {
            "url": request.meta_url,
            "password": request.password,
            "skip_trash": config.backup_skip_trash,
        }
        backups = Backups(meta, lambda: blocks.storage, source, config.backup_meta, folder=request.state)
        backups.register(REGISTRY)
        backups.start()
        self._undo.push_async_callback(backups.close)

    async def _serve_metrics(self, setting: Setting) -> None:
        if not self._config.metrics:
            return
        labels = {
            "vol_name": setting.name,
            "mp": self.request.mountpoint,
            "juicefs_version": CLIENT_VERSION,
            "instance": os.uname().nodename,
            **dict(self._config.custom_labels),
        }
        volume = self._volume
        assert volume is not None
        server = MetricsServer(lambda: volume.prometheus(labels))
        await server.start(self._config.metrics)
        self._metrics = server
        self._undo.push_async_callback(server.close)

    # -- serving and the way back -------------------------------------------------------------------------------

    async def serve(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Answer the kernel; *ready* runs once a request can be answered. Returns when the mount has ended and everything is
        closed. VolumeError when it had to end because the volume is gone; ObjectUnavailable when the last writes are lost."""
        assert self._host is not None
        try:
            await self._host.serve(ready)
        finally:
            self._served.set()
            if self._stopping is not None:
                await asyncio.gather(self._stopping, return_exceptions=True)
            await self._close()
        if self._lost is not None:
            raise self._lost
        if self._unstored is not None:
            raise ObjectUnavailable(
                f"not everything that was written to {self.request.mountpoint} could be stored: {self._unstored}"
            )

    def stop(self) -> None:
        """Unmount and end; what is written is stored first. A second call changes nothing."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        host = self._host
        assert host is not None
        try:
            await self.flush()
        except FsError as error:
            self._unstored = error
        if self.request.drain and self._blocks is not None and self._blocks.staging is not None:
            await self._blocks.staging.drain()
        await asyncio.to_thread(host.unmount)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._served.wait()
        except TimeoutError:  # somebody keeps a file open; its requests fail from here on
            log.warning("files are still open on %s: their users lose them", self.request.mountpoint)
            await host.close()

    def leave(self) -> None:
        """End without unmounting: store what is written, and leave connection, session and state to a successor."""
        if self._stopping is None:
            self._leaving = True
            self._stopping = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        assert self._host is not None
        try:
            await self.flush()  # what can be stored while requests are still answered need not be waited for afterwards
        except FsError as error:
            log.warning("not everything written could be stored before the connection is left: %s", error)
        self._host.leave()

    def _volume_lost(self, reason: VolumeError) -> None:
        self._lost = reason
        self.stop()

    async def _finish_writes(self, writer: Writer) -> None:
        try:
            await writer.close()
        except FsError as error:
            self._unstored = error

    def _close_state(self) -> None:
        self._state.close(keep=self._leaving)

    async def _close_storage(self) -> None:
        if self._blocks is not None:
            await self._blocks.close()
        elif self._opened_storage is not None:
            await self._opened_storage.close()

    async def _close(self) -> None:
        await self._undo.aclose()


def _close_descriptor(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)
