"""Kept things: keys that change with their inputs, entries that appear complete or not at all."""

from pathlib import Path

import pytest

from e2e import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "juicefs-sidecar"


def test_key_tells_parts_apart() -> None:
    assert cache.key("ab", "c") != cache.key("a", "bc")
    assert cache.key("a", "b") != cache.key("b", "a")
    assert cache.key("a") == cache.key(b"a")


def test_tree_key_sees_names_contents_and_executable_bits(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "package" / "__pycache__").mkdir(parents=True)
    file = root / "package" / "module.py"
    file.write_text("1")
    (root / "lock").write_text("lock")
    keys = [cache.tree_key(root, ["package", "lock"])]
    (root / "package" / "__pycache__" / "module.pyc").write_text("byte code")
    assert cache.tree_key(root, ["lock", "package"]) == keys[0]
    file.write_text("2")
    keys.append(cache.tree_key(root, ["package", "lock"]))
    file.chmod(0o755)
    keys.append(cache.tree_key(root, ["package", "lock"]))
    file.rename(file.with_name("other.py"))
    keys.append(cache.tree_key(root, ["package", "lock"]))
    assert len(set(keys)) == len(keys)
    with pytest.raises(FileNotFoundError):
        cache.tree_key(root, ["absent"])


def test_entry_is_made_once(folder: Path) -> None:
    made = []

    def make(place: Path) -> None:
        made.append(place)
        place.write_text("content")

    first = cache.kept("kind", "name", "0123456789abcdef", make)
    assert cache.kept("kind", "name", "0123456789abcdef", make) == first
    assert first == folder / "kind" / "name-0123456789abcdef"
    assert first.read_text() == "content"
    assert len(made) == 1


def test_failed_entry_does_not_appear() -> None:
    def fail(place: Path) -> None:
        place.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        cache.kept("kind", "name", "0123456789abcdef", fail)
    made = cache.kept("kind", "name", "fedcba9876543210", lambda place: place.mkdir())
    assert made.is_dir()
    assert [p.name for p in made.parent.iterdir()] == [made.name]  # the half has gone too


def test_old_entries_go_and_other_names_stay() -> None:
    def make(place: Path) -> None:
        place.write_text("")

    other = cache.kept("kind", "name-two", "f" * 16, make)
    entries = [cache.kept("kind", "name", digit * 16, make, keep=2) for digit in "123"]
    assert [entry.exists() for entry in entries] == [False, True, True]
    assert other.exists()
