"""A volume in pods: shared by two, two in one, seen by init containers, by parts, and read-only."""

import pytest
from jfs_api import names

from e2e import documents
from e2e.scenario import Scenario

pytestmark = pytest.mark.cluster


def test_two_pods_share_a_volume(scenario: Scenario) -> None:
    """What one pod has closed, the other reads when it opens (close-to-open).

    `head` reads; busybox's `cat` copies by sendfile(2) without asking for the length, which Linux may remember for a second.
    """
    files = scenario.volume()
    scenario.start(documents.pod("first", mounts={files: "/data"}), documents.pod("second", mounts={files: "/data"}))

    scenario.sh("first", "mkdir /data/letters && echo 'from first' >/data/letters/a")
    assert scenario.sh("second", "head /data/letters/a") == "from first"
    scenario.sh(
        "second", "echo 'answer from second' >/data/letters/a; ln -s a /data/letters/b; mv /data/letters /data/mail"
    )
    assert scenario.sh("first", "head /data/mail/b") == "answer from second"
    scenario.sh("first", "dd if=/dev/urandom of=/data/big bs=1M count=70 2>/dev/null")  # more than one chunk of 64 MiB
    sums = [scenario.sh(pod, "md5sum </data/big") for pod in ("first", "second")]
    assert sums[0] == sums[1]
    scenario.sh("second", "rm /data/big")
    assert scenario.sh("first", "ls /data") == "mail"
    assert "fuse.juicefs" in scenario.sh("first", "grep ' /data ' /proc/mounts")
    assert scenario.sessions() == 2


def test_two_volumes_in_one_pod_by_one_sidecar(scenario: Scenario) -> None:
    one, two = scenario.volume("one"), scenario.volume("two")
    scenario.pod("both", {one: "/one", two: "/two"})

    assert scenario.containers("both") == [names.SIDECAR_CONTAINER, "app"]
    scenario.sh("both", "echo 1 >/one/file && echo 2 >/two/file && cp /one/file /two/copy")
    assert scenario.sh("both", "cat /one/file /two/file /two/copy") == "1\n2\n1"
    assert (scenario.sessions("one"), scenario.sessions("two")) == (1, 1)


def test_init_container_uses_the_volume(scenario: Scenario) -> None:
    files = scenario.volume()
    prepare = documents.container("echo prepared >/data/by-init", "prepare", {files: "/data"})
    scenario.pod("app", {files: "/data"}, initContainers=[prepare])

    assert scenario.containers("app") == [names.SIDECAR_CONTAINER, "prepare", "app"]
    assert scenario.sh("app", "cat /data/by-init") == "prepared"


def test_job_completes(scenario: Scenario) -> None:
    """The sidecar ends when the job's container has ended; three pods work at the same time."""
    files = scenario.volume()
    scenario.kubectl.apply(documents.job("work", "echo $HOSTNAME >/data/$HOSTNAME", {files: "/data"}, completions=3))
    scenario.kubectl.wait("job/work", "condition=Complete")

    scenario.pod("reader", {files: "/data"})
    assert len(scenario.sh("reader", "ls /data").split()) == 3
    assert scenario.sh("reader", "cat /data/* | sort") == scenario.sh("reader", "ls /data | sort")


def test_sub_paths(scenario: Scenario) -> None:
    """Directories of one file system: by a volume's subPath, and by a container's own subPath of the claim."""
    whole = scenario.volume()
    scenario.kubectl.apply(documents.volume("part", "files-credentials", subPath="teams/a"))
    scenario.ready("part")
    scenario.pod("app", {whole: "/whole", "part": "/part"})
    scenario.sh("app", "echo hello >/part/file && mkdir /whole/inner && echo deep >/whole/inner/file")

    assert scenario.sh("app", "cat /whole/teams/a/file") == "hello"
    scenario.pod("inner", {whole: {"mountPath": "/data", "subPath": "inner"}})
    assert scenario.sh("inner", "cat /data/file") == "deep"
    scenario.sh("inner", "echo more >/data/second")
    assert scenario.sh("app", "cat /whole/inner/second") == "more"


def test_read_only_mounts_refuse_writes(scenario: Scenario) -> None:
    """Read-only by the pod's mount, by the claim in the pod, and by the volume's mount option."""
    files = scenario.volume()
    scenario.kubectl.apply(documents.volume("frozen", "files-credentials", mountOptions=["ro"]))
    scenario.ready("frozen")
    scenario.pod("writer", {files: "/data"})
    scenario.sh("writer", "echo kept >/data/file")
    spec = documents.pod_spec(
        [documents.container(mounts={"by-claim": "/by-claim", files: {"mountPath": "/by-mount", "readOnly": True}})],
        [files],
    )
    by_claim = {"name": "by-claim", "persistentVolumeClaim": {"claimName": "frozen", "readOnly": True}}
    spec["volumes"].append(by_claim)
    scenario.start(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"}, "spec": spec},
        documents.pod("option", mounts={"frozen": "/data"}),
    )

    for pod, path in (("reader", "/by-claim"), ("reader", "/by-mount"), ("option", "/data")):
        assert scenario.sh(pod, f"cat {path}/file") == "kept"
        assert "Read-only file system" in scenario.fails(pod, f"echo changed >{path}/file")
        assert "Read-only file system" in scenario.fails(pod, f"touch {path}/new")
    assert scenario.sh("writer", "cat /data/file; ls /data") == "kept\nfile"


def test_unprivileged_pod(scenario: Scenario) -> None:
    """A pod that runs as a user of its own, without privileges, uses the volume; its group may write."""
    files = scenario.volume()
    scenario.pod(
        "root",
        {files: "/data"},
        "mkdir -m 700 /data/private; mkdir /data/team; chgrp 2000 /data/team; chmod 2775 /data/team; " + documents.IDLE,
    )
    security = {"runAsUser": 1000, "runAsGroup": 1000, "supplementalGroups": [2000], "runAsNonRoot": True}
    scenario.pod("user", {files: "/data"}, securityContext=security)

    scenario.sh("user", "echo mine >/data/team/file")
    assert scenario.sh("user", "stat -c '%u %g' /data/team/file") == "1000 2000"
    assert "Permission denied" in scenario.fails("user", "touch /data/private/file")
