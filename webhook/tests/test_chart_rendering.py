"""What Helm makes of the chart: it lints, its containers have no more rights than they need, its command lines are understood."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jfs_csi.main import parse as parse_node
from jfs_operator.main import arguments as parse_operator
from jfs_webhook.arguments import parse_arguments

from e2e import tools

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

CHART = Path(__file__).resolve().parents[2] / "charts" / "juicefs-sidecar"
FULL = Path(__file__).with_name("chart_values_full.yaml")
NAMESPACE = "juicefs-system"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tools.path("helm")), *arguments], capture_output=True, text=True, check=False)


def render(*arguments: str) -> list[dict[str, Any]]:
    answer = helm("template", "juicefs", str(CHART), "-n", NAMESPACE, "--kube-version=1.34.0", *arguments)
    assert answer.returncode == 0, answer.stderr
    return [document for document in yaml.safe_load_all(answer.stdout) if document]


def pick(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name)


def pod_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    if document["kind"] != "Pod":
        spec = spec["template"]["spec"]
    return spec


def command_line(documents: list[dict[str, Any]], kind: str, name: str) -> list[str]:
    arguments: list[str] = pod_spec(pick(documents, kind, name))["containers"][0]["args"]
    return arguments


@pytest.mark.parametrize("values", [[], [f"--values={FULL}"]], ids=["defaults", "full"])
def test_lint(values: list[str]) -> None:
    answer = helm("lint", "--strict", str(CHART), "-n", NAMESPACE, *values)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "0 chart(s) failed" in answer.stdout


def test_misspelt_value_is_refused() -> None:
    answer = helm("template", "juicefs", str(CHART), "--kube-version=1.34.0", "--set=webhook.replica=3")
    assert answer.returncode != 0
    assert "additional properties 'replica' not allowed" in answer.stderr


def test_old_kubernetes_is_refused() -> None:
    answer = helm("template", "juicefs", str(CHART), "--kube-version=1.28.0")
    assert answer.returncode != 0
    assert "chart requires kubeVersion: >=1.29.0-0" in answer.stderr


@pytest.mark.parametrize("values", [[], [f"--values={FULL}"]], ids=["defaults", "full"])
def test_containers_have_no_more_rights_than_they_need(values: list[str]) -> None:
    workloads = [each for each in render(*values) if each["kind"] in ("Deployment", "DaemonSet", "Pod")]
    assert len(workloads) == 4
    for workload in workloads:
        spec, node = pod_spec(workload), workload["kind"] == "DaemonSet"
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            if node:
                continue
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context
        if not node:
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not spec.get("hostPID")
            assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
        assert spec["nodeSelector"]["kubernetes.io/os"] == "linux"


@pytest.mark.parametrize("values", [[], [f"--values={FULL}"]], ids=["defaults", "full"])
def test_roles_name_everything_and_the_node_service_no_secrets(values: list[str]) -> None:
    for role in (each for each in render(*values) if each["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            if role["metadata"]["name"] in ("juicefs-node", "juicefs-webhook") and "secrets" in rule["resources"]:
                assert rule["resourceNames"] == ["juicefs-webhook-tls"]
                assert role["kind"] == "Role"


def test_webhook_never_watches_over_system_namespaces() -> None:
    for values in ([], [f"--values={FULL}"]):
        configuration = pick(render(*values), "MutatingWebhookConfiguration", "juicefs-webhook")
        for entry in configuration["webhooks"]:
            expressions = {each["key"]: each for each in entry["namespaceSelector"]["matchExpressions"]}
            excluded = expressions["kubernetes.io/metadata.name"]
            assert excluded["operator"] == "NotIn"
            assert {"kube-system", NAMESPACE} <= set(excluded["values"])
            assert (entry["sideEffects"], entry["reinvocationPolicy"]) == ("None", "IfNeeded")
            assert "caBundle" not in entry["clientConfig"]
    assert [
        each["failurePolicy"] for each in pick(render(), "MutatingWebhookConfiguration", "juicefs-webhook")["webhooks"]
    ] == [
        "Fail",
        "Fail",
    ]


def test_programs_understand_their_command_lines(tmp_path: Path) -> None:
    for values in ([], [f"--values={FULL}"]):
        documents = render(*values, f"--set=kubeletDir={tmp_path}")
        webhook = parse_arguments(command_line(documents, "Deployment", "juicefs-webhook"))
        driver = pick(documents, "DaemonSet", "juicefs-node")
        operator = parse_operator(command_line(documents, "Deployment", "juicefs-operator"))
        node = parse_node(command_line(documents, "DaemonSet", "juicefs-node"))
        name = next(each["metadata"]["name"] for each in documents if each["kind"] == "CSIDriver")
        assert webhook.settings.driver == operator.driver_name == node.driver_name == name
        assert node.endpoint == f"unix://{tmp_path}/plugins/{name}/csi.sock"
        assert node.registration_dir == tmp_path / "plugins_registry"
        assert operator.namespace == NAMESPACE
        assert webhook.identity.namespace == NAMESPACE
        mount = pod_spec(driver)["containers"][0]["volumeMounts"][0]
        assert (mount["mountPath"], mount["mountPropagation"]) == (str(tmp_path), "Bidirectional")
    assert webhook.settings.storage_classes == {"static", "juicefs", "plain"}
    assert webhook.settings.pull_secrets == ("team-registry",)
    assert webhook.settings.sidecar_image == "registry.example:5000/juicefs/sidecar:1.2"
    assert webhook.settings.default_resources["limits"] == {"cpu": "2", "memory": "1Gi"}


def test_a_rollout_is_off_and_brings_the_right_to_patch_pods() -> None:
    def verbs(documents: list[dict[str, Any]]) -> set[str]:
        rules = pick(documents, "ClusterRole", "juicefs-operator")["rules"]
        return {verb for rule in rules if "pods" in rule["resources"] for verb in rule["verbs"]}

    documents = render()
    operator = parse_operator(command_line(documents, "Deployment", "juicefs-operator"))
    assert operator.rollout_image is None
    assert verbs(documents) == {"get", "list"}
    documents = render(f"--values={FULL}")
    operator = parse_operator(command_line(documents, "Deployment", "juicefs-operator"))
    assert operator.rollout_image == "registry.example:5000/juicefs/sidecar:1.2"
    assert (operator.rollout_pause, operator.rollout_timeout) == (3, 90)
    assert verbs(documents) == {"get", "list", "patch"}


def test_test_pod_runs_a_program() -> None:
    command = pod_spec(pick(render(), "Pod", "juicefs-test"))["containers"][0]["command"]
    assert command[:2] == ["python3", "-c"]
    compile(command[2], "helm test", "exec")
    assert f"juicefs-webhook.{NAMESPACE}.svc" in command[2]


def test_everything_turned_on_shows() -> None:
    documents = render(f"--values={FULL}")
    for document in documents:
        if document["kind"] in ("CustomResourceDefinition", "ConfigMap"):
            continue
        assert document["metadata"]["labels"]["team"] == "storage", document["kind"]
    kinds = [document["kind"] for document in documents]
    assert kinds.count("ConfigMap") == 2
    assert kinds.count("StorageClass") == 2
    assert "PodDisruptionBudget" not in kinds
    assert "PodDisruptionBudget" in [document["kind"] for document in render()]
    classes = pick(documents, "StorageClass", "juicefs")["parameters"]
    assert classes["csi.storage.k8s.io/node-publish-secret-namespace"] == "team"
    image = pod_spec(pick(documents, "Deployment", "juicefs-operator"))["containers"][0]["image"]
    assert image == f"registry.example:5000/juicefs/operator@sha256:{'0' * 64}"
