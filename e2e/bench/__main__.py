"""`python -m e2e.bench`: starts a Redis of its own, runs the rows, prints the table and writes it to reports/.

Needs root (mounts, drop_caches). Examples:
  python -m e2e.bench                      three runs of everything on Redis
  python -m e2e.bench --engine sqlite3     on SQLite
  python -m e2e.bench --runs 1 --rows tar  one run of the rows whose name holds "tar" and those they need
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from e2e.bench import clients, table
from e2e.bench.clients import Mounted, PlainDisk
from e2e.bench.rows import ROWS, archive
from e2e.bench.run import measure


def main() -> int:
    """Exit code 1 when a bar is missed, so that a script can tell."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", choices=("redis", "sqlite3"), default="redis")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--rows", default="", help="only rows whose name contains this (and their preparation must be among them)"
    )
    parser.add_argument(
        "--mount-option", action="append", default=[], help="extra option of our mount, e.g. --fuse-host=pyfuse3"
    )
    parser.add_argument("--scratch", type=Path, help="folder for objects and mounts (default: a temporary one)")
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    arguments = parser.parse_args()
    rows = tuple(row for row in ROWS if arguments.rows in row.name)
    scratch = Path(tempfile.mkdtemp(prefix="jfs-bench-", dir=arguments.scratch))
    archive(scratch / "small.tar")
    database = _redis(scratch) if arguments.engine == "redis" else None
    contestants: list[Mounted | PlainDisk] = []
    try:
        ours = clients.ours(scratch, _meta(arguments.engine, scratch, 0), arguments.mount_option)
        contestants = [ours, clients.juicefs(scratch, _meta(arguments.engine, scratch, 1)), PlainDisk(scratch)]
        for contestant in contestants:
            shutil.copy(scratch / "small.tar", contestant.root.parent)
        ours.mount()
        time.sleep(3)  # what idles after its start-up is measured, not the start-up
        idle = ours.rss()
        ours.unmount()
        results = measure(contestants, arguments.runs, lambda line: print(line, file=sys.stderr, flush=True), rows)
        notes = [f"{c.name}: peak RSS {c.peak_rss() / 2**20:.0f} MiB" for c in contestants if isinstance(c, Mounted)]
        notes.append(f"ours, idle after mounting: {idle / 2**20:.0f} MiB RSS")
        text = table.markdown(results, f"{arguments.engine}, file storage, {arguments.runs} runs", notes, rows)
        arguments.reports.mkdir(exist_ok=True)
        (arguments.reports / f"bench-{arguments.engine}.md").write_text(text)
        (arguments.reports / f"bench-{arguments.engine}.json").write_text(
            json.dumps(table.document(results, notes, rows), indent=1)
        )
        print(text)
        return 0 if all(table.ratio(results, row) >= row.bar for row in rows) else 1
    finally:
        for contestant in contestants:
            contestant.unmount()
        if database:
            database.terminate()
            database.wait()
        shutil.rmtree(scratch)


def _redis(scratch: Path) -> "subprocess.Popen[bytes]":
    """A Redis on a socket in *scratch*, with an append-only file like one that holds metadata."""
    folder = scratch / "redis"
    folder.mkdir()
    options = ["--port", "0", "--unixsocket", f"{folder}/s", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "s").exists():
        if server.poll() is not None:
            raise RuntimeError("redis-server ended; is the package redis-server installed?")
        time.sleep(0.02)
    return server


def _meta(engine: str, scratch: Path, number: int) -> str:
    if engine == "redis":
        return f"unix://{scratch}/redis/s?db={number}"
    return f"sqlite3://{scratch}/{number}.db"


if __name__ == "__main__":
    sys.exit(main())
