"""A node for tests: a private mount namespace with a shared kubelet directory, the node service, and pods in it.

`Node` starts `jfs-csi` there as a process of its own; `Pod` stands for what kubelet and container runtime do: it makes
the pod's directory, publishes the control and the data volumes, and runs the sidecar's supervisor in a further namespace
that has the control volume the way a container with Bidirectional propagation has it. Nothing of it is visible in the
namespace of the test, and all of it goes when the processes end.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc.aio
from jfs_csi.mounts import Mount, mountinfo
from jfs_csi.proto import csi_pb2 as csi

DRIVER = "sidecar.juicefs.io"
PATIENCE = 60.0
TESTS = Path(__file__).parent
RUN_SUPERVISOR = (
    "import sys; from jfs.sidecar.supervisor import main;"
    "sys.exit(main(['--control', sys.argv[1]], worker=lambda: [sys.executable, *sys.argv[2:]]))"
)


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition is true; its value. Fails with `what` after a generous time."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {PATIENCE} s: {what}"
        await asyncio.sleep(0.02)
    return value


class Node:
    """The namespace, and the node service in it while started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kubelet = root / "kubelet"
        self.kubelet.mkdir()
        script = (
            f"mount -t tmpfs kubelet {self.kubelet} && mount --make-rshared {self.kubelet}"
            f" && mkdir -p {self.kubelet}/pods {self.kubelet}/plugins/{DRIVER} {self.kubelet}/plugins_registry"
            " && echo up && exec cat"
        )
        # Ends, and with it the namespace, when the test closes its standard input – or dies.
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        self.service: subprocess.Popen[bytes] | None = None
        self.log = root / "jfs-csi.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment: dict[str, str] = {}
        self.arguments: list[str] = []
        self.program = ["-m", "jfs_csi.main"]

    @property
    def pid(self) -> int:
        """A process in the namespace."""
        return self._holder.pid

    @property
    def inside(self) -> Path:
        """The namespace's kubelet directory as the test can reach it."""
        return Path(f"/proc/{self._holder.pid}/root{self.kubelet}")

    @property
    def plugin(self) -> Path:
        return self.inside / "plugins" / DRIVER

    def enter(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """A process in the namespace; killed at the end."""
        entered = ["nsenter", "-t", str(self._holder.pid), "-m", *command]
        process = cast("subprocess.Popen[bytes]", subprocess.Popen(entered, **options))
        self._processes.append(process)
        return process

    def mounts(self, pid: int | None = None) -> list[Mount]:
        """Mounts below the kubelet's directory, in the node's namespace or that of another process."""
        text = Path(f"/proc/{pid or self._holder.pid}/mountinfo").read_text()
        return [mount for mount in mountinfo(text) if mount.path.startswith(f"{self.kubelet}/")]

    async def start(self) -> None:
        plugin = self.kubelet / "plugins" / DRIVER
        with self.log.open("ab") as log:
            # In a mount namespace of its own, as a container with Bidirectional propagation has it.
            self.service = self.enter(
                *("unshare", "--mount", "--propagation", "unchanged"),
                sys.executable,
                *self.program,
                f"--endpoint=unix://{plugin}/csi.sock",
                f"--registration-dir={self.kubelet}/plugins_registry",
                f"--kubelet-dir={self.kubelet}",
                "--node-name=node-1",
                "--verbose",
                *self.arguments,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        try:
            await until(lambda: self._answers_registration(), "the node service listens")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-4000:]}") from None

    def _answers_registration(self) -> bool:
        assert self.service is not None
        assert self.service.poll() is None, self.log.read_text()
        # The registration socket is the last thing a start makes; that of a killed predecessor is removed before.
        return "serves node node-1" in self.log.read_text().rpartition("@@stopped@@")[2]

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.service is not None
        self.service.send_signal(number)
        self.service.wait(PATIENCE)
        with self.log.open("a") as log:
            log.write("@@stopped@@\n")
        self.service = None

    async def call(self, method: str, request: Any, response: Any) -> Any:
        """One call of csi.v1; raises grpc.aio.AioRpcError."""
        name = "Identity" if method in ("Probe", "GetPluginInfo", "GetPluginCapabilities") else "Node"
        return await call(self.plugin / "csi.sock", f"/csi.v1.{name}/{method}", request, response)

    async def publish(self, **fields: Any) -> None:
        await self.call("NodePublishVolume", csi.NodePublishVolumeRequest(**fields), csi.NodePublishVolumeResponse)

    async def unpublish(self, volume_id: str, target: str) -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target)
        await self.call("NodeUnpublishVolume", request, csi.NodeUnpublishVolumeResponse)

    def close(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(PATIENCE)
        self._holder.stdout.close()


async def call(socket: Path, method: str, request: Any, response: Any) -> Any:
    """One unary call over a Unix socket."""
    async with grpc.aio.insecure_channel(
        f"unix://{socket}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        stub = channel.unary_unary(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return await stub(request, timeout=PATIENCE)


class Pod:
    """A pod on the node, with the kubelet's and the runtime's part of its life."""

    def __init__(self, node: Node, name: str = "app") -> None:
        self.node, self.name, self.uid = node, name, str(uuid.uuid4())
        self.sidecar: subprocess.Popen[bytes] | None = None
        self.log = node.root / f"sidecar-{self.uid}.log"
        self.tiny = node.root / f"tiny-{self.uid}"
        self.tiny.mkdir()

    @property
    def directory(self) -> Path:
        """The pod's control directory P."""
        return self.node.plugin / "pods" / self.uid

    def target(self, volume: str) -> str:
        path = f"{self.node.kubelet}/pods/{self.uid}/volumes/kubernetes.io~csi/{volume}/mount"
        with contextlib.suppress(FileExistsError):
            (self.node.inside / Path(path).parent.relative_to(self.node.kubelet)).mkdir(parents=True)
        return path

    def seen(self, volume: str) -> Path:
        """The target path as the test can reach it."""
        return self.node.inside / Path(self.target(volume)).relative_to(self.node.kubelet)

    def _context(self, **more: str) -> dict[str, str]:
        prefix = "csi.storage.k8s.io/"
        return {
            f"{prefix}pod.name": self.name,
            f"{prefix}pod.namespace": "default",
            f"{prefix}pod.uid": self.uid,
            f"{prefix}serviceAccount.name": "default",
            **more,
        }

    async def publish_control(self, mode: str | None = None) -> None:
        more = {} if mode is None else {"mode": mode}
        await self.node.publish(
            volume_id="csi-control",
            target_path=self.target("juicefs-control"),
            volume_capability={"mount": {}, "access_mode": {"mode": 1}},
            volume_context=self._context(**{"csi.storage.k8s.io/ephemeral": "true", "kind": "control"}, **more),
        )

    def request(self, volume: str, **fields: Any) -> dict[str, Any]:
        """The kubelet's request for a data volume; `fields` replace parts of it."""
        return {
            "volume_id": f"handle-{volume}",
            "target_path": self.target(volume),
            "volume_capability": {"mount": {"mount_flags": fields.pop("options", [])}, "access_mode": {"mode": 5}},
            "volume_context": self._context(**{"csi.storage.k8s.io/ephemeral": "false"}),
            "secrets": {"metaurl": f"tiny://{self.tiny}", "name": "tiny", "secret-key": "hush-hush"},
            **fields,
        }

    async def publish(self, volume: str, **fields: Any) -> None:
        await self.node.publish(**self.request(volume, **fields))

    async def unpublish(self, volume: str) -> None:
        await self.node.unpublish(f"handle-{volume}", self.target(volume))

    @property
    def inside(self) -> Path:
        """Where the sidecar's container has the control volume; /run/jfs in a cluster."""
        return self.node.root / f"run-{self.uid}"

    def start_sidecar(self, *worker: str) -> None:
        """The sidecar's container: a mount namespace with the control volume, and the supervisor in it."""
        inside = self.inside
        inside.mkdir(exist_ok=True)
        control = self.target("juicefs-control")
        script = f'mount --rbind {control} {inside} && exec "$@"'
        arguments = worker or (str(TESTS / "tiny_worker.py"),)
        with self.log.open("ab") as log:
            self.sidecar = self.node.enter(
                *("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh"),
                *(sys.executable, "-c", RUN_SUPERVISOR, str(inside), *arguments),
                stderr=log,
                env={**os.environ, "JFS_GRACE_SECONDS": "5"},
            )

    def start_application(self, volume: str) -> Path:
        """An application's container with the volume HostToContainer; the path through which the test sees its mount."""
        inside = self.node.root / f"app-{self.uid}-{len(self.node._processes)}"
        inside.mkdir()
        script = f"mount --rbind {self.target(volume)} {inside} && mount --make-rslave {inside} && echo up && exec cat"
        process = self.node.enter(
            *("unshare", "--mount", "--propagation", "slave", "sh", "-c", script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return Path(f"/proc/{process.pid}/root{inside}")

    def bind_sub_path(self, volume: str, name: str = "file") -> str:
        """What the kubelet does before it starts a container that mounts a `subPath` of the volume; the bind's path."""
        place = f"{self.node.kubelet}/pods/{self.uid}/volume-subpaths/{volume}/app/{name or 'root'}"
        make = f"mkdir -p {os.path.dirname(place)} && touch {place}" if name else f"mkdir -p {place}"
        script = f"{make} && mount --bind {self.target(volume)}/{name} {place}"
        done = self.node.enter("sh", "-c", script).wait(PATIENCE)
        assert done == 0, f"mount(8) ended with {done}"
        return place

    def start_small_sidecar(self, *, restricted: bool = False, hold: Path | None = None) -> None:
        """A container with `small_sidecar.py`."""
        more = [f"hold={hold}"] if hold is not None else []
        self._start_container(restricted, "-I", str(TESTS / "small_sidecar.py"), str(self.inside), *more)

    def start_client(self, *, restricted: bool = False, **environment: str) -> None:
        """A container as in a cluster: `jfs sidecar`, with a state directory that lives as long as the pod."""
        state = self.node.root / f"state-{self.uid}"
        state.mkdir(exist_ok=True)
        state.chmod(0o777)
        environment = {"JFS_GRACE_SECONDS": "5", "JFS_STATE": str(state), **environment}
        self._start_container(restricted, "-m", "jfs", "sidecar", "--control", str(self.inside), **environment)

    def _start_container(self, restricted: bool, *arguments: str, **environment: str) -> None:
        """Restricted: as PodSecurity's level of that name has it; its view of the control volume only receives mounts."""
        inside = self.inside
        inside.mkdir(exist_ok=True)
        self.node.root.chmod(0o755)  # a temporary folder is only its owner's
        script = (
            f'mount --rbind {self.target("juicefs-control")} {inside} && {python_for_all(self.node.root)} exec "$@"'
        )
        nobody = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ]
        with self.log.open("ab") as log:
            self.sidecar = self.node.enter(
                *(
                    "unshare",
                    "--mount",
                    "--propagation",
                    "slave" if restricted else "unchanged",
                    "sh",
                    "-c",
                    script,
                    "sh",
                ),
                *(nobody if restricted else []),
                *(sys.executable, *arguments),
                stderr=log,
                env={**os.environ, **environment},
            )

    def ready(self, pid: int | None = None, control: str | None = None) -> tuple[int, str]:
        """The startup probe, `jfs ready`: exit status and what it prints. In the sidecar's container, or in the mount
        namespace of another process with the control directory as that sees it.
        """
        if pid is None:
            assert self.sidecar is not None
            pid = self.sidecar.pid
        command = [sys.executable, "-m", "jfs", "ready", "--control", control or str(self.inside)]
        result = subprocess.run(
            ["nsenter", "-t", str(pid), "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        return result.returncode, result.stdout

    def kill_container(self) -> None:
        """SIGKILL to the supervisor and, as the end of a pid namespace would, to its workers."""
        assert self.sidecar is not None
        workers = children(self.sidecar.pid)
        for pid in (self.sidecar.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.sidecar.wait(PATIENCE)

    async def mounted(self, volume: str) -> None:
        """Wait until the file system shows through the target."""
        await until(lambda: self._reads(volume), f"{volume} is mounted\n{self.logs()}")

    def _reads(self, volume: str) -> bool:
        return self.reads(volume, "file") == b"tiny\n"

    def reads(self, volume: str, name: str) -> bytes | None:
        """A file's content through the target path; None if it cannot be read now."""
        try:
            return (self.seen(volume) / name).read_bytes()
        except OSError:
            return None

    def is_mounted(self, volume: str) -> bool:
        """Whether the target answers as the root of a volume."""
        try:
            return os.stat(self.seen(volume)).st_ino == 1
        except OSError:
            return False

    def logs(self) -> str:
        sidecar = self.log.read_text() if self.log.exists() else ""
        return f"--- node service\n{self.node.log.read_text()}\n--- sidecar\n{sidecar}"

    def state(self, volume: str) -> dict[str, Any]:
        document = json.loads((self.node.plugin / "state" / self.uid / f"{volume}.json").read_text())
        assert isinstance(document, dict)
        return document


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def python_for_all(place: Path) -> str:
    """Shell commands after which every user of a private mount namespace can run this Python, wherever it is installed."""
    base = Path(sys.base_prefix)
    hidden = next((each for each in reversed(base.parents) if not each.stat().st_mode & 0o001), None)
    if hidden is None:
        return ""
    copy = place / "python"
    copy.mkdir(exist_ok=True)
    steps = [f"mount --bind {base} {copy}", f"mount -t tmpfs -o mode=755 none {hidden}", f"mkdir -p {base}"]
    return " && ".join([*steps, f"mount --bind {copy} {base}"]) + " &&"


def fuse_descriptors(pid: int) -> int:
    """How many descriptors of /dev/fuse a process has. By their device: what the links show ends with the mount namespace."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += os.stat(link).st_rdev == os.makedev(10, 229)
    return found


@contextlib.contextmanager
def a_node() -> Iterator[Node]:
    # A short path: Unix sockets have 108 bytes, and the test reaches them through /proc/<pid>/root.
    with tempfile.TemporaryDirectory(prefix="jfs-") as directory:
        node = Node(Path(directory).resolve())
        try:
            yield node
        finally:
            node.close()


@contextlib.asynccontextmanager
async def a_running_node() -> AsyncIterator[Node]:
    with a_node() as node:
        await node.start()
        yield node
