"""Restricted pods and kept connections when things go wrong, with the real kernel: kills between any two steps, other boots,
kernels without RESEND, hung sidecars, sidecars that end or are told something new.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from csi_node_harness import Node, Pod, a_running_node, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
MODES = pytest.mark.parametrize("mode", ["privileged", "restricted"])


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_running_node() as node:
        yield node


async def started(node: Node, mode: str, hold: Path | None = None, pod: Pod | None = None, **fields: Any) -> Pod:
    pod = pod or Pod(node)
    await pod.publish_control(mode)
    await pod.publish("data", **fields)
    pod.start_small_sidecar(restricted=mode == "restricted", hold=hold)
    await served(pod)
    return pod


def run(*command: str) -> "subprocess.Popen[bytes]":
    """A process of an application."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def reading(pod: Pod, name: str) -> "subprocess.Popen[bytes]":
    return run("cat", str(pod.seen("data") / name))


async def served(pod: Pod) -> None:
    assert pod.sidecar is not None
    pid = str(pod.sidecar.pid).encode()
    await until(lambda: pod.state("data")["ready"] and pod.reads("data", "who") == pid, f"served\n{pod.logs()}")


async def ended(pod: Pod) -> None:
    for volume in ("data", "juicefs-control"):
        await pod.unpublish(volume)
    assert [mount for mount in pod.node.mounts() if pod.uid in mount.path] == []
    assert not pod.directory.exists()
    assert not (pod.node.plugin / "state" / pod.uid).exists()


def fuse_mounts(pod: Pod) -> list[str]:
    return [mount.device for mount in pod.node.mounts() if mount.path == pod.target("data") and mount.is_fuse]


def change_state(pod: Pod, **fields: Any) -> None:
    path = pod.node.plugin / "state" / pod.uid / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


async def test_killed_after_the_mount_and_before_any_sidecar(node: Node) -> None:
    """The descriptor is lost and nobody ever had it: detached, and mounted again on a clean directory."""
    pod = Pod(node)
    await pod.publish_control("restricted")
    await pod.publish("data")
    [before] = fuse_mounts(pod)
    node.stop(signal.SIGKILL)
    await node.start()
    await pod.publish("data")
    await pod.publish_control("restricted")
    [after] = fuse_mounts(pod)
    assert pod.state("data")["generation"] == 0
    waiting = reading(pod, "who")
    pod.start_small_sidecar(restricted=True)
    assert waiting.communicate(timeout=30)[0] == str(pod.sidecar.pid if pod.sidecar else 0).encode()
    assert before
    assert after
    assert "JuiceFSMountLost" not in node.log.read_text()
    pod.kill_container()
    await ended(pod)


async def test_killed_before_the_mount_was_made(node: Node) -> None:
    """State and bind are there, the mount is not: the next publish makes it."""
    pod = Pod(node)
    await pod.publish("data")
    assert fuse_mounts(pod) == []
    node.stop(signal.SIGKILL)
    await node.start()
    await pod.publish_control("restricted")
    assert len(fuse_mounts(pod)) == 1
    pod.start_small_sidecar(restricted=True)
    await pod.publish("data")
    await served(pod)
    pod.kill_container()
    await ended(pod)


async def test_a_lost_state_file_is_made_again_by_the_next_publish(node: Node) -> None:
    pod = await started(node, "restricted")
    for path in (node.plugin / "state" / pod.uid).iterdir():
        path.unlink()
    node.stop(signal.SIGKILL)
    await node.start()
    await pod.publish_control("restricted")
    await pod.publish("data")
    await until(lambda: "is connected" in node.log.read_text().rpartition("@@stopped@@")[2], "it came back")
    await served(pod)
    pod.kill_container()
    await ended(pod)


async def test_unpublish_without_a_state_file_leaves_nothing(node: Node) -> None:
    pod = await started(node, "restricted")
    pod.kill_container()
    node.stop(signal.SIGKILL)
    for path in (node.plugin / "state" / pod.uid).iterdir():
        path.unlink()
    await node.start()
    await ended(pod)


