"""Documents of the scenarios, the manifests of the demo, polling, and the report's figures."""

import json

import pytest
import yaml
from jfs_api import names

from e2e import documents, install, report
from e2e.cluster import KubectlError, Timeout, until
from e2e.cluster.kubectl import Kubectl, as_list


def test_pod_mounts_its_claims() -> None:
    pod = documents.pod("app", mounts={"files": "/data", "more": {"mountPath": "/more", "readOnly": True}})
    spec = pod["spec"]
    assert [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"]] == ["files", "more"]
    assert spec["containers"][0]["volumeMounts"] == [
        {"name": "files", "mountPath": "/data"},
        {"name": "more", "mountPath": "/more", "readOnly": True},
    ]
    assert json.loads(as_list([pod]))["items"] == [pod]


def test_demo_is_what_a_user_writes() -> None:
    parts = {part["kind"]: part for part in yaml.safe_load_all(install.manifest("demo"))}
    assert parts["Namespace"]["metadata"]["labels"] == {names.INJECT_LABEL: names.INJECT_ENABLED}
    assert set(parts["Secret"]["stringData"]) <= set(names.SECRET_KEYS)
    assert parts["JuiceFSVolume"]["spec"]["secretRef"]["name"] == parts["Secret"]["metadata"]["name"]
    volumes = parts["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == parts["JuiceFSVolume"]["metadata"]["name"]


def test_public_images_replace_all_of_ours() -> None:
    for name in ("demo", "backends"):
        assert "localhost/" in install.manifest(name)
        assert "localhost/" not in install.manifest(name, install.PUBLIC)


def test_kubectl_runs_where_the_cluster_is() -> None:
    kubectl = Kubectl(("echo",), {"PATH": "/bin:/usr/bin"})
    assert kubectl("get", "pods").split()[1:] == ["get", "pods"]
    assert kubectl.into("team")("get", "pods").split()[1:] == ["-n", "team", "get", "pods"]


def test_failing_kubectl_says_what_it_was_asked() -> None:
    kubectl = Kubectl(("sh", "-c", "echo broken >&2; exit 1"), {"PATH": "/bin:/usr/bin"})
    with pytest.raises(KubectlError, match="get pods: broken"):
        kubectl("get", "pods")


def test_until_returns_the_first_truth() -> None:
    answers = iter([None, 0, "", "yes"])
    assert until("an answer", lambda: next(answers), pause=0) == "yes"


def test_until_says_what_it_saw_last() -> None:
    def look() -> bool:
        raise KubectlError("no route to the server")

    with pytest.raises(Timeout, match=r"the pod: not within 0 s; last seen: .*no route"):
        until("the pod", look, seconds=0, pause=0)


def test_report_has_a_row_per_step_and_medians() -> None:
    runs = [{"applied": 0.1, "running": 3.0, "deleted": 4.0}, {"applied": 0.3, "running": 1.0}, {"running": 2.0}]
    assert report.medians(runs)["running"] == (1.0, 2.0, 3.0)
    lines = report.table({"with": runs, "without": [{"running": 1.0}]}).splitlines()
    assert lines[0] == "| step | with (3 runs) | without (1 runs) |"
    assert "| running | 2.00 s (1.00 to 3.00) | 1.00 s (1.00 to 1.00) |" in lines
    assert len(lines) == 2 + len(report.STEPS)


def test_publish_durations_come_from_the_metrics() -> None:
    text = """# HELP jfs_csi_publish_seconds Duration
jfs_csi_publish_seconds_bucket{kind="data",le="0.005"} 1.0
jfs_csi_publish_seconds_bucket{kind="data",le="0.01"} 2.0
jfs_csi_publish_seconds_bucket{kind="data",le="+Inf"} 4.0
jfs_csi_publish_seconds_count{kind="data"} 4.0
jfs_csi_publish_seconds_sum{kind="data"} 0.1
jfs_csi_publish_seconds_bucket{kind="control",le="0.005"} 0.0
jfs_csi_publish_seconds_bucket{kind="control",le="+Inf"} 0.0
"""
    assert report.publish_seconds(text) == {"control": (0, 0.005), "data": (4, 0.01)}
