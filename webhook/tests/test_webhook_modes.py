"""Privileged and restricted sidecars, their cache directories, and the last look at a pod."""

import copy
from typing import Any

import pytest
from jfs_webhook.cache import BadCacheDirectory, cache_volumes, directories
from jfs_webhook.inject import inject
from jfs_webhook.modes import ModeRefused, decide
from jfs_webhook.validate import complaint
from jfs_webhook.volumes import BadWish, PodVolume, Wish, parse_wish
from webhook_pods import SETTINGS, claim_volume, ours, patched, pod_with

DRIVER = "sidecar.juicefs.io"


def namespace(level: str | None) -> dict[str, Any]:
    labels = {} if level is None else {"pod-security.kubernetes.io/enforce": level}
    return {"metadata": {"name": "team", "labels": labels}}


def volumes(*modes: str | None) -> list[PodVolume]:
    return [PodVolume(f"v{index}", f"claim/v{index}", Wish(mode=mode)) for index, mode in enumerate(modes)]


@pytest.mark.parametrize(
    ("modes", "default", "level", "expected"),
    [
        ([None], "auto", None, "privileged"),
        ([None], "auto", "privileged", "privileged"),
        ([None], "auto", "baseline", "restricted"),
        ([None], "auto", "restricted", "restricted"),
        ([None], "restricted", None, "restricted"),
        (["auto"], "restricted", None, "privileged"),
        (["restricted"], "privileged", None, "restricted"),
        (["privileged"], "restricted", None, "privileged"),
        (["auto", "restricted"], "auto", None, "restricted"),
        (["auto", "privileged"], "auto", None, "privileged"),
    ],
)
def test_the_mode(modes: list[str | None], default: str, level: str | None, expected: str) -> None:
    assert decide(volumes(*modes), default, namespace(level)) == (expected, [])


def test_contradicting_volumes_get_the_mode_without_rights_and_a_warning() -> None:
    mode, [warning] = decide(volumes("privileged", "restricted"), "auto", namespace(None))
    assert mode == "restricted"
    assert "v0 ask for a privileged sidecar and v1 for a restricted one" in warning
    assert decide(volumes("privileged", "restricted"), "auto", namespace("restricted"))[0] == "restricted"


def test_a_privileged_sidecar_where_none_may_be_is_refused() -> None:
    with pytest.raises(ModeRefused, match="PodSecurity level of the namespace forbids"):
        decide(volumes("auto", "privileged"), "auto", namespace("baseline"))


def test_a_namespace_that_is_gone_forbids_nothing() -> None:
    assert decide(volumes("auto"), "auto", None)[0] == "privileged"


def restricted(pod: dict[str, Any], found: list[PodVolume]) -> dict[str, Any]:
    return patched(pod, inject(pod, found, SETTINGS, "restricted"))


def test_a_restricted_sidecar_has_no_rights_and_sees_the_control_volume_only() -> None:
    pod = restricted(pod_with(claim_volume("data", "data"), securityContext={"runAsUser": 0}), ours("data"))
    sidecar = pod["spec"]["initContainers"][0]
    assert sidecar["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert sidecar["volumeMounts"][0] == {
        "name": "juicefs-control",
        "mountPath": "/run/jfs",
        "readOnly": True,
        "mountPropagation": "HostToContainer",
    }
    found = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert found["juicefs-control"]["csi"] == {
        "driver": DRIVER,
        "readOnly": True,
        "volumeAttributes": {"kind": "control", "mode": "restricted"},
    }
    assert found["juicefs-state"] == {"name": "juicefs-state", "emptyDir": {}}
    assert not any("hostPath" in volume for volume in found.values())
    assert inject(pod, ours("data"), SETTINGS, "restricted") == []


def test_a_pod_follows_its_mode() -> None:
    """Admitted as privileged, and again (a copy of it) where only restricted ones may be."""
    pod = pod_with(claim_volume("data", "data"))
    first = patched(pod, inject(pod, ours("data"), SETTINGS, "privileged"))
    second = patched(first, inject(first, ours("data"), SETTINGS, "restricted"))
    assert second["spec"]["initContainers"] == restricted(pod, ours("data"))["spec"]["initContainers"]
    assert inject(second, ours("data"), SETTINGS, "restricted") == []


# --- cache -------------------------------------------------------------------------------------------------------


def test_cache_directories_of_mount_options() -> None:
    assert directories(["cache-size=100", "cache-dir=/var/jfsCache/:/data/b:memory", "ro"]) == (
        "/var/jfsCache",
        "/data/b",
    )
    assert directories(["cache-size=100"]) == ()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/usr/bin",
            "/",
            "/run/jfs",
            "/etc",
            "relative",
            "/var",
            "/var/lib/juicefs",
            "/var/lib/juicefs/x",
            "/var/run",
        ),
        *("/data/../etc", "/opt/juicefs", "/proc/1", "/var/tmp/x", "/tmp"),
    ],
)
def test_a_cache_may_not_cover_the_image(path: str) -> None:
    with pytest.raises(BadCacheDirectory, match="cannot be a directory of the sidecar"):
        directories([f"cache-dir={path}"])