@MODES
async def test_after_a_reboot_everything_is_mounted_anew_and_nobody_lost_anything(node: Node, mode: str) -> None:
    pod = await started(node, mode)
    pod.kill_container()
    node.stop(signal.SIGKILL)
    for volume in ("data", "juicefs-control"):
        while any(mount.path == pod.target(volume) for mount in node.mounts()):
            node.enter("umount", "-l", pod.target(volume)).wait(20)
    inner = f"{node.kubelet}/plugins/sidecar.juicefs.io/pods/{pod.uid}/volumes/data"
    while any(mount.path == inner for mount in node.mounts()):
        node.enter("umount", "-l", inner).wait(20)
    change_state(pod, boot_id="another")
    await node.start()
    await pod.publish("data")
    await pod.publish_control(mode)
    pod.start_small_sidecar(restricted=mode == "restricted")
    await served(pod)
    assert pod.state("data")["generation"] == 2
    assert "JuiceFSMountLost" not in node.log.read_text()
    pod.kill_container()
    await ended(pod)


async def test_without_resend_a_request_in_flight_fails_at_once_and_later_ones_wait(node: Node) -> None:
    hold = node.root / "hold"
    hold.touch()
    pod = await started(node, "restricted", hold=hold, options=["fuse-resend=off"])
    # It says what came before it closes the file, which a sidecar has to hear of.
    program = (
        "import os,sys\nf=os.open(sys.argv[1],0)\ntry: os.read(f,9)\nexcept OSError as e: print(e.strerror,flush=True)"
    )
    flying = run(sys.executable, "-I", "-S", "-c", program, str(pod.seen("data") / "held"))
    await until(lambda: "holding a read" in pod.log.read_text(), "the sidecar has the request")
    pod.kill_container()
    assert flying.stdout is not None
    assert b"connection abort" in await asyncio.to_thread(flying.stdout.readline)
    later = reading(pod, "large")
    hold.unlink()
    pod.start_small_sidecar(restricted=True)
    assert later.communicate(timeout=30)[0] == bytes(range(256)) * 256
    await served(pod)
    flying.communicate(timeout=20)
    pod.kill_container()
    await ended(pod)


@MODES
async def test_a_stopped_sidecar_and_a_stuck_application_do_not_keep_the_pod(node: Node, mode: str) -> None:
    hold = node.root / "hold"
    hold.touch()
    pod = await started(node, mode, hold=hold)
    stuck = reading(pod, "held")
    await until(lambda: "holding a read" in pod.log.read_text(), "the sidecar has the request")
    assert pod.sidecar is not None
    pod.sidecar.send_signal(signal.SIGSTOP)
    await pod.unpublish("data")
    _, error = stuck.communicate(timeout=20)
    assert b"onnection abort" in error or b"not connected" in error
    pod.sidecar.send_signal(signal.SIGCONT)
    pod.kill_container()
    await ended(pod)


@MODES
async def test_other_options_reach_the_sidecar_that_serves(node: Node, mode: str) -> None:
    pod = await started(node, mode)
    await pod.publish("data", options=["cache-size=7"])
    await until(lambda: 'update {"options": ["cache-size=7"]}' in pod.log.read_text(), pod.logs())
    await until(lambda: "JuiceFSUpdated" in node.log.read_text(), "told")
    await pod.publish("data", options=["bad"])
    await until(lambda: "works on as it was" in node.log.read_text(), "told")
    await served(pod)
    assert pod.state("data")["generation"] == 1
    pod.kill_container()
    await ended(pod)


@MODES
async def test_a_sidecar_that_ends_with_its_pod_leaves_nothing(node: Node, mode: str) -> None:
    pod = await started(node, mode)
    assert pod.sidecar is not None
    pod.sidecar.send_signal(signal.SIGTERM)
    assert pod.sidecar.wait(20) == 0
    assert "its mounts go, because the pod ends" in node.log.read_text()
    await ended(pod)
    assert "JuiceFSStalled" not in node.log.read_text()


