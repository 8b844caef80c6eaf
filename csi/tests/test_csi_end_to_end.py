"""Node service and sidecar together on this machine: real bind mounts, a real FUSE mount, real processes."""

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from csi_node_harness import Node, Pod, a_running_node, children, until
from jfs_csi.proto import csi_pb2 as csi

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_running_node() as node:
        yield node


async def started(node: Node, *volumes: str, **fields: object) -> Pod:
    """A pod whose volumes are mounted."""
    pod = Pod(node)
    await pod.publish_control()
    for volume in volumes:
        await pod.publish(volume, **fields)
    pod.start_sidecar()
    for volume in volumes:
        await pod.mounted(volume)
    return pod


async def ended(pod: Pod, *volumes: str) -> None:
    """What the kubelet does after the containers ended."""
    for volume in (*volumes, "juicefs-control"):
        await pod.unpublish(volume)


def nothing_is_left(pod: Pod) -> None:
    assert [mount for mount in pod.node.mounts() if pod.uid in mount.path] == []
    assert not pod.directory.exists()
    assert not (pod.node.plugin / "state" / pod.uid).exists()
    assert not pod.seen("data").exists()


async def test_a_pod_lives_and_ends_without_a_trace(node: Node) -> None:
    pod = await started(node, "data", options=["cache-size=1"])
    document = json.loads((pod.tiny / "document.json").read_text())
    assert document["options"] == ["cache-size=1"]
    assert document["storage"] == {"secret_key": "hush-hush"}
    assert pod.state("data")["generation"] == 1
    for path in (node.plugin / "state").rglob("*.json"):
        assert "hush-hush" not in path.read_text()
        assert "tiny://" not in path.read_text()
    assert pod.sidecar is not None
    pod.sidecar.send_signal(signal.SIGTERM)
    assert pod.sidecar.wait(20) == 0
    await ended(pod, "data")
    nothing_is_left(pod)
    assert "hush-hush" not in pod.logs()


async def test_unpublish_while_the_sidecar_lives_detaches_it(node: Node) -> None:
    pod = await started(node, "data", "more")
    await pod.unpublish("data")
    assert not pod.seen("data").exists()
    await pod.mounted("more")
    await ended(pod, "more")
    nothing_is_left(pod)
    assert pod.sidecar is not None
    supervisor = pod.sidecar.pid
    await until(lambda: children(supervisor) == [], "the workers ended")


async def test_publish_is_idempotent_and_the_target_is_read_only_below_the_mount(node: Node) -> None:
    pod = Pod(node)
    await pod.publish("data")
    await pod.publish("data")
    await pod.publish_control()
    await pod.publish_control()
    mounts = [mount for mount in node.mounts() if mount.path == pod.target("data")]
    assert len(mounts) == 1
    assert "ro" in mounts[0].options.split(",")
    with pytest.raises(OSError, match="Read-only"):
        (pod.seen("data") / "written").touch()
    await ended(pod, "data")
    await ended(pod, "data")
    nothing_is_left(pod)


async def test_a_killed_sidecar_heals(node: Node) -> None:
    pod = await started(node, "data")
    pod.kill_container()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.stat(pod.seen("data") / "file")
    pod.start_sidecar()
    await pod.mounted("data")
    assert pod.state("data")["generation"] == 2
    assert "JuiceFSMountLost" in node.log.read_text()
    pod.kill_container()
    await ended(pod, "data")
    nothing_is_left(pod)


async def test_sub_paths_of_a_lost_mount_are_taken_away_so_that_their_container_can_start(node: Node) -> None:
    pod = await started(node, "data", "more")
    part, whole, other = pod.bind_sub_path("data"), pod.bind_sub_path("data", ""), pod.bind_sub_path("more")

    def bound() -> set[str]:
        return {mount.path for mount in node.mounts()} & {part, whole, other}

    await pod.publish("data")  # the kubelet repeats it all the time: what works is not touched
    assert bound() == {part, whole, other}
    pod.kill_container()
    await pod.publish("data")  # nothing is mounted that the kubelet could bind instead
    assert bound() == {part, whole, other}
    pod.start_sidecar()
    await pod.mounted("data")
    await pod.mounted("more")

    await pod.publish("data")  # before it starts the container again
    assert bound() == {whole, other}  # in a bind of the volume's root the new mount appears by itself
    pod.bind_sub_path("data")
    await pod.publish("data")
    assert bound() == {part, whole, other}
    assert pod.reads("data", "file") == b"tiny\n"
    for path in (part, whole):
        seen = node.inside / Path(path).relative_to(node.kubelet)
        assert (seen if path == part else seen / "file").read_bytes() == b"tiny\n"


