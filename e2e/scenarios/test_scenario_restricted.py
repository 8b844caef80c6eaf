"""A namespace whose PodSecurity level is `restricted`: the sidecar has no rights at all, may die and may be replaced, and the
application works on with the files it has open.
"""

from pathlib import Path

import pytest
from jfs_api import names

from e2e import documents, images, install
from e2e.cluster import Document, until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

LEVEL = "pod-security.kubernetes.io/enforce=restricted"
POD = {"securityContext": {"runAsUser": 1000, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}
CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# Appends a number to a file that stays open, reads it back, and makes a directory, for ever.
COUNTER = """trap exit TERM
exec 3>>/data/numbers
n=0
while true; do
  n=$((n+1))
  echo $n >&3 || echo "write $n" >>/tmp/failures
  [ "$(tail -n 1 /data/numbers)" = $n ] || echo "read $n" >>/tmp/failures
  mkdir /data/dir.$n || echo "mkdir $n" >>/tmp/failures
done"""


def started(scenario: Scenario) -> str:
    """The counter's pod, running; its UID."""
    scenario.kubectl("label", "namespace", scenario.name, LEVEL)
    files = scenario.volume()
    scenario.start(scratch(documents.pod("counter", COUNTER, {files: "/data"}, **POD)))
    progress(scenario)
    return scenario.uid("counter")


def scratch(pod: Document) -> Document:
    """The pod with the container's rights that the level wants, and a /tmp that its user may write."""
    pod["spec"]["volumes"].append({"name": "tmp", "emptyDir": {}})
    container = pod["spec"]["containers"][0]
    container["securityContext"] = CONTAINER
    container["volumeMounts"].append({"name": "tmp", "mountPath": "/tmp"})
    return pod


def progress(scenario: Scenario, lines: int = 10) -> None:
    """Wait until the counter has gone on by some lines; no operation may have failed."""

    def count() -> int:
        return int(scenario.sh("counter", "wc -l </data/numbers"))

    until("the counter to begin", lambda: scenario.sh("counter", "test -s /data/numbers && echo yes || true"))
    before = count()
    until("the counter to go on", lambda: count() >= before + lines, seconds=180)
    assert scenario.sh("counter", "cat /tmp/failures 2>/dev/null || true") == ""


def restarts(scenario: Scenario) -> tuple[int, int]:
    """Of the sidecar and of the application."""
    status = scenario.kubectl.get("pod", "counter")["status"]
    return status["initContainerStatuses"][0]["restartCount"], status["containerStatuses"][0]["restartCount"]


def sidecar_processes(scenario: Scenario, uid: str, word: str = "") -> list[int]:
    found = scenario.cluster.pod_processes(uid)
    return [number for number, command in found if "jfs" in command and (not word or word in command.split())]


def test_a_sidecar_without_rights_dies_and_is_replaced(scenario: Scenario) -> None:
    uid = started(scenario)
    for process in sidecar_processes(scenario, uid):
        status = Path(f"/proc/{process}/status").read_text()
        assert "Uid:\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status
    mounts = [line for line in scenario.cluster.mounts() if uid in line and "fuse.juicefs" in line]
    assert mounts

    # a worker, then the whole container
    scenario.cluster.kill(max(sidecar_processes(scenario, uid, "worker")))
    progress(scenario)
    (supervisor,) = sidecar_processes(scenario, uid, "sidecar")
    scenario.cluster.kill(supervisor)
    until("the sidecar to be started again", lambda: restarts(scenario)[0] == 1)
    progress(scenario)
    assert scenario.event("counter", names.EVENT_SIDECAR_RESTARTED)

    # another image in the pod that runs
    other = "localhost/juicefs-sidecar:other"
    scenario.cluster.run("ctr", "-n", "k8s.io", "images", "tag", "--force", images.NAMES["sidecar"], other)
    patch = f'{{"spec":{{"initContainers":[{{"name":"{names.SIDECAR_CONTAINER}","image":"{other}"}}]}}}}'
    scenario.kubectl("patch", "pod", "counter", "-p", patch)
    until("the sidecar to be replaced", lambda: restarts(scenario)[0] == 2, seconds=180)
    progress(scenario)
    assert restarts(scenario) == (2, 0)
    assert mounts == [line for line in scenario.cluster.mounts() if uid in line and "fuse.juicefs" in line]

    scenario.delete("counter")
    scenario.gone(uid)
    assert scenario.sessions() == 0


def test_node_service_and_sidecar_killed_at_once(scenario: Scenario) -> None:
    """The second holder of the descriptors, a container beside the node service, makes even that a pause."""
    uid = started(scenario)
    system = scenario.cluster.kubectl(install.NAMESPACE)
    (node,) = system.items("pods", "-l", "app.kubernetes.io/component=node")
    services = scenario.cluster.pod_processes(node["metadata"]["uid"])
    (service,) = [number for number, command in services if "jfs-csi" in command and "holder" not in command.split()[1]]
    (supervisor,) = sidecar_processes(scenario, uid, "sidecar")
    scenario.cluster.kill(service)
    scenario.cluster.kill(supervisor)
    until("the sidecar to be started again", lambda: restarts(scenario)[0] == 1)
    progress(scenario)
    assert restarts(scenario) == (1, 0)
    scenario.delete("counter")
    scenario.gone(uid)
    assert scenario.sessions() == 0
