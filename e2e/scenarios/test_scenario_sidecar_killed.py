"""A sidecar, or a part of it, is killed while an application runs: operations wait for the successor, what is open stays open."""

import pytest
from jfs_api import names

from e2e.cluster import until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster


def processes(scenario: Scenario, pod: str, word: str) -> list[int]:
    """Numbers of the sidecar's processes whose command has the word."""
    found = scenario.cluster.pod_processes(scenario.uid(pod))
    return [number for number, command in found if "jfs" in command and word in command.split()]


def comes_back(scenario: Scenario, pod: str, *files: str) -> None:
    def all_read() -> bool:
        return all(scenario.sh(pod, f"cat {file} 2>/dev/null || true") == "before" for file in files)

    until(f"{' and '.join(files)} to be read", all_read)
    for file in files:
        scenario.sh(pod, f"echo after >{file}.next")


def test_worker_and_supervisor_killed(scenario: Scenario) -> None:
    """One volume's process takes only that volume; the supervisor takes all, and the container starts again."""
    files, more = scenario.volume(), scenario.volume("more")
    scenario.pod("app", {files: "/data", more: "/more"})
    scenario.sh("app", "echo before >/data/file; echo before >/more/file")

    workers = processes(scenario, "app", "worker")
    assert len(workers) == 2
    scenario.cluster.kill(workers[0])
    comes_back(scenario, "app", "/data/file", "/more/file")
    assert scenario.event("app", names.EVENT_SIDECAR_RESTARTED)
    assert workers[1] in processes(scenario, "app", "worker")

    (supervisor,) = processes(scenario, "app", "sidecar")
    scenario.cluster.kill(supervisor)

    def started_again() -> bool:
        return bool(scenario.kubectl.get("pod", "app")["status"]["initContainerStatuses"][0]["restartCount"] == 1)

    until("the sidecar to be started again", started_again)
    comes_back(scenario, "app", "/data/file", "/more/file")
    assert scenario.kubectl.get("pod", "app")["status"]["containerStatuses"][0]["restartCount"] == 0
    uid = scenario.uid("app")
    scenario.delete("app")
    scenario.gone(uid)


def test_container_with_a_sub_path_goes_on(scenario: Scenario) -> None:
    """The kubelet made its bind once; it is of the mount that lives on."""
    files = scenario.volume()
    scenario.pod("first", {files: "/data"})
    scenario.sh("first", "mkdir /data/inner && echo before >/data/inner/file")
    # as an application that cannot go on without its files
    script = "trap exit TERM; while cat /data/file >/dev/null; do sleep 1; done; exit 1"
    scenario.pod("app", {files: {"mountPath": "/data", "subPath": "inner"}}, script)

    (worker,) = processes(scenario, "app", "worker")
    scenario.cluster.kill(worker)
    assert scenario.event("app", names.EVENT_SIDECAR_RESTARTED)
    assert scenario.sh("app", "cat /data/file") == "before"
    assert scenario.kubectl.get("pod", "app")["status"]["containerStatuses"][0]["restartCount"] == 0
    uid = scenario.uid("app")
    scenario.delete("app")
    scenario.gone(uid)
