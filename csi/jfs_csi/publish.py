"""Publish and unpublish: ties a pod's volume path to the directory its sidecar mounts on, and unties it.

    target path (data)     ← bind of P/volumes/<volume>; the FUSE mount on that directory propagates onto it
    target path (control)  ← bind of P; the sidecar's container has it as /run/jfs

The FUSE mount is the sidecar's in a privileged pod (its propagation is Bidirectional), and in a restricted one ours, made
here; the control volume tells which. Whichever of the two volumes is published last finds out.

Publish never waits for the sidecar: the kubelet starts no container before all volumes are published. Unpublish never
stats what it removes, always ends and deletes nothing but empty directories. Both are idempotent and decide from
mountinfo and state files. Everything about one pod happens under its lock; blocking system calls run in threads.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from jfs_api import names

from jfs_csi.control.server import ControlServer
from jfs_csi.directories import Tree
from jfs_csi.ending import PodEnd
from jfs_csi.fuse.custody import Custody
from jfs_csi.layout import Layout, Names, Target, valid_pod_uid
from jfs_csi.mounts import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    FuseConnection,
    FuseConnections,
    bind,
    detach,
    mountinfo,
    mounts_at,
)
from jfs_csi.state import CONTROL, DATA, StateStore, VolumeState
from jfs_csi.stats import UsageProbe

log = logging.getLogger(__name__)

RELEASE_SECONDS = 5.0  # for the sidecar to flush and unmount
ABORT_AFTER = 2.0  # seconds a FUSE connection may outlive its mounts
_ABORT_POLL = 0.02

# The directory below the sidecar's mount is never to be written: an application that runs while nothing is mounted gets
# EROFS, root too. The FUSE mount on top has its own flags, which the sidecar sets.
_DATA_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
_CONTROL_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC


@dataclass(frozen=True, slots=True)
class Publication:
    """A checked request to publish."""

    target: Target
    kind: str
    volume_id: str
    pod_name: str = ""
    pod_namespace: str = ""
    persistent: bool = False
    mode: str = names.PRIVILEGED  # of a control volume's pod
    read_only: bool = False
    options: tuple[str, ...] = ()
    secrets: dict[str, Any] = field(default_factory=dict, repr=False)


class Publisher:
    """The node's published volumes."""

    def __init__(
        self,
        tree: Tree,
        layout: Layout,
        states: StateStore,
        control: ControlServer,
        connections: FuseConnections,
        custody: Custody,
        usage: UsageProbe,
        end: PodEnd,
    ) -> None:
        self._tree, self._layout, self._states = tree, layout, states
        self._control, self._connections, self._custody = control, connections, custody
        self._usage, self._end = usage, end

    # --- publish -----------------------------------------------------------------------------------------------

    def is_published(self, target: Target) -> bool:
        """Whether the target is mounted and recorded: a publish of it then only refreshes the secrets."""
        state = self._states.get(*target.key)
        path = self._tree.mount_path(target.relative)
        return state is not None and state.target == target.path and bool(mounts_at([path]))

    def is_mounted(self, relative: Names) -> bool:
        """Whether a FUSE file system lies on the directory."""
        return any(mount.is_fuse for mount in mounts_at([self._tree.mount_path(relative)]))

    async def publish(self, publication: Publication) -> None:
        """Raises OSError (its text is a sentence's end) with nothing half-made that a repetition would not finish."""
        target = publication.target
        async with self._control.lock(target.pod_uid):
            await self._control.listen(target.pod_uid)
            mounted = await asyncio.to_thread(self._publish, publication)
            if publication.kind == DATA:
                await self._control.published(
                    target.pod_uid,
                    target.volume,
                    publication.read_only,
                    publication.options,
                    publication.secrets,
                    restricted=self._custody.is_restricted(target.pod_uid),
                    mounted=bool(mounted),
                )
            else:
                for volume in mounted:
                    await self._control.mounted(target.pod_uid, volume)

    def _publish(self, publication: Publication) -> list[str]:
        """The volumes for which a FUSE mount had to be made."""
        target = publication.target
        self._save(publication)
        if publication.kind == CONTROL:
            source, flags = self._layout.pod(target.pod_uid), _CONTROL_FLAGS
            if publication.read_only:
                flags |= MS_RDONLY
        else:
            source, flags = self._layout.mountpoint(target.pod_uid, target.volume), _DATA_FLAGS
            self._tree.make(source, 0o000)
        mounted = mounts_at([self._tree.mount_path(target.relative)])
        if any(mount.root.endswith("//deleted") for mount in mounted):
            # Bound to a directory that was removed since: nothing can ever appear there.
            detach(self._tree, target.relative)
            mounted = []
        if not mounted:
            self._tree.make(target.relative, 0o000 if publication.kind == DATA else 0o711, parents=False)
            bind(self._tree, source, target.relative, flags, recursive=True)
        elif publication.kind == DATA:
            self._take_away_dead_sub_paths(target)
        return self._mount_ours(target, publication.kind)

    def _save(self, publication: Publication) -> None:
        # State first: a mount without a state file could be missed by the sweep, the other way round is harmless.
        target = publication.target
        former = self._states.get(*target.key)
        restricted = self._custody.is_restricted(target.pod_uid)
        state = VolumeState(
            pod_uid=target.pod_uid,
            volume=target.volume,
            kind=publication.kind,
            volume_id=publication.volume_id,
            target=target.path,
            pod_name=publication.pod_name,
            pod_namespace=publication.pod_namespace,
            persistent=publication.persistent,
            read_only=publication.read_only,
            options=publication.options,
            mode=publication.mode if publication.kind == CONTROL else _mode(restricted),
            name=str(publication.secrets.get("name", "")),
            boot_id=self._states.boot_id,
        )
        if former is not None:
            state = replace(
                state,
                generation=former.generation,
                ready=former.ready,
                since=former.since,
                restarts=former.restarts,
                last_stall_ms=former.last_stall_ms,
            )
        if state != former:
            self._states.save(state)

    def _mount_ours(self, target: Target, kind: str) -> list[str]:
        """Restricted mode: have the volume mounted – of a control volume, all that were published before it."""
        if not self._custody.is_restricted(target.pod_uid):
            return []
        states = [state for state in self._states.of_pod(target.pod_uid) if state.kind == DATA]
        if kind == DATA:
            states = [state for state in states if state.volume == target.volume]
        return [state.volume for state in states if self._custody.ensure(state)]

    def _take_away_dead_sub_paths(self, target: Target) -> None:
        """Detach the kubelet's binds of parts of the volume (`subPath`) that belong to a former mount.

        A new mount does not appear in them, and the kubelet cannot start a container on a dead one: it publishes again
        before it tries, and makes a bind of its own then.
        """
        top = {mount.path: mount for mount in mountinfo()}
        volume = top.get(self._tree.mount_path(target.relative))
        if volume is None or not volume.is_fuse:
            return  # nothing is mounted: there is nothing to bind instead
        sub_paths = self._layout.sub_paths(target)
        prefix = self._tree.mount_path(sub_paths) + "/"
        for path, mount in top.items():
            # Only what lies on top counts: a new mount does appear in a bind of the volume's root, and detaching it there
            # would by propagation detach it everywhere.
            if mount.is_fuse and mount.device != volume.device and path.startswith(prefix):
                log.info("%s is of a mount that was lost; it is taken away.", path)
                detach(self._tree, (*sub_paths, *path.removeprefix(prefix).split("/")))

    # --- unpublish ---------------------------------------------------------------------------------------------

    async def unpublish(self, target: Target) -> None:
        """Unknown targets and ones that are gone already are fine. Raises OSError only if the kernel refuses."""
        state = self._states.get(*target.key)
        if state is not None and state.kind == DATA:
            await self._control.release(target.pod_uid, target.volume, RELEASE_SECONDS)
        elif state is not None:
            # The sidecar's file systems hang below this one: detaching it takes them along.
            volumes = [other.volume for other in self._states.of_pod(target.pod_uid) if other.kind == DATA]
            await asyncio.gather(*(self._control.release(target.pod_uid, name, RELEASE_SECONDS) for name in volumes))
        async with self._control.lock(target.pod_uid):
            mountpoints = [target.relative]
            if state is None or state.kind == DATA:
                mountpoints.insert(0, self._layout.mountpoint(target.pod_uid, target.volume))
            held = await asyncio.to_thread(self._take_away, mountpoints)
            # With the pod's control volume go all its file systems; a descriptor of ours must not keep them.
            others = [other.volume for other in self._states.of_pod(target.pod_uid)]
            ending = others if state is not None and state.kind == CONTROL else [target.volume]
            await asyncio.to_thread(self._custody.release, target.pod_uid, ending)
            await self._end_connections(held, target)
            await asyncio.to_thread(self._forget, target, mountpoints)
            if not self._states.of_pod(target.pod_uid):
                await self._remove_pod(target.pod_uid)

    def _take_away(self, mountpoints: Iterable[Names]) -> list[FuseConnection]:
        """Detach everything on the directories; the FUSE connections that were mounted there, still held open."""
        by_path = {self._tree.mount_path(relative): relative for relative in mountpoints}
        # Those below count too: detaching a control volume takes them along.
        below = tuple(path + "/" for path in by_path)
        devices = {
            mount.device
            for mount in mountinfo()
            if mount.is_fuse and (mount.path in by_path or mount.path.startswith(below))
        }
        found = (self._connections.hold(device) for device in devices)
        held = [connection for connection in found if connection is not None]
        try:
            for relative in by_path.values():
                detach(self._tree, relative)
        except BaseException:
            for connection in held:
                connection.close()
            raise
        return held

    async def _end_connections(self, held: list[FuseConnection], target: Target) -> None:
        """Wait until the connections are gone; abort what is left. There is no event to wait for, so it is polled."""
        deadline = time.monotonic() + ABORT_AFTER
        try:
            while alive := [connection for connection in held if connection.alive]:
                if time.monotonic() > deadline:
                    log.warning("A FUSE connection of %s outlived its mounts; it is aborted.", target.path)
                    self._control.forced(
                        *target.key, "operations that waited for it were ended, because it outlived its mounts"
                    )
                    for connection in alive:
                        connection.abort()
                    return
                await asyncio.sleep(_ABORT_POLL)
        finally:
            for connection in held:
                connection.close()

    def _forget(self, target: Target, mountpoints: Iterable[Names]) -> None:
        for relative in mountpoints:
            if not self._tree.remove(relative):
                log.error("%s is not empty or in use; it is left for you to look at.", self._layout.absolute(relative))
        self._states.remove(target.pod_uid, target.volume)

    async def _remove_pod(self, pod_uid: str) -> None:
        await self._control.close_pod(pod_uid)
        await asyncio.to_thread(self._remove_pod_directories, pod_uid)

    def _remove_pod_directories(self, pod_uid: str) -> None:
        directory = self._layout.pod(pod_uid)
        volumes = (*directory, names.CONTROL_VOLUMES)
        for name in self._tree.names(volumes):
            detach(self._tree, (*volumes, name))
            self._tree.remove((*volumes, name))
        self._tree.remove(volumes)
        if not self._tree.remove(directory):
            log.error("%s is not empty; it is left for you to look at.", self._layout.absolute(directory))
        self._states.remove_pod(pod_uid)

    # --- start -------------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Take over what a former node service published, and sweep what belongs to pods that are gone."""
        self._states.load()
        await asyncio.to_thread(self._custody.restore)
        await self.sweep()
        for pod_uid in {state.pod_uid for state in self._states.all()}:
            try:
                async with self._control.lock(pod_uid):
                    self._control.restore(pod_uid)
                    await self._control.listen(pod_uid)
            except OSError as error:
                # One pod's trouble must not keep the node's others from working.
                log.error("Pod %s could not be taken over: %s", pod_uid, error)

    async def heal(self) -> None:
        """Find mounts whose connection ended while nobody served it: with both the node service and the sidecar. A mount that
        somebody may still serve is asked, by a thread of its own that nobody waits for."""
        for state in self._states.all():
            key = (state.pod_uid, state.volume)
            if state.kind != DATA or self._control.is_served(*key) or self._control.is_over(state.pod_uid):
                continue
            path = await asyncio.to_thread(self._custody.unserved, *key)
            if path is None or not await self._usage.is_dead(path):
                continue
            try:
                async with self._control.lock(state.pod_uid):
                    # Looked at again: it may have been served or unpublished while we asked.
                    if await asyncio.to_thread(self._custody.unserved, *key) is not None:
                        await self._control.dead(*key)
            except OSError as error:
                log.error("Pod %s: volume %s could not be mounted anew: %s", *key, error)

    async def end_waiting(self) -> None:
        """End the connections of pods that are over and in which requests wait for a sidecar that will not come: their processes
        could not end, and the kubelet would never unpublish."""
        waiting = [state for state in self._states.all() if self._waits(state)]
        over = await asyncio.gather(
            *(self._end.is_over(state.pod_namespace, state.pod_name, state.pod_uid) for state in waiting)
        )
        for state in (state for state, ended in zip(waiting, over, strict=True) if ended):
            async with self._control.lock(state.pod_uid):
                if not self._waits(state):
                    continue  # it was served or unpublished while we asked
                log.warning(
                    "Pod %s/%s is over and nobody serves its volume %s any more: what waits for an answer is ended.",
                    state.pod_namespace,
                    state.pod_name,
                    state.volume,
                )
                self._control.over(state.pod_uid)
                await asyncio.to_thread(self._custody.end, state.pod_uid, state.volume)

    def _waits(self, state: VolumeState) -> bool:
        key = (state.pod_uid, state.volume)
        return state.kind == DATA and not self._control.is_served(*key) and self._custody.waits(*key)

    async def sweep(self) -> None:
        """Unpublish the volumes of pods whose directory the kubelet has removed (force-deleted ones)."""
        if not self._tree.exists(("pods",)):
            # Then *every* pod would look gone: a wrong --kubelet-dir must not cost anybody a mount.
            log.error("%s does not exist: nothing is swept. Is --kubelet-dir right?", self._layout.absolute(("pods",)))
            return
        plugin = self._layout.plugin
        found = {*self._tree.names((*plugin, "pods")), *self._tree.names((*plugin, "state"))}
        for pod_uid in sorted(filter(valid_pod_uid, found)):
            try:
                if self._tree.exists(("pods", pod_uid)):
                    continue
                log.info("Pod %s is gone; its volumes are cleaned up.", pod_uid)
                for state in self._states.of_pod(pod_uid):
                    await self.unpublish(self._layout.target(state.target))
                async with self._control.lock(pod_uid):
                    await self._remove_pod(pod_uid)
            except (OSError, ValueError) as error:
                log.error("Pod %s: clean-up stopped, it is tried again: %s", pod_uid, error)


def _mode(restricted: bool) -> str:
    return names.RESTRICTED if restricted else names.PRIVILEGED
