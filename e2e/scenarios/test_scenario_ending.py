"""Pods that end while they write: nothing may be left on the node or in the metadata, and what was closed is there."""

import pytest

from e2e import documents
from e2e.cluster import until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

# Numbered files, each complete once it has its final name.
WRITER = """trap exit TERM
n=0
while true; do
  n=$((n+1))
  dd if=/dev/zero of=/data/.unfinished bs=64k count=16 2>/dev/null && mv /data/.unfinished /data/file$n
done"""


def written(scenario: Scenario, pod: str, at_least: int) -> None:
    def look() -> bool:
        return int(scenario.sh(pod, "ls /data | wc -l")) >= at_least

    until(f"{at_least} files to be written", look)


def test_pod_deleted_while_writing(scenario: Scenario) -> None:
    files = scenario.volume()
    scenario.pod("writer", {files: "/data"}, WRITER)
    written(scenario, "writer", 3)
    uid = scenario.uid("writer")
    assert any("fuse.juicefs" in line for line in scenario.left_of(uid))
    assert scenario.sessions() == 1

    scenario.delete("writer")

    scenario.gone(uid)
    assert scenario.sessions() == 0
    scenario.pod("reader", {files: "/data"})
    assert scenario.sh("reader", "cd /data && stat -c %s file* | sort -u") == str(16 * 65536)


def test_pod_deleted_by_force(scenario: Scenario) -> None:
    """The object is gone at once; the node cleans up behind it all the same."""
    files = scenario.volume()
    scenario.pod("writer", {files: "/data"}, WRITER)
    written(scenario, "writer", 3)
    uid = scenario.uid("writer")

    scenario.delete("writer", "--force", "--grace-period=0")

    scenario.gone(uid)
    scenario.pod("writer", {files: "/data"})  # the same name, as a StatefulSet would
    assert int(scenario.sh("writer", "ls /data | grep -c ^file")) >= 3


def test_container_restarted(scenario: Scenario) -> None:
    """The application's container ends and is started again: the volume is there before and after."""
    files = scenario.volume()
    script = "date >>/data/starts; [ $(wc -l </data/starts) -gt 2 ] || exit 1; " + documents.IDLE
    scenario.kubectl.apply(documents.pod("app", script, {files: "/data"}))

    def starts() -> bool:
        return scenario.sh("app", "wc -l </data/starts") == "3"

    until("the third start of the container", starts)
    uid = scenario.uid("app")
    scenario.delete("app")
    scenario.gone(uid)
