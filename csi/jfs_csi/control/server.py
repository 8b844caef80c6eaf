"""The sockets of all pods' control directories: accepts sidecars, feeds `PodControl`, carries out its actions.

One listening socket per pod with published volumes, one task per connection. A pod's state is touched under that pod's
lock only (`lock`), which publish and unpublish hold too; actions run in order under it, blocking ones in threads. While
an unpublish waits for an answer it must not hold the lock: `release` takes and gives it back itself. A new sidecar is
heard only when the process of the former one is proven dead by its pidfd: two never serve one volume.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from jfs_api import names
from jfs_api.attachments import Attachment

from jfs_csi.control import frames
from jfs_csi.control.actions import Send
from jfs_csi.control.carrier import Carrier
from jfs_csi.control.connection import Connection
from jfs_csi.control.pod import PodControl
from jfs_csi.control.running import RunningPod
from jfs_csi.control.sessions import Sessions
from jfs_csi.directories import Tree
from jfs_csi.fuse.custody import Custody
from jfs_csi.layout import Layout
from jfs_csi.state import DATA, StateStore

log = logging.getLogger(__name__)

_ACCEPT_AGAIN = 1.0
_ACCEPT_PACE = 0.05  # seconds between two connections of a pod
_MOST_CONNECTIONS = 8  # of a pod at once; one sidecar needs one, and a second while it reconnects


class ControlServer:
    """`notify(reason, pod UID, volume, message)` reports events, `account(restarts, stall seconds, replayed requests)`
    counts takeovers, `changed` hears that `attachments` may have changed; none may block."""

    def __init__(
        self,
        tree: Tree,
        layout: Layout,
        states: StateStore,
        node: str,
        notify: Callable[[str, str, str, str], None],
        custody: Custody,
        account: Callable[[int, float, int], None] = lambda *_: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._tree, self._layout, self._states, self._node = tree, layout, states, node
        self._custody = custody
        self._notify = notify
        self._carrier = Carrier(states, custody, notify, account, changed)
        self._sessions = Sessions(self._carrier)
        self._pods: dict[str, RunningPod] = {}
        # Apart from the pods, so that who waits for a lock while the pod is removed waits for the right one.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, pod_uid: str) -> asyncio.Lock:
        """The pod's lock: the same one as long as anybody holds it or waits for it."""
        lock = self._locks.get(pod_uid)
        if lock is None:
            lock = self._locks[pod_uid] = asyncio.Lock()
        return lock

    def _pod(self, pod_uid: str) -> RunningPod:
        pod = self._pods.get(pod_uid)
        if pod is None:
            control = PodControl(self._node, pod_uid, lambda volume: self._custody.handover(pod_uid, volume))
            pod = self._pods[pod_uid] = RunningPod(control, self.lock(pod_uid))
        return pod

    def attached(self) -> int:
        """Volumes that a connected sidecar has mounted."""
        return sum(len(list(pod.control.ready_volumes())) for pod in self._pods.values())

    def attachments(self) -> list[Attachment]:
        """Every PersistentVolume in every pod of the node."""
        found = []
        for pod_uid, pod in self._pods.items():
            for volume, attachment in pod.control.volumes.items():
                state = self._states.get(pod_uid, volume)
                if state is None or not state.persistent:
                    continue
                found.append(
                    Attachment(
                        volume=volume,
                        namespace=state.pod_namespace,
                        pod=state.pod_name,
                        pod_uid=pod_uid,
                        mode=names.RESTRICTED if attachment.restricted else names.PRIVILEGED,
                        state=attachment.state,
                        generation=attachment.generation,
                        restarts=state.restarts,
                        last_stall_ms=state.last_stall_ms,
                        since=state.since,
                        message=attachment.failure,
                    )
                )
        return found

    def dirty_bytes(self) -> int:
        """What the sidecars said in their last beats that they have not stored yet."""
        attachments = (attachment for pod in self._pods.values() for attachment in pod.control.volumes.values())
        return sum(attachment.beat.dirty_bytes for attachment in attachments if attachment.beat is not None)

    def sessions(self) -> int:
        return sum(pod.control.session is not None for pod in self._pods.values())

    # --- called by publish and unpublish, under the pod's lock ---------------------------------------------------

    async def listen(self, pod_uid: str) -> None:
        """Make the pod's control directory and listen in it. Nothing happens if we do already."""
        pod = self._pod(pod_uid)
        if pod.listener is None:
            pod.listener = await asyncio.to_thread(self._bind, pod_uid)
            pod.acceptor = asyncio.create_task(self._accept(pod, pod.listener), name=f"control socket {pod_uid}")

    def _bind(self, pod_uid: str) -> socket.socket:
        directory = self._layout.pod(pod_uid)
        self._tree.make(directory, 0o711)
        # To be listed by a sidecar of any user: its startup probe looks which volumes there are.
        self._tree.make((*directory, names.CONTROL_VOLUMES), 0o755)
        self._tree.unlink((*directory, names.CONTROL_SOCKET))  # of a node service that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with self._tree.open(directory) as descriptor:
                # By the descriptor: a socket's address has 108 bytes, a pod's directory may need more.
                listener.bind(f"/proc/self/fd/{descriptor}/{names.CONTROL_SOCKET}")
                os.chmod(f"/proc/self/fd/{descriptor}/{names.CONTROL_SOCKET}", 0o666)
            listener.listen(32)
        except BaseException:
            listener.close()
            raise
        return listener

    async def published(
        self,
        pod_uid: str,
        volume: str,
        read_only: bool,
        options: tuple[str, ...],
        secrets: dict[str, Any],
        *,
        restricted: bool = False,
        mounted: bool = False,
    ) -> None:
        """A data volume was published, or again; `mounted`: the node service had to make its mount for that."""
        pod = self._pod(pod_uid)
        state = self._states.get(pod_uid, volume)
        generation = 0 if state is None else state.generation
        if mounted:
            await self._carrier.run(pod, pod.control.remounted(volume))
        await self._carrier.run(pod, pod.control.published(volume, read_only, options, secrets, generation, restricted))

    async def mounted(self, pod_uid: str, volume: str) -> None:
        """The node service has mounted a volume that was published before the pod's mode was known."""
        pod = self._pod(pod_uid)
        attachment = pod.control.volumes.get(volume)
        if attachment is not None:
            attachment.restricted = True
        await self._carrier.run(pod, pod.control.remounted(volume))

    async def dead(self, pod_uid: str, volume: str) -> None:
        """The volume's connection has ended and no sidecar serves it: say so, and in restricted mode mount anew at once, so
        that the application waits instead of failing."""
        pod = self._pod(pod_uid)
        attachment = pod.control.volumes.get(volume)
        if attachment is None or volume in pod.control.ready_volumes():
            return
        await self._carrier.run(pod, pod.control.dead(volume, "node service and sidecar ended together"))
        if attachment.restricted:
            await asyncio.to_thread(self._custody.mount, pod_uid, volume)

    def is_served(self, pod_uid: str, volume: str) -> bool:
        """Whether a connected sidecar has the volume mounted."""
        pod = self._pods.get(pod_uid)
        return pod is not None and volume in pod.control.ready_volumes()

    def over(self, pod_uid: str) -> None:
        """The pod is over: what becomes of its mounts is no surprise and nothing to be mended."""
        self._pod(pod_uid).control.ending = True

    def is_over(self, pod_uid: str) -> bool:
        """Whether nobody is going to serve the pod's volumes again."""
        pod = self._pods.get(pod_uid)
        return pod is not None and pod.control.ending

    def restore(self, pod_uid: str) -> None:
        """Take over the volumes of the pod's state files, after a restart."""
        control = self._pod(pod_uid).control
        restricted = self._custody.is_restricted(pod_uid)
        for state in self._states.of_pod(pod_uid):
            if state.kind == DATA:
                control.restore(state.volume, state.read_only, state.options, state.generation, state.ready, restricted)

    async def release(self, pod_uid: str, volume: str, seconds: float) -> None:
        """Have the sidecar flush and unmount the volume, for at most so many seconds; then forget it.

        Called without the pod's lock. Nothing to wait for if no sidecar is connected – the normal case, since the
        kubelet unpublishes after all containers ended.
        """
        pod = self._pod(pod_uid)
        deadline = asyncio.get_running_loop().time() + seconds
        for answer in (frames.Flushed, frames.Detached):
            async with pod.lock:
                attachment = pod.control.volumes.get(volume)
                if attachment is None or pod.connection is None or attachment.generation == 0:
                    break
                key = (answer, volume, attachment.generation)
                future = pod.answers[key] = asyncio.get_running_loop().create_future()
                if answer is frames.Flushed:
                    request = frames.quiesce(volume, attachment.generation, int(seconds * 1000))
                else:
                    request = frames.detach(volume, attachment.generation)
                await self._carrier.run(pod, [Send(request)])
            try:
                async with asyncio.timeout_at(deadline):
                    await future
            except TimeoutError:
                log.warning(
                    "Pod %s, volume %s: no %s from the sidecar in time; its mount is taken away as it is.",
                    pod_uid,
                    volume,
                    answer.__name__.upper(),
                )
                self.forced(pod_uid, volume, f"its sidecar did not let go of it within {seconds:.0f} s")
                break
            except ConnectionResetError:
                break
            finally:
                pod.answers.pop(key, None)
        async with pod.lock:
            pod.control.unpublished(volume)
            self._carrier.changed()
            retry = pod.timers.pop(volume, None)
            if retry is not None:
                retry.cancel()

    def forced(self, pod_uid: str, volume: str, why: str) -> None:
        """The volume is taken away from whoever had it: say so."""
        self._notify(names.EVENT_FORCED, pod_uid, volume, f"Volume {volume} was unmounted by force: {why}.")

    async def close_pod(self, pod_uid: str) -> None:
        """End the pod's sessions and its socket; its last volume is gone."""
        pod = self._pods.pop(pod_uid, None)
        if pod is not None:
            await self._stop(pod)
        await asyncio.to_thread(self._tree.unlink, (*self._layout.pod(pod_uid), names.CONTROL_SOCKET))

    async def close(self) -> None:
        """Stop listening. Sidecars keep their mounts and come back to our successor; the sockets' files stay for it."""
        for pod in list(self._pods.values()):
            await self._stop(pod)
        self._pods.clear()

    async def _stop(self, pod: RunningPod) -> None:
        for timer in pod.timers.values():
            timer.cancel()
        tasks = [*pod.tasks, *([pod.acceptor] if pod.acceptor else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for timer in pod.timers.values():
            timer.cancel()  # of sessions that ended just now
        if pod.peer is not None:
            pod.peer.close()
            pod.peer = None
        if pod.listener is not None:
            pod.listener.close()
            pod.listener = None

    # --- connections -------------------------------------------------------------------------------------------

    async def _accept(self, pod: RunningPod, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, for one: it passes
                log.error("Pod %s: a sidecar could not be accepted: %s", pod.control.pod_uid, error)
                await asyncio.sleep(_ACCEPT_AGAIN)
                continue
            if len(pod.tasks) >= _MOST_CONNECTIONS:
                accepted.close()
            else:
                connection = Connection(accepted)
                session = pod.start(self._sessions.serve(pod, connection))
                # Also if it is cancelled before its first step.
                session.add_done_callback(partial(_close, connection))
            await asyncio.sleep(_ACCEPT_PACE)  # a pod that connects without end costs no more than this


def _close(connection: Connection, _session: asyncio.Task[None]) -> None:
    connection.close()
