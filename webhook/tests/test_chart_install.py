"""The chart on a real API server: it is accepted, its rights suffice and go no further, pods come out as they should.

No node is needed for that: the webhook runs on this machine with its ServiceAccount's rights and its Deployment's command
line, and the API server calls it through its Service.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from webhook_control_plane import ControlPlane, control_plane, until
from webhook_installed import CHART, SYSTEM, Installed, installed_chart, replica, sidecar_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

FULL = Path(__file__).with_name("chart_values_full.yaml")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="module")
def installed(cluster: ControlPlane) -> Iterator[Installed]:
    """The chart installed, its webhook running here and trusted."""
    chart = installed_chart(cluster)
    with replica(chart, chart.port, chart.health) as log:
        yield chart
    assert "PRIVATE KEY" not in log.read_text()


@pytest.mark.parametrize("values", [[], [f"--values={FULL}"]], ids=["defaults", "full"])
def test_rendered_manifests_are_valid_to_the_letter(installed: Installed, values: list[str]) -> None:
    """Unknown and duplicate fields are refused, which an installation by Helm alone would not show."""
    # Into a namespace of its own: what exists already cannot be made into everything.
    space = installed.namespace(f"strict-{len(values)}")
    manifests = installed.cluster.folder / f"{space}.yaml"
    manifests.write_text(
        installed.cluster.helm("template", "x", str(CHART), "-n", space, "--kube-version=1.34.0", *values)
    )
    arguments = ["apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts"]
    answer = installed.cluster.kubectl(*arguments, "-f", str(manifests))
    assert "deployment.apps/juicefs-webhook serverside-applied (server dry run)" in answer


def test_pod_comes_out_injected_and_valid(installed: Installed) -> None:
    team = installed.namespace("labelled", **{"juicefs.io/inject": "enabled"})
    installed.volume(team, "data")
    pod = installed.created(installed.pod(team, "web"))
    log = installed.cluster.folder / f"webhook-{installed.port}.log"
    assert "labelled/web injected: volumes data" in log.read_text()
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["juicefs-sidecar", "init"]
    sidecar = sidecar_of(pod)
    assert sidecar is not None
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["securityContext"]["runAsNonRoot"] is False
    assert sidecar["image"] == "juicefs-sidecar:0.1.0"
    assert sidecar["resources"]["requests"] == {"memory": "1Gi"}
    for container in (pod["spec"]["containers"][0], pod["spec"]["initContainers"][1]):
        assert container["volumeMounts"][0]["mountPropagation"] == "HostToContainer"
    assert pod["metadata"]["labels"] == {"juicefs.io/injected": "true"}
    assert pod["spec"]["volumes"][0] == {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    # A copy of the stored pod, as `kubectl debug --copy-to` makes it, is left as it is.
    copy = installed.pod(team, "copy", labels=pod["metadata"]["labels"], annotations=pod["metadata"]["annotations"])
    copy["spec"] = {key: value for key, value in pod["spec"].items() if key != "nodeName"}
    again = installed.created(copy)
    assert sidecar_of(again) == sidecar
    assert again["spec"]["volumes"] == pod["spec"]["volumes"]


def test_dry_run_on_the_server_shows_the_patch_and_makes_nothing(installed: Installed) -> None:
    team = installed.namespace("dry", **{"juicefs.io/inject": "enabled"})
    installed.volume(team, "data")
    before = {kind: len(installed.cluster.get(kind, "-A")["items"]) for kind in ("pods", "pv", "pvc", "secrets")}
    assert sidecar_of(installed.created(installed.pod(team, "web"), "--dry-run=server")) is not None
    after = {kind: len(installed.cluster.get(kind, "-A")["items"]) for kind in ("pods", "pv", "pvc", "secrets")}
    assert after == before


def test_only_labelled_namespaces_and_willing_pods(installed: Installed) -> None:
    plain = installed.namespace("plain")
    installed.volume(plain, "data")
    assert sidecar_of(installed.created(installed.pod(plain, "web"))) is None

    other = installed.namespace("csi-label", **{"juicefs.com/enable-injection": "true"})
    installed.volume(other, "data")
    assert sidecar_of(installed.created(installed.pod(other, "web"))) is not None
    opted_out = installed.pod(other, "out", labels={"juicefs.io/inject": "disabled"})
    assert sidecar_of(installed.created(opted_out)) is None

    installed.cluster.kubectl("label", "namespace", SYSTEM, "juicefs.io/inject=enabled")
    installed.cluster.kubectl("create", "serviceaccount", "default", "-n", SYSTEM)
    installed.volume(SYSTEM, "data")
    assert sidecar_of(installed.created(installed.pod(SYSTEM, "web"))) is None


def test_claims_that_are_not_there_yet(installed: Installed) -> None:
    team = installed.namespace("future", **{"juicefs.io/inject": "enabled"})
    answer = installed.cluster.create(installed.pod(team, "early", claim="nowhere"))
    assert answer.returncode == 0
    assert "PersistentVolumeClaim future/nowhere does not exist" in answer.stderr
    custom = {
        "apiVersion": "juicefs.io/v1alpha1",
        "kind": "JuiceFSVolume",
        "metadata": {"name": "soon", "namespace": team},
        "spec": {"secretRef": {"name": "credentials"}, "sidecar": {"resources": {"limits": {"memory": "3Gi"}}}},
    }
    answer = installed.cluster.create(custom)
    assert answer.returncode == 0, answer.stderr
    sidecar = sidecar_of(installed.created(installed.pod(team, "web", claim="soon")))
    assert sidecar is not None
    assert sidecar["resources"]["limits"] == {"memory": "3Gi"}


def test_refusal_reaches_the_user_as_a_sentence(installed: Installed) -> None:
    team = installed.namespace("refused", **{"juicefs.io/inject": "enabled"})
    installed.volume(team, "data")
    pod = installed.pod(team, "web")
    pod["spec"]["hostUsers"] = False
    answer = installed.cluster.create(pod)
    assert answer.returncode != 0
    assert "JuiceFS sidecar: the pod asks for a user namespace of its own" in answer.stderr


def test_a_restricted_namespace_gets_a_sidecar_that_it_lets_in(installed: Installed) -> None:
    labels = {"juicefs.io/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted"}
    team = installed.namespace("restricted", **labels)
    installed.volume(team, "data")
    pod = installed.pod(team, "web")
    pod["spec"]["securityContext"]["seccompProfile"] = {"type": "RuntimeDefault"}
    for container in [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]:
        container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    stored = installed.created(pod)
    sidecar = sidecar_of(stored)
    assert sidecar is not None
    assert sidecar["securityContext"]["runAsUser"] == 65534
    control = next(each for each in stored["spec"]["volumes"] if each["name"] == "juicefs-control")
    assert control["csi"]["volumeAttributes"]["mode"] == "restricted"
    # What insists on more is told so by us, before the level refuses it.
    installed.cluster.kubectl(
        "annotate", "pv", f"pv-{team}-data", 'juicefs.io/sidecar={"mode":"privileged"}', "--overwrite"
    )

    def refused() -> bool:
        answer = installed.cluster.create(
            {**pod, "metadata": {"name": "insists", "namespace": team}}, "--dry-run=server"
        )
        return "set the volume's spec.sidecar.mode to auto or restricted" in answer.stderr

    until(refused, 30, lambda: "not refused")  # volumes are remembered for some seconds


def test_a_pod_that_lost_its_sidecar_on_the_way_is_refused(installed: Installed) -> None:
    """What a webhook after ours would do: here the pod comes so, and ours is not asked before."""
    team = installed.namespace("stripped", **{"juicefs.io/inject": "enabled"})
    installed.volume(team, "data")
    stored = installed.created(installed.pod(team, "web"), "--dry-run=server")
    validating = installed.cluster.get("validatingwebhookconfiguration", "juicefs-webhook")
    assert all(each["clientConfig"]["caBundle"] for each in validating["webhooks"])
    stripped = installed.pod(team, "stripped", labels=stored["metadata"]["labels"])
    stripped["spec"] = {key: value for key, value in stored["spec"].items() if key != "nodeName"}
    del stripped["spec"]["initContainers"][0]["restartPolicy"]
    del stripped["spec"]["initContainers"][0]["startupProbe"]  # only sidecars may have one
    mutating = installed.cluster.get("mutatingwebhookconfiguration", "juicefs-webhook")
    patch = json.dumps(
        {
            "webhooks": [
                {"name": each["name"], "matchConditions": [{"name": "off", "expression": "false"}]}
                for each in mutating["webhooks"]
            ]
        }
    )
    back = json.dumps(
        {
            "webhooks": [
                {"name": each["name"], "matchConditions": [{"name": "off", "$patch": "delete"}]}
                for each in mutating["webhooks"]
            ]
        }
    )
    change = ["patch", "mutatingwebhookconfiguration", "juicefs-webhook", "--type=strategic", "-p"]
    installed.cluster.kubectl(*change, patch)
    try:

        def refused() -> bool:
            answer = installed.cluster.create(stripped, "--dry-run=server")
            return "has lost its restartPolicy: Always" in answer.stderr

        until(refused, 30, lambda: "the stripped pod was not refused")
    finally:
        installed.cluster.kubectl(*change, back)
    assert sidecar_of(installed.created(installed.pod(team, "again"))) is not None


def test_upgrade_keeps_certificates_and_trust(installed: Installed) -> None:
    secret = installed.cluster.get("secret", "juicefs-webhook-tls", "-n", SYSTEM)
    assert set(secret["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    configuration = installed.cluster.get("mutatingwebhookconfiguration", "juicefs-webhook")
    bundles = [each["clientConfig"]["caBundle"] for each in configuration["webhooks"]]
    assert all(bundles)
    installed.upgrade("--set=commonLabels.team=storage", "--set=webhook.timeoutSeconds=7")
    after = installed.cluster.get("mutatingwebhookconfiguration", "juicefs-webhook")
    assert after["metadata"]["labels"]["team"] == "storage"
    assert [each["timeoutSeconds"] for each in after["webhooks"]] == [7, 7]
    assert [each["clientConfig"]["caBundle"] for each in after["webhooks"]] == bundles
    assert installed.cluster.get("secret", "juicefs-webhook-tls", "-n", SYSTEM)["data"] == secret["data"]


@pytest.mark.parametrize(
    ("account", "allowed", "forbidden"),
    [
        (
            "juicefs-webhook",
            ["get pvc -A", "list pv", "get secret/juicefs-webhook-tls", "get juicefsvolumes -A", "get namespaces"],
            [
                "list secrets",
                "get secret/other",
                "create secrets",
                "delete secret/juicefs-webhook-tls",
                "list pvc -A",
                "patch mutatingwebhookconfiguration/other",
                "patch validatingwebhookconfiguration/other",
                "list namespaces",
                "create pods",
                "delete pv",
            ],
        ),
        (
            "juicefs-node",
            ["get pods -A", "create events", "patch events", "create juicefsnodes", "patch juicefsnodes"],
            [
                "patch juicefsnodes -n default",
                "delete juicefsnodes",
                "get juicefsvolumes -A",
                "patch juicefsvolumes --subresource=status -A",
                "list pods",
                "get secrets",
                "list secrets -A",
                "get pv",
                "delete pods",
                "update nodes",
            ],
        ),
        (
            "juicefs-operator",
            [
                "list secrets -A",
                "create secrets",
                "patch secrets",
                "delete secrets",
                "create pv",
                "delete pvc -A",
                "patch juicefsvolumes --subresource=status -A",
                "patch juicefssecrets --subresource=status -A",
                "update lease/juicefs-operator",
                "create leases",
                "watch events -A",
                "watch juicefsnodes -A",
                "get pods -A",
                "get namespaces",
                "get csinodes",
                "get mutatingwebhookconfiguration/juicefs-webhook",
                "delete juicefsnodes",
            ],
            [
                "create secrets -A",
                "delete secrets -n default",
                "create pods",
                "patch pods -A",
                "watch pods -A",
                "list namespaces",
                "get mutatingwebhookconfiguration/other",
                "patch mutatingwebhookconfiguration/juicefs-webhook",
                "patch juicefsnodes -A",
                "delete juicefsnodes -n default",
                "delete pods -A",
                "delete juicefsvolumes -A",
                "update lease/other",
                "get nodes",
            ],
        ),
    ],
)
def test_rights_suffice_and_go_no_further(
    installed: Installed, account: str, allowed: list[str], forbidden: list[str]
) -> None:
    def may(question: str) -> bool:
        words = question.split()
        if "-n" not in words and "-A" not in words:
            words += ["-n", SYSTEM]
        who = f"--as=system:serviceaccount:{SYSTEM}:{account}"
        answer = installed.cluster.run(Path(sys.executable).with_name("kubectl"), "auth", "can-i", *words, who)
        assert answer.stdout.strip() in ("yes", "no"), answer.stderr
        return answer.stdout.strip() == "yes"

    assert [question for question in allowed if not may(question)] == []
    assert [question for question in forbidden if may(question)] == []


Right = tuple[str, str, str]  # resource, names, verbs


def rights(cluster: ControlPlane, account: str, namespace: str) -> set[Right]:
    """All that the ServiceAccount of the chart may do in a namespace, as `kubectl auth can-i --list` tells it."""
    who = f"--as=system:serviceaccount:{SYSTEM}:{account}"
    groups = [f"--as-group=system:{name}" for name in ("serviceaccounts", "authenticated")]
    table = cluster.kubectl("auth", "can-i", "--list", "--no-headers", "-n", namespace, who, *groups)
    rows = [re.fullmatch(r"(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]\s*", line) for line in table.splitlines()]
    assert all(rows), table
    return {(row[1], row[3], row[4]) for row in rows if row is not None and row[1]}


# In every namespace, and what is more in the product's own.
EVERYWHERE: dict[str, set[Right]] = {
    "juicefs-webhook": {
        ("juicefsvolumes.juicefs.io", "", "get"),
        ("mutatingwebhookconfigurations.admissionregistration.k8s.io", "juicefs-webhook", "get patch"),
        ("namespaces", "", "get"),
        ("persistentvolumeclaims", "", "get"),
        ("persistentvolumes", "", "get list"),
        ("storageclasses.storage.k8s.io", "", "get list"),
        ("validatingwebhookconfigurations.admissionregistration.k8s.io", "juicefs-webhook", "get patch"),
    },
    "juicefs-node": {("events", "", "create patch"), ("pods", "", "get")},
    "juicefs-operator": {
        ("csinodes.storage.k8s.io", "", "get"),
        ("events", "", "get list watch create patch"),
        ("juicefsnodes.juicefs.io", "", "get list watch"),
        ("juicefssecrets.juicefs.io", "", "get list watch patch"),
        ("juicefssecrets.juicefs.io/finalizers", "", "update"),
        ("juicefssecrets.juicefs.io/status", "", "get patch"),
        ("juicefsvolumes.juicefs.io", "", "get list watch patch"),
        ("juicefsvolumes.juicefs.io/finalizers", "", "update"),
        ("juicefsvolumes.juicefs.io/status", "", "get patch"),
        ("persistentvolumeclaims", "", "get list watch create patch delete"),
        ("mutatingwebhookconfigurations.admissionregistration.k8s.io", "juicefs-webhook", "get"),
        ("namespaces", "", "get"),
        ("persistentvolumes", "", "get list watch create patch delete"),
        ("pods", "", "get list"),
        ("secrets", "", "get list watch"),
    },
}
AT_HOME: dict[str, set[Right]] = {
    "juicefs-webhook": {("secrets", "juicefs-webhook-tls", "get update")},
    "juicefs-node": {("juicefsnodes.juicefs.io", "", "create patch")},
    "juicefs-operator": {
        ("juicefsnodes.juicefs.io", "", "get list watch delete"),
        ("leases.coordination.k8s.io", "", "create"),
        ("leases.coordination.k8s.io", "juicefs-operator", "get update"),
        ("secrets", "", "get list watch create patch delete"),
    },
}


@pytest.mark.parametrize("account", EVERYWHERE)
def test_rights_are_those_of_the_list(installed: Installed, account: str) -> None:
    """Whoever gives a component another right writes it down here."""
    for namespace in ("default", SYSTEM):
        found = rights(installed.cluster, account, namespace) - rights(installed.cluster, "nobody", namespace)
        wanted = {(resource, only): verbs for resource, only, verbs in EVERYWHERE[account]}
        if namespace == SYSTEM:
            wanted |= {(resource, only): verbs for resource, only, verbs in AT_HOME[account]}
        assert {(resource, only): verbs for resource, only, verbs in found} == wanted, namespace
