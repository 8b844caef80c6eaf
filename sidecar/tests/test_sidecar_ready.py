"""The startup probe: everything but a live FUSE root on every volume is "not ready", said in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jfs.sidecar import ready
from jfs.sidecar.mounts import kinds_at


def probe(control: Path) -> tuple[int, str]:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from jfs.sidecar.ready import main; sys.exit(main())",
            "--control",
            control,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    assert probe(tmp_path / "none") == (
        1,
        f"The control directory {tmp_path}/none is not there yet: No such file or directory.\n",
    )


def test_no_volume_is_published_yet(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    code, text = probe(tmp_path)
    assert code == 1
    assert "No volume is published" in text


def test_directories_without_mounts_are_named(tmp_path: Path) -> None:
    for name in ("pv-1", "pv-2"):
        (tmp_path / "volumes" / name).mkdir(parents=True)
    assert probe(tmp_path) == (1, "Not ready: volume pv-1 is not mounted; volume pv-2 is not mounted.\n")


def test_a_link_is_not_a_volume(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "link").symlink_to("/proc")
    assert "No volume" in probe(tmp_path)[1]


@pytest.mark.parametrize("arguments", [[], ["--control"], ["--control="], ["x"], ["--control", "a", "b"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ready.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "inode", "sentence"),
    [
        (["ext4"], 1, "volume v is not mounted"),
        (["fuse.juicefs"], 1, None),
        (["fuse"], 1, None),
        (["fuse.juicefs"], 2, "volume v is not a JuiceFS root"),
        (["fuse.juicefs"], -1, "volume v is dead"),
        (["fuse.juicefs"], 0, "volume v does not answer"),
    ],
)
def test_what_the_mounts_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str], inode: int, sentence: str | None
) -> None:
    """The stat runs in a forked child, which inherits this double of os.stat: 0 hangs, -1 fails."""
    (tmp_path / "volumes" / "v").mkdir(parents=True)
    real = os.stat(tmp_path)
    held, release = os.pipe()

    def stat(_path: str) -> os.stat_result:
        if inode == 0:
            os.close(release)
            os.read(held, 1)
        if inode == -1:
            raise OSError(107, "Transport endpoint is not connected")
        return os.stat_result((real.st_mode, inode, *real[2:10]))

    monkeypatch.setattr(ready, "kinds_at", lambda _path: kinds)
    monkeypatch.setattr("jfs.sidecar.ready.os.stat", stat)
    answer = ready.missing(str(tmp_path), 5.0 if inode else 0.05)
    os.close(release)
    os.close(held)
    monkeypatch.undo()
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0 and inode != 0:
                continue
        except ChildProcessError:
            break
    if sentence is None:
        assert answer is None
    else:
        assert answer == f"Not ready: {sentence}."


def test_kinds_at() -> None:
    assert "proc" in kinds_at("/proc")
    assert kinds_at("/no/such/mount point") == []


def test_who_can_ask_the_supervisor_never_waits_for_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stat that waits for a dead worker's answer cannot be killed: it would keep the container from ending."""
    (tmp_path / "volumes" / "one").mkdir(parents=True)
    (tmp_path / "volumes" / "two").mkdir()
    monkeypatch.setattr(ready, "kinds_at", lambda path: ["fuse.juicefs"])
    monkeypatch.setattr(ready, "served", lambda directory, seconds: {"one": "ready", "two": "starting"})
    monkeypatch.setattr(ready, "_ask", lambda path: pytest.fail(f"{path} was asked"))
    assert ready.missing(str(tmp_path)) == "Not ready: volume two does not answer."