async def test_applications_see_the_mount_whenever_they_start(node: Node) -> None:
    pod = Pod(node)
    await pod.publish_control()
    await pod.publish("data")
    before = pod.start_application("data")
    with pytest.raises(OSError, match="Read-only"):
        (before / "written-before-the-mount").touch()
    pod.start_sidecar()
    await pod.mounted("data")
    after = pod.start_application("data")
    assert (before / "file").read_text() == (after / "file").read_text() == "tiny\n"
    # A new sidecar's mount reaches them all, also the one whose container holds nothing but the dead mount.
    for _ in range(2):
        pod.kill_container()
        pod.start_sidecar()
        await pod.mounted("data")
        assert (before / "file").read_text() == (after / "file").read_text() == "tiny\n"
    await ended(pod, "data")
    nothing_is_left(pod)
    with pytest.raises(OSError, match=r"not connected|No such file"):
        (after / "file").read_text()


async def test_a_killed_worker_is_replaced(node: Node) -> None:
    pod = await started(node, "data")
    os.kill(int((pod.tiny / "pid").read_text()), signal.SIGKILL)
    await until(lambda: pod.state("data")["generation"] == 2, "a new generation")
    await pod.mounted("data")
    await until(lambda: "JuiceFSMountLost" in node.log.read_text(), "the loss was told")


async def test_a_killed_node_service_takes_its_pods_over(node: Node) -> None:
    pod = await started(node, "data")
    worker = (pod.tiny / "pid").read_text()
    node.stop(signal.SIGKILL)
    await pod.mounted("data")
    await node.start()
    await until(lambda: "is connected" in node.log.read_text().rpartition("@@stopped@@")[2], "the sidecar came back")
    await pod.publish("data")
    await pod.publish_control()
    await pod.mounted("data")
    assert (pod.tiny / "pid").read_text() == worker
    assert pod.state("data")["generation"] == 1
    await ended(pod, "data")
    nothing_is_left(pod)


async def test_a_sidecar_that_dies_while_the_node_service_is_away_is_attached_at_the_republish(node: Node) -> None:
    pod = await started(node, "data")
    node.stop(signal.SIGTERM)
    pod.kill_container()
    pod.start_sidecar()
    await node.start()
    await until(lambda: "is connected" in node.log.read_text().rpartition("@@stopped@@")[2], "the sidecar came back")
    await pod.publish("data")
    await pod.mounted("data")


async def test_the_volumes_of_a_force_deleted_pod_are_swept_at_start(node: Node) -> None:
    pod = await started(node, "data")
    pod.kill_container()
    node.stop(signal.SIGKILL)
    # The kubelet of a force-deleted pod gave up and removed what it could: detach and delete the pod's directory.
    for volume in ("data", "juicefs-control"):
        for _ in range(2):
            node.enter("umount", "-l", pod.target(volume)).wait(20)
        pod.seen(volume).rmdir()
    await remove_empty(node.inside / "pods" / pod.uid)
    await node.start()
    await until(lambda: not pod.directory.exists(), "swept")
    assert [mount for mount in node.mounts() if pod.uid in mount.path] == []
    assert not (node.plugin / "state" / pod.uid).exists()


async def remove_empty(directory: Path) -> None:
    for path, _, _ in os.walk(directory, topdown=False):
        os.rmdir(path)


