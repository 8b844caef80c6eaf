"""The life of this mount's session and the clearing of dead ones (format §7.1).

A task beats every *heartbeat* seconds (±5 %): it prolongs the session, or writes it again when another client took it for dead;
reloads the setting; refreshes the counters; and, elected, clears sessions that expired. A database that does not answer is tried
again at the next beat. A volume that is gone, was replaced, or turned on what this client must not touch ends the mount through
*on_lost*, once. One event loop.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from jfs.errors import JfsError, StoreError, VolumeError
from jfs.format.setting import Setting
from jfs.format.usable import check_identity, check_usable
from jfs.meta.model.keys import SessionKey, SettingKey
from jfs.meta.operations import rules as common
from jfs.meta.operations.removal import Dropped, release_sustained
from jfs.meta.operations.rules import Rules
from jfs.meta.operations.sessions import elect, end_session, write_session
from jfs.meta.store.base import Store, Tx
from jfs.meta.store.change_log import ChangeLog
from jfs.meta.volume.deletion import Deletion
from jfs.meta.volume.options import SessionInfo
from jfs.meta.volume.usage import Usage

log = logging.getLogger(__name__)

EXPIRE_BEATS = 5  # after which a session is not believed any more
LEFT_SECONDS = 900  # that a session is kept for a successor that was announced: an image is pulled meanwhile
_CLEAN_AT_ONCE = 1000


async def load_setting(store: Store) -> Setting:
    """The volume's setting record, unchecked; VolumeError when the database holds no volume."""
    (raw,) = await store.get(SettingKey())
    if raw is None:
        raise VolumeError("the database is not formatted: create the volume with `jfs format` first")
    setting = Setting.parse(raw)
    keep_change_log(store, setting)
    return setting


def keep_change_log(store: Store, setting: Setting, sid: int = 0) -> None:
    """Have the commits of *store* write the change log from now on if the volume has one; *sid* is the own session."""
    if not setting.change_log:
        store.change_log = None
    elif store.change_log is None:
        store.change_log = ChangeLog()
        store.change_log.sid = sid


