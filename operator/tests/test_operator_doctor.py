"""`jfs doctor`: each thing that can be wrong is the cause it names, with a remedy, on one page."""

import argparse
import base64
import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jfs_api import names
from jfs_operator.api import (
    CLAIMS,
    EVENTS,
    JUICEFS_NODES,
    JUICEFS_SECRETS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    ApiError,
    Object,
    Resource,
)
from jfs_operator.doctor.command import diagnose, main, parser
from jfs_operator.doctor.facts import CSI_NODES, NAMESPACES, WEBHOOKS
from jfs_operator.doctor.page import Exit
from jfs_operator.memory import MemoryApi

NOW = datetime.datetime.now(datetime.UTC)
PV = "jfsv-1"


def authority(days: float) -> str:
    """A caBundle that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=30))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return base64.b64encode(built.public_bytes(serialization.Encoding.PEM)).decode()


def condition(kind: str, status: str, reason: str = "Good", message: str = "it is so") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def part(component: str, ready: bool = True) -> Object:
    return {
        "metadata": {
            "name": component,
            "namespace": "juicefs-system",
            "labels": {"app.kubernetes.io/name": "juicefs-sidecar", "app.kubernetes.io/component": component},
        },
        "spec": {"nodeName": "node-1"},
        "status": {"conditions": [condition("Ready", "True" if ready else "False")]},
    }


class Cluster:
    """A pod whose volume works; a test breaks one thing."""

    def __init__(self) -> None:
        self.namespace: Object = {"metadata": {"name": "team", "labels": {names.INJECT_LABEL: "enabled"}}}
        selector = {
            "matchExpressions": [
                {"key": names.INJECT_LABEL, "operator": "In", "values": ["enabled"]},
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]},
            ]
        }
        service = {"name": "juicefs-webhook", "namespace": "juicefs-system"}
        client = {"caBundle": authority(300), "service": service}
        self.webhook: Object = {
            "metadata": {"name": "juicefs-webhook"},
            "webhooks": [{"name": "inject", "namespaceSelector": selector, "clientConfig": client}],
        }
        self.parts = {name: part(name) for name in ("operator", "webhook", "node")}
        self.csi_node: Object = {"metadata": {"name": "node-1"}, "spec": {"drivers": [{"name": names.DRIVER}]}}
        self.entry: Object = {
            "volume": PV,
            "namespace": "team",
            "pod": "web",
            "podUID": "pod-uid",
            "mode": "restricted",
            "state": "Attached",
            "restarts": 2,
            "lastStallMs": 12,
            "since": "2030-01-01T00:00:00Z",
        }
        self.sidecar: Object = {
            "name": names.SIDECAR_CONTAINER,
            "restartCount": 0,
            "started": True,
            "ready": True,
            "state": {"running": {"startedAt": "2030-01-01T00:00:00Z"}},
        }
        self.pod: Object = {
            "metadata": {"name": "web", "namespace": "team", "uid": "pod-uid", "labels": {}},
            "spec": {
                "nodeName": "node-1",
                "initContainers": [{"name": names.SIDECAR_CONTAINER, "image": "registry/sidecar:1"}],
                "containers": [{"name": "app"}],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "shared"}},
                    {"name": "juicefs-control", "csi": {"driver": names.DRIVER}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
            "status": {
                "phase": "Running",
                "conditions": [condition("Ready", "True")],
                "containerStatuses": [{"name": "app", "state": {"running": {}}}],
            },
        }
        self.claim: Object | None = {
            "metadata": {"name": "shared", "namespace": "team"},
            "spec": {"volumeName": PV},
            "status": {"phase": "Bound"},
        }
        self.volume: Object | None = {"metadata": {"name": PV}, "spec": {"csi": {"driver": names.DRIVER}}}
        self.juicefs: Object | None = {
            "metadata": {"name": "shared", "namespace": "team", "uid": "volume-uid"},
            "spec": {"secretRef": {"kind": names.SECRET_KIND, "name": "keys"}},
        }
        self.conditions = {
            kind: condition(kind, "True") for kind in (names.READY, names.SECRET_VALID, names.FORMATTED, names.BOUND)
        }
        self.secret: Object | None = {
            "metadata": {"name": "keys", "namespace": "team"},
            "status": {"conditions": [condition(names.SECRET_VALID, "True")]},
        }
        self.events: list[Object] = []
        self.denied: set[str] = set()

    def break_condition(self, kind: str, reason: str, message: str) -> None:
        self.conditions[kind] = condition(kind, "False", reason, message)

    def event(self, reason: str, message: str) -> None:
        involved = {"kind": "Pod", "uid": "pod-uid"}
        head = {"name": f"event-{len(self.events)}", "namespace": "team"}
        stamp = f"2030-01-01T00:00:{len(self.events):02}Z"
        self.events.append(
            {
                "metadata": head,
                "involvedObject": involved,
                "reason": reason,
                "message": message,
                "lastTimestamp": stamp,
                "type": "Warning",
            }
        )

    def api(self) -> MemoryApi:
        api = MemoryApi()
        if self.juicefs is not None:
            self.juicefs.setdefault("status", {"conditions": list(self.conditions.values())})
        if self.sidecar:
            self.pod["status"]["initContainerStatuses"] = [self.sidecar]
        node = {
            "metadata": {"name": "node-1", "namespace": "juicefs-system"},
            "attachments": [self.entry] if self.entry else [],
        }
        objects: list[tuple[Resource, Object | None]] = [
            (NAMESPACES, self.namespace),
            (WEBHOOKS, self.webhook or None),
            *((PODS, each) for each in self.parts.values()),
            (CSI_NODES, self.csi_node),
            (JUICEFS_NODES, node),
            (PODS, self.pod),
            (CLAIMS, self.claim),
            (PERSISTENT_VOLUMES, self.volume),
            (JUICEFS_VOLUMES, self.juicefs),
            (JUICEFS_SECRETS, self.secret),
            *((EVENTS, event) for event in self.events),
        ]
        for resource, body in objects:
            if body is not None:
                api.create(resource, body)

        def refuse(verb: str, resource: Resource, name: str) -> ApiError | None:
            if resource.plural in self.denied and name != "web":
                group = resource.api_version.rpartition("/")[0]
                place = 'in the namespace "juicefs-system"' if resource.namespaced else "at the cluster scope"
                who = f'{resource.plural} is forbidden: User "tenant"'
                return ApiError(403, f'{who} cannot {verb} resource "{resource.plural}" in API group "{group}" {place}')
            return None

        api.deny(refuse)
        return api

    def ask(self, target: str = "web", *more: str) -> tuple[str, int]:
        options: argparse.Namespace = parser().parse_args([target, *more])
        return diagnose(self.api(), "team", options)

    def answer(self, target: str = "web") -> dict[str, Any]:
        text, code = self.ask(target, "-o", "json")
        found: dict[str, Any] = json.loads(text)
        assert found["verdict"] == Exit(code).name.lower()
        return found


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_all_is_well(cluster: Cluster) -> None:
    text, code = cluster.ask()
    assert code == Exit.WELL, text
    assert "No problem was found." in text
    assert "2 takeovers, the last of which cost 12 ms" in text
    assert "PROBLEM" not in text


def unlabelled(cluster: Cluster) -> None:
    cluster.namespace["metadata"]["labels"] = {}
    uninjected(cluster)


def uninjected(cluster: Cluster) -> None:
    cluster.pod["spec"]["initContainers"] = []
    cluster.sidecar, cluster.entry = {}, {}


def opted_out(cluster: Cluster) -> None:
    uninjected(cluster)
    cluster.pod["metadata"]["labels"] = {names.INJECT_LABEL: "disabled"}


def no_volume(cluster: Cluster) -> None:
    uninjected(cluster)
    cluster.pod["spec"]["volumes"] = []


def no_webhook(cluster: Cluster) -> None:
    uninjected(cluster)
    cluster.webhook = {}


def webhook_down(cluster: Cluster) -> None:
    uninjected(cluster)
    cluster.parts["webhook"] = part("webhook", ready=False)


def no_authority(cluster: Cluster) -> None:
    uninjected(cluster)
    del cluster.webhook["webhooks"][0]["clientConfig"]["caBundle"]


def expired(cluster: Cluster) -> None:
    uninjected(cluster)
    cluster.webhook["webhooks"][0]["clientConfig"]["caBundle"] = authority(-1)


def operator_down(cluster: Cluster) -> None:
    del cluster.parts["operator"]


def bad_secret(cluster: Cluster) -> None:
    cluster.break_condition(names.SECRET_VALID, "SecretMissing", "the Secret keys does not exist")
    cluster.secret = None


def unreachable(cluster: Cluster) -> None:
    cluster.break_condition(names.FORMATTED, "FormatFailed", "no answer from redis:6379")


def no_claim(cluster: Cluster) -> None:
    cluster.claim = cluster.volume = cluster.juicefs = None
    unscheduled(cluster)


def no_status(cluster: Cluster) -> None:
    assert cluster.juicefs is not None
    cluster.juicefs["status"] = {}


def pending_claim(cluster: Cluster) -> None:
    assert cluster.claim is not None
    cluster.claim["status"]["phase"] = "Pending"


def unscheduled(cluster: Cluster) -> None:
    del cluster.pod["spec"]["nodeName"]
    cluster.pod["status"]["conditions"] = [condition("PodScheduled", "False", "Unschedulable", "0/1 nodes fit")]
    cluster.sidecar, cluster.entry = {}, {}


def no_node_service(cluster: Cluster) -> None:
    del cluster.parts["node"]
    cluster.sidecar, cluster.entry = {}, {}


def node_service_down(cluster: Cluster) -> None:
    cluster.parts["node"] = part("node", ready=False)


def not_registered(cluster: Cluster) -> None:
    cluster.csi_node["spec"]["drivers"] = []


def not_published(cluster: Cluster) -> None:
    cluster.sidecar, cluster.entry = {}, {}
    cluster.event("FailedMount", "MountVolume.SetUp failed: the Secret lacks the key metaurl")


def no_image(cluster: Cluster) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    cluster.sidecar.update(started=False, ready=False, state={"waiting": waiting})


def no_other_image(cluster: Cluster) -> None:
    """Changed in the pod that runs."""
    ended = {"reason": "Completed", "exitCode": 0, "finishedAt": "2029-12-31T23:59:59Z"}
    cluster.sidecar.update(started=False, ready=False, state={"terminated": ended})
    cluster.event("BackOff", 'Back-off pulling image "registry/sidecar:1"')
    cluster.events[-1]["involvedObject"]["fieldPath"] = "spec.initContainers{juicefs-sidecar}"


def out_of_memory(cluster: Cluster) -> None:
    ended = {"reason": "OOMKilled", "exitCode": 137}
    waiting = {"reason": "CrashLoopBackOff"}
    cluster.sidecar.update(started=False, state={"waiting": waiting}, lastState={"terminated": ended})


def not_mounted(cluster: Cluster) -> None:
    cluster.sidecar.update(started=False, ready=False)
    cluster.entry.update(state="Pending", message="no answer from s3:8333")
    cluster.event(names.EVENT_MOUNT_FAILED, "Volume could not be mounted: no answer from s3:8333")


def stalled(cluster: Cluster) -> None:
    cluster.entry.update(state="Stalled", message="no answer from s3:8333")


@pytest.mark.parametrize(
    ("broken", "cause", "remedy"),
    [
        (unlabelled, "is not labelled juicefs.io/inject=enabled", "kubectl label namespace team"),
        (uninjected, "has no container juicefs-sidecar", "kubectl delete pod -n team web"),
        (opted_out, "opts out", "Remove the label"),
        (no_volume, "no volume of the driver", "kubectl get jfsv"),
        (no_webhook, "no MutatingWebhookConfiguration", "Install the chart"),
        (webhook_down, "No webhook pod", "kubectl logs -n juicefs-system"),
        (no_authority, "has not written its certificate authority", "kubectl logs"),
        (expired, "is not valid now", "kubectl logs"),
        (operator_down, "No operator pod", "kubectl describe pod -n juicefs-system"),
        (bad_secret, "JuiceFSSecret that it names does not exist", "Create it"),
        (unreachable, "no answer from redis:6379", "can be reached from the operator"),
        (no_claim, "The claim shared does not exist", "Create a JuiceFSVolume shared"),
        (no_status, "no operator has looked at it", "kubectl get pods"),
        (pending_claim, "is Pending", "kubectl describe pvc -n team shared"),
        (unscheduled, "0/1 nodes fit", "has to be there first"),
        (no_node_service, "No node service runs on node node-1", "DaemonSet"),
        (node_service_down, "not ready", "component=node"),
        (not_registered, "does not know the driver", "kubeletDir"),
        (not_published, "lacks the key metaurl", "node service"),
        (no_image, "registry/sidecar:1 cannot be had", "images.sidecar"),
        (no_other_image, "cannot be had (it was changed in the pod): Back-off pulling", "images.sidecar"),
        (out_of_memory, "OOMKilled", "more memory"),
        (not_mounted, "no answer from s3:8333", "reachable from the pod"),
        (stalled, "waiting for long: no answer from s3:8333", "object storage"),
    ],
)
def test_the_first_cause_and_its_remedy(
    cluster: Cluster, broken: Callable[[Cluster], None], cause: str, remedy: str
) -> None:
    broken(cluster)
    found = cluster.answer()
    assert cause in found["cause"]
    assert remedy in found["remedy"]
    assert found["verdict"] == "problem"
    text, _ = cluster.ask()
    assert "Remedy:" in text
    assert len(text.splitlines()) < 45
    assert max(map(len, text.splitlines())) <= 120


def test_a_broken_webhook_is_no_cause_for_a_pod_that_has_its_sidecar(cluster: Cluster) -> None:
    cluster.parts["webhook"] = part("webhook", ready=False)
    found = cluster.answer()
    assert found["verdict"] == "well"
    assert [each["status"] for each in found["findings"] if each["subject"] == "webhook"] == ["note"]


def test_what_may_not_be_looked_at_is_said(cluster: Cluster) -> None:
    cluster.denied = {"namespaces", "csinodes", "pods", "persistentvolumes", "juicefsnodes", WEBHOOKS.plural}
    found = cluster.answer()
    assert found["verdict"] == "uncertain"
    told = " ".join(each["text"] for each in found["findings"] if each["status"] == "unknown")
    for right in (
        "get namespaces in the cluster",
        "get csinodes.storage.k8s.io in the cluster",
        "list pods in namespace juicefs-system",
        "get persistentvolumes in the cluster",
        f"get {WEBHOOKS.plural}.admissionregistration.k8s.io in the cluster",
    ):
        assert f"you may not {right}" in told
    cluster = Cluster()
    cluster.denied = {"namespaces", "juicefsnodes", WEBHOOKS.plural}
    assert cluster.juicefs is not None
    entry = {**cluster.entry, "node": "node-1", "state": "Waiting"}
    cluster.juicefs["status"] = {"conditions": list(cluster.conditions.values()), "attachments": [entry]}
    assert "operations wait for a sidecar" in cluster.answer()["cause"]


def test_a_node_service_that_has_not_told_yet_is_no_problem(cluster: Cluster) -> None:
    """Right after a pod's start its node's object is seconds behind, while the startup probe has looked through the mount."""
    cluster.entry.update(state="Pending", since="")
    text, code = cluster.ask()
    assert code == Exit.WELL, text
    assert "has not told of that yet" in text
    assert cluster.juicefs is not None
    entry = {**cluster.entry, "node": "node-1"}
    cluster.juicefs["status"] = {"conditions": list(cluster.conditions.values()), "attachments": [entry], "pods": 1}
    text, code = cluster.ask("jfsv/shared")
    assert code == Exit.WELL, text
    assert "it is not mounted yet" in text


def test_a_juicefs_volume(cluster: Cluster) -> None:
    assert cluster.answer("jfsv/shared")["verdict"] == "well"
    unreachable(cluster)
    assert cluster.juicefs is not None
    del cluster.juicefs["status"]
    assert "no answer from redis" in cluster.answer("jfsv/shared")["cause"]
    cluster = Cluster()
    entry = {**cluster.entry, "node": "node-1", "state": "Waiting"}
    assert cluster.juicefs is not None
    cluster.juicefs["status"] = {"conditions": list(cluster.conditions.values()), "attachments": [entry], "pods": 1}
    found = cluster.answer("jfsv/shared")
    assert "On node node-1 the volume is Waiting" in found["cause"]
    assert found["remedy"] == "jfs doctor -n team web"


def test_what_cannot_be_asked(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="Pod team/other does not exist"):
        cluster.ask("other")
    with pytest.raises(ApiError, match="neither a pod nor a JuiceFSVolume"):
        cluster.ask("service/web")


def test_without_a_cluster_it_says_so(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main(["web", "--kubeconfig", str(tmp_path / "none")]) == Exit.FAILED
    assert "no way to reach the API server" in capsys.readouterr().err


def test_the_client_hands_on_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    from jfs.cli import doctor
    from jfs.errors import ConfigError

    (entry,) = importlib.metadata.entry_points(group="jfs.commands", name="doctor")
    assert entry.load() is main
    monkeypatch.setattr(doctor, "entry_points", lambda **_: ())
    with pytest.raises(ConfigError, match=r"juicefs-sidecar\[operator\]"):
        doctor.main(["web"])
