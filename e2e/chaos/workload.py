"""The application in the pods: checksummed I/O on volumes until it is told to end, then what each of its files has to contain.

    python3 workload.py run OUT SEED NAME VOLUME…    OUT is a folder of the pod that is no volume
    python3 workload.py tree VOLUME…                 prints what is in volumes, in the same form

Runs from one file with the standard library only, for it is handed to pods as a ConfigMap. On each volume five processes work, each on
files of its own in `<volume>/NAME`, but for the locks, which all pods of a volume share. Each knows what its files contain and compares
while it works and at the end. It writes JSON lines to `OUT/<volume>-<process>.jsonl`: `slow` for operations of 20 ms and more, `count`
once a second, and one last line `final`, `error` (an operation failed) or `wrong` (it succeeded and should not have, or with other
bytes). The file `OUT/stop` ends it. Contents are told as `[length, SHA-256]`, directories as null, symbolic links as their target.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SLOW = 0.02
PAUSE = 0.03  # between steps, so that twenty processes and all the rest share two processors
LOCKS = "locks"
LOCK_FILE = 64  # bytes: a number of 20 digits, then the holder's name or spaces

Content = list[object] | str | None


class Wrong(Exception):
    """The volume is not as it has to be; the text says what was found and what was expected."""


class Log:
    """One process's lines; see the module."""

    def __init__(self, out: Path, name: str) -> None:
        self._stop = out / "stop"
        self._file = (out / f"{name}.jsonl").open("a", buffering=1)
        self._count = 0
        self._told = time.monotonic()
        self.doing = ""

    def close(self) -> None:
        self._file.close()

    def line(self, **fields: object) -> None:
        self._file.write(json.dumps(fields) + "\n")

    def goes_on(self) -> bool:
        return not self._stop.exists()

    @contextlib.contextmanager
    def timed(self, what: str, path: Path) -> Iterator[None]:
        """One system call: what it is and how long it took."""
        self.doing = f"{what} {path}"
        at, started = time.time(), time.monotonic()
        yield
        ended = time.monotonic()
        self._count += 1
        if ended - started >= SLOW:
            self.line(slow=what, at=at, seconds=round(ended - started, 4))
        if ended - self._told >= 1:
            self._told = ended
            self.line(count=self._count, at=time.time())


def content(data: bytes | bytearray) -> list[object]:
    return [len(data), hashlib.sha256(data).hexdigest()]


def same(where: Path, offset: int, found: bytes, expected: bytes | bytearray) -> None:
    """Raises Wrong with the first place where the bytes differ."""
    if found == expected:
        return
    pairs = zip(found, expected, strict=False)
    first = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(found), len(expected)))
    raise Wrong(
        f"{where}: {len(found)} bytes at {offset} where {len(expected)} were written; from {offset + first} on they are "
        f"{found[first : first + 16].hex() or 'missing'}, not {bytes(expected[first : first + 16]).hex() or 'there'}"
    )


def complete(path: Path, written: int, piece: bytes) -> None:
    if written != len(piece):
        raise Wrong(f"{path}: write(2) of {len(piece)} bytes returned {written}")


def read_all(log: Log, path: Path) -> bytes:
    with log.timed("read", path):
        return path.read_bytes()


def append(log: Log, where: Path, rnd: random.Random) -> dict[str, Content]:
    """Pieces at the end of a file that stays open, now and then by a descriptor opened anew."""
    path, expected = where / "appended", bytearray()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with log.timed("open", path):
        fd = os.open(path, flags, 0o644)
    reader = os.open(path, os.O_RDONLY)
    while log.goes_on():
        piece = rnd.randbytes(rnd.randrange(1, 8192))
        with log.timed("write", path):
            complete(path, os.write(fd, piece), piece)
        expected += piece
        with log.timed("fstat", path):
            if (size := os.fstat(fd).st_size) != len(expected):
                raise Wrong(f"{path}: {size} bytes long, {len(expected)} were written")
        if rnd.random() < 0.2:
            with log.timed("fsync", path):
                os.fsync(fd)
        if rnd.random() < 0.05:
            with log.timed("close", path):
                os.close(fd)
            with log.timed("open", path):
                fd = os.open(path, flags)
        at = rnd.randrange(len(expected))
        with log.timed("read", path):
            found = os.pread(reader, 4096, at)
        same(path, at, found, expected[at : at + 4096])
        time.sleep(PAUSE)
    os.close(fd)
    os.close(reader)
    same(path, 0, read_all(log, path), expected)
    return {path.name: content(expected)}


