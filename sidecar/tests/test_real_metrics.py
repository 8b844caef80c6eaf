"""The names of metrics beside the real client's, and the access log beside its own."""

import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
from mount_parts import REAL, Volume, free_port, mounted, really_mounted, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]

# What belongs to features that this client does not have, to the Go run time, or to its host.
_FOREIGN = re.compile(
    r"juicefs_(blockcache_|staging_|store_cache_|go_|last_(successful_)?backup|process_network_|process_virtual_memory_max)"
)


def _names(port: int) -> set[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


def _work(where: Path) -> None:
    (where / "d").mkdir()
    (where / "d" / "f").write_bytes(b"x" * 100_000)
    (where / "d" / "f").read_bytes()
    assert not (where / "none").exists()
    (where / "d" / "f").rename(where / "g")


def test_metrics_have_the_real_names(tmp_path: Path) -> None:
    ours, theirs = (
        Volume(f"sqlite3://{tmp_path}/{name}.db", tmp_path / name, name=name).format() for name in ("ours", "theirs")
    )
    port, other = free_port(), free_port()
    with (
        mounted(ours, tmp_path / "m1", f"--metrics=127.0.0.1:{port}") as m1,
        really_mounted(theirs, tmp_path / "m2", f"--metrics=127.0.0.1:{other}") as m2,
    ):
        for where in (m1, m2):
            _work(where)
        expected = {name for name in _names(other) if not _FOREIGN.match(name)}
        assert len(expected) > 25
        assert expected - _names(port) == set()
        stats = {line.split()[0] for line in (m1 / ".stats").read_text().splitlines()}
        assert "juicefs_object_request_data_bytes_PUT" in stats
        assert "juicefs_subdir_info" in stats
        said = run(REAL, "stats", "-c", "1", str(m1)).stdout
        assert "usage" in said


def test_access_log_has_the_shape_that_tools_parse(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/v.db", tmp_path / "b").format()
    with (
        mounted(volume, tmp_path / "m") as where,
        subprocess.Popen(["cat", str(where / ".accesslog")], stdout=subprocess.PIPE) as reading,
    ):
        assert reading.stdout is not None
        assert reading.stdout.readline() == b"#\n"  # it reads
        _work(where)
        lines: list[str] = []
        while not lines or "rename (" not in lines[-1]:
            lines.append(reading.stdout.readline().decode())
        reading.kill()
    lines = [line for line in lines if line != "#\n"]
    shape = re.compile(
        r"\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d\.\d{6} \[uid:\d+,gid:\d+,pid:\d+\] [a-z_]+ \(.*\).* - [A-Za-z ]+ <\d+\.\d{6}>\n\Z"
    )
    assert [line for line in lines if not shape.match(line)] == []
    assert any("lookup (1,none): - no such file or directory <" in line for line in lines)
    assert any(re.search(r"lookup|mkdir \(1,d,drwx.*\): \(\d+,\[drwx", line) for line in lines)
