"""Carries out the plan of a round: at each fault's time finds the part's processes, signals them, and wakes paused ones in time.

One loop in one thread; the times are the plan's, what they meet is the machine's. A part that is not there at its time, because it is
being started again, is left out and counted so. Whatever is paused when the loop ends, by an error too, is woken.
"""

import heapq
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.chaos.parts import Parts, Process, send
from e2e.chaos.plan import Fault
from e2e.cluster import Cluster, KubectlError
from e2e.install import NAMESPACE
from e2e.progress import say

DONE, ABSENT = "done", "not there"
_PATIENCE = 120.0  # until descriptors that a new keeper has to get are there
_END_SECONDS = 120.0
_TICK = 15.0


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault with the time (time.time()) at which it happened, and `DONE` or why not."""

    fault: Fault
    at: float
    outcome: str


@dataclass
class Injector:
    cluster: Cluster
    parts: Parts
    progress: Callable[[], str]  # of the application, in a few words
    failures: list[str]
    injected: list[Injected] = field(default_factory=list)
    _paused: list[tuple[float, int, list[Process]]] = field(default_factory=list)

    def run(self, faults: Iterable[Fault], seconds: float) -> list[Injected]:
        """Returns after `seconds`; faults that come too late then are not in the list."""
        started = time.monotonic()
        try:
            for fault in faults:
                self._until(started, min(fault.at, seconds))
                if time.monotonic() - started >= seconds:
                    break
                outcome = self._inject(fault)
                self.injected.append(Injected(fault, time.time(), outcome))
                say(f"{time.monotonic() - started:6.1f} s  {fault}{'' if outcome == DONE else f': {outcome}'}")
            self._until(started, seconds)
        finally:
            self._wake(float("inf"))
        return self.injected

    def _until(self, started: float, at: float) -> None:
        """Waits for a moment of the round; wakes who is paused and says how it goes meanwhile."""
        while True:
            now = time.monotonic()
            self._wake(now)
            if now - started >= at:
                return
            wake = self._paused[0][0] if self._paused else now + _TICK
            time.sleep(max(0.0, min(started + at, wake, now + _TICK) - now))
            if time.monotonic() - now >= _TICK or time.monotonic() - self._told >= _TICK:
                self._told = time.monotonic()
                say(f"{self._told - started:6.1f} s  {self.progress()}")

    _told: float = field(default_factory=time.monotonic)

    def _wake(self, now: float) -> None:
        while self._paused and self._paused[0][0] <= now:
            send(heapq.heappop(self._paused)[2], signal.SIGCONT)

    def _inject(self, fault: Fault) -> str:
        if fault.action == "delete":
            return self._delete(fault)
        found = self._victims(fault)
        if not found:
            return ABSENT
        if fault.action == "pause":
            send(found, signal.SIGSTOP)
            heapq.heappush(self._paused, (time.monotonic() + fault.seconds, found[0].number, found))
            return DONE
        if fault.part in ("supervisor", "node", "holder"):
            lost = self._await_keepers(fault, lambda: self._victims(fault))
            if lost:
                return lost
            found = self._victims(fault)
        send(found, signal.SIGKILL)
        return DONE

    def _victims(self, fault: Fault) -> list[Process]:
        found = self.parts.find(fault.part, fault.pod)
        if fault.part == "postgres" or not found:  # all of it: each connection has a process
            return found
        return [found[fault.which % len(found)]]

    def _await_keepers(self, fault: Fault, victims: Callable[[], Sequence[Process]]) -> str:
        """Waits until another process has each connection's descriptor, for to lose all is no promise; empty when that is so."""
        deadline = time.monotonic() + _PATIENCE
        while lost := self.parts.last_keepers(victims(), fault.part, fault.pod):
            if time.monotonic() > deadline:
                self.failures.append(
                    f"before `{fault}` nobody else had a descriptor of the connection of {lost} for {_PATIENCE:.0f} s"
                )
                return f"the last one with {lost}'s connection"
            self._wake(time.monotonic())
            time.sleep(0.05)
        return ""

    def _delete(self, fault: Fault) -> str:
        system = self.cluster.kubectl(NAMESPACE)
        component = "node" if fault.part == "holder" else fault.part

        def both() -> list[Process]:
            return [*self.parts.find("node"), *self.parts.find("holder")]

        if component == "node" and (lost := self._await_keepers(fault, both)):
            return lost
        ending = both() if component == "node" else []
        try:
            pods = system("get", "pods", "-l", f"app.kubernetes.io/component={component}", "-o", "name").split()
            if not pods:
                return ABSENT
            pod = pods[fault.which % len(pods)]
            system("delete", pod, "--force", "--grace-period=0", "--wait=false")
        except KubectlError as error:  # a paused webhook or kubelet does not hinder it, a pod that has just gone does
            return f"{ABSENT}: {error}"
        self._await_end(ending)
        return DONE

    def _await_end(self, processes: Sequence[Process]) -> None:
        """The kubelet ends a deleted pod's containers when it comes to it; until then nobody knows who keeps what."""
        deadline = time.monotonic() + _END_SECONDS
        while any(Path(f"/proc/{process.number}").exists() for process in processes):
            if time.monotonic() > deadline:
                self.failures.append(f"a deleted pod of the node service did not end in {_END_SECONDS:.0f} s")
                return
            self._wake(time.monotonic())
            time.sleep(0.05)