def overwrite(log: Log, where: Path, rnd: random.Random) -> dict[str, Content]:
    """Random pieces of two open files, which grow and are cut; one of them has no name any more."""
    paths = [where / "blocks", where / "unnamed"]
    known = [bytearray(), bytearray()]
    fds = []
    for path in paths:
        with log.timed("open", path):
            fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
    with log.timed("unlink", paths[1]):
        os.unlink(paths[1])
    while log.goes_on():
        which = rnd.randrange(2)
        path, expected, fd = paths[which], known[which], fds[which]
        if rnd.random() < 0.03:
            length = rnd.randrange(1 << 20)
            with log.timed("truncate", path):
                os.ftruncate(fd, length)
            del expected[length:]
            expected.extend(bytes(length - len(expected)))
        at, piece = rnd.randrange(1 << 20), rnd.randbytes(rnd.randrange(1, 32768))
        with log.timed("write", path):
            complete(path, os.pwrite(fd, piece, at), piece)
        expected.extend(bytes(max(0, at - len(expected))))
        expected[at : at + len(piece)] = piece
        if rnd.random() < 0.1:
            with log.timed("fsync", path):
                os.fsync(fd)
        at = rnd.randrange(len(expected))
        with log.timed("read", path):
            found = os.pread(fd, 16384, at)
        same(path, at, found, expected[at : at + 16384])
        time.sleep(PAUSE)
    for path, fd, expected in zip(paths, fds, known, strict=True):
        with log.timed("read", path):
            found = os.pread(fd, 2 << 20, 0)
        same(path, 0, found, expected)
        with log.timed("close", path):
            os.close(fd)
    same(paths[0], 0, read_all(log, paths[0]), known[0])
    return {paths[0].name: content(known[0])}


