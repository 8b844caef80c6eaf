"""A rollout on a real API server, with the rights of the chart: what it patches is what an API server lets a running pod change."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import ControlPlane, OperatorProcess, until
from jfs_api import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CORE, GROUP = "/api/v1", "/apis/juicefs.io/v1alpha1"
SPACE = "rollout"
OLD, NEW, BAD = "registry.example/sidecar:1", "registry.example/sidecar:2", "registry.example/sidecar:bad"


class Pods:
    """Pods of one volume; the test is the kubelet."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.persistent_volume = ""

    def add_volume(self) -> None:
        body = {
            "apiVersion": "juicefs.io/v1alpha1",
            "kind": "JuiceFSVolume",
            "metadata": {"name": "data"},
            "spec": {"secretRef": {"name": "none"}},
        }
        made = self._plane.create(f"{GROUP}/namespaces/{SPACE}/juicefsvolumes", body)
        self.persistent_volume = f"jfsv-{made['metadata']['uid']}"
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "claimRef": {"namespace": SPACE, "name": "data"},
            "csi": {"driver": names.DRIVER, "volumeHandle": "x"},
        }
        annotations = {names.VOLUME_ANNOTATION: f"{SPACE}/data"}
        head = {"name": self.persistent_volume, "annotations": annotations}
        self._plane.create(f"{CORE}/persistentvolumes", {"metadata": head, "spec": spec})

    def add(self, name: str) -> None:
        body = {
            "metadata": {"name": name, "labels": {names.INJECTED_LABEL: "true"}},
            "spec": {
                "initContainers": [{"name": names.SIDECAR_CONTAINER, "image": OLD, "restartPolicy": "Always"}],
                "containers": [{"name": "app", "image": "app:1"}],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": names.STATE_VOLUME, "emptyDir": {}},
                ],
            },
        }
        self._plane.create(f"{CORE}/namespaces/{SPACE}/pods", body)
        self.runs(name, 0)

    def get(self, name: str) -> Any:
        return self._plane.request("GET", f"{CORE}/namespaces/{SPACE}/pods/{name}")[1]

    def image(self, name: str) -> str:
        return str(self.get(name)["spec"]["initContainers"][0]["image"])

    def runs(self, name: str, restarts: int) -> None:
        running = {"running": {"startedAt": "2020-01-01T00:00:00Z"}}
        self._status(name, {"restartCount": restarts, "started": True, "ready": True, "state": running})

    def waits(self, name: str, reason: str) -> None:
        waiting = {"waiting": {"reason": reason, "message": "not found"}}
        self._status(name, {"restartCount": 1, "started": False, "ready": False, "state": waiting})

    def _status(self, name: str, status: dict[str, Any]) -> None:
        full = {"name": names.SIDECAR_CONTAINER, "image": "x", "imageID": "x", **status}
        body = {"status": {"phase": "Running", "initContainerStatuses": [full]}}
        code, answer = self._plane.request("PATCH", f"{CORE}/namespaces/{SPACE}/pods/{name}/status", body)
        assert code == 200, answer

    def volume(self) -> Any:
        return self._plane.request("GET", f"{GROUP}/namespaces/{SPACE}/juicefsvolumes/data")[1]

    def condition(self) -> str:
        conditions = (self.volume().get("status") or {}).get("conditions") or []
        return next((each["reason"] for each in conditions if each["type"] == names.SIDECARS_CURRENT), "")

    def reasons(self) -> set[str]:
        events = self._plane.request("GET", f"{CORE}/namespaces/{SPACE}/events")[1]["items"]
        return {event["reason"] for event in events}


@pytest.fixture
def pods(plane: ControlPlane, shared_operator: OperatorProcess) -> Iterator[Pods]:
    if shared_operator.running:
        shared_operator.end()
    plane.namespace(SPACE)
    pods = Pods(plane)
    yield pods
    if shared_operator.running:
        shared_operator.end()
    plane.request("DELETE", f"{CORE}/persistentvolumes/{pods.persistent_volume}")


def test_rollout_stop_and_resume(plane: ControlPlane, pods: Pods, shared_operator: OperatorProcess) -> None:
    pods.add_volume()
    for name in ("a", "b"):
        pods.add(name)
    quick = ("--rollout-pause=1", "--rollout-timeout=60")

    shared_operator.start(f"--rollout-image={NEW}", *quick)
    until("the first pod to have the image", lambda: pods.image("a") == NEW)
    assert json.loads(pods.get("a")["metadata"]["annotations"][names.ROLLOUT_ANNOTATION])["former"] == OLD
    assert pods.image("b") == OLD
    until("the volume to say so", lambda: pods.condition() == "RollingOut")
    pods.runs("a", 1)
    until("the second pod to have it", lambda: pods.image("b") == NEW)
    assert names.ROLLOUT_ANNOTATION not in pods.get("a")["metadata"].get("annotations", {})
    pods.runs("b", 1)
    until("the volume to be up to date", lambda: pods.condition() == "UpToDate")

    shared_operator.end()
    shared_operator.start(f"--rollout-image={BAD}", *quick)
    until("the first pod to have the bad one", lambda: pods.image("a") == BAD)
    pods.waits("a", "ImagePullBackOff")
    until("it to have its former one again", lambda: pods.image("a") == NEW)
    pods.runs("a", 2)
    until("the volume to say so", lambda: pods.condition() == names.ROLLOUT_STOPPED)
    assert pods.volume()["metadata"]["annotations"][names.ROLLOUT_STOPPED_ANNOTATION] == BAD
    assert pods.image("b") == NEW
    assert {names.EVENT_SIDECAR_REPLACED, names.EVENT_SIDECAR_ROLLED_BACK, names.ROLLOUT_STOPPED} <= pods.reasons()

    # resumed by taking the annotation off
    patch = {"metadata": {"annotations": {names.ROLLOUT_STOPPED_ANNOTATION: None}}}
    plane.request("PATCH", f"{GROUP}/namespaces/{SPACE}/juicefsvolumes/data", patch)
    until("the first pod to have it again", lambda: pods.image("a") == BAD)
    pods.runs("a", 3)
    until("the second pod to have it", lambda: pods.image("b") == BAD)
    assert shared_operator.log().count("is put off") == 0
