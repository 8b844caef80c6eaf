"""Directories without links, state files, and reading mountinfo."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from jfs_csi.directories import NotADirectory, Tree
from jfs_csi.layout import Layout
from jfs_csi.mounts import mountinfo
from jfs_csi.state import DATA, StateStore, VolumeState

STATE = VolumeState("uid-1", "pv-1", DATA, "handle", "/target", options=("a=1",), generation=3, ready=True)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def store(tree: Tree) -> StateStore:
    return StateStore(tree, Layout(tree.base))


def test_make_and_remove(tree: Tree, tmp_path: Path) -> None:
    tree.make(("a", "b", "c"), 0o750)
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o711
    tree.make(("a", "b", "c"), 0o700)
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o750
    assert not tree.remove(("a", "b"))
    assert tree.remove(("a", "b", "c"))
    assert tree.remove(("a", "b", "c"))
    assert tree.remove(("no", "such"))
    assert tree.names(("a",)) == ["b"]
    assert tree.names(("no",)) == []


def test_parents_are_not_made_unasked(tree: Tree) -> None:
    with pytest.raises(FileNotFoundError):
        tree.make(("no", "such"), 0o700, parents=False)


@pytest.mark.parametrize("where", ["last", "middle"])
def test_symbolic_links_are_refused(tree: Tree, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    (outside / "c").mkdir(parents=True)
    if where == "last":
        (tmp_path / "a").mkdir()
        (tmp_path / "a/c").symlink_to(outside / "c")
    else:
        (tmp_path / "a").symlink_to(outside)
    with pytest.raises(NotADirectory, match="symbolic link"), tree.open(("a", "c")):
        pass
    if where == "middle":
        with pytest.raises(NotADirectory):
            tree.remove(("a", "c"))
        with pytest.raises(NotADirectory):
            tree.make(("a", "d"), 0o700)
    assert (outside / "c").is_dir()
    assert not (outside / "d").exists()


def test_a_linked_base_is_the_administrators_choice(tmp_path: Path) -> None:
    (tmp_path / "real/pods").mkdir(parents=True)
    (tmp_path / "kubelet").symlink_to(tmp_path / "real")
    tree = Tree(tmp_path / "kubelet")
    assert tree.names(()) == ["pods"]
    assert tree.mount_path(("pods",)) == str(tmp_path / "real/pods")


def test_descriptors_are_closed(tree: Tree) -> None:
    before = len(os.listdir("/proc/self/fd"))
    tree.make(("a", "b"), 0o700)
    with tree.open(("a", "b")):
        pass
    with pytest.raises(FileNotFoundError), tree.open(("a", "x", "y")):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_state_survives_a_restart(tree: Tree) -> None:
    first = store(tree)
    first.save(STATE)
    first.update("uid-1", "pv-1", generation=4, ready=False)
    second = store(tree)
    second.load()
    assert second.all() == [replace(STATE, generation=4, ready=False)]
    assert second.by_target("/target") == second.get("uid-1", "pv-1")
    second.remove("uid-1", "pv-1")
    second.remove_pod("uid-1")
    assert second.all() == []
    assert tree.names(("plugins", "sidecar.juicefs.io", "state")) == []


def test_unusable_state_files_count_as_absent(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    states = store(tree)
    states.save(STATE)
    directory = tree.base / "plugins/sidecar.juicefs.io/state/uid-1"
    (directory / "cut.json").write_text('{"version": 1, "pod_')
    (directory / "later.json").write_text('{"version": 2}')
    (directory / "other.json").write_text(STATE.to_json())
    (directory / "pv-2.json.tmp").write_text("{}")
    states.load()
    assert states.all() == [STATE]
    assert sorted(path.name for path in directory.iterdir()) == ["cut.json", "later.json", "other.json", "pv-1.json"]
    assert caplog.text.count("is unusable") == 3


def test_the_longest_name_of_a_volume(tree: Tree) -> None:
    states = store(tree)
    long = replace(STATE, volume="v" * 253)
    states.save(long)
    again = store(tree)
    again.load()
    assert again.all() == [long]


def test_an_unchanged_update_writes_nothing(tree: Tree) -> None:
    states = store(tree)
    states.save(STATE)
    path = tree.base / "plugins/sidecar.juicefs.io/state/uid-1/pv-1.json"
    before = path.stat().st_ino
    states.update("uid-1", "pv-1", generation=3, ready=True)
    states.update("uid-1", "unknown", generation=3, ready=True)
    assert path.stat().st_ino == before


def test_mountinfo() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "40 35 0:57 / /var/lib/a\\040b\\134c rw,nosuid shared:9 master:2 - fuse.juicefs JuiceFS:x rw,user_id=0\n"
        "41 35 0:58 / /x rw - fuseblk /dev/sda rw\n"
    )
    first, second, third = mountinfo(text)
    assert (first.path, first.root, first.kind, first.is_fuse) == ("/mnt2", "/mnt1", "ext3", False)
    assert (second.path, second.device, second.source, second.is_fuse) == (
        "/var/lib/a b\\c",
        "0:57",
        "JuiceFS:x",
        True,
    )
    assert not third.is_fuse
    assert any(mount.path == "/" for mount in mountinfo())
