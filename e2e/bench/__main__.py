"""`python -m e2e.bench`: starts its own servers, runs the rows, prints the table and writes it to reports/.

Needs root (mounts, drop_caches). Examples:
  python -m e2e.bench                            three runs of everything on Redis, objects in a directory
  python -m e2e.bench --engine sqlite3           on SQLite; also postgres, mysql, etcd, tikv
  python -m e2e.bench --storage s3               objects on a real S3 server (SeaweedFS)
  python -m e2e.bench --runs 1 --rows "tar;rm"   one run of the rows whose names hold "tar" or "rm"
  python -m e2e.bench --rows "list 100,000"      a large row runs only when it is named
  python -m e2e.bench --requests                 CPU of one cached getattr and lookup, both FUSE hosts beside each other
  python -m e2e.bench --entries 1000000          CPU of operations on the metadata of 1,000 files, and ten times more, up to a million
  python -m e2e.bench --growth                   what operations cost in large directories and files, with many slices and open files
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from e2e.bench import clients, entries, growth, programs, requests, table
from e2e.bench.clients import Mounted, PlainDisk
from e2e.bench.rows import ROWS, Row, chosen
from e2e.bench.run import measure
from e2e.bench.servers import Redis, Seaweed
from e2e.databases import SERVERS


def main() -> int:
    """Exit code 1 when a bar is missed, so that a script can tell."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--engine", choices=("redis", "sqlite3", *SERVERS), default="redis", help="metadata (default: redis)"
    )
    parser.add_argument("--storage", choices=("file", "s3"), default="file", help="objects (default: file)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--rows", "--row", default="", metavar="PIECE[;PIECE…]", help="only rows whose name holds one of these"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--requests", action="store_true", help="measure requests instead of rows")
    parser.add_argument("--entries", type=int, default=0, metavar="MOST", help="measure volumes of up to so many files")
    parser.add_argument("--growth", action="store_true", help="measure growing directories and files instead of rows")
    parser.add_argument(
        "--mount-option", action="append", default=[], help="extra option of our mount, e.g. --fuse-host=pyfuse3"
    )
    parser.add_argument("--scratch", type=Path, help="folder for objects and mounts (default: a temporary one)")
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(row.name + (" (only when named)" if row.large else "") for row in ROWS))
        return 0
    rows = chosen(arguments.rows)
    if not rows:
        parser.error(f"no row has {arguments.rows!r} in its name; --list shows them")
    scratch = Path(tempfile.mkdtemp(prefix="jfs-bench-", dir=arguments.scratch))
    with ExitStack() as stack:  # everything is ended, whatever fails
        stack.callback(shutil.rmtree, scratch)
        if arguments.requests:
            text, passed = requests.report(scratch, stack, arguments.runs)
            name = "bench-requests"
        elif arguments.growth:
            text, passed = growth.report(scratch, stack, lambda line: print(line, file=sys.stderr, flush=True)), True
            name = "bench-growth"
        elif arguments.entries:
            urls, server = _databases(arguments.engine, scratch, stack)
            text, passed = entries.report(arguments.engine, urls[0], server, arguments.entries), True
            name = f"bench-entries-{arguments.engine}"
        else:
            text, passed = _rows(arguments, scratch, stack, rows)
            name = f"bench-{arguments.engine}" + ("" if arguments.storage == "file" else "-s3")
        arguments.reports.mkdir(exist_ok=True)
        (arguments.reports / f"{name}.md").write_text(text)
        print(text)
        return 0 if passed else 1


def _databases(engine: str, scratch: Path, stack: ExitStack) -> tuple[list[str], int]:
    """The addresses of two volumes' places, and the process of their server, 0 when there is none."""
    if engine == "redis":
        redis = Redis(scratch)
        stack.callback(redis.stop)
        return [redis.url(number) for number in range(2)], redis.pid
    if engine in SERVERS:
        # etcd's fsync would be the slowest part of every row, for both
        folder = Path(tempfile.mkdtemp(prefix="jfs-bench-", dir="/dev/shm" if engine == "etcd" else None))
        server = SERVERS[engine](folder)
        stack.callback(server.stop)
        return [server.url(name) for name in ("ours", "theirs")], server.pid
    return [f"sqlite3://{scratch}/{number}.db" for number in range(2)], 0


def _rows(arguments: argparse.Namespace, scratch: Path, stack: ExitStack, rows: tuple[Row, ...]) -> tuple[str, bool]:
    engine: str = arguments.engine
    urls, _ = _databases(engine, scratch, stack)
    s3 = None
    if arguments.storage == "s3":
        s3 = Seaweed(scratch)
        stack.callback(s3.stop)
    ours = clients.ours(scratch, urls[0], arguments.mount_option, s3)
    contestants: list[Mounted | PlainDisk] = [ours, clients.juicefs(scratch, urls[1], s3), PlainDisk(scratch)]
    for contestant in contestants:
        stack.callback(contestant.unmount)
    _inputs(scratch, contestants, rows)
    ours.mount()
    time.sleep(3)  # what idles after its start-up is measured, not the start-up
    idle = ours.rss()
    results = measure(contestants, arguments.runs, lambda line: print(line, file=sys.stderr, flush=True), rows)
    notes = [f"ours, idle after mounting: {idle / 2**20:.0f} MiB RSS"]
    title = f"{engine}, {arguments.storage} storage, {arguments.runs} runs"
    text = table.markdown(results, title, notes, rows, engine)
    arguments.reports.mkdir(exist_ok=True)
    name = f"bench-{engine}" + ("" if s3 is None else "-s3")
    document = table.document(results, notes, rows, engine)
    (arguments.reports / f"{name}.json").write_text(json.dumps(document, indent=1))
    return text, all(table.ratio(results, row) >= row.bar(engine) for row in rows)


def _inputs(scratch: Path, contestants: list[Mounted | PlainDisk], rows: tuple[Row, ...]) -> None:
    """What the programs' rows unpack and clone, beside each root."""
    works = {row.work for row in rows} | {row.prepare for row in rows}
    if programs.untar in works or programs.have_tree in works:
        programs.archive(scratch / "small.tar")
        for contestant in contestants:
            shutil.copy(scratch / "small.tar", contestant.root.parent)
    if programs.clone in works or programs.have_clone in works:
        programs.repository(scratch / "repository.git")
        for contestant in contestants:
            shutil.copytree(scratch / "repository.git", contestant.root.parent / "repository.git")


if __name__ == "__main__":
    sys.exit(main())
