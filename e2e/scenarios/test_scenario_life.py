"""A volume's own life: credentials shared by several volumes, what deletion keeps and removes, the chart's own test."""

import pytest

from e2e import documents, install
from e2e.cluster import until
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster


def test_volumes_share_a_juicefs_secret(scenario: Scenario) -> None:
    """A JuiceFSSecret says whether its credentials work; two volumes are directories of its file system."""
    values = scenario.credentials()
    plain = {key: {"value": values[key]} for key in ("name", "storage", "bucket")}
    kept = {"metaURL": "metaurl", "accessKey": "access-key", "secretKey": "secret-key"}
    secret = {field: {"valueFrom": {"secretKeyRef": {"name": "keys", "key": key}}} for field, key in kept.items()}
    scenario.kubectl.apply(
        documents.secret("keys", {key: values[key] for key in kept.values()}),
        {
            "apiVersion": "juicefs.io/v1alpha1",
            "kind": "JuiceFSSecret",
            "metadata": {"name": "shared"},
            "spec": {**plain, **secret},
        },
    )
    scenario.kubectl.wait("jfss/shared", "condition=Ready")
    for team in ("red", "blue"):
        reference = {"kind": "JuiceFSSecret", "name": "shared"}
        scenario.kubectl.apply(documents.volume(team, "shared", secretRef=reference, subPath=f"teams/{team}"))
    for team in ("red", "blue"):
        scenario.ready(team)
    scenario.pod("app", {"red": "/red", "blue": "/blue"})
    scenario.sh("app", "echo red >/red/file && echo blue >/blue/file")
    assert scenario.sh("app", "cat /red/file /blue/file; ls /red") == "red\nblue\nfile"
    assert "redis-password" not in scenario.kubectl("get", "jfss,jfsv", "-o", "yaml")


def test_deleted_volume_keeps_its_data(scenario: Scenario) -> None:
    """Retain, the default: the volume, its claim and its PersistentVolume go, and the same volume made again has its files."""
    files = scenario.volume()
    scenario.pod("app", {files: "/data"})
    scenario.sh("app", "echo kept >/data/file")
    scenario.delete("app")
    scenario.kubectl("delete", "jfsv", files)
    until("the claim to be gone", lambda: scenario.kubectl.find("pvc", files) is None)
    scenario.volume()
    scenario.pod("app", {files: "/data"})
    assert scenario.sh("app", "cat /data/file") == "kept"


def test_deleted_volume_removes_its_data(scenario: Scenario) -> None:
    """Delete: nothing is left in the database or the bucket."""
    files = scenario.volume(reclaimPolicy="Delete")
    scenario.pod("app", {files: "/data"})
    scenario.sh("app", "dd if=/dev/zero of=/data/file bs=1M count=8 2>/dev/null")
    assert int(scenario.redis("dbsize")) > 0
    scenario.delete("app")
    scenario.kubectl("delete", "jfsv", files)
    until("the database to be empty", lambda: scenario.redis("dbsize") == "0")


def test_chart_test_passes(scenario: Scenario) -> None:
    """`helm test`, as a user runs it after an installation."""
    helm = install.helm(scenario.cluster.kubectl())
    assert "Succeeded" in helm("test", install.RELEASE, "--namespace", install.NAMESPACE, "--timeout", "3m")