class Names:
    """A directory of small files, directories and symbolic links under changing names; each change has one right outcome, so that one
    that is done twice, or not at all, fails."""

    LIMIT = 40

    def __init__(self, log: Log, where: Path, rnd: random.Random) -> None:
        self.log, self.where, self.rnd = log, where / "names", rnd
        self.entries: dict[str, bytes | str | None] = {}
        self.number = 0

    def fresh(self, kind: str) -> Path:
        self.number += 1
        return self.where / f"{kind}{self.number}"

    def one(self, kind: type) -> Path | None:
        names = [name for name, value in self.entries.items() if isinstance(value, kind)]
        return self.where / self.rnd.choice(names) if names else None

    def write(self, path: Path, data: bytes) -> None:
        with self.log.timed("create", path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with self.log.timed("write", path):
            os.write(fd, data)
        if self.rnd.random() < 0.3:
            with self.log.timed("fsync", path):
                os.fsync(fd)
        with self.log.timed("close", path):
            os.close(fd)

    def create(self) -> None:
        path, data = self.fresh("file"), self.rnd.randbytes(self.rnd.randrange(2000))
        self.write(path, data)
        self.entries[path.name] = data

    def replace(self) -> None:
        """As editors and databases save: beside it, then by rename over it."""
        if target := self.one(bytes):
            beside, data = self.fresh("new"), self.rnd.randbytes(self.rnd.randrange(2000))
            self.write(beside, data)
            with self.log.timed("rename", beside):
                os.rename(beside, target)
            self.entries[target.name] = data

    def move(self) -> None:
        name = self.rnd.choice(list(self.entries))
        source, target = self.where / name, self.fresh("moved")
        with self.log.timed("rename", source):
            os.rename(source, target)
        self.entries[target.name] = self.entries.pop(name)

    def link(self) -> None:
        if source := self.one(bytes):
            target = self.fresh("link")
            with self.log.timed("link", target):
                os.link(source, target)
            self.entries[target.name] = self.entries[source.name]

    def symlink(self) -> None:
        path = self.fresh("symbolic")
        with self.log.timed("symlink", path):
            os.symlink(f"to/{path.name}", path)
        self.entries[path.name] = f"to/{path.name}"

    def mkdir(self) -> None:
        path = self.fresh("directory")
        with self.log.timed("mkdir", path):
            os.mkdir(path)
        self.entries[path.name] = None

    def remove(self) -> None:
        name = self.rnd.choice(list(self.entries))
        if self.entries.pop(name) is None:
            with self.log.timed("rmdir", self.where / name):
                os.rmdir(self.where / name)
        else:
            with self.log.timed("unlink", self.where / name):
                os.unlink(self.where / name)

    def look(self) -> None:
        path = self.one(bytes)
        if path is not None:
            data = self.entries[path.name]
            assert isinstance(data, bytes)
            same(path, 0, read_all(self.log, path), data)
        with self.log.timed("list", self.where):
            found = set(os.listdir(self.where))
        if found != (known := set(self.entries)):
            raise Wrong(f"{self.where}: has {sorted(found - known)} too much, and lacks {sorted(known - found)}")

    def run(self) -> dict[str, Content]:
        with self.log.timed("mkdir", self.where):
            os.mkdir(self.where)
        makers = [self.create, self.create, self.create, self.link, self.symlink, self.mkdir]
        while self.log.goes_on():
            if not self.entries:
                self.create()
            changes: list[Callable[[], None]] = [self.replace, self.move, self.look]
            changes += makers if len(self.entries) < self.LIMIT else [self.remove]
            self.rnd.choice([*changes, self.remove])()
            time.sleep(PAUSE)
        told: dict[str, Content] = {self.where.name: None}
        self.look()
        for name, value in self.entries.items():
            told[f"{self.where.name}/{name}"] = content(value) if isinstance(value, bytes) else value
            if isinstance(value, bytes):
                same(self.where / name, 0, read_all(self.log, self.where / name), value)
        return told


def locks(log: Log, volume: Path, name: str, rnd: random.Random) -> dict[str, int]:
    """Adds to two numbers that all pods of the volume share, one under flock(2), one under fcntl(2); how often, by lock."""
    take: dict[str, Callable[[int, int], object]] = {"flock": fcntl.flock, "fcntl": fcntl.lockf}
    paths = {kind: volume / LOCKS / kind for kind in take}
    fds = {}
    for kind, path in paths.items():
        with log.timed("open", path):
            fds[kind] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    added = dict.fromkeys(take, 0)
    mine, nobody = name.encode().ljust(LOCK_FILE - 20), b" " * (LOCK_FILE - 20)
    while log.goes_on():
        kind = rnd.choice(list(take))
        fd, path = fds[kind], paths[kind]
        with log.timed("lock", path):
            take[kind](fd, fcntl.LOCK_EX)
        with log.timed("read", path):
            found = os.pread(fd, LOCK_FILE, 0)
        if found and found[20:] != nobody:
            raise Wrong(f"{path}: {found[20:].decode().strip()} holds the lock that {name} was given")
        number = b"%020d" % (int(found[:20] or b"0") + 1)
        with log.timed("write", path):
            os.pwrite(fd, number + mine, 0)
        added[kind] += 1
        with log.timed("read", path):
            found = os.pread(fd, LOCK_FILE, 0)
        same(path, 0, found, number + mine)
        with log.timed("write", path):
            os.pwrite(fd, nobody, 20)
        with log.timed("unlock", path):
            take[kind](fd, fcntl.LOCK_UN)
        time.sleep(3 * PAUSE)
    for fd in fds.values():
        os.close(fd)
    return added


FILES: dict[str, Callable[[Log, Path, random.Random], dict[str, Content]]] = {
    "append": append,
    "overwrite": overwrite,
    "names": lambda log, where, rnd: Names(log, where, rnd).run(),
}
KINDS = (*FILES, "locks-1", "locks-2")


def one_process(out: Path, seed: str, name: str, volume: Path, kind: str) -> bool:
    """Whether it ended well; the last line says how."""
    rnd = random.Random(f"{seed} {name} {volume} {kind}")
    where = volume / name
    with contextlib.closing(Log(out, f"{volume.name}-{kind}")) as log:
        try:
            if kind.startswith("locks"):
                log.line(final={}, added=locks(log, volume, f"{name}-{kind}", rnd))
            else:
                told = FILES[kind](log, where, rnd)
                log.line(final={f"{name}/{path}": value for path, value in told.items()})
        except Wrong as error:
            log.line(wrong=str(error), at=time.time())
            return False
        except OSError as error:
            log.line(error=f"{log.doing}: {error.strerror or error}", at=time.time())
            return False
    return True


def run(out: Path, seed: str, name: str, volumes: list[Path]) -> None:
    """All processes of a pod; returns when they have ended, after `OUT/stop` has appeared or by failures."""
    children = []
    for volume in volumes:
        (volume / name).mkdir()
        with contextlib.suppress(FileExistsError):  # another pod was first
            (volume / LOCKS).mkdir()
            (volume / LOCKS).chmod(0o777)
        for kind in KINDS:
            child = os.fork()
            if not child:
                os._exit(0 if one_process(out, seed, name, volume, kind) else 1)
            children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _fail(error: OSError) -> None:
    raise error


def tree(volume: Path) -> dict[str, Content]:
    """Everything in a volume by its path in it, without the root's virtual files (`.stats` …), whose names begin with a dot."""
    found: dict[str, Content] = {}
    for folder, directories, files in os.walk(volume, onerror=_fail):
        if folder == str(volume):
            directories[:], files = [[name for name in some if name[0] != "."] for some in (directories, files)]
        for entry in (*directories, *files):
            path = Path(folder, entry)
            told = str(path.relative_to(volume))
            if path.is_symlink():
                found[told] = os.readlink(path)
            else:
                found[told] = None if path.is_dir() else content(path.read_bytes())
    return found


def main(arguments: list[str]) -> None:
    match arguments:
        case ["run", out, seed, name, *volumes]:
            # a container's first process ignores signals without a handler; its end is the end of all others
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            run(Path(out), seed, name, [Path(volume) for volume in volumes])
            while True:
                signal.pause()
        case ["tree", *volumes]:
            print(json.dumps({Path(volume).name: tree(Path(volume)) for volume in volumes}))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
