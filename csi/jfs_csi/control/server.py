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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from jfs_api import names

from jfs_csi.control import frames
from jfs_csi.control.actions import (
    Account,
    Action,
    Answered,
    Close,
    DecideEnd,
    Ignored,
    Keep,
    Mount,
    Notify,
    RetryAfter,
    Send,
    Store,
)
from jfs_csi.control.connection import Connection, ended
from jfs_csi.control.peer import ForeignPeer, Peer, authenticate
from jfs_csi.control.pod import PodControl
from jfs_csi.control.processes import others_live
from jfs_csi.directories import Tree
from jfs_csi.fuse.custody import Custody
from jfs_csi.fuse.passing import Packet
from jfs_csi.layout import Layout
from jfs_csi.state import DATA, StateStore

log = logging.getLogger(__name__)

_HELLO_WITHIN = 10.0  # seconds until a connection must have said HELLO
_ACCEPT_AGAIN = 1.0
_MOST_CONNECTIONS = 8  # of a pod at once; one sidecar needs one, and a second while it reconnects
FORMER_ENDS_WITHIN = 5.0  # seconds that a new sidecar waits for the death of the former one
AWAY_SECONDS = 5.0  # until a sidecar's death is told, should no other have come


@dataclass(slots=True)
class _Pod:
    control: PodControl
    lock: asyncio.Lock
    listener: socket.socket | None = None
    acceptor: asyncio.Task[None] | None = None
    connection: Connection | None = None  # of the session
    peer: Peer | None = None  # of the last session, until another process's is accepted
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)  # retries by volume, and one of the pod
    answers: dict[tuple[type, str, int], asyncio.Future[Any]] = field(default_factory=dict)


