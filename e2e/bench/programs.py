"""Work done by ordinary programs: tar, ls, find, rm, git, SQLite. Each function is a row's preparation or its timed part.

`archive` and `repository` make the inputs once, beside the roots: `<root>/../small.tar` and `<root>/../repository.git`.
"""

import io
import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

FILES = 5000
SOURCES = 1500
COMMITS = 20
CHANGED = 40
TRANSACTIONS = 300
_GIT = ("git", "-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "advice.detachedHead=false")


def archive(path: Path) -> None:
    """A tar of 5,000 small files in 100 directories, always the same bytes."""
    chance = random.Random(7)
    with tarfile.open(path, "w") as tar:
        for folder in range(100):
            entry = tarfile.TarInfo(f"tree/d{folder:02}")
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
            tar.addfile(entry)
            for number in range(FILES // 100):
                content = chance.randbytes(chance.randrange(500, 8000))
                entry = tarfile.TarInfo(f"tree/d{folder:02}/f{number:03}.txt")
                entry.size, entry.mode, entry.mtime = len(content), 0o644, 1_700_000_000 + number
                tar.addfile(entry, io.BytesIO(content))


def repository(path: Path) -> None:
    """A bare repository of medium size: 1,500 text files in 75 directories, 20 commits that each change some; always the same."""
    chance = random.Random(5)
    words = [f"word{number}" for number in range(400)]
    stream: list[bytes] = []
    for commit in range(COMMITS):
        when = 1_700_000_000 + commit
        who = b"Bench <bench@example.org> %d +0000" % when
        stream.append(b"commit refs/heads/main\nauthor %s\ncommitter %s\ndata 6\ncommit\n" % (who, who))
        for number in range(SOURCES) if not commit else chance.sample(range(SOURCES), CHANGED):
            lines = [" ".join(chance.choices(words, k=8)) for _ in range(chance.randrange(10, 120))]
            text = "\n".join(lines).encode()
            name = b"src/m%02d/file%04d.txt" % (number % 75, number)
            stream.append(b"M 100644 inline %s\ndata %d\n%s\n" % (name, len(text), text))
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True)
    subprocess.run(["git", "-C", path, "fast-import", "--quiet"], input=b"".join(stream), check=True)


def no_tree(root: Path) -> None:
    shutil.rmtree(root / "tree", ignore_errors=True)


def have_tree(root: Path) -> None:
    if not (root / "tree").exists():
        untar(root)


def untar(root: Path) -> None:
    subprocess.run(["tar", "xf", root.parent / "small.tar", "-C", root], check=True)


def list_tree(root: Path) -> None:
    subprocess.run(["ls", "-lR", root / "tree"], check=True, stdout=subprocess.DEVNULL)


def find(root: Path) -> None:
    found = subprocess.run(["find", root / "tree", "-type", "f"], check=True, capture_output=True).stdout.count(b"\n")
    if found != FILES:
        raise RuntimeError(f"find sees {found} files in {root}/tree instead of {FILES}")


def read_tree(root: Path) -> None:
    for folder, _, names in os.walk(root / "tree"):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                file.read()


def remove_tree(root: Path) -> None:
    subprocess.run(["rm", "-rf", root / "tree"], check=True)


def no_clone(root: Path) -> None:
    shutil.rmtree(root / "clone", ignore_errors=True)


def have_clone(root: Path) -> None:
    if not (root / "clone").exists():
        clone(root)


def clone(root: Path) -> None:
    source = f"file://{root.parent}/repository.git"
    subprocess.run([*_GIT, "clone", "-q", source, root / "clone"], check=True)


def status(root: Path) -> None:
    changed = subprocess.run(
        [*_GIT, "-C", root / "clone", "status", "--porcelain"], check=True, capture_output=True
    ).stdout
    if changed:
        raise RuntimeError(f"git sees changes in {root}/clone: {changed.decode()[:200]}")


def no_database(root: Path) -> None:
    for path in root.glob("bench.db*"):
        path.unlink()


def database(root: Path) -> None:
    """SQLite's defaults (rollback journal, synchronous=FULL): transactions of ten inserts, then a scan and lookups."""
    chance = random.Random(3)
    connection = sqlite3.connect(root / "bench.db", isolation_level=None)
    try:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v TEXT)")
        connection.execute("CREATE INDEX tk ON t (k)")
        for _ in range(TRANSACTIONS):
            connection.execute("BEGIN")
            rows = [(chance.randrange(100_000), "x" * 100) for _ in range(10)]
            connection.executemany("INSERT INTO t (k, v) VALUES (?, ?)", rows)
            connection.execute("COMMIT")
        (count,) = connection.execute("SELECT count(*) FROM t WHERE v LIKE 'x%'").fetchone()
        if count != 10 * TRANSACTIONS:
            raise RuntimeError(f"{root}/bench.db has {count} rows instead of {10 * TRANSACTIONS}")
        for _ in range(TRANSACTIONS):
            connection.execute("SELECT v FROM t WHERE k = ?", (chance.randrange(100_000),)).fetchall()
    finally:
        connection.close()
