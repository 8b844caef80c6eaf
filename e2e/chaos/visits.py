"""Visits: while faults go on, volumes are made, pods with them and with the shared one are started, used, deleted, and the volumes too.

Runs in a thread of its own, one visit after the other. Every request is repeated until it is accepted, as a controller would do it, because
API server, webhook and kubelet may refuse for a moment; what is accepted has to come true.
"""

import threading
import time
from dataclasses import dataclass, field

from e2e import documents
from e2e.chaos.world import VISITS, Volume, World
from e2e.cluster import KubectlError, Timeout, until

_SECONDS = 300.0  # of each step; the kubelet's and the operator's delays after kills add up


@dataclass
class Visits:
    """Use as a context: visits begin with it, and leaving it waits until the last one has ended."""

    world: World
    failures: list[str]
    number: int = 0  # begun so far, in all rounds
    durations: list[float] = field(default_factory=list)  # seconds of those that ended well
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Visits":
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="visits")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.number += 1
            started = time.monotonic()
            try:
                self._visit(self.number)
            except (KubectlError, Timeout) as error:
                self.failures.append(f"visit {self.number}: {error}")
            else:
                self.durations.append(time.monotonic() - started)

    def _visit(self, number: int) -> None:
        scenario, kubectl = self.world.scenario, self.world.scenario.kubectl
        name, pod = f"visited{number}", f"visitor-{number}"
        mode = "restricted" if number % 2 else "privileged"
        volume = Volume("redis", mode, VISITS + number)

        def made() -> bool:
            self.world.make_volume(name, volume, reclaimPolicy="Delete")
            return True

        def ready() -> bool:
            return scenario.condition(name, "Ready")[0] == "True"

        def started() -> bool:
            kubectl.apply(documents.pod(pod, mounts={name: "/mine", "shared": "/shared"}))
            return True

        def runs() -> bool:
            conditions = kubectl.get("pod", pod)["status"].get("conditions", ())
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        def works() -> bool:
            script = f"echo {number} >/mine/file && cat /mine/file && ls /shared >/dev/null"
            return scenario.sh(pod, script) == str(number)

        def deleted() -> bool:
            scenario.delete(pod, "--ignore-not-found", f"--timeout={_SECONDS:.0f}s")
            return True

        def removed() -> bool:
            kubectl("delete", "jfsv", name, "--ignore-not-found", f"--timeout={_SECONDS:.0f}s")
            kubectl("delete", "secret", f"{name}-credentials", "--ignore-not-found")
            return True

        until(f"the volume {name} to be accepted", made, _SECONDS)
        until(f"the volume {name} to be ready", ready, _SECONDS)
        until(f"the pod {pod} to be accepted", started, _SECONDS)
        uid = str(until("its UID", lambda: scenario.uid(pod)))
        until(f"the pod {pod} to be ready", runs, _SECONDS)
        until(f"the pod {pod} to use its volumes", works, _SECONDS)
        until(f"the pod {pod} to be deleted", deleted, _SECONDS)
        scenario.gone(uid)
        until(f"the volume {name} to be deleted", removed, _SECONDS)
