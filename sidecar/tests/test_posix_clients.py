"""Several clients of one volume, each a mount process of its own, change the same tree at once. At the end no file is lost, all of them
see the same, and neither our checks nor the real client's find anything wrong. JFS_LOAD_OPERATIONS makes a long run of it."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from mount_parts import Volume, check_by_real, eventually, mounted, redis_server, tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600 if "JFS_LOAD_OPERATIONS" in os.environ else 180)]

OPERATIONS = int(os.environ.get("JFS_LOAD_OPERATIONS", "600"))
NO_CACHES = ("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0", "--enable-xattr")
LOAD = Path(__file__).with_name("posix_load.py")


@pytest.mark.parametrize(
    ("engine", "clients", "options"),
    [
        ("redis", 2, NO_CACHES),
        ("redis", 8, ("--enable-xattr",)),
        ("sqlite3", 2, ("--enable-xattr",)),
    ],
)
def test_clients_at_once(tmp_path: Path, engine: str, clients: int, options: tuple[str, ...]) -> None:
    with contextlib.ExitStack() as stack:
        url = f"sqlite3://{tmp_path}/meta.db"
        if engine == "redis":
            url = stack.enter_context(redis_server(tmp_path)) + "/1"
        volume = Volume(url, tmp_path / "bucket").format("--trash-days", "0")
        with contextlib.ExitStack() as mounts:
            tops = [
                mounts.enter_context(mounted(volume, tmp_path / f"mnt{number}", *options)) for number in range(clients)
            ]
            (tops[0] / "shared").mkdir()
            (tops[0] / "own").mkdir()
            for top in tops:
                eventually((top / "own").is_dir, f"{top} sees what another client has made")
            known = work(tops, OPERATIONS // clients)
            for number, files in enumerate(known):
                elsewhere = tops[(number + 1) % clients] / "own" / str(number)
                eventually(partial(holds, elsewhere, files), f"all files are in {elsewhere}")
            eventually(lambda: all(tree(top) == tree(tops[0]) for top in tops[1:]), "all clients see the same tree")
        check_by_real(volume)


def work(tops: list[Path], operations: int) -> list[dict[str, str]]:
    """Let every client work; what each of them knows to be there."""
    programs = [
        subprocess.Popen(
            [sys.executable, LOAD, top, str(number), str(1000 + number), str(operations)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, top in enumerate(tops)
    ]
    known = []
    with contextlib.ExitStack() as running:
        for program in programs:
            running.enter_context(program)
            running.callback(program.kill)
        for program in programs:
            said, complaint = program.communicate(timeout=3000)
            assert program.returncode == 0, complaint
            known.append(json.loads(said))
    return known


def holds(place: Path, files: dict[str, str]) -> bool:
    """Whether a directory has exactly these files, by name and hash."""
    return files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}


def test_what_another_client_replaced_is_found_at_once(tmp_path: Path) -> None:
    """The kernel still believes in the old name, of a file that is gone."""
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")
    believing = ("--entry-cache", "1000", "--attr-cache", "0")
    with mounted(volume, tmp_path / "one") as one, mounted(volume, tmp_path / "two", *believing) as two:
        for number in range(3):
            (one / "new").write_text(str(number))
            os.rename(one / "new", one / "file")
            assert (two / "file").read_text() == str(number)
            assert (two / "file").stat().st_nlink == 1
        os.unlink(one / "file")
        with pytest.raises(FileNotFoundError):
            (two / "file").read_text()
    check_by_real(volume)
