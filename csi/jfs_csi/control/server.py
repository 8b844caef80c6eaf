"""The sockets of all pods' control directories: accepts sidecars, feeds `PodControl`, carries out its actions.

One listening socket per pod with published volumes, one task per connection. A pod's state is touched under that pod's
lock only (`lock`), which publish and unpublish hold too; actions run in order under it, blocking ones in threads. While
an unpublish waits for an answer it must not hold the lock: `release` takes and gives it back itself.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from jfs_api import names

from jfs_csi.control import frames
from jfs_csi.control.peer import ForeignPeer, authenticate
from jfs_csi.control.pod import (
    Action,
    Answered,
    Close,
    Ignored,
    Notify,
    PodControl,
    RetryAfter,
    Send,
    Store,
)
from jfs_csi.directories import Tree
from jfs_csi.layout import Layout
from jfs_csi.state import DATA, StateStore

log = logging.getLogger(__name__)

_SO_SNDBUFFORCE = 32
_HELLO_WITHIN = 10.0  # seconds until a connection must have said HELLO
_ACCEPT_AGAIN = 1.0
_SEND_WITHIN = 2.0  # seconds until a packet must have found room in the socket's buffer


@dataclass(slots=True)
class _Pod:
    control: PodControl
    lock: asyncio.Lock
    listener: socket.socket | None = None
    acceptor: asyncio.Task[None] | None = None
    connection: socket.socket | None = None  # of the session
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    retries: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    answers: dict[tuple[type, str, int], asyncio.Future[Any]] = field(default_factory=dict)


class ControlServer:
    """`notify(reason, pod UID, volume, message)` reports events; it must not block."""

    def __init__(
        self,
        tree: Tree,
        layout: Layout,
        states: StateStore,
        node: str,
        notify: Callable[[str, str, str, str], None],
    ) -> None:
        self._tree, self._layout, self._states, self._node, self._notify = tree, layout, states, node, notify
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
            pod = self._pods[pod_uid] = _Pod(PodControl(self._node, pod_uid), self.lock(pod_uid))
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
        self, pod_uid: str, volume: str, read_only: bool, options: tuple[str, ...], secrets: dict[str, Any]
    ) -> None:
        """A data volume was published, or again."""
        pod = self._pod(pod_uid)
        state = self._states.get(pod_uid, volume)
        generation = 0 if state is None else state.generation
        await self._run(pod, pod.control.published(volume, read_only, options, secrets, generation))

    def restore(self, pod_uid: str) -> None:
        """Take over the volumes of the pod's state files, after a restart."""
        control = self._pod(pod_uid).control
        for state in self._states.of_pod(pod_uid):
            if state.kind == DATA:
                control.restore(state.volume, state.read_only, state.options, state.generation, state.ready)

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
            retry = pod.retries.pop(volume, None)
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
        for retry in pod.retries.values():
            retry.cancel()
        tasks = [*pod.tasks, *([pod.acceptor] if pod.acceptor else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
            task = asyncio.create_task(self._serve(pod, connection), name=f"control session {pod.control.pod_uid}")
            pod.tasks.add(task)
            task.add_done_callback(pod.tasks.discard)

    async def _serve(self, pod: _Pod, connection: socket.socket) -> None:
        pod_uid = pod.control.pod_uid
        with connection:
            try:
                _widen(connection)
                peer = await asyncio.to_thread(authenticate, connection, pod_uid)
                async with asyncio.timeout(_HELLO_WITHIN):
                    hello = await self._hello(connection)
                async with pod.lock:
                    if not await self._open_session(pod, connection, hello):
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
                    pod.connection = None
                    pod.control.disconnected()
                    log.info("Pod %s: the sidecar's session ended.", pod_uid)
                    for future in pod.answers.values():
                        if not future.done():
                            future.set_exception(ConnectionResetError("the session ended"))

    async def _hello(self, connection: socket.socket) -> frames.Hello:
        packet = await asyncio.get_running_loop().sock_recv(connection, frames.LIMIT + 1)
        if not packet:
            raise ConnectionResetError("it ended before HELLO")
        hello = frames.decode(packet)
        if not isinstance(hello, frames.Hello):
            raise frames.BadFrame("The first frame is not HELLO.")
        return hello

    async def _open_session(self, pod: _Pod, connection: socket.socket, hello: frames.Hello) -> bool:
        actions = pod.control.hello(hello)
        accepted = not any(isinstance(action, Close) for action in actions)
        if accepted:
            former, pod.connection = pod.connection, connection
            if former is not None:
                with contextlib.suppress(OSError):
                    former.shutdown(socket.SHUT_RDWR)  # its task sees the end and is no longer the session
            await self._run(pod, actions)
            return True
        for action in actions:
            if isinstance(action, Send):
                await asyncio.get_running_loop().sock_sendall(connection, frames.encode(action.frame))
            elif isinstance(action, Close):
                log.warning("Pod %s: a sidecar was refused. %s", pod.control.pod_uid, action.reason)
        return False

    async def _session(self, pod: _Pod, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        unknown: set[str] = set()
        while packet := await loop.sock_recv(connection, frames.LIMIT + 1):
            frame = frames.decode(packet)
            if frame is None:
                kind = frames.kind(packet)
                if kind not in unknown and len(unknown) < 100:
                    unknown.add(kind)
                    log.info("Pod %s: frames of type %s are unknown here and ignored.", pod.control.pod_uid, kind)
                continue
            async with pod.lock:
                if pod.connection is not connection:
                    return
                await self._run(pod, pod.control.frame(frame))

    # --- actions -----------------------------------------------------------------------------------------------

    async def _run(self, pod: _Pod, actions: list[Action]) -> None:
        """Carry out actions in order, under the pod's lock. A broken connection ends the session, not the caller."""
        pod_uid = pod.control.pod_uid
        for action in actions:
            match action:
                case Send(frame):
                    await self._send(pod, frame)
                case Store(volume, generation, ready):
                    await asyncio.to_thread(self._store, pod_uid, volume, generation, ready)
                case Notify(reason, volume, message):
                    self._notify(reason, pod_uid, volume, message)
                case RetryAfter(volume, generation, seconds):
                    self._retry_later(pod, volume, generation, seconds)
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

    async def _send(self, pod: _Pod, frame: dict[str, Any]) -> None:
        if pod.connection is None:
            return
        try:
            packet = frames.encode(frame)
            # A sidecar that does not read must not hold up the pod's publishes.
            async with asyncio.timeout(_SEND_WITHIN):
                await asyncio.get_running_loop().sock_sendall(pod.connection, packet)
        except frames.BadFrame as error:
            log.error("Pod %s: %s", pod.control.pod_uid, error)
        except OSError as error:
            log.info(
                "Pod %s: cannot send %s: %s", pod.control.pod_uid, frame["type"], error or "the sidecar reads nothing"
            )
            if pod.connection is not None:
                with contextlib.suppress(OSError):
                    pod.connection.shutdown(socket.SHUT_RDWR)

    def _retry_later(self, pod: _Pod, volume: str, generation: int, seconds: float) -> None:
        former = pod.retries.pop(volume, None)
        if former is not None:
            former.cancel()

        def due() -> None:
            pod.retries.pop(volume, None)
            task = asyncio.create_task(self._locked(pod, lambda: pod.control.retry_due(volume, generation)))
            pod.tasks.add(task)
            task.add_done_callback(pod.tasks.discard)

        pod.retries[volume] = asyncio.get_running_loop().call_later(seconds, due)

    async def _locked(self, pod: _Pod, transition: Callable[[], list[Action]]) -> None:
        try:
            async with pod.lock:
                await self._run(pod, transition())
        except OSError as error:
            log.error("Pod %s: a mount could not be tried again: %s", pod.control.pod_uid, error)


def _widen(connection: socket.socket) -> None:
    # A packet needs to fit the send buffer as a whole; FORCE passes wmem_max and needs CAP_NET_ADMIN.
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * frames.LIMIT)
    except PermissionError:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * frames.LIMIT)
