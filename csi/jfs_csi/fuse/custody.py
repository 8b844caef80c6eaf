"""The volumes' FUSE connections in the node service's hands: what `publish.py` and `control/server.py` do with them.

Ties the keeper, the node service's own mounts and the judgement of deposits to volumes of pods. Decides from mountinfo,
state files and the descriptors themselves, never by stat. Blocking but quick; every call about a pod comes under that
pod's lock, from any thread.
"""

import logging
import os
from collections.abc import Iterable
from contextlib import closing

from jfs_api import names

from jfs_csi.directories import Tree
from jfs_csi.fuse import mounting
from jfs_csi.fuse.device import clone, connection_of, is_connected, is_fuse_device
from jfs_csi.fuse.init import Handover, Init, wishes
from jfs_csi.fuse.keeper import Keeper
from jfs_csi.layout import Layout
from jfs_csi.mounts import FuseConnections, detach, mounts_at
from jfs_csi.state import DATA, StateStore, VolumeState
from jfs_csi.stats import has_ended

log = logging.getLogger(__name__)


class Custody:
    """See the module."""

    def __init__(
        self, tree: Tree, layout: Layout, states: StateStore, keeper: Keeper, connections: FuseConnections
    ) -> None:
        self._tree, self._layout, self._states = tree, layout, states
        self._keeper, self._connections = keeper, connections

    # --- for the control socket --------------------------------------------------------------------------------

    def handover(self, pod_uid: str, volume: str) -> Handover | None:
        """What can be handed to a sidecar: a connection that is kept and lives. Never blocks."""
        kept = self._keeper.live((pod_uid, volume))
        return None if kept is None else Handover(kept.init, kept.sent)

    def duplicate(self, pod_uid: str, volume: str) -> int:
        """A descriptor to send; the caller closes it. Raises OSError.

        Where the kernel cannot give requests to a successor again it is a clone, whose requests fail with its process: an
        error is better than waiting for ever.
        """
        kept = self._keeper.live((pod_uid, volume))
        if kept is None:
            raise OSError("its FUSE connection has ended")
        descriptor = os.dup(kept.descriptor) if kept.init.resends else clone(kept.descriptor)
        self._keeper.sent((pod_uid, volume))
        return descriptor

    def deposit(self, pod_uid: str, volume: str, init: Init, descriptor: int) -> str | None:
        """Keep a descriptor that a sidecar gave, or close it: the reason as a sentence's end, None if it is kept."""
        try:
            reason = self._judge(pod_uid, volume, descriptor)
            if reason is None:
                device = self._device(pod_uid, volume) or ""
                kept = self._keeper.live((pod_uid, volume))
                if kept is None or not device or kept.device != device:
                    self._keeper.keep((pod_uid, volume), descriptor, init, device, sent=True)
                    descriptor = -1
            return reason
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _judge(self, pod_uid: str, volume: str, descriptor: int) -> str | None:
        if not is_fuse_device(descriptor):
            return "it is not of /dev/fuse"
        if not is_connected(descriptor):
            return "its connection has ended"
        expected, told = self._device(pod_uid, volume), connection_of(descriptor)
        if expected is None:
            return "nothing is mounted for the volume"
        if told is not None and told != expected:
            return "it is of another connection than the volume's mount"
        return None

    def _device(self, pod_uid: str, volume: str) -> str | None:
        """The connection mounted (on top) where the volume's sidecar serves it."""
        path = self._tree.mount_path(self._layout.mountpoint(pod_uid, volume))
        return next((mount.device for mount in reversed(mounts_at([path])) if mount.is_fuse), None)

    def is_unclaimed(self, pod_uid: str, volume: str) -> bool:
        """Whether a mount of ours waits for a sidecar to get it for the first time."""
        handover = self.handover(pod_uid, volume)
        return handover is not None and not handover.resume

    # --- the node service's own mounts (restricted mode) --------------------------------------------------------

    def mount(self, pod_uid: str, volume: str) -> None:
        """A fresh mount on top of a dead one, so that by propagation every container that has it heals. Raises OSError.

        The former connection ends now, should a process still wait for it.
        """
        state = self._states.get(pod_uid, volume)
        if state is None:
            raise OSError(f"volume {volume} is not published")
        former = self._device(pod_uid, volume)
        self._keeper.release((pod_uid, volume))
        self._fresh(state)
        self._abort(former)

    def ensure(self, state: VolumeState) -> bool:
        """At a publish: have the volume mounted, and its descriptor if no sidecar can have it. True if a mount was made.

        A mount whose descriptor we do not have may be served by a sidecar, which will say so: it is left if it lives. If it
        has ended (the node service was killed between two steps, or together with the sidecar) it is made anew: on a
        clean directory if no sidecar ever had it, since no container runs yet that could notice, else on top.
        """
        key = (state.pod_uid, state.volume)
        device, kept = self._device(*key), self._keeper.live(key)
        if device is not None and kept is not None and kept.device == device:
            return False
        if device is not None and kept is None:
            if not has_ended(self._tree.mount_path(self._layout.mountpoint(*key))):
                return False
            if state.generation > 0:
                self.mount(*key)
                return True
        self._keeper.release(key)
        detach(self._tree, self._layout.mountpoint(*key))
        self._fresh(state)
        return True

    def _fresh(self, state: VolumeState) -> None:
        directory = self._layout.mountpoint(state.pod_uid, state.volume)
        self._tree.make(directory, 0o000)  # a publish that was killed may have left no more than its state file
        fresh = mounting.mount(
            self._tree, directory, state.name or state.volume, wishes(state.options, state.read_only)
        )
        self._keeper.keep((state.pod_uid, state.volume), fresh.descriptor, fresh.init, fresh.device)
        log.info("Pod %s: volume %s is mounted (connection %s).", state.pod_uid, state.volume, fresh.device)

    # --- end and start -----------------------------------------------------------------------------------------

    def waits(self, pod_uid: str, volume: str) -> bool:
        """Whether the volume's connection lives and a sidecar has read requests from it. Never blocks."""
        handover = self.handover(pod_uid, volume)
        return handover is not None and handover.resume

    def end(self, pod_uid: str, volume: str) -> None:
        """End the volume's connection, whoever holds it: everything that waits for an answer fails with ECONNABORTED. Its mount
        stays, dead."""
        device = self._device(pod_uid, volume)
        self._keeper.release((pod_uid, volume))
        self._abort(device)

    def _abort(self, device: str | None) -> None:
        held = None if device is None else self._connections.hold(device)
        if held is not None:
            with closing(held):
                held.abort()

    def release(self, pod_uid: str, volumes: Iterable[str]) -> None:
        """Let go of the volumes' connections: with the last descriptor closed the kernel ends what waits."""
        for volume in volumes:
            self._keeper.release((pod_uid, volume))

    def restore(self) -> None:
        """At the start: take the holder's descriptors, as far as the volumes are still published and mounted with them."""
        self._keeper.fetch()
        for pod_uid, volume in self._keeper.kept_keys():
            state, kept = self._states.get(pod_uid, volume), self._keeper.live((pod_uid, volume))
            device = self._device(pod_uid, volume)
            if state is None or state.kind != DATA or kept is None or device is None or kept.device not in ("", device):
                self._keeper.release((pod_uid, volume))
        if len(self._keeper):
            log.info("%d FUSE connections of a former node service are in our hands.", len(self._keeper))

    def unserved(self, pod_uid: str, volume: str) -> str | None:
        """The path of a mount whose descriptor we do not have, so that only asking it tells whether it lives."""
        state = self._states.get(pod_uid, volume)
        if state is None or self._device(pod_uid, volume) is None or self._keeper.live((pod_uid, volume)) is not None:
            return None
        return state.target

    def is_restricted(self, pod_uid: str) -> bool:
        return self._states.mode(pod_uid) == names.RESTRICTED
