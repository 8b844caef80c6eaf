"""What whoever operates the cluster sees: attachments in the volume's status, with what happened to them."""

import pytest
from jfs_api import names

from e2e import install
from e2e.cluster import Document, until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster


def attachments(scenario: Scenario, volume: str = "files") -> dict[str, Document]:
    """By pod."""
    status = scenario.kubectl.get("jfsv", volume)["status"]
    found = {entry["pod"]: entry for entry in status.get("attachments", ())}
    assert status.get("pods", 0) == len(found)
    return found


def supervisor(scenario: Scenario, pod: str) -> int:
    processes = scenario.cluster.pod_processes(scenario.uid(pod))
    (found,) = [number for number, command in processes if "jfs" in command and "sidecar" in command.split()]
    return found


def test_attachments_follow_the_pods(scenario: Scenario) -> None:
    files = scenario.volume()
    scenario.pod("first", {files: "/data"})
    scenario.pod("second", {files: "/data"})

    def served() -> bool:
        return {pod: entry["state"] for pod, entry in attachments(scenario).items()} == {
            "first": "Attached",
            "second": "Attached",
        }

    until("both pods in the status", served)
    first = attachments(scenario)["first"]
    assert (first["podUID"], first["mode"], first["restarts"]) == (scenario.uid("first"), "privileged", 0)
    assert first["node"] == scenario.kubectl.get("pod", "first")["spec"]["nodeName"]
    assert first["since"]
    assert "lastStallMs" not in first

    scenario.cluster.kill(supervisor(scenario, "first"))
    until("the restart in the status", lambda: attachments(scenario)["first"].get("restarts") == 1)
    again = attachments(scenario)["first"]
    assert again["generation"] > first["generation"]
    assert again["since"] == first["since"]
    assert again["lastStallMs"] > 0
    assert attachments(scenario)["second"]["restarts"] == 0
    # what the node service counted outlives it
    system = scenario.cluster.kubectl(install.NAMESPACE)
    system("rollout", "restart", "daemonset/juicefs-node")
    system("rollout", "status", "daemonset/juicefs-node", "--timeout=120s", timeout=150)
    (node,) = system.items(names.NODE_PLURAL)
    assert node["attachments"]
    until("both pods in the status again", served)
    assert attachments(scenario)["first"]["restarts"] == 1

    scenario.delete("first")
    until("one pod in the status", lambda: list(attachments(scenario)) == ["second"])
    scenario.delete("second")
    until("no pod in the status", lambda: attachments(scenario) == {})