async def test_a_hung_mount_is_aborted_and_stats_do_not_hang(node: Node) -> None:
    pod = await started(node, "data", options=["hang", "stubborn"])
    request = csi.NodeGetVolumeStatsRequest(volume_id="handle-data", volume_path=pod.target("data"))
    fresh = await node.call("NodeGetVolumeStats", request, csi.NodeGetVolumeStatsResponse)
    assert [(usage.total, usage.used) for usage in fresh.usage] == [(4096000, 1638400), (100, 10)]
    (pod.tiny / "hang").touch()
    blocked = node.enter("stat", pod.target("data"))
    await until(lambda: "S" in stat_of(blocked.pid) or "D" in stat_of(blocked.pid), "somebody is blocked")
    await pod.unpublish("data")
    assert blocked.wait(20) != 0
    assert not pod.seen("data").exists()
    await ended(pod)
    nothing_is_left(pod)


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_the_probe_tells_live_dead_and_hung_mounts_apart(node: Node) -> None:
    pod = await started(node, "data", "more", options=["hang"])
    assert pod.ready() == (0, "")
    (pod.tiny / "hang").touch()
    code, sentence = pod.ready()
    assert (code, sentence) == (1, "Not ready: volume data does not answer; volume more does not answer.\n")
    (pod.tiny / "hang").unlink()
    pod.kill_container()
    assert pod.ready(node.pid, pod.target("juicefs-control")) == (
        1,
        "Not ready: volume data is dead; volume more is dead.\n",
    )
    await ended(pod, "data", "more")
    assert pod.ready(node.pid, str(pod.directory))[0] == 1
    nothing_is_left(pod)


async def test_a_failing_mount_is_reported_and_can_be_deleted(node: Node) -> None:
    pod = Pod(node)
    await pod.publish_control()
    await pod.publish("data", options=["fail=WrongCredentials"])
    pod.start_sidecar()
    await until(lambda: "JuiceFSMountFailed" in node.log.read_text(), pod.logs())
    assert "(WrongCredentials)" in node.log.read_text()
    # Other options come with a republish: tried again at once.
    await pod.publish("data", options=[])
    await pod.mounted("data")
    await ended(pod, "data")
    nothing_is_left(pod)


async def test_a_read_only_volume_refuses_writes(node: Node) -> None:
    pod = await started(node, "data", readonly=True)
    assert json.loads((pod.tiny / "document.json").read_text())["read_only"] is True
    with pytest.raises(OSError, match="Read-only"):
        (pod.seen("data") / "new").touch()


async def test_sockets_of_other_pods_are_not_confused(node: Node) -> None:
    first, second = await started(node, "data"), await started(node, "data")
    assert first.directory != second.directory
    first.kill_container()
    await ended(first, "data")
    await second.mounted("data")


async def test_bad_targets_are_refused(node: Node) -> None:
    pod = Pod(node)
    good = pod.target("data")
    outside = node.root / "elsewhere"
    outside.mkdir()
    link = node.inside / "pods" / pod.uid / "volumes" / "kubernetes.io~csi" / "link"
    link.symlink_to(outside)
    cases = {
        "relative": good.removeprefix("/"),
        "not below": "/etc",
        "not a CSI volume": f"{node.kubelet}/pods/{pod.uid}/etc-hosts",
        "not normalized": good.replace("/data/", "/data/../data/"),
        "symbolic link": f"{node.kubelet}/pods/{pod.uid}/volumes/kubernetes.io~csi/link/mount",
    }
    for sentence, target in cases.items():
        with pytest.raises(grpc.aio.AioRpcError, match=sentence) as refusal:
            await pod.publish("data", target_path=target)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT, sentence
    assert list(outside.iterdir()) == []
    assert [mount for mount in node.mounts() if pod.uid in mount.path] == []


async def test_concurrent_publishes_and_unpublishes_end_clean(node: Node) -> None:
    pod = Pod(node)
    await pod.publish_control()
    volumes = [f"data-{number}" for number in range(4)]
    for _ in range(3):
        await asyncio.gather(*(pod.publish(volume) for volume in volumes for _ in range(2)))
        await asyncio.gather(
            *(pod.unpublish(volume) for volume in volumes), *(pod.publish(volume) for volume in volumes)
        )
    await asyncio.gather(*(pod.unpublish(volume) for volume in volumes))
    await ended(pod)
    nothing_is_left(pod)


async def test_publish_is_quick(node: Node) -> None:
    """The median is reported; only an absurd one fails, because machines differ."""
    durations = []
    for number in range(20):
        pod = Pod(node, f"app-{number}")
        request = pod.request("data")
        started = time.monotonic()
        await node.publish(**request)
        durations.append(time.monotonic() - started)
    median = statistics.median(durations)
    print(f"NodePublishVolume: median {median * 1000:.1f} ms, slowest {max(durations) * 1000:.1f} ms")
    assert median < 5