class ControlServer:
    """`notify(reason, pod UID, volume, message)` reports events, `account(restarts, stall seconds, replayed requests)`
    counts takeovers; neither may block."""

    def __init__(
        self,
        tree: Tree,
        layout: Layout,
        states: StateStore,
        node: str,
        notify: Callable[[str, str, str, str], None],
        custody: Custody,
        account: Callable[[int, float, int], None] = lambda *_: None,
    ) -> None:
        self._tree, self._layout, self._states, self._node, self._notify = tree, layout, states, node, notify
        self._custody, self._account = custody, account
        self._pods: dict[str, _Pod] = {}
        # Apart from the pods, so that who waits for a lock while the pod is removed waits for the right one.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, pod_uid: str) -> asyncio.Lock:
        """The pod's lock: the same one as long as anybody holds it or waits for it."""
        lock = self._locks.get(pod_uid)
        if lock is None:
            lock = self._locks[pod_uid] = asyncio.Lock()
        return lock

    def _pod(self, pod_uid: str) -> _Pod:
        pod = self._pods.get(pod_uid)
        if pod is None:
            control = PodControl(self._node, pod_uid, lambda volume: self._custody.handover(pod_uid, volume))
            pod = self._pods[pod_uid] = _Pod(control, self.lock(pod_uid))
        return pod

    def attached(self) -> int:
        """Volumes that a connected sidecar has mounted."""
        return sum(len(list(pod.control.ready_volumes())) for pod in self._pods.values())

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
        self._tree.make((*directory, names.CONTROL_VOLUMES), 0o711)
        self._tree.unlink((*directory, names.CONTROL_SOCKET))  # of a node service that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with self._tree.open(directory) as descriptor:
                # By the descriptor: a socket's address has 108 bytes, a pod's directory may need more.
                listener.bind(f"/proc/self/fd/{descriptor}/{names.CONTROL_SOCKET}")
                os.chmod(f"/proc/self/fd/{descriptor}/{names.CONTROL_SOCKET}", 0o666)
            listener.listen(8)
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
            await self._run(pod, pod.control.remounted(volume))
        await self._run(pod, pod.control.published(volume, read_only, options, secrets, generation, restricted))

    async def mounted(self, pod_uid: str, volume: str) -> None:
        """The node service has mounted a volume that was published before the pod's mode was known."""
        pod = self._pod(pod_uid)
        attachment = pod.control.volumes.get(volume)
        if attachment is not None:
            attachment.restricted = True
        await self._run(pod, pod.control.remounted(volume))

    async def dead(self, pod_uid: str, volume: str) -> None:
        """The volume's connection has ended and no sidecar serves it: say so, and in restricted mode mount anew at once, so
        that the application waits instead of failing."""
        pod = self._pod(pod_uid)
        attachment = pod.control.volumes.get(volume)
        if attachment is None or volume in pod.control.ready_volumes():
            return
        await self._run(pod, pod.control.dead(volume, "node service and sidecar ended together"))
        if attachment.restricted:
            await asyncio.to_thread(self._custody.mount, pod_uid, volume)

    def is_served(self, pod_uid: str, volume: str) -> bool:
        """Whether a connected sidecar has the volume mounted."""
        pod = self._pods.get(pod_uid)
        return pod is not None and volume in pod.control.ready_volumes()

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
                await self._run(pod, [Send(request)])
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
                break
            except ConnectionResetError:
                break
            finally:
                pod.answers.pop(key, None)
        async with pod.lock:
            pod.control.unpublished(volume)
            retry = pod.timers.pop(volume, None)
            if retry is not None:
                retry.cancel()

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

    async def _stop(self, pod: _Pod) -> None:
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

    async def _accept(self, pod: _Pod, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, for one: it passes
                log.error("Pod %s: a sidecar could not be accepted: %s", pod.control.pod_uid, error)
                await asyncio.sleep(_ACCEPT_AGAIN)
                continue
            if len(pod.tasks) >= _MOST_CONNECTIONS:
                connection.close()
                continue
            self._start(pod, self._serve(pod, Connection(connection)))

    def _start(self, pod: _Pod, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"control session {pod.control.pod_uid}")
        pod.tasks.add(task)
        task.add_done_callback(pod.tasks.discard)

    async def _serve(self, pod: _Pod, connection: Connection) -> None:
        pod_uid = pod.control.pod_uid
        try:
            connection.peer = peer = await asyncio.to_thread(authenticate, connection.socket, pod_uid)
            async with asyncio.timeout(_HELLO_WITHIN):
                hello = await self._hello(connection)
            former = await self._former_that_lives(pod, peer, hello)
            async with pod.lock:
                if not await self._open_session(pod, connection, hello, former):
                    return
            log.info(
                "Pod %s: sidecar %s is connected (process %d%s).",
                pod_uid,
                hello.version[:40],
                peer.pid,
                ", of the pod by its cgroup" if peer.proven else "",
            )
            await self._session(pod, connection)
        except (frames.BadFrame, ForeignPeer) as error:
            log.warning("Pod %s: control connection closed. %s", pod_uid, error)
        except TimeoutError:
            log.warning("Pod %s: control connection closed. No HELLO came in time.", pod_uid)
        except OSError as error:
            log.info("Pod %s: control connection broke: %s", pod_uid, error)
        finally:
            # Not under the lock: a cancelled task must not wait, and nothing here awaits.
            if pod.connection is connection:
                self._session_ended(pod)
            if connection.peer is not None and pod.peer is not connection.peer:
                connection.peer.close()
            connection.close()

    def _session_ended(self, pod: _Pod) -> None:
        pod.connection = None
        pod.control.disconnected()
        log.info("Pod %s: the sidecar's session ended.", pod.control.pod_uid)
        for future in pod.answers.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the session ended"))
        if not pod.control.ending:
            self._later(pod, "", AWAY_SECONDS, lambda: pod.control.away(AWAY_SECONDS))

    async def _hello(self, connection: Connection) -> frames.Hello:
        packet = await connection.receive()
        packet.close()
        if not packet.data:
            raise ConnectionResetError("it ended before HELLO")
        hello = frames.decode(packet.data)
        if not isinstance(hello, frames.Hello):
            raise frames.BadFrame("The first frame is not HELLO.")
        return hello

    async def _former_that_lives(self, pod: _Pod, peer: Peer, hello: frames.Hello) -> bool:
        """Whether the process of the last session is another one than this and does not end in a few seconds."""
        former = pod.peer
        if former is None or former.is_same_process(peer) or former.pidfd is None or former.is_dead():
            return False
        if pod.connection is not None and pod.control.session != hello.session:
            return False  # refused in any case, and at once
        return not await ended(former.pidfd, FORMER_ENDS_WITHIN)

    async def _open_session(self, pod: _Pod, connection: Connection, hello: frames.Hello, former_lives: bool) -> bool:
        refusal = pod.control.refusal(hello)
        if refusal is None and former_lives:
            refusal = "The former sidecar of this pod has not ended; there is one at a time."
        if refusal is not None:
            await connection.send(frames.refused(refusal))
            log.warning("Pod %s: a sidecar was refused. %s", pod.control.pod_uid, refusal)
            return False
        actions = pod.control.hello(hello)
        former, pod.connection = pod.connection, connection
        if former is not None:
            former.shut_down()  # its task sees the end and is no longer the session
        if pod.peer is not None and (former is None or pod.peer is not former.peer):
            pod.peer.close()  # its task is gone, nobody else does
        pod.peer = connection.peer
        await self._run(pod, actions)
        return True

    async def _session(self, pod: _Pod, connection: Connection) -> None:
        unknown: set[str] = set()
        while True:
            packet = await connection.receive()
            try:
                if not packet.data:
                    return
                frame = frames.decode(packet.data, pod.control.proto)
                if frame is None:
                    kind = frames.kind(packet.data)
                    if kind not in unknown and len(unknown) < 100:
                        unknown.add(kind)
                        log.info("Pod %s: frames of type %s are unknown here and ignored.", pod.control.pod_uid, kind)
                    continue
                async with pod.lock:
                    if pod.connection is not connection:
                        return
                    await self._run(pod, pod.control.frame(frame), packet)
            finally:
                packet.close()

    # --- actions -----------------------------------------------------------------------------------------------

    async def _run(self, pod: _Pod, actions: list[Action], packet: Packet | None = None) -> None:
        """Carry out actions in order, under the pod's lock; `packet` is the one that caused them. A broken connection ends
        the session, not the caller."""
        pod_uid = pod.control.pod_uid
        for action in actions:
            match action:
                case Send(frame, descriptor_of):
                    await self._send(pod, frame, descriptor_of)
                case Store(volume, generation, ready):
                    await asyncio.to_thread(self._store, pod_uid, volume, generation, ready)
                case Mount(volume):
                    await self._run(pod, pod.control.mounted(volume, await self._mount(pod_uid, volume)))
                case Keep():
                    await self._keep(pod_uid, action, packet)
                case Notify(reason, volume, message):
                    self._notify(reason, pod_uid, volume, message)
                case Account(restarts, stall, replayed):
                    self._account(restarts, stall, replayed)
                case RetryAfter(volume, generation, seconds):
                    self._retry_later(pod, volume, generation, seconds)
                case DecideEnd():
                    await self._decide_end(pod)
                case Answered(answer):
                    future = pod.answers.get((type(answer), answer.volume, answer.generation))
                    if future is not None and not future.done():
                        future.set_result(answer)
                case Ignored(reason):
                    log.info("Pod %s: %s", pod_uid, reason)
                case Close(reason):
                    raise frames.BadFrame(reason)

    def _store(self, pod_uid: str, volume: str, generation: int, ready: bool) -> None:
        self._states.update(pod_uid, volume, generation=generation, ready=ready)

    async def _mount(self, pod_uid: str, volume: str) -> str | None:
        try:
            await asyncio.to_thread(self._custody.mount, pod_uid, volume)
        except OSError as error:
            return f"The node service could not mount it: {error}."
        return None

    async def _keep(self, pod_uid: str, keep: Keep, packet: Packet | None) -> None:
        try:
            descriptor = packet.take() if packet is not None else -1
        except ValueError as error:
            log.warning("Pod %s: the DEPOSIT of volume %s is dropped: %s.", pod_uid, keep.volume, error)
            return
        reason = await asyncio.to_thread(self._custody.deposit, pod_uid, keep.volume, keep.init, descriptor)
        if reason is not None:
            log.warning("Pod %s: the descriptor of volume %s is not kept: %s.", pod_uid, keep.volume, reason)

    async def _decide_end(self, pod: _Pod) -> None:
        cgroup = pod.peer.cgroup if pod.peer is not None else ""
        keep = await asyncio.to_thread(others_live, pod.control.pod_uid, cgroup)
        log.info(
            "Pod %s: the sidecar ends; its mounts %s.",
            pod.control.pod_uid,
            "stay for its successor, because containers of the pod live" if keep else "go, because the pod ends",
        )
        pod.control.ending = not keep  # else a successor that does not come is worth telling
        await self._send(pod, frames.end(keep))

    async def _send(self, pod: _Pod, frame: dict[str, Any], descriptor_of: str | None = None) -> None:
        connection, descriptor = pod.connection, -1
        if connection is None:
            return
        try:
            if descriptor_of is not None:
                descriptor = await asyncio.to_thread(self._custody.duplicate, pod.control.pod_uid, descriptor_of)
            await connection.send(frame, descriptor if descriptor >= 0 else None)
        except frames.BadFrame as error:
            log.error("Pod %s: %s", pod.control.pod_uid, error)
        except OSError as error:
            log.info(
                "Pod %s: cannot send %s: %s", pod.control.pod_uid, frame["type"], error or "the sidecar reads nothing"
            )
            connection.shut_down()
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _retry_later(self, pod: _Pod, volume: str, generation: int, seconds: float) -> None:
        self._later(pod, volume, seconds, lambda: pod.control.retry_due(volume, generation))

    def _later(self, pod: _Pod, key: str, seconds: float, transition: Callable[[], list[Action]]) -> None:
        """Carry out a transition after so many seconds; one that waits under the same key is replaced."""
        former = pod.timers.pop(key, None)
        if former is not None:
            former.cancel()

        def due() -> None:
            pod.timers.pop(key, None)
            self._start(pod, self._locked(pod, transition))

        pod.timers[key] = asyncio.get_running_loop().call_later(seconds, due)

    async def _locked(self, pod: _Pod, transition: Callable[[], list[Action]]) -> None:
        try:
            async with pod.lock:
                await self._run(pod, transition())
        except OSError as error:
            log.error("Pod %s: a mount could not be tried again: %s", pod.control.pod_uid, error)
