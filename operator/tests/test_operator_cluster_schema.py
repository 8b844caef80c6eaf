"""The CRDs on a real API server: what their rules refuse, what they fill in, and that the operator's API client is honest."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import ControlPlane, OperatorProcess
from jfs_operator import kube
from jfs_operator.api import JUICEFS_VOLUMES, LEASES, SECRETS, Api, ApiError, ApiUnavailable, Conflict, uid_of
from jfs_operator.memory import MemoryApi

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

VOLUMES = "/apis/juicefs.io/v1alpha1/namespaces/schema/juicefsvolumes"
SECRETS_PATH = "/apis/juicefs.io/v1alpha1/namespaces/schema/juicefssecrets"
REF = {"secretRef": {"name": "demo"}}
FIELDS: dict[str, Any] = {"name": {"value": "demo"}, "metaURL": {"value": "redis://redis:6379/1"}}


@pytest.fixture(scope="module", autouse=True)
def namespace(plane: ControlPlane, shared_operator: OperatorProcess) -> str:
    """Without an operator, which would write on the objects too."""
    if shared_operator.running:
        shared_operator.end()
    return plane.namespace("schema")


def post(plane: ControlPlane, spec: dict[str, Any], path: str = VOLUMES) -> tuple[int, Any]:
    return plane.request(
        "POST", path + "?dryRun=All&fieldValidation=Strict", {**_kind(path), "metadata": {"name": "x"}, "spec": spec}
    )


def _kind(path: str) -> dict[str, str]:
    return {"apiVersion": "juicefs.io/v1alpha1", "kind": "JuiceFSVolume" if path == VOLUMES else "JuiceFSSecret"}


def test_defaults_are_filled_in(plane: ControlPlane) -> None:
    status, answer = post(plane, REF)
    assert status == 201, answer
    assert answer["spec"] == {
        "secretRef": {"kind": "Secret", "name": "demo"},
        "capacity": "10Pi",
        "accessModes": ["ReadWriteMany"],
        "reclaimPolicy": "Retain",
    }


@pytest.mark.parametrize(
    "spec",
    [
        {
            **REF,
            "subPath": "a/b",
            "mountOptions": ["cache-size=1"],
            "sidecar": {"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}},
        },
        {"fileSystem": {**FIELDS, "secretKey": {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}}},
        {"fileSystem": {**FIELDS, "metaURL": {"value": "mysql://jfs:@(db:3306)/jfs"}}},
        {
            **REF,
            "capacity": "1.5Ti",
            "accessModes": ["ReadOnlyMany", "ReadWriteOnce"],
            "formatOptions": {"trash-days": "0"},
        },
    ],
)
def test_good_specs_pass(plane: ControlPlane, spec: dict[str, Any]) -> None:
    status, answer = post(plane, spec)
    assert status == 201, answer


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "exactly one of secretRef and fileSystem"),
        ({**REF, "fileSystem": FIELDS}, "exactly one of secretRef and fileSystem"),
        ({"secretRef": {"name": "x", "kind": "ConfigMap"}}, "Unsupported value"),
        ({"fileSystem": {"name": {"value": "demo"}}}, "spec.fileSystem.metaURL: Required"),
        ({"fileSystem": {**FIELDS, "name": {"value": "Demo"}}}, "spec.fileSystem.name.value"),
        ({"fileSystem": {**FIELDS, "bucket": {}}}, "exactly one of value and valueFrom"),
        ({"fileSystem": {**FIELDS, "metaURL": {"value": "redis://:pw@r/1"}}}, "a URL with a password is a secret"),
        ({"fileSystem": {**FIELDS, "secretKey": {"value": "s"}}}, "secretKey"),
        ({**REF, "capacity": "much"}, "capacity is a positive quantity"),
        ({**REF, "capacity": "0"}, "capacity is a positive quantity"),
        ({**REF, "accessModes": []}, "accessModes"),
        ({**REF, "accessModes": ["Sometimes"]}, "Unsupported value"),
        ({**REF, "subPath": "a/../b"}, "subPath is a path"),
        ({**REF, "subPath": "a//b"}, "subPath is a path"),
        ({**REF, "subPath": "/"}, "subPath is a path"),
        ({**REF, "reclaimPolicy": "Recycle"}, "Unsupported value"),
        ({**REF, "nonsense": 1}, "unknown field"),
        ({**REF, "mountOptions": ["x" * 2000]}, "mountOptions"),
    ],
)
def test_bad_specs_are_refused(plane: ControlPlane, spec: dict[str, Any], sentence: str) -> None:
    status, answer = post(plane, spec)
    assert status in {400, 422}, answer
    assert sentence in answer["message"]


@pytest.mark.parametrize(
    ("before", "change", "sentence"),
    [
        ({**REF, "capacity": "10Gi"}, {"capacity": "9Gi"}, "capacity cannot shrink"),
        ({**REF, "subPath": "a"}, {"subPath": "b"}, "subPath is immutable"),
        ({**REF, "subPath": "a"}, {"subPath": None}, "subPath is immutable"),
        (REF, {"subPath": "a"}, "subPath is immutable"),
        (REF, {"accessModes": ["ReadWriteOnce"]}, "accessModes are immutable"),
        ({"fileSystem": FIELDS}, {"fileSystem": {"name": {"value": "other"}}}, "name of the file system is immutable"),
        ({"fileSystem": FIELDS}, {"fileSystem": {"metaURL": {"value": "redis://other/1"}}}, "metaURL is immutable"),
    ],
)
def test_what_may_not_change_does_not(
    plane: ControlPlane, before: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    plane.create(VOLUMES, {**_kind(VOLUMES), "metadata": {"name": "kept"}, "spec": before})
    try:
        status, answer = plane.request("PATCH", f"{VOLUMES}/kept", {"spec": change})
        assert (status, sentence in answer["message"]) == (422, True), answer
        grown = {"capacity": "20Pi", "reclaimPolicy": "Delete", "mountOptions": ["ro"]}
        assert plane.request("PATCH", f"{VOLUMES}/kept", {"spec": grown})[0] == 200
    finally:
        plane.request("DELETE", f"{VOLUMES}/kept")


def test_secret_specs(plane: ControlPlane) -> None:
    reference = {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    good = {
        **FIELDS,
        "metaURL": reference,
        "envs": reference,
        "passphrase": reference,
        "formatOptions": {"value": "trash-days=0"},
    }
    assert post(plane, good, SECRETS_PATH)[0] == 201
    for bad in (
        {"name": {"value": "demo"}},
        {**good, "envs": {"value": "{}"}},
        {**good, "metaURL": {"value": "redis://u:p@r"}},
    ):
        assert post(plane, bad, SECRETS_PATH)[0] in {400, 422}, bad


def test_columns_are_printed(plane: ControlPlane) -> None:
    crd = plane.request("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/juicefsvolumes.juicefs.io")[1]
    assert crd["spec"]["names"]["shortNames"] == ["jfsv"]
    columns = {
        column["name"]: column.get("priority", 0) for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]
    }
    assert [name for name, priority in columns.items() if not priority] == [
        "Ready",
        "Reason",
        "Capacity",
        "Pods",
        "PV",
        "Reclaim",
        "Age",
    ]
    assert {"SubPath", "Mountable", "Message"} <= columns.keys()
    conditions = [condition["type"] for condition in crd["status"]["conditions"] if condition["status"] == "True"]
    assert "NonStructuralSchema" not in conditions


@pytest.fixture(params=["real", "memory"])
def api(request: pytest.FixtureRequest, plane: ControlPlane) -> Iterator[Api]:
    """Both obey the same contract."""
    if request.param == "memory":
        yield MemoryApi()
        return
    real = kube.connect(str(plane.kubeconfig("admin")))
    yield real
    real.close()


def test_the_contract_of_the_api(api: Api) -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "contract", "namespace": "schema", "annotations": {"a": "1"}},
        "data": {"x": "eA==", "y": "eQ=="},
    }
    assert api.get(SECRETS, "schema", "contract") is None
    first = api.apply(SECRETS, manifest)
    again = api.apply(SECRETS, manifest)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    smaller = copy.deepcopy(manifest)
    del smaller["data"]["y"], smaller["metadata"]["annotations"]
    applied = api.apply(SECRETS, smaller)
    assert applied["data"] == {"x": "eA=="}
    assert not applied["metadata"].get("annotations")
    with pytest.raises(Conflict):
        api.create(SECRETS, manifest)
    with pytest.raises(ApiError):
        api.apply(
            SECRETS, {**manifest, "metadata": {**manifest["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}}
        )
    patched = api.patch(SECRETS, "schema", "contract", {"data": {"x": None, "z": "eg=="}})
    assert patched["data"] == {"z": "eg=="}
    with pytest.raises(ApiError) as caught:
        api.patch(SECRETS, "schema", "missing", {})
    assert caught.value.status == 404
    assert [body["metadata"]["name"] for body in api.list(SECRETS, "schema")] == ["contract"]
    api.delete(SECRETS, "schema", "contract", "00000000-0000-0000-0000-000000000000")
    assert api.get(SECRETS, "schema", "contract") is not None
    api.delete(SECRETS, "schema", "contract", uid_of(first))
    api.delete(SECRETS, "schema", "contract", uid_of(first))
    assert api.get(SECRETS, "schema", "contract") is None


def test_the_contract_of_replace_and_status(api: Api) -> None:
    lease: dict[str, Any] = {
        "apiVersion": LEASES.api_version,
        "kind": "Lease",
        "metadata": {"name": "contract", "namespace": "schema"},
        "spec": {"holderIdentity": "a"},
    }
    made = api.create(LEASES, lease)
    stale = copy.deepcopy(made)
    made["spec"]["holderIdentity"] = "b"
    api.replace(LEASES, made)
    with pytest.raises(Conflict):
        api.replace(LEASES, stale)
    volume: dict[str, Any] = {
        "apiVersion": JUICEFS_VOLUMES.api_version,
        "kind": "JuiceFSVolume",
        "metadata": {"name": "contract", "namespace": "schema"},
    }
    body = api.create(JUICEFS_VOLUMES, {**volume, "spec": REF})
    status = {"observedGeneration": 1, "persistentVolume": "p"}
    written = api.apply(JUICEFS_VOLUMES, {**volume, "status": status}, status=True)
    assert written["status"] == status
    written = api.apply(JUICEFS_VOLUMES, {**volume, "status": {"observedGeneration": 2}}, status=True)
    assert written["status"] == {"observedGeneration": 2}
    assert written["metadata"]["generation"] == body["metadata"]["generation"] == 1
    for resource, found in ((JUICEFS_VOLUMES, body), (LEASES, made)):
        api.delete(resource, "schema", "contract", uid_of(found))


def test_a_server_that_does_not_answer_is_told_without_its_secrets(plane: ControlPlane, tmp_path: Any) -> None:
    text = plane.kubeconfig("admin").read_text()
    broken = tmp_path / "broken"
    port = text.split("https://127.0.0.1:")[1].split('"')[0]
    broken.write_text(text.replace(f"127.0.0.1:{port}", "127.0.0.1:1"))
    api = kube.connect(str(broken))
    with pytest.raises(ApiUnavailable, match="did not answer GET /api/v1/namespaces/schema/secrets/x"):
        api.get(SECRETS, "schema", "x")
    api.close()
