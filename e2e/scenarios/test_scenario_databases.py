"""Volumes whose metadata are in PostgreSQL or TiKV: the user's path from a Secret to two pods that share files, and a clean end."""

import pytest

from e2e import documents, install
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster

ADDRESSES = {
    "postgres": f"postgres://postgres:postgres-password@postgres.{install.BACKENDS_NAMESPACE}:5432/postgres?sslmode=disable&table_prefix=%s",
    "tikv": f"tikv://tikv.{install.BACKENDS_NAMESPACE}:2379/%s",
}


@pytest.mark.parametrize("engine", ADDRESSES)
def test_two_pods_share_a_volume_on(engine: str, scenario: Scenario) -> None:
    install.databases(scenario.cluster.kubectl())
    credentials = scenario.credentials()
    credentials["metaurl"] = ADDRESSES[engine] % f"v{scenario.databases['files']}"
    scenario.kubectl.apply(
        documents.secret("files-credentials", credentials), documents.volume("files", "files-credentials")
    )
    scenario.ready("files")
    scenario.pod("writer", {"files": "/data"})
    scenario.pod("reader", {"files": "/data"})
    assert "fuse.juicefs" in scenario.sh("writer", "grep ' /data ' /proc/mounts")
    scenario.sh("writer", "mkdir /data/d && echo shared > /data/d/file && ln /data/d/file /data/link && sync")
    assert scenario.sh("reader", "cat /data/d/file /data/link") == "shared\nshared"
    scenario.sh("reader", "mv /data/d/file /data/d/moved && rm /data/link")
    scenario.sh("reader", "for n in $(seq 50); do echo $n > /data/d/$n; done")
    assert scenario.sh("writer", "ls /data/d | wc -l; cat /data/d/moved /data/d/50") == "51\nshared\n50"
    writer = scenario.uid("writer")
    scenario.delete("writer")
    scenario.gone(writer)
    assert scenario.sh("reader", "cat /data/d/moved") == "shared"