class SessionLife:
    """The own session; *adopt* is called with each reloaded setting, then *reload* reads what else may have changed; *on_lost* is
    called when the mount must end. *rules* are those of an operation."""

    def __init__(
        self,
        store: Store,
        uuid: str,
        info: SessionInfo,
        *,
        heartbeat: float,
        clean: bool,
        usage: Usage,
        deletion: Deletion,
        clock: Callable[[], int],
        adopt: Callable[[Setting], None],
        reload: Callable[[], Awaitable[None]],
        rules: Callable[[], Rules],
        on_lost: Callable[[VolumeError], None],
    ) -> None:
        self.sid = 0
        self._store = store
        self._uuid = uuid
        self._info = info.encode()
        self._heartbeat = heartbeat
        self._clean = clean
        self._usage = usage
        self._deletion = deletion
        self._clock = clock
        self._adopt = adopt
        self._reload = reload
        self._rules = rules
        self._on_lost = on_lost
        self._task: asyncio.Task[None] | None = None
        self._beats = 0
        self._seen: dict[int, tuple[int, int]] = {}  # of sessions: their expiry, and at which beat we saw it first
        self._waiting = False  # whether one has expired that may be alive

    def _seconds(self) -> int:
        return self._clock() // common.SECOND

    async def start(self, *, read_only: bool, sid: int = 0) -> int:
        """Take a session id, write the session and beat from now on. A read-only mount only reloads and has id 0. With *sid* the
        session of a predecessor that is dead goes on: its locks and open files stay ours."""
        if not read_only and sid:
            self.sid = sid
            if self._store.change_log is not None:
                self._store.change_log.sid = sid
            if not await self._write(resumes=True):
                log.warning("session %d had expired: its locks and the files it had open without a name are lost", sid)
        elif not read_only:
            self.sid = await self._store.next_id("nextSession")
            if self._store.change_log is not None:
                self._store.change_log.sid = self.sid
            await self._write(begins=True)
        await self._refresh()
        self._task = asyncio.create_task(self._beat_on(), name="heartbeat")
        return self.sid

    async def _write(self, *, begins: bool = False, resumes: bool = False, left: bool = False) -> bool:
        """Write the record, to be believed for five beats, or when it is *left* to a successor for longer; whether one that
        *resumes* was still there."""
        beats = max(round(self._heartbeat * EXPIRE_BEATS), 1)
        expire = self._seconds() + (max(beats, LEFT_SECONDS) if left else beats)

        async def operation(tx: Tx) -> bool:
            (former,) = await tx.get(SessionKey(self.sid)) if resumes else (None,)
            await write_session(tx, self.sid, expire, self._info, begins=begins)
            return former is not None

        return await self._store.run(operation)

    async def _refresh(self) -> None:
        raw, space, inodes = await self._store.get(SettingKey(), common.USED_SPACE, common.TOTAL_INODES)
        if raw is None:
            raise VolumeError(f"the setting record of volume {self._uuid} is gone: the volume was destroyed")
        setting = Setting.parse(raw)
        check_identity(setting, self._uuid)
        check_usable(setting)
        self._usage.refresh(space, inodes)
        keep_change_log(self._store, setting, self.sid)
        self._adopt(setting)
        await self._reload()

    async def beat(self) -> None:
        """One heartbeat. VolumeError when the mount must end, StoreError when the database does not answer."""
        await self._refresh()
        if not self.sid:
            return
        await self._write()
        if self._clean:
            await self.clean_dead()

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat * random.uniform(0.95, 1.05))
            try:
                await self.beat()
            except VolumeError as error:
                self._on_lost(error)
                return
            except JfsError as error:
                log.warning("heartbeat failed, tried again in %g s: %s", self._heartbeat, error)

    async def clean_dead(self) -> None:
        """Clear up to 1000 sessions that are dead: their expiry has passed, and they have not beaten for five of our beats since we
        looked first, whatever their clock says. Whoever is elected looks, and whoever has seen one that is to be waited for."""
        self._beats += 1
        now = self._seconds()

        async def operation(tx: Tx) -> bool:
            return await elect(tx, "lastCleanupSessions", now, int(self._heartbeat * 0.9))

        if not await self._store.run(operation) and not self._waiting:
            return
        seen: dict[int, tuple[int, int]] = {}
        dead: list[int] = []
        self._waiting = False
        async for sid, session in self._store.sessions():
            expire, since = self._seen.get(sid, (None, 0))
            seen[sid] = session.expire, since if expire == session.expire else self._beats
            if session.expire >= now or sid == self.sid:
                continue
            if self._beats - seen[sid][1] >= EXPIRE_BEATS:
                dead.append(sid)
            else:
                self._waiting = True
        self._seen = seen
        for sid in dead[:_CLEAN_AT_ONCE]:
            await self.clear(sid)
            log.info("session %d ended without closing and was cleared", sid)

    async def clear(self, sid: int) -> None:
        """Remove a session: its sustained inodes with their data, its locks, its records."""
        now = self._clock()
        for ino in [ino async for ino in self._store.sustained(sid)]:
            rules = self._rules()

            async def operation(tx: Tx, ino: int = ino, rules: Rules = rules) -> Dropped | None:
                return await release_sustained(tx, sid, ino, now, rules)

            dropped = await self._store.run(operation, near=(ino,))
            if rules.quotas is not None:
                rules.quotas.settle()
            if dropped is not None:
                self._usage.add(dropped.space, dropped.inodes)
                if dropped.deleted is not None:
                    self._deletion.submit(ino, dropped.deleted)
        await self._store.forget_session(sid)
        if self._store.change_log is not None:

            async def end(tx: Tx) -> None:
                await end_session(tx, sid)

            await self._store.run(end)

    async def stop(self) -> None:
        """Beat no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def leave(self) -> None:
        """Stop, and leave the session to a successor."""
        await self.stop()
        if self.sid:
            try:
                await self._write(left=True)
            except JfsError as error:
                log.warning("session %d was not prolonged for its successor: %s", self.sid, error)
        self.sid = 0

    async def end(self) -> None:
        """Remove the own session. It stays when the volume is no longer ours, since another volume's session may have the same id,
        and when the database does not answer; others clear it once it has expired."""
        await self.stop()
        if not self.sid:
            return
        try:
            check_identity(await load_setting(self._store), self._uuid)
            await self.clear(self.sid)
        except (StoreError, VolumeError) as error:
            log.warning("session %d was not removed: %s", self.sid, error)
        self.sid = 0
