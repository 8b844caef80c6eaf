"""Which target paths are acceptable, and how they are taken apart."""

from pathlib import Path

import pytest
from jfs_csi.layout import InvalidPath, Layout, Target, valid_pod_uid

LAYOUT = Layout(Path("/var/lib/kubelet"))
UID = "8f5c1a2e-0d5b-4a53-9f3b-2d8d3f6c1a77"
GOOD = f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pv-1/mount"


def test_a_target_of_the_kubelet() -> None:
    relative = ("pods", UID, "volumes", "kubernetes.io~csi", "pv-1", "mount")
    assert LAYOUT.target(GOOD) == Target(UID, "pv-1", GOOD, relative)
    assert LAYOUT.absolute(relative) == GOOD


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("pods/x", "relative"),
        ("", "relative"),
        ("/etc/passwd", "not below the kubelet's directory"),
        ("/var/lib/kubelet2/pods", "not below the kubelet's directory"),
        (GOOD + "/", "not normalized"),
        (GOOD.replace("/pv-1/", "/../pv-1/"), "not normalized"),
        (GOOD.replace("/pods/", "//pods/"), "not normalized"),
        (GOOD + "/deeper", "not a CSI volume"),
        (GOOD.replace("kubernetes.io~csi", "kubernetes.io~empty-dir"), "not a CSI volume"),
        (GOOD.replace("/pods/", "/plugins/"), "not a CSI volume"),
        (GOOD.replace(UID, "-x"), "no valid pod UID"),
        (GOOD + "\0", "not normalized"),
    ],
)
def test_other_paths_are_refused_with_a_sentence(path: str, sentence: str) -> None:
    with pytest.raises(InvalidPath, match=sentence):
        LAYOUT.target(path)


def test_pod_uids() -> None:
    assert valid_pod_uid(UID)
    assert valid_pod_uid("0f1e2d3c4b5a69788796a5b4c3d2e1f0")  # a static pod's
    assert not valid_pod_uid("..")
    assert not valid_pod_uid("")
