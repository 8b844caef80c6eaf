"""Parts that restart while volumes are in use: the application notices nothing, and what ends then is still cleaned up."""

import time

import pytest
from jfs_api import names

from e2e import install
from e2e.cluster import until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

# Appends a number and reads it back, for ever; a failure of either is recorded outside the volume.
COUNTER = """trap exit TERM
n=0
while true; do
  n=$((n+1))
  echo $n >>/data/numbers || echo "write $n" >>/tmp/failures
  [ "$(tail -n 1 /data/numbers)" = $n ] || echo "read $n" >>/tmp/failures
done"""


def progress(scenario: Scenario, pod: str = "counter", lines: int = 20) -> None:
    """Wait until the pod has written some more lines; none may be missing and no operation may have failed."""

    def count() -> int:
        return int(scenario.sh(pod, "wc -l </data/numbers"))

    # a kubelet that restarts refuses `exec` for a moment
    before = until("the counter to answer", count)
    until("the counter to go on", lambda: count() >= before + lines)
    assert scenario.sh(pod, "cat /tmp/failures 2>/dev/null || true") == ""


def started(scenario: Scenario) -> None:
    files = scenario.volume()
    scenario.pod("counter", {files: "/data"}, COUNTER)
    until("the first line", lambda: scenario.sh("counter", "test -s /data/numbers && echo yes"))
    progress(scenario)


def ends_cleanly(scenario: Scenario) -> None:
    uid = scenario.uid("counter")
    scenario.delete("counter")
    scenario.gone(uid)
    assert scenario.sessions() == 0


def test_node_service_restarted_under_load(scenario: Scenario) -> None:
    started(scenario)
    system = scenario.cluster.kubectl(install.NAMESPACE)
    system("delete", "pod", "-l", "app.kubernetes.io/component=node", "--force", "--grace-period=0")
    progress(scenario)
    system("rollout", "status", "daemonset/juicefs-node", "--timeout=180s")
    progress(scenario)

    # a pod that comes now is served by the new node service, and the old pod's end as well
    scenario.pod("later", {"files": "/data"})
    assert int(scenario.sh("later", "wc -l </data/numbers")) > 20
    scenario.delete("later")
    ends_cleanly(scenario)


def test_pod_deleted_while_node_service_is_away(scenario: Scenario) -> None:
    """The pod ends when the node service is back, which knows it only from its state files and the mount table."""
    started(scenario)
    uid = scenario.uid("counter")
    system = scenario.cluster.kubectl(install.NAMESPACE)
    nowhere = '{"spec":{"template":{"spec":{"nodeSelector":{"juicefs.io/nowhere":"true"}}}}}'
    system("patch", "daemonset/juicefs-node", "-p", nowhere)
    until("the node service to be away", lambda: not system.items("pods", "-l", "app.kubernetes.io/component=node"))

    scenario.delete("counter", "--wait=false")
    sidecar = names.SIDECAR_CONTAINER

    def ended() -> bool:
        statuses = scenario.kubectl.get("pod", "counter")["status"].get("initContainerStatuses", [])
        return any(s["name"] == sidecar and "terminated" in s["state"] for s in statuses)

    until("the sidecar to end", lambda: scenario.kubectl.find("pod", "counter") is None or ended())
    system(
        "patch",
        "daemonset/juicefs-node",
        "--type=json",
        "-p",
        '[{"op":"remove","path":"/spec/template/spec/nodeSelector"}]',
    )
    system("rollout", "status", "daemonset/juicefs-node", "--timeout=180s")
    until("the pod to be gone", lambda: scenario.kubectl.find("pod", "counter") is None)
    scenario.gone(uid)


def test_kubelet_restarted(scenario: Scenario) -> None:
    started(scenario)
    scenario.cluster.restart("kubelet")
    progress(scenario)

    # the new kubelet asks for registration again and publishes every volume again
    scenario.pod("later", {"files": "/data"})
    progress(scenario)
    statuses = scenario.kubectl.get("pod", "counter")["status"]
    restarts = [s["restartCount"] for s in (*statuses["initContainerStatuses"], *statuses["containerStatuses"])]
    assert restarts == [0, 0]
    scenario.delete("later")
    ends_cleanly(scenario)


def test_operator_restarted_during_reconcile(scenario: Scenario) -> None:
    """Killed at several moments of making five volumes, it finishes each, and makes nothing twice."""
    volumes = [f"volume{number}" for number in range(5)]
    system = scenario.cluster.kubectl(install.NAMESPACE)
    for name in volumes:
        scenario.volume(name, ready=False)
    for _ in range(2):
        system("delete", "pod", "-l", "app.kubernetes.io/component=operator", "--force", "--grace-period=0")
        system("rollout", "status", "deployment/juicefs-operator", "--timeout=180s")
    for name in volumes:
        scenario.ready(name)

    everywhere = scenario.cluster.kubectl()
    claims = [pv["spec"]["claimRef"] for pv in everywhere.items("pv") if "claimRef" in pv["spec"]]
    bound = sorted(claim["name"] for claim in claims if claim["namespace"] == scenario.name)
    assert bound == volumes
    scenario.pod("app", {name: f"/{name}" for name in volumes})
    scenario.sh("app", "for v in /volume*; do echo here >$v/file || exit 1; done")


def test_sidecar_restarted(scenario: Scenario) -> None:
    """The sidecar is killed: the kubelet starts it again and the volume comes back in the running application."""
    files = scenario.volume()
    scenario.pod("app", {files: "/data"})
    scenario.sh("app", "echo before >/data/file")
    uid = scenario.uid("app")
    workers = [number for number, command in scenario.cluster.pod_processes(uid) if "jfs" in command]
    assert workers
    for number in workers:
        scenario.cluster.kill(number)

    def back() -> bool:
        return scenario.sh("app", "cat /data/file 2>/dev/null || true") == "before"

    started_waiting = time.monotonic()
    until("the volume to come back", back)
    print(f"back after {time.monotonic() - started_waiting:.1f} s")
    scenario.sh("app", "echo after >/data/file")
    scenario.delete("app")
    scenario.gone(uid)