def cached(wish: Wish, *paths: str) -> PodVolume:
    return PodVolume("data", "claim/data", wish, paths)


@pytest.mark.parametrize(
    ("cache", "mode", "expected"),
    [
        (None, "privileged", {"emptyDir": {}}),
        ({"emptyDir": {"sizeLimit": "1Gi"}}, "restricted", {"emptyDir": {"sizeLimit": "1Gi"}}),
        ({"hostPath": {}}, "privileged", {"hostPath": {"path": "/var/jfsCache", "type": "DirectoryOrCreate"}}),
        ({"hostPath": {"path": "/ssd"}}, "privileged", {"hostPath": {"path": "/ssd", "type": "DirectoryOrCreate"}}),
        ({"hostPath": {"path": "/ssd"}}, "restricted", {"emptyDir": {}}),
        ({"persistentVolumeClaim": {"claimName": "c"}}, "restricted", {"persistentVolumeClaim": {"claimName": "c"}}),
    ],
)
def test_what_a_cache_is_made_of(cache: dict[str, Any] | None, mode: str, expected: dict[str, Any]) -> None:
    found, mounts = cache_volumes([cached(Wish(cache=cache), "/var/jfsCache")], mode)
    assert found == [{"name": "juicefs-cache-0", **expected}]
    assert mounts == [{"name": "juicefs-cache-0", "mountPath": "/var/jfsCache"}]


def test_directories_that_overlap_are_one() -> None:
    found, mounts = cache_volumes(
        [cached(Wish(), "/data/a", "/data"), cached(Wish(), "/data/a/b", "/mnt/c")], "privileged"
    )
    assert [mount["mountPath"] for mount in mounts] == ["/data/a", "/mnt/c"]
    assert len(found) == 2


def test_an_injected_cache_converges() -> None:
    pod = pod_with(claim_volume("data", "data"))
    volume = cached(Wish(cache={"hostPath": {}}), "/var/jfsCache")
    result = patched(pod, inject(pod, [volume], SETTINGS))
    assert {"name": "juicefs-cache-0", "mountPath": "/var/jfsCache"} in result["spec"]["initContainers"][0][
        "volumeMounts"
    ]
    assert inject(result, [volume], SETTINGS) == []
    annotation = result["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"]
    assert annotation == "juicefs-tmp,juicefs-state,juicefs-cache-0"


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"mode": "root"}, "mode must be one of"),
        ({"cache": {}}, "exactly one of"),
        ({"cache": {"nfs": {}}}, "emptyDir, hostPath or"),
        ({"cache": {"persistentVolumeClaim": {}}}, "claimName must be a string"),
        ({"cache": {"hostPath": {"path": "/a/../b"}}}, "must be an absolute path"),
    ],
)
def test_bad_wishes(wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadWish, match=sentence):
        parse_wish(wish)


# --- the last look -------------------------------------------------------------------------------------------------


@pytest.fixture
def stored() -> dict[str, Any]:
    pod = pod_with(claim_volume("data", "data"), initContainers=[{"name": "init", "image": "x"}])
    return patched(pod, inject(pod, ours("data"), SETTINGS))


def test_an_injected_pod_and_a_foreign_one_are_fine(stored: dict[str, Any]) -> None:
    assert complaint(stored, DRIVER) is None
    assert complaint(pod_with(claim_volume("data", "data")), DRIVER) is None


def test_a_mesh_may_stand_before_the_sidecar(stored: dict[str, Any]) -> None:
    stored["spec"]["initContainers"].insert(0, {"name": "proxy", "restartPolicy": "Always"})
    assert complaint(stored, DRIVER) is None


def changed(stored: dict[str, Any], what: str) -> dict[str, Any]:
    pod = copy.deepcopy(stored)
    inits, sidecar = pod["spec"]["initContainers"], pod["spec"]["initContainers"][0]
    match what:
        case "no restartPolicy":
            del sidecar["restartPolicy"]
        case "no sidecar":
            del inits[0]
        case "no sidecar, no label":
            del inits[0]
            del pod["metadata"]["labels"]
        case "an init container first":
            inits.insert(0, {"name": "early", "image": "x"})
        case "no control volume":
            pod["spec"]["volumes"] = [each for each in pod["spec"]["volumes"] if "csi" not in each]
        case "no control mount":
            sidecar["volumeMounts"] = []
        case "another sees the control volume":
            mount = {"name": "juicefs-control", "mountPath": "/stolen"}
            pod["spec"]["containers"].append({"name": "added", "image": "x", "volumeMounts": [mount]})
    return pod


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no restartPolicy", "has lost its restartPolicy: Always"),
        ("no sidecar", "was taken away"),
        ("no sidecar, no label", "was taken away"),
        ("an init container first", "init container early would run before"),
        ("no control volume", "volume juicefs-control was taken away"),
        ("no control mount", "volume juicefs-control was taken away"),
        ("another sees the control volume", "container added mounts the volume juicefs-control"),
    ],
)
def test_what_others_did_to_the_pod_is_told(stored: dict[str, Any], what: str, sentence: str) -> None:
    assert sentence in (complaint(changed(stored, what), DRIVER) or "")
