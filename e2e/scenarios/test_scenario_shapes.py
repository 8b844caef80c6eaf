"""Pods of every shape that users have, with a privileged and with a restricted sidecar.

All pods of a mode start at once, on one file system; then each test looks at its own. Where a volume cannot name its mode
(inline and generic ephemeral ones), the restricted ones live in a namespace that allows nothing else.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jfs_api import names

from e2e import documents
from e2e.cluster import Cluster, Document, KubectlError, until
from e2e.scenario import LABELS, Scenario, reported

pytestmark = pytest.mark.cluster

ENFORCE = {"pod-security.kubernetes.io/enforce": "restricted"}
# Rights that the level `restricted` wants of a pod and its containers.
POD_RIGHTS = {"runAsUser": 1234, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
OPEN = "chmod 777 /data; " + documents.IDLE
STARTED_WITHIN = 400.0  # seconds; a score of pods start at once, and with each of them a sidecar
FIVE = [f"part{number}" for number in range(5)]
# What a service mesh puts in: a native sidecar that is there before the application.
MESH: dict[str, Any] = {"restartPolicy": "Always", "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}


class Shapes:
    """The pods of one mode."""

    def __init__(self, scenario: Scenario, closed: Scenario, mode: str) -> None:
        self.scenario, self.mode = scenario, mode
        self.inside = closed if mode == names.RESTRICTED else scenario
        self._of_the_cluster: list[Document] = []

    def begin(self) -> None:
        """Apply everything; nobody waits for more than the credentials' volume."""
        self.scenario.volume(sidecar={"mode": self.mode})
        for name in FIVE:
            self._part(name)
        self._part("alone", accessModes=["ReadWriteOncePod"])
        frozen = documents.volume("frozen", "files-credentials", sidecar={"mode": self.mode}, mountOptions=["ro"])
        self.scenario.kubectl.apply(frozen)
        self._inline_and_ephemeral()
        # its claim comes after the pod
        self._part("future")
        self.scenario.kubectl.apply(*self._ordinary())

    def end(self) -> None:
        """What does not go with a namespace."""
        self.inside.kubectl.delete(*self._of_the_cluster, wait=False)

    def _part(self, name: str, **spec: Any) -> None:
        wish = {"mode": self.mode}
        self.scenario.kubectl.apply(documents.volume(name, "files-credentials", sidecar=wish, subPath=name, **spec))

    def _ordinary(self) -> list[Document]:
        files = {"files": "/data"}
        owner = {"runAsUser": 1234, "runAsGroup": 1234, "runAsNonRoot": True, "fsGroup": 5678}
        # Each its own file: a pod that writes it anew empties it under the other one's eyes.
        prepare = documents.container("echo prepared >/data/by-init", "prepare", files)
        after_mesh = documents.container("echo prepared >/data/after-mesh", "after-mesh", files)
        mesh = documents.container(name="istio-proxy", **MESH)
        return [
            documents.pod("open", OPEN, files),
            documents.pod("init", mounts=files, initContainers=[prepare]),
            documents.job("work", "echo $HOSTNAME >/data/$HOSTNAME", files, completions=3),
            documents.cron_job("nightly", "echo done >/data/nightly", files),
            documents.pod("five", mounts={name: f"/{name}" for name in FIVE}),
            self._matrix(),
            documents.pod("network", mounts=files, hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"),
            documents.pod("processes", mounts=files, hostPID=True),
            documents.pod("shared", mounts=files, shareProcessNamespace=True),
            documents.pod("owner", mounts=files, securityContext={**owner, "seLinuxOptions": {"level": "s0:c1,c2"}}),
            documents.pod("mesh", mounts=files, initContainers=[mesh, after_mesh]),
            documents.pod("only", mounts={"alone": "/data"}),
            documents.pod("second", mounts={"alone": "/data"}),
            documents.pod("reader", mounts={"frozen": "/data"}),
            documents.pod("early", mounts={"future": "/data"}),
        ]

    @staticmethod
    def _matrix() -> Document:
        """Containers that see the same claim whole, read-only, by a part, and by a part that an expression names."""
        containers = [
            documents.container(name="whole", mounts={"files": "/data"}),
            documents.container(name="reads", mounts={"files": {"mountPath": "/data", "readOnly": True}}),
            documents.container(name="part", mounts={"files": {"mountPath": "/data", "subPath": "matrix/part"}}),
            documents.container(
                name="expression",
                mounts={"files": {"mountPath": "/data", "subPathExpr": "matrix/$(POD)"}},
                env=[{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            ),
        ]
        spec = documents.pod_spec(containers, ["files"])
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "matrix"}, "spec": spec}

    def _inline_and_ephemeral(self) -> None:
        inside = self.inside
        if inside is not self.scenario:
            inside.kubectl.apply(documents.secret("files-credentials", self.scenario.credentials()))
        storage_class = f"{self.scenario.name}-late"
        for name in ("waits", "scratch-scratch"):  # a generic ephemeral claim is named after pod and volume
            volume, claim = documents.static_volume(inside.name, name, "files-credentials", storage_class)
            inside.kubectl.delete(volume)  # of a run that was killed, on a kept cluster
            inside.kubectl.apply(volume)
            self._of_the_cluster.append(volume)
        wanted = {key: value for key, value in claim["spec"].items() if key != "volumeName"}
        template = {"metadata": {}, "spec": wanted}
        inline = {"driver": names.DRIVER, "nodePublishSecretRef": {"name": "files-credentials"}}
        kind = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": storage_class},
            "provisioner": names.DRIVER,
            "volumeBindingMode": "WaitForFirstConsumer",
        }
        self._of_the_cluster.append(kind)
        inside.kubectl.apply(
            kind,
            {**claim, "metadata": {"name": "waits"}, "spec": wanted},
        )
        inside.kubectl.apply(
            closed_pod("inline", {"name": "inline", "csi": inline}),
            closed_pod("scratch", {"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}),
            closed_pod("waiting", {"name": "waits", "persistentVolumeClaim": {"claimName": "waits"}}),
        )

    def ready(self, pod: str, scenario: Scenario | None = None) -> Scenario:
        """Wait for a pod of ours; the scenario it is in."""
        scenario = scenario or self.scenario
        scenario.kubectl.wait(f"pod/{pod}", "condition=Ready", STARTED_WITHIN)
        return scenario

    def has_sidecar(self, pod: str, scenario: Scenario | None = None) -> bool:
        """One sidecar, native, of the mode, before all other containers."""
        spec = (scenario or self.scenario).kubectl.get("pod", pod)["spec"]
        named = [c for c in (*spec["initContainers"], *spec["containers"]) if c["name"] == names.SIDECAR_CONTAINER]
        first = spec["initContainers"][0]
        privileged = bool(first["securityContext"].get("privileged"))
        return named == [first] and first["restartPolicy"] == "Always" and privileged == (self.mode == names.PRIVILEGED)


def closed_pod(name: str, volume: dict[str, Any]) -> Document:
    """A pod that every PodSecurity level lets in, with the volume at /data."""
    container = documents.container(mounts={volume["name"]: "/data"}, securityContext=CONTAINER_RIGHTS)
    spec = documents.pod_spec([container], [], securityContext=POD_RIGHTS)
    spec["volumes"] = [volume]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module", params=[names.PRIVILEGED, names.RESTRICTED])
def shapes(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Shapes]:
    mode = request.param

    def failures() -> int:
        return request.session.testsfailed

    with (
        reported(cluster, f"shapes-{mode}", failures) as scenario,
        reported(cluster, f"closed-{mode}", failures, {**LABELS, **ENFORCE}) as closed,
    ):
        found = Shapes(scenario, closed, mode)
        found.begin()
        yield found
        found.end()


def test_init_container_uses_the_volume(shapes: Shapes) -> None:
    scenario = shapes.ready("init")
    assert shapes.has_sidecar("init")
    assert scenario.containers("init") == [names.SIDECAR_CONTAINER, "prepare", "app"]
    assert scenario.sh("init", "cat /data/by-init") == "prepared"


def test_jobs_complete(shapes: Shapes) -> None:
    """Three pods of a job, and one of a job that a CronJob made: the sidecar ends when the job's container has ended."""
    scenario = shapes.scenario
    scenario.kubectl("create", "job", "nightly-1", "--from=cronjob/nightly")
    for job in ("work", "nightly-1"):
        scenario.kubectl.wait(f"job/{job}", "condition=Complete", STARTED_WITHIN)
    shapes.ready("open")
    assert scenario.sh("open", "cat /data/work-* | wc -l; cat /data/nightly") == "3\ndone"


def test_five_claims_have_one_sidecar(shapes: Shapes) -> None:
    scenario = shapes.ready("five")
    assert shapes.has_sidecar("five")
    scenario.sh("five", "for p in /part*; do echo $p >$p/file || exit 1; done")
    assert scenario.sh("five", "cat /part*/file") == "\n".join(f"/{name}" for name in FIVE)


def test_containers_see_their_parts(shapes: Shapes) -> None:
    scenario = shapes.ready("matrix")
    assert shapes.has_sidecar("matrix")
    for container in ("part", "expression"):
        scenario.sh("matrix", f"echo {container} >/data/file", container)
    for container in ("whole", "reads"):
        assert scenario.sh("matrix", "cat /data/matrix/part/file /data/matrix/matrix/file", container) == (
            "part\nexpression"
        )
    assert "Read-only file system" in scenario.fails("matrix", "touch /data/new", "reads")


def test_inline_and_generic_ephemeral_volumes(shapes: Shapes) -> None:
    """And a claim that waits for its first consumer: for what is not bound when the pod is made."""
    for pod in ("inline", "scratch", "waiting"):
        scenario = shapes.ready(pod, shapes.inside)
        assert shapes.has_sidecar(pod, scenario), pod
        assert "fuse.juicefs" in scenario.sh(pod, "grep ' /data ' /proc/mounts")
    shapes.ready("open")  # it makes the root of the file system everybody's
    until("the root to be open", lambda: shapes.scenario.sh("open", "stat -c %a /data") == "777")
    inside = shapes.inside
    inside.sh("inline", "echo here >/data/from-inline")
    assert inside.sh("scratch", "cat /data/from-inline") == inside.sh("waiting", "cat /data/from-inline") == "here"


def test_claim_comes_after_its_pod(shapes: Shapes) -> None:
    scenario = shapes.ready("early")
    assert shapes.has_sidecar("early")
    scenario.sh("early", "echo late >/data/file && cat /data/file")


@pytest.mark.parametrize("pod", ["network", "processes", "shared"])
def test_namespaces_of_the_node_and_of_the_pod(shapes: Shapes, pod: str) -> None:
    """The node's network or processes, or one process namespace for all containers: the sidecar serves, dies and is followed."""
    scenario = shapes.ready(pod)
    assert shapes.has_sidecar(pod)
    scenario.sh(pod, f"echo {pod} >/data/{pod}")
    found = scenario.cluster.pod_processes(scenario.uid(pod))
    workers = [number for number, command in found if "jfs" in command and "worker" in command.split()]
    assert len(workers) == 1
    scenario.cluster.kill(workers[0])
    assert scenario.event(pod, names.EVENT_SIDECAR_RESTARTED)
    assert scenario.sh(pod, f"cat /data/{pod}") == pod
    status = scenario.kubectl.get("pod", pod)["status"]
    assert [s["restartCount"] for s in (*status["initContainerStatuses"], *status["containerStatuses"])] == [0, 0]


def test_a_user_namespace_is_refused_with_a_sentence(shapes: Shapes) -> None:
    with pytest.raises(KubectlError, match="hostUsers"):
        shapes.scenario.kubectl.apply(documents.pod("users", mounts={"files": "/data"}, hostUsers=False))


def test_the_pods_user_and_groups_are_the_applications(shapes: Shapes) -> None:
    """What the pod says of users, groups and SELinux is not the sidecar's; `fsGroup` is a group of the application and changes no
    owner of a file."""
    scenario = shapes.ready("owner")
    shapes.ready("open")
    until("the root to be open", lambda: scenario.sh("open", "stat -c %a /data") == "777")
    scenario.sh("owner", "echo mine >/data/owned")
    assert scenario.sh("owner", "stat -c '%u %g' /data/owned; id -G") == "1234 1234\n1234 5678"
    assert scenario.sh("open", "stat -c '%u %g' /data") == "0 0"


def test_a_pod_of_another_system_is_left_alone(shapes: Shapes) -> None:
    kubectl = shapes.scenario.kubectl
    kubectl.apply(documents.pod("windows", mounts={"files": "/data"}, os={"name": "windows"}))
    kubectl.apply(documents.pod("old", mounts={"files": "/data"}, nodeSelector={"kubernetes.io/os": "windows"}))
    assert shapes.scenario.containers("windows") == shapes.scenario.containers("old") == ["app"]


def test_a_debugging_container_sees_the_mount(shapes: Shapes) -> None:
    """`kubectl debug`, with the volume of the pod that runs."""
    scenario = shapes.ready("open")
    scenario.sh("open", "echo seen >/data/to-debug")
    place = scenario.cluster.instance.state / "debug.json"
    place.write_text(json.dumps({"volumeMounts": [{"name": "files", "mountPath": "/data"}]}))
    command = ["--image", documents.BUSYBOX, "--target", "app", "-c", "debugger", "--custom", str(place)]
    script = "cat /data/to-debug && echo debugged >/data/by-debugger"
    scenario.kubectl("debug", "open", "--profile", "general", *command, "--", "sh", "-c", script)
    until("the debugger to have been there", lambda: scenario.sh("open", "cat /data/by-debugger || true") == "debugged")
    until("its log", lambda: scenario.kubectl.logs("open", "-c", "debugger").strip() == "seen")


def test_read_only_and_for_one_pod_alone(shapes: Shapes) -> None:
    scenario = shapes.ready("reader")
    assert "Read-only file system" in scenario.fails("reader", "touch /data/new")

    def phases() -> dict[str, str]:
        return {pod: scenario.kubectl.get("pod", pod)["status"]["phase"] for pod in ("only", "second")}

    def why_pending(pod: str) -> str:
        conditions = scenario.kubectl.get("pod", pod)["status"]["conditions"]
        return next(str(each.get("message")) for each in conditions if each["type"] == "PodScheduled")

    # whichever came first; the scheduler says why the other one waits
    until("one pod to run", lambda: sorted(phases().values()) == ["Pending", "Running"], STARTED_WITHIN)
    (waits,) = [pod for pod, phase in phases().items() if phase == "Pending"]
    until("the scheduler to say why", lambda: "ReadWriteOncePod" in why_pending(waits))


def test_a_mesh_keeps_its_place_among_the_others(shapes: Shapes) -> None:
    """A native sidecar of somebody else, and an init container after it, both after ours."""
    scenario = shapes.ready("mesh")
    assert scenario.containers("mesh") == [names.SIDECAR_CONTAINER, "istio-proxy", "after-mesh", "app"]
    assert scenario.sh("mesh", "cat /data/after-mesh") == "prepared"


def test_static_pods_are_refused_by_the_kubelet(shapes: Shapes) -> None:
    """They may name no CSI driver: the kubelet says so, and nothing of ours is asked."""
    cluster, name = shapes.scenario.cluster, f"static-{shapes.mode}"
    pod = closed_pod(name, {"name": "files", "csi": {"driver": names.DRIVER}})
    place = cluster.instance.manifests / f"{name}.json"
    place.write_text(json.dumps({**pod, "metadata": {"name": name, "namespace": shapes.scenario.name}}))
    try:

        def refused() -> bool:
            lines = cluster.log("kubelet", 200).splitlines()
            return any(str(place) in line and "may not reference csidrivers" in line for line in lines)

        until("the kubelet to refuse the static pod", refused)
        assert shapes.scenario.kubectl.find("pod", f"{name}-node1") is None
    finally:
        place.unlink()


def test_zz_every_pod_ends_without_a_trace(shapes: Shapes) -> None:
    """After all tests of the mode: everything is deleted at once."""
    scenarios = [shapes.scenario, *([shapes.inside] if shapes.inside is not shapes.scenario else [])]
    uids = [pod["metadata"]["uid"] for scenario in scenarios for pod in scenario.kubectl.items("pods")]
    for scenario in scenarios:
        scenario.kubectl("delete", "cronjobs,jobs,pods", "--all", "--wait=false")
    for uid in uids:
        shapes.scenario.gone(uid)
    assert shapes.scenario.sessions() == 0
