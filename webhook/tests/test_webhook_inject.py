"""The patch: what it adds, what it leaves alone, and that it converges whatever came before."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs_webhook.inject import InjectionRefused, inject
from jfs_webhook.settings import Settings
from jfs_webhook.volumes import PodVolume, Wish
from webhook_pods import SETTINGS, claim_volume, ours, patched, pod_with


def injected(pod: dict[str, Any], *volumes: str, settings: Settings = SETTINGS) -> dict[str, Any]:
    return patched(pod, inject(pod, ours(*volumes), settings))


def test_pod_without_our_volumes_needs_nothing() -> None:
    assert inject(pod_with(claim_volume("data", "data")), [], SETTINGS) == []


def test_sidecar_is_a_native_one_before_all_init_containers() -> None:
    pod = pod_with(claim_volume("data", "data"), initContainers=[{"name": "migrate", "image": "x"}])
    result = injected(pod, "data")
    assert [each["name"] for each in result["spec"]["initContainers"]] == ["juicefs-sidecar", "migrate"]
    sidecar = result["spec"]["initContainers"][0]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["image"] == "registry.example/juicefs-sidecar:1"
    assert sidecar["command"] == ["jfs", "sidecar", "--control", "/run/jfs"]
    assert sidecar["startupProbe"]["exec"]["command"] == ["jfs", "ready", "--control", "/run/jfs"]
    assert (sidecar["startupProbe"]["periodSeconds"], sidecar["startupProbe"]["failureThreshold"]) == (1, 120)
    assert sidecar["env"] == [{"name": "JFS_GRACE_SECONDS", "value": "25"}]
    assert "ports" not in sidecar


def test_sidecar_is_root_whatever_the_pod_says() -> None:
    pod = pod_with(
        claim_volume("data", "data"),
        securityContext={
            "runAsUser": 1000,
            "runAsNonRoot": True,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    )
    result = injected(pod, "data")
    assert result["spec"]["initContainers"][0]["securityContext"] == {
        "privileged": True,
        "allowPrivilegeEscalation": True,
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "Unconfined"},
    }
    assert result["spec"]["securityContext"] == pod["spec"]["securityContext"]


def test_control_volume_is_mounted_in_the_sidecar_only() -> None:
    result = injected(pod_with(claim_volume("data", "data")), "data")
    volumes = {volume["name"]: volume for volume in result["spec"]["volumes"]}
    assert volumes["data"] == claim_volume("data", "data")
    assert volumes["juicefs-control"]["csi"] == {
        "driver": "sidecar.juicefs.io",
        "volumeAttributes": {"kind": "control"},
    }
    mounts = result["spec"]["initContainers"][0]["volumeMounts"]
    assert mounts[0] == {"name": "juicefs-control", "mountPath": "/run/jfs", "mountPropagation": "Bidirectional"}
    assert [mount["name"] for mount in mounts] == ["juicefs-control", "juicefs-tmp", "juicefs-state"]
    assert [mount["name"] for mount in result["spec"]["containers"][0]["volumeMounts"]] == ["data"]


def test_propagation_of_the_application_mounts() -> None:
    mounts = [
        {"name": "data", "mountPath": "/plain", "subPath": "a"},
        {"name": "data", "mountPath": "/none", "mountPropagation": "None"},
        {"name": "data", "mountPath": "/both", "mountPropagation": "Bidirectional"},
        {"name": "data", "mountPath": "/ro", "readOnly": True, "recursiveReadOnly": "Enabled"},
        {"name": "other", "mountPath": "/other"},
    ]
    pod = pod_with(claim_volume("data", "data"), {"name": "other", "emptyDir": {}})
    pod["spec"]["containers"][0]["volumeMounts"] = mounts
    pod["spec"]["initContainers"] = [{"name": "init", "volumeMounts": copy.deepcopy(mounts)}]
    pod["spec"]["ephemeralContainers"] = [{"name": "debug", "volumeMounts": copy.deepcopy(mounts)}]
    result = injected(pod, "data")
    for container in (result["spec"]["containers"][0], result["spec"]["initContainers"][1]):
        assert [mount.get("mountPropagation") for mount in container["volumeMounts"]] == [
            "HostToContainer",
            "HostToContainer",
            "Bidirectional",
            None,  # the API server refuses propagation of recursively read-only mounts
            None,
        ]
        assert [{**mount, "mountPropagation": ""} for mount in container["volumeMounts"]] == [
            {**mount, "mountPropagation": ""} for mount in mounts
        ]
    assert result["spec"]["ephemeralContainers"] == pod["spec"]["ephemeralContainers"]


@pytest.mark.parametrize(
    ("given_grace", "grace", "environment"), [(None, 30, "25"), (0, 30, "25"), (30, 30, "25"), (600, 600, "595")]
)
def test_grace_period_is_raised_only_when_short(given_grace: int | None, grace: int, environment: str) -> None:
    pod = pod_with(claim_volume("data", "data"), terminationGracePeriodSeconds=given_grace)
    if given_grace is None:
        del pod["spec"]["terminationGracePeriodSeconds"]
    patch = inject(pod, ours("data"), SETTINGS)
    assert any(operation["path"].endswith("GracePeriodSeconds") for operation in patch) == (given_grace != grace)
    result = patched(pod, patch)
    assert result["spec"]["terminationGracePeriodSeconds"] == grace
    assert result["spec"]["initContainers"][0]["env"][0]["value"] == environment


def test_label_and_annotation_join_existing_ones() -> None:
    pod = pod_with(claim_volume("data", "data"))
    pod["metadata"]["annotations"] = None
    result = injected(pod, "data")
    assert result["metadata"]["labels"] == {"app": "web", "juicefs.io/injected": "true"}
    assert result["metadata"]["annotations"] == {
        "juicefs.io/injected": "2",
        "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": "juicefs-tmp,juicefs-state",
    }


def test_resources_add_up_and_a_missing_limit_is_no_limit() -> None:
    pod = pod_with(claim_volume("a", "a"), claim_volume("b", "b"), claim_volume("c", "a"))
    volumes = [
        PodVolume(
            "a", "claim/a", Wish(resources={"requests": {"memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
        ),
        PodVolume("b", "claim/b"),
        PodVolume(
            "c", "claim/a", Wish(resources={"requests": {"memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
        ),
    ]
    result = patched(pod, inject(pod, volumes, SETTINGS))
    assert result["spec"]["initContainers"][0]["resources"] == {
        "requests": {"cpu": "1100m", "memory": "640Mi"},
        "limits": {"memory": "2Gi"},
    }


def test_pod_level_resources_are_shared_by_the_sidecar() -> None:
    pod = pod_with(claim_volume("data", "data"), resources={"limits": {"memory": "1Gi"}})
    assert injected(pod, "data")["spec"]["initContainers"][0]["resources"] == {}


def test_first_named_image_wins() -> None:
    pod = pod_with(claim_volume("a", "a"), claim_volume("b", "b"), claim_volume("c", "c"))
    volumes = [PodVolume("a", "a"), PodVolume("b", "b", Wish("b:1")), PodVolume("c", "c", Wish("c:1"))]
    assert patched(pod, inject(pod, volumes, SETTINGS))["spec"]["initContainers"][0]["image"] == "b:1"


def test_pull_secrets_are_added_once() -> None:
    settings = Settings(sidecar_image="private/x:1", pull_secrets=("registry", "mine"))
    pod = pod_with(claim_volume("data", "data"), imagePullSecrets=[{"name": "mine"}])
    assert injected(pod, "data", settings=settings)["spec"]["imagePullSecrets"] == [
        {"name": "mine"},
        {"name": "registry"},
    ]
    del pod["spec"]["imagePullSecrets"]
    assert injected(pod, "data", settings=settings)["spec"]["imagePullSecrets"] == [
        {"name": "registry"},
        {"name": "mine"},
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hostUsers": False}, "hostUsers"),
        ({"containers": [{"name": "juicefs-sidecar", "image": "x"}]}, "rename the container"),
        ({"volumes": [claim_volume("data", "d"), {"name": "juicefs-control", "emptyDir": {}}]}, "rename the volume"),
        ({"volumes": [claim_volume("data", "d"), claim_volume("juicefs-tmp", "x")]}, "rename the volume"),
        (
            {
                "volumes": [
                    claim_volume("data", "d"),
                    {"name": "peek", "csi": {"driver": "sidecar.juicefs.io", "volumeAttributes": {"kind": "control"}}},
                ]
            },
            "only the injected sidecar",
        ),
        (
            {"containers": [{"name": "app", "volumeMounts": [{"name": "juicefs-control", "mountPath": "/x"}]}]},
            "receives its credentials",
        ),
    ],
)
def test_impossible_pods_are_refused_with_a_sentence(change: dict[str, Any], said: str) -> None:
    pod = pod_with(claim_volume("data", "d"), **change)
    with pytest.raises(InjectionRefused, match=said):
        inject(pod, ours("data"), SETTINGS)


def test_reinvocation_keeps_what_others_added_to_the_sidecar_and_restores_the_rest() -> None:
    pod = injected(pod_with(claim_volume("data", "data")), "data")
    sidecar = pod["spec"]["initContainers"][0]
    identity = {"name": "aws-token", "mountPath": "/var/run/secrets/eks", "readOnly": True}
    sidecar["volumeMounts"].insert(0, identity)
    sidecar["env"].append({"name": "AWS_ROLE_ARN", "value": "arn"})
    sidecar["resources"]["limits"]["cpu"] = "2"
    sidecar["resources"]["requests"]["memory"] = "131072Ki"
    assert inject(pod, ours("data"), SETTINGS) == []

    sidecar["command"] = ["sh"]
    sidecar["lifecycle"] = {"postStart": {"exec": {"command": ["sh"]}}}
    sidecar["securityContext"]["privileged"] = False
    sidecar["volumeMounts"].append({"name": "juicefs-control", "mountPath": "/elsewhere"})
    pod["spec"]["initContainers"].insert(0, {"name": "mesh", "image": "proxy"})
    again = patched(pod, inject(pod, ours("data"), SETTINGS))
    assert [each["name"] for each in again["spec"]["initContainers"]] == ["juicefs-sidecar", "mesh"]
    restored = again["spec"]["initContainers"][0]
    assert restored["command"] == ["jfs", "sidecar", "--control", "/run/jfs"]
    assert "lifecycle" not in restored
    assert restored["securityContext"]["privileged"] is True
    assert [mount["mountPath"] for mount in restored["volumeMounts"]] == [
        "/var/run/secrets/eks",
        "/run/jfs",
        "/tmp",
        "/var/lib/juicefs",
    ]
    assert {"name": "AWS_ROLE_ARN", "value": "arn"} in restored["env"]
    assert restored["resources"]["limits"]["cpu"] == "2"
    assert inject(again, ours("data"), SETTINGS) == []


# Pods of any shape: every field may be absent, null or empty, names may collide with ours.

NAMES = st.sampled_from(["data", "more", "cache", "juicefs-tmp", "x"])
UNKNOWN = st.dictionaries(
    st.sampled_from(["newField", "other"]), st.sampled_from([1, None, [1], {"a": []}]), max_size=2
)


def optional(field: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(st.just({}), st.builds(lambda value: {field: value}, st.one_of(st.none(), values)))


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(
        lambda dictionaries: {key: value for each in dictionaries for key, value in each.items()}
    )


def fixed(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(fields)


MOUNTS = merged(
    fixed(name=NAMES, mountPath=st.sampled_from(["/a", "/b", "/tmp", "/run/jfs"])),
    optional("mountPropagation", st.sampled_from(["None", "HostToContainer", "Bidirectional"])),
    optional("recursiveReadOnly", st.sampled_from(["Disabled", "IfPossible", "Enabled"])),
    UNKNOWN,
)
CONTAINERS = merged(
    fixed(name=st.sampled_from(["app", "init", "side"])),
    optional("volumeMounts", st.lists(MOUNTS, max_size=3)),
    UNKNOWN,
)
SIDECARS = merged(
    fixed(name=st.just("juicefs-sidecar")),
    optional("volumeMounts", st.lists(MOUNTS, max_size=3)),
    optional("env", st.lists(fixed(name=st.sampled_from(["JFS_GRACE_SECONDS", "A"]), value=st.just("1")), max_size=3)),
    optional("resources", optional("limits", st.dictionaries(st.sampled_from(["cpu", "memory"]), st.just("1")))),
    UNKNOWN,
)
VOLUMES = merged(fixed(name=NAMES, emptyDir=st.just({})), UNKNOWN)
METADATA = st.dictionaries(
    st.sampled_from(["a/b~c", "juicefs.io/injected"]), st.sampled_from(["true", "x"]), max_size=2
)
PODS = fixed(
    metadata=merged(optional("labels", METADATA), optional("annotations", METADATA), UNKNOWN),
    spec=merged(
        fixed(containers=st.lists(CONTAINERS, min_size=1, max_size=2)),
        optional("initContainers", st.lists(st.one_of(CONTAINERS, SIDECARS), max_size=3)),
        optional("volumes", st.lists(VOLUMES, max_size=4, unique_by=lambda volume: str(volume["name"]))),
        optional("terminationGracePeriodSeconds", st.integers(0, 90)),
        optional("imagePullSecrets", st.lists(fixed(name=st.sampled_from(["s", "t"])), max_size=2)),
        optional("resources", st.just({"limits": {"cpu": "1"}})),
        UNKNOWN,
    ),
)
RESOURCES = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            kind: st.dictionaries(
                st.sampled_from(["cpu", "memory"]), st.sampled_from(["100m", "1", "1.5Gi", "64Mi", "2e3"]), max_size=2
            )
            for kind in ("limits", "requests")
        },
    ),
)
OURS = st.lists(
    st.builds(PodVolume, NAMES, NAMES, st.builds(Wish, st.sampled_from([None, "i:1"]), RESOURCES)),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, derandomize=True)
@given(PODS, OURS)
def test_any_pod_converges_and_keeps_what_is_not_ours(pod: dict[str, Any], volumes: list[PodVolume]) -> None:
    told = Settings(sidecar_image="image:1", pull_secrets=("s",), default_resources=SETTINGS.default_resources)
    before = copy.deepcopy(pod)
    patch = inject(pod, volumes, told)
    assert pod == before
    assert patch == inject(copy.deepcopy(pod), volumes, told)
    result = patched(pod, patch)
    assert inject(result, volumes, told) == []

    spec = result["spec"]
    assert spec["initContainers"][0]["name"] == "juicefs-sidecar"
    assert spec["initContainers"][0]["volumeMounts"]
    # What is not ours is as it was.
    touched = {"initContainers", "containers", "volumes", "terminationGracePeriodSeconds", "imagePullSecrets"}
    assert {k: v for k, v in spec.items() if k not in touched} == {
        k: v for k, v in before["spec"].items() if k not in touched
    }
    untouched = {"labels", "annotations"}
    assert {k: v for k, v in result["metadata"].items() if k not in untouched} == {
        k: v for k, v in before["metadata"].items() if k not in untouched
    }
    for field in ("containers", "initContainers"):
        assert [without_propagation(each) for each in applications(result, field)] == [
            without_propagation(each) for each in applications(before, field)
        ]
    names_before = [volume["name"] for volume in before["spec"].get("volumes") or []]
    assert [volume["name"] for volume in spec["volumes"]][: len(names_before)] == names_before
    # The API server's rules for what we add.
    resources = spec["initContainers"][0]["resources"]
    assert set(resources.get("limits", {})) <= set(resources.get("requests", {})) | {"cpu", "memory"}
    mount_paths = [mount["mountPath"] for mount in spec["initContainers"][0]["volumeMounts"]]
    assert len(mount_paths) == len(set(mount_paths))


def applications(pod: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [each for each in pod["spec"].get(field) or [] if each["name"] != "juicefs-sidecar"]


def without_propagation(container: dict[str, Any]) -> dict[str, Any]:
    mounts = container.get("volumeMounts")
    if not mounts:
        return container
    return {**container, "volumeMounts": [{**mount, "mountPropagation": None} for mount in mounts]}
