"""Carries out what the state machine decided: frames, state files, mounts, descriptors, events, retries.

Always under the pod's lock and in order; what may block runs in threads. Errors of one action end the session or are told,
they never reach the caller half-way through the others, except a broken protocol (`frames.BadFrame`).
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

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
from jfs_csi.control.processes import others_live
from jfs_csi.control.running import RunningPod
from jfs_csi.fuse.custody import Custody
from jfs_csi.fuse.passing import Packet
from jfs_csi.state import StateStore

log = logging.getLogger(__name__)


class Carrier:
    """`notify(reason, pod UID, volume, message)` reports events, `account(restarts, stall seconds, replayed requests)`
    counts takeovers, `changed` hears that the state of an attachment may be another one; none may block."""

    def __init__(
        self,
        states: StateStore,
        custody: Custody,
        notify: Callable[[str, str, str, str], None],
        account: Callable[[int, float, int], None],
        changed: Callable[[], None],
    ) -> None:
        self._states, self._custody, self._notify, self._account = states, custody, notify, account
        self.changed = changed

    async def run(self, pod: RunningPod, actions: list[Action], packet: Packet | None = None) -> None:
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
                    await self.run(pod, pod.control.mounted(volume, await self._mount(pod_uid, volume)))
                case Keep():
                    await self._keep(pod, action, packet)
                case Notify(reason, volume, message):
                    self._notify(reason, pod_uid, volume, message)
                case Account(volume, restarts, stall, replayed):
                    self._account(restarts, stall, replayed)
                    await asyncio.to_thread(self._states.taken_over, pod_uid, volume, restarts, stall)
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
        self.changed()

    def _store(self, pod_uid: str, volume: str, generation: int, ready: bool) -> None:
        self._states.update(pod_uid, volume, generation=generation, ready=ready)

    async def _mount(self, pod_uid: str, volume: str) -> str | None:
        try:
            await asyncio.to_thread(self._custody.mount, pod_uid, volume)
        except OSError as error:
            return f"The node service could not mount it: {error}."
        return None

    async def _keep(self, pod: RunningPod, keep: Keep, packet: Packet | None) -> None:
        pod_uid = pod.control.pod_uid
        try:
            descriptor = packet.take() if packet is not None else -1
        except ValueError as error:
            log.warning("Pod %s: the DEPOSIT of volume %s is dropped: %s.", pod_uid, keep.volume, error)
            return
        reason = await asyncio.to_thread(self._custody.deposit, pod_uid, keep.volume, keep.init, descriptor)
        if reason is not None:
            log.warning("Pod %s: the descriptor of volume %s is not kept: %s.", pod_uid, keep.volume, reason)
            if self._custody.is_unclaimed(pod_uid, keep.volume):
                # The sidecar serves a former mount, and nobody the one that took its place.
                await self.run(pod, pod.control.remounted(keep.volume))

    async def _decide_end(self, pod: RunningPod) -> None:
        cgroup = pod.peer.cgroup if pod.peer is not None else ""
        keep = await asyncio.to_thread(others_live, pod.control.pod_uid, cgroup)
        log.info(
            "Pod %s: the sidecar ends; its mounts %s.",
            pod.control.pod_uid,
            "stay for its successor, because containers of the pod live" if keep else "go, because the pod ends",
        )
        pod.control.ending = not keep  # else a successor that does not come is worth telling
        await self._send(pod, frames.end(keep))

    async def _send(self, pod: RunningPod, frame: dict[str, Any], descriptor_of: str | None = None) -> None:
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

    def _retry_later(self, pod: RunningPod, volume: str, generation: int, seconds: float) -> None:
        self.later(pod, volume, seconds, lambda: pod.control.retry_due(volume, generation))

    def later(self, pod: RunningPod, key: str, seconds: float, transition: Callable[[], list[Action]]) -> None:
        """Carry out a transition after so many seconds; one that waits under the same key is replaced."""
        former = pod.timers.pop(key, None)
        if former is not None:
            former.cancel()

        def due() -> None:
            pod.timers.pop(key, None)
            pod.start(self._locked(pod, transition))

        pod.timers[key] = asyncio.get_running_loop().call_later(seconds, due)

    async def _locked(self, pod: RunningPod, transition: Callable[[], list[Action]]) -> None:
        try:
            async with pod.lock:
                await self.run(pod, transition())
        except OSError as error:
            log.error("Pod %s: a mount could not be tried again: %s", pod.control.pod_uid, error)
