"""Sessions of sidecars: from an accepted connection to its end.

A connection is authenticated, says HELLO, and is heard only when the process of the former session is proven dead by its
pidfd: two sidecars never serve one volume. Every step that touches the pod's state holds its lock.
"""

import asyncio
import logging

from jfs_csi.control import frames
from jfs_csi.control.carrier import Carrier
from jfs_csi.control.connection import Connection, ended
from jfs_csi.control.peer import ForeignPeer, Peer, authenticate
from jfs_csi.control.running import RunningPod

log = logging.getLogger(__name__)

_HELLO_WITHIN = 10.0  # seconds until a connection must have said HELLO
FORMER_ENDS_WITHIN = 5.0  # seconds that a new sidecar waits for the death of the former one
_ENDING_COSTS = 20  # frames; it is answered by looking at every process of the node
_QUIET = 10.0  # seconds in which what goes wrong with a pod's connections is not told again
AWAY_SECONDS = 5.0  # until a sidecar's death is told, should no other have come


class Sessions:
    """See the module."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    async def serve(self, pod: RunningPod, connection: Connection) -> None:
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
            self._complain(pod, logging.WARNING, f"control connection closed. {error}")
        except TimeoutError:
            self._complain(pod, logging.WARNING, "control connection closed. No HELLO came in time.")
        except OSError as error:
            self._complain(pod, logging.INFO, f"control connection broke: {error}")
        finally:
            # Not under the lock: a cancelled task must not wait, and nothing here awaits.
            if pod.connection is connection:
                self._session_ended(pod)
            if connection.peer is not None and pod.peer is not connection.peer:
                connection.peer.close()
            connection.close()

    def _complain(self, pod: RunningPod, level: int, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if now < pod.quiet_until:
            level = logging.DEBUG
        else:
            pod.quiet_until = now + _QUIET
        log.log(level, "Pod %s: %s", pod.control.pod_uid, text)

    def _session_ended(self, pod: RunningPod) -> None:
        pod.connection = None
        pod.control.disconnected()
        self._carrier.changed()
        log.info("Pod %s: the sidecar's session ended.", pod.control.pod_uid)
        for future in pod.answers.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the session ended"))
        if not pod.control.ending:
            self._carrier.later(pod, "", AWAY_SECONDS, lambda: pod.control.away(AWAY_SECONDS))

    async def _hello(self, connection: Connection) -> frames.Hello:
        packet = await connection.receive()
        packet.close()
        if not packet.data:
            raise ConnectionResetError("it ended before HELLO")
        hello = frames.decode(packet.data)
        if not isinstance(hello, frames.Hello):
            raise frames.BadFrame("The first frame is not HELLO.")
        return hello

    async def _former_that_lives(self, pod: RunningPod, peer: Peer, hello: frames.Hello) -> bool:
        """Whether the process of the last session is another one than this and does not end in a few seconds."""
        former = pod.peer
        if former is None or former.is_same_process(peer) or former.pidfd is None or former.is_dead():
            return False
        if pod.connection is not None and pod.control.session != hello.session:
            return False  # refused in any case, and at once
        return not await ended(former.pidfd, FORMER_ENDS_WITHIN)

    async def _open_session(
        self, pod: RunningPod, connection: Connection, hello: frames.Hello, former_lives: bool
    ) -> bool:
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
        await self._carrier.run(pod, actions)
        return True

    async def _session(self, pod: RunningPod, connection: Connection) -> None:
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
                if isinstance(frame, frames.Ending):
                    connection.charge(_ENDING_COSTS)
                async with pod.lock:
                    if pod.connection is not connection:
                        return
                    await self._carrier.run(pod, pod.control.frame(frame), packet)
            finally:
                packet.close()
