"""`jfs stats`, `profile`, `bench` and `objbench`: their numbers from known input, and their runs where no mount is needed."""

import re
from pathlib import Path

import pytest
from jfs.cli import stats
from jfs.cli.main import main
from jfs.errors import ConfigError
from jfs.mount import units

LOG = """\
2026.11.25 17:58:50.610803 [uid:0,gid:0,pid:11863] open (9223372032559808513,0x8000) [fh:187] - OK <0.000060>
2026.11.25 17:58:51.202491 [uid:0,gid:0,pid:11889] readdir (1,65536,0,true): (9) - OK <0.000700>
2026.11.25 17:58:51.202706 [uid:7,gid:8,pid:11889] readdir (1,65536,9,true): (0) - no such file or directory <0.000300>
#
cut off
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"readdir": ("2", "500", "1000", "94.3"), "open": ("1", "60", "60", "5.7")}),
        (["--uid", "7"], {"readdir": ("1", "300", "300", "100.0")}),
        (["--pid", "11863,5"], {"open": ("1", "60", "60", "100.0")}),
        (["--gid", "99"], {}),
    ],
)
def test_profile_of_a_log(
    options: list[str], expected: dict[str, tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text(LOG)
    assert main(["profile", str(tmp_path / "log"), "--interval", "0", *options]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert {line.split()[0]: tuple(line.split()[1:]) for line in lines} == expected


def test_profile_refuses_what_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(tmp_path), "--uid", "me"]) == 1
    assert "numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "", "0"),
        (12, "", "12"),
        (999, "", "999"),
        (1000, "", "1.0K"),
        (12_345, "", "12K"),
        (6, "B", "6B"),
        (6 << 20, "B", "6.0M"),
    ],
)
def test_short_numbers(number: float, unit: str, text: str) -> None:
    assert stats.short(number, unit) == text


def test_a_line_of_stats() -> None:
    before = {"cpu_usage": 1.0, "fuse_ops_durations_histogram_seconds_total": 10.0}
    now = {
        "cpu_usage": 1.5,
        "memory": float(50 << 20),
        "fuse_ops_durations_histogram_seconds_total": 30.0,
        "fuse_ops_durations_histogram_seconds_sum": 0.01,
        "object_request_data_bytes_PUT": float(8 << 20),
    }
    text = stats.line("ufmco", 0, before, now, 2.0)
    assert [part.split() for part in text.split("|")] == [
        ["25.0%", "50M", "0"],
        ["10", "0.50", "0", "0"],
        ["0", "0"],
        ["0", "0"],
        ["0", "4.0M"],
    ]
    names, columns = stats.head("ufmco", 0)
    assert len(names) == len(columns) == len(text)
    assert len(stats.head("tufmco", 1)[1]) == len(stats.line("tufmco", 1, before, now, 1.0))


@pytest.mark.parametrize("words", [["--schema", "ux"], ["--interval", "0"], []])
def test_stats_refuses(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(tmp_path), *words]) == 1
    assert re.search(r"schema|interval|not in a mounted", capsys.readouterr().err)


def test_bench_of_any_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--big-file-size",
        "2",
        "--block-size",
        "256K",
        "--small-file-size",
        "1K",
        "--small-file-count",
        "5",
        "-p",
        "2",
    ]
    assert main(["bench", str(tmp_path), *words]) == 0
    out = capsys.readouterr().out
    assert "BlockSize: 256 KiB, BigFileSize: 2.0 MiB, SmallFileSize: 1.0 KiB, SmallFileCount: 5, NumThreads: 2" in out
    for item in ("Write big file", "Read big file", "Write small file", "Read small file", "Stat file"):
        assert re.search(rf"\| +{item} \|", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--block-size", "x"], ["--threads", "0"], ["--small-file-size", "1Q"]])
def test_bench_refuses(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path), *words]) == 1
    assert "--" in capsys.readouterr().err


def test_objbench_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--big-object-size", "2", "--block-size", "512", "--small-object-size", "1", "--small-objects", "7"]
    assert main(["objbench", f"{tmp_path}/bucket/", *words]) == 0
    out = capsys.readouterr().out
    assert out.count(" pass ") == 12
    for item in (
        "upload objects",
        "download objects",
        "put small objects",
        "list objects",
        "head objects",
        "delete objects",
    ):
        assert item in out
    assert [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("text", "size"), [("4", 4096), ("4K", 4096), ("1.5M", 3 << 19), ("1g", 1 << 30), ("0", 0)])
def test_sizes(text: str, size: int) -> None:
    assert units.size("--block-size", text, "K") == size


@pytest.mark.parametrize("text", ["", "K", "x4", "4Q", "inf"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        units.size("--block-size", text, "K")
