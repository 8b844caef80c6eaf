"""Pods can always be deleted: with a back end that hangs, a sidecar that is stopped, an application stuck in the kernel.

The dangerous case is a request that the sidecar has read and not answered: its process cannot be killed, and the kubelet
unpublishes only when all processes have ended. How long each pod took is printed; the bound of SEMANTICS is its grace
period and ten seconds.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jfs_api import names

from e2e import documents, install
from e2e.cluster import Cluster, until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

# Asks the database all the time, so that a request of its is always under way.
ASKING = "trap exit TERM; echo x >/data/file; while true; do stat /data/nothing.$RANDOM; done >/dev/null 2>&1"
MODES = (names.PRIVILEGED, names.RESTRICTED)


@contextlib.contextmanager
def hung_database(cluster: Cluster) -> Iterator[None]:
    """The Redis server of all scenarios accepts connections and answers nobody."""
    (pod,) = cluster.kubectl(install.BACKENDS_NAMESPACE).items("pods", "-l", "app=redis")
    servers = [number for number, command in cluster.pod_processes(pod["metadata"]["uid"]) if "redis-server" in command]
    assert servers
    for number in servers:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in servers:
            os.kill(number, signal.SIGCONT)


def stuck(scenario: Scenario, pods: list[str]) -> None:
    """Wait until a process of each application waits for an answer of its file system."""

    def in_the_kernel(pod: str) -> bool:
        for number, command in scenario.cluster.pod_processes(uids[pod]):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if "jfs" not in command and Path(f"/proc/{number}/wchan").read_text() == "request_wait_answer":
                    return True
        return False

    uids = {pod: scenario.uid(pod) for pod in pods}
    until("applications to be stuck", lambda: all(in_the_kernel(pod) for pod in pods))


def test_pods_end_whatever_hangs(scenario: Scenario) -> None:
    """A hung database, then a sidecar stopped with requests in its hands; deleted, by force, and ended by its deadline."""
    pods: list[str] = []
    for mode in MODES:
        volume = scenario.volume(mode, ready=False, sidecar={"mode": mode})
        for kind in ("hung", "stopped", "forced", "late"):
            more = {"activeDeadlineSeconds": 3600} if kind == "late" else {}
            scenario.kubectl.apply(documents.pod(f"{kind}-{mode}", ASKING, {volume: "/data"}, **more))
            pods.append(f"{kind}-{mode}")
    for pod in pods:
        scenario.kubectl.wait(f"pod/{pod}", "condition=Ready", seconds=400)  # eight sidecars start at once
    uids = {pod: scenario.uid(pod) for pod in pods}

    with hung_database(scenario.cluster):
        stuck(scenario, pods)
        for pod in pods:
            for number, command in scenario.cluster.pod_processes(uids[pod]):
                if not pod.startswith("hung") and "jfs" in command:
                    os.kill(number, signal.SIGSTOP)
        began = time.monotonic()
        for pod in pods:
            if pod.startswith("late"):
                scenario.kubectl("patch", "pod", pod, "-p", '{"spec":{"activeDeadlineSeconds":1}}')
            else:
                force = ("--force", "--grace-period=0") if pod.startswith("forced") else ()
                scenario.delete(pod, "--wait=false", *force)
        took: dict[str, float] = {}

        def all_gone() -> bool:
            for pod in pods:
                left = scenario.left_of(uids[pod])
                if pod.startswith("late"):  # its object stays, and with it the kubelet's directory
                    left = [line for line in left if not line.startswith("directory: /var/lib/kubelet/pods/")]
                if pod not in took and not left:
                    took[pod] = time.monotonic() - began
            return len(took) == len(pods)

        until("nothing to be left of any pod", all_gone, pause=1)
        print("seconds until nothing was left:", {pod: round(seconds, 1) for pod, seconds in took.items()})
        ended = [pod for pod in pods if not pod.startswith("late")]
        until("the pods to be gone", lambda: not any(scenario.kubectl.find("pod", pod) for pod in ended))