@MODES
async def test_a_force_deleted_pod_is_swept(node: Node, mode: str) -> None:
    pod = await started(node, mode)
    pod.kill_container()
    node.stop(signal.SIGKILL)
    for volume in ("data", "juicefs-control"):
        while any(mount.path == pod.target(volume) for mount in node.mounts()):
            node.enter("umount", "-l", pod.target(volume)).wait(20)
        pod.seen(volume).rmdir()
    for path, _, _ in os.walk(node.inside / "pods" / pod.uid, topdown=False):
        os.rmdir(path)
    await node.start()
    await until(lambda: not pod.directory.exists(), "swept")
    assert [mount for mount in node.mounts() if pod.uid in mount.path] == []
    assert not (node.plugin / "state" / pod.uid).exists()


def below(pod: Pod) -> list[str]:
    """Regular files of the pod on the node's own disk: what lies under all mounts."""
    node, place = pod.node, pod.node.root / "below"
    place.mkdir(exist_ok=True)
    script = f"mount --bind {node.kubelet} {place} && find {place} -path '*{pod.uid}*' -type f"
    found = node.enter(*("unshare", "--mount", "--propagation", "private", "sh", "-c", script), stdout=subprocess.PIPE)
    files = found.communicate(timeout=20)[0].decode().splitlines()
    states = [file for file in files if file.endswith(".json")]
    assert states  # it looks where it should
    return [file for file in files if file not in states]


@MODES
async def test_nothing_is_ever_written_to_the_nodes_disk(node: Node, mode: str) -> None:
    """By containers that started before the sidecar and after it, while there is none yet, none any more, and no mount left."""
    pod = Pod(node)
    await pod.publish_control(mode)
    await pod.publish("data")
    containers = [pod.start_application("data")]

    def writing() -> list["subprocess.Popen[bytes]"]:
        return [run("sh", "-c", f"echo written >{inside}/who") for inside in containers]

    def outcomes(writers: list["subprocess.Popen[bytes]"]) -> list[str]:
        return [writer.communicate(timeout=30)[1].decode().strip().rpartition(": ")[2] for writer in writers]

    early = writing()
    if mode == "privileged":
        assert outcomes(early) == ["Read-only file system"]
    pod.start_small_sidecar(restricted=mode == "restricted")
    await served(pod)
    if mode == "restricted":
        assert outcomes(early) == [""]  # it has waited
    containers.append(pod.start_application("data"))
    assert outcomes(writing()) == ["", ""]

    pod.kill_container()
    late = writing()
    assert below(pod) == []
    pod.start_small_sidecar(restricted=mode == "restricted")
    assert outcomes(late) == ["", ""]
    await served(pod)

    pod.kill_container()
    node.stop(signal.SIGKILL)  # and with it the last descriptor
    for outcome in outcomes(writing()):
        assert outcome in ("Transport endpoint is not connected", "Software caused connection abort")
    assert below(pod) == []
    await node.start()
    await pod.publish_control(mode)
    await pod.publish("data")
    pod.start_small_sidecar(restricted=mode == "restricted")
    await served(pod)
    assert outcomes(writing()) == ["", ""]
    pod.kill_container()
    assert below(pod) == []
    await ended(pod)


async def test_swapped_directories_get_nothing(node: Node) -> None:
    """The kubelet's directory of the pod is made a link to somewhere else before the publish."""
    pod = Pod(node)
    await pod.publish_control("restricted")
    target = Path(pod.target("data"))
    elsewhere = node.root / "elsewhere"
    elsewhere.mkdir()
    seen = node.inside / target.parent.relative_to(node.kubelet)
    seen.rmdir()
    seen.symlink_to(elsewhere)
    with pytest.raises(Exception, match="symbolic link"):
        await pod.publish("data", target_path=str(target))
    assert list(elsewhere.iterdir()) == []
    seen.unlink()
    await pod.unpublish("data")
    await pod.unpublish("juicefs-control")
