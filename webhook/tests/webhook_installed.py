"""The chart as it is installed on a real API server, and pods as its users write them."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webhook_control_plane import ControlPlane, free_port, own_address, process, until

CHART = Path(__file__).resolve().parents[2] / "charts" / "juicefs-sidecar"
SYSTEM = "juicefs-system"
DRIVER = "sidecar.juicefs.io"


@dataclass
class Installed:
    cluster: ControlPlane
    port: int
    health: int

    def upgrade(self, *arguments: str) -> None:
        self.cluster.helm("upgrade", "juicefs", str(CHART), "-n", SYSTEM, *self.values, *arguments)

    @property
    def values(self) -> list[str]:
        return [f"--set=webhook.port={self.port}", f"--set=webhook.healthPort={self.health}"]

    def namespace(self, name: str, **labels: str) -> str:
        """A namespace with what its controllers would put there."""
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        assert self.cluster.create(document).returncode == 0
        self.cluster.kubectl("create", "serviceaccount", "default", "-n", name)
        return name

    def volume(self, namespace: str, name: str) -> None:
        """A volume as the operator leaves it."""
        wish = json.dumps({"resources": {"requests": {"memory": "1024Mi"}}})
        documents: list[dict[str, Any]] = [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"pv-{namespace}-{name}", "annotations": {"juicefs.io/sidecar": wish}},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteMany"],
                    "csi": {"driver": DRIVER, "volumeHandle": f"{namespace}-{name}"},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "accessModes": ["ReadWriteMany"],
                    "storageClassName": "",
                    "volumeName": f"pv-{namespace}-{name}",
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            },
        ]
        for document in documents:
            answer = self.cluster.create(document)
            assert answer.returncode == 0, answer.stderr

    def pod(self, namespace: str, name: str, claim: str = "data", **metadata: Any) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, **metadata},
            "spec": {
                "securityContext": {"runAsUser": 1000, "runAsNonRoot": True, "fsGroup": 1000},
                "initContainers": [
                    {"name": "init", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
                ],
                "containers": [{"name": "app", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
            },
        }

    def created(self, document: dict[str, Any], *arguments: str) -> dict[str, Any]:
        answer = self.cluster.create(document, *arguments)
        assert answer.returncode == 0, answer.stderr
        pod: dict[str, Any] = json.loads(answer.stdout)
        return pod


def ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
    except OSError:
        return False


def point_service_here(cluster: ControlPlane, port: int) -> None:
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"juicefs-webhook-{port}",
            "namespace": SYSTEM,
            "labels": {"kubernetes.io/service-name": "juicefs-webhook"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [own_address()], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }
    answer = cluster.create(document)
    assert answer.returncode == 0, answer.stderr


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any] | None:
    containers = pod["spec"].get("initContainers", [])
    return next((each for each in containers if each["name"] == "juicefs-sidecar"), None)


def installed_chart(cluster: ControlPlane) -> Installed:
    """The chart installed, with a Service that leads nowhere yet."""
    chart = Installed(cluster, free_port(), free_port())
    cluster.helm("install", "juicefs", str(CHART), "-n", SYSTEM, "--create-namespace", *chart.values)
    return chart


@contextmanager
def replica(chart: Installed, port: int, health: int, *program: str) -> Iterator[Path]:
    """A replica of the webhook on this machine, behind its Service, with its ServiceAccount's rights and its Deployment's command
    line; yields its log once it is ready. `program` is run in place of the Deployment's."""
    cluster = chart.cluster
    deployment = cluster.get("deployment", "juicefs-webhook", "-n", SYSTEM)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    command = program or (str(Path(sys.executable).with_name(container["command"][0])),)
    kubeconfig = cluster.service_account(SYSTEM, "juicefs-webhook")
    log = cluster.folder / f"webhook-{port}.log"
    arguments = [*container["args"], f"--port={port}", f"--health-port={health}", "--drain-seconds=0"]
    with process([*command, *arguments], log, KUBECONFIG=str(kubeconfig)) as running:
        until(lambda: running.poll() is None and ready(health), 60, log.read_text)
        point_service_here(cluster, port)
        yield log
        running.terminate()
        assert running.wait(30) == 0, log.read_text()
