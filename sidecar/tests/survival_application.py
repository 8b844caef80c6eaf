"""An application for the tests of survival: does one kind of checksummed I/O in a directory until told to end, and fails at the first
error or wrong byte. Arguments: the kind, the directory, a seed. SIGTERM ends it; its last line is a JSON object with the number of
operations and the longest ones in milliseconds, or with the error.
"""

import contextlib
import ctypes
import errno
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

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

ended = False
slow: list[float] = []
operations = 0


@contextlib.contextmanager
def timed() -> Iterator[None]:
    global operations
    started = time.monotonic()
    yield
    operations += 1
    slow.append((time.monotonic() - started) * 1000)
    if len(slow) > 4096:
        slow.sort(reverse=True)
        del slow[256:]


def append(where: Path, rnd: random.Random) -> None:
    """O_APPEND in pieces of any size; the file is the pieces one after the other."""
    path, digest, length = where / "appended", hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while not ended:
        piece = rnd.randbytes(rnd.randrange(1, 40_000))
        with timed():
            assert os.write(fd, piece) == len(piece)
        digest.update(piece)
        length += len(piece)
        if rnd.random() < 0.05:
            os.fsync(fd)
        assert os.fstat(fd).st_size == length
    os.close(fd)
    assert hashlib.sha256(path.read_bytes()).digest() == digest.digest()


def overwrite(where: Path, rnd: random.Random) -> None:
    """Random blocks of one open file; each is read back, and any other one."""
    size, count = 8192, 512
    known: dict[int, bytes] = {}
    fd = os.open(where / "blocks", os.O_RDWR | os.O_CREAT)
    while not ended:
        at, block = rnd.randrange(count), rnd.randbytes(size)
        with timed():
            assert os.pwrite(fd, block, at * size) == size
        known[at] = block
        for look in (at, rnd.choice(list(known))):
            with timed():
                found = os.pread(fd, size, look * size)
            assert found == known[look], f"block {look} is wrong"
        if rnd.random() < 0.02:
            os.fsync(fd)
    os.close(fd)
    content = (where / "blocks").read_bytes()
    assert all(content[at * size : (at + 1) * size] == block for at, block in known.items())


def names(where: Path, rnd: random.Random) -> None:
    """Everything that changes names, each with an outcome that is known; O_EXCL, so that a request that is done twice fails."""
    where.mkdir()
    number = 0
    while not ended:
        number += 1
        one, two, link, directory = (where / f"{kind}{number}" for kind in ("one", "two", "link", "dir"))
        content = rnd.randbytes(1000)
        with timed():
            fd = os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
        os.write(fd, content)
        os.close(fd)
        with timed():
            os.rename(one, two)
        with timed():
            os.link(two, link)
        assert os.stat(two).st_nlink == 2
        with timed():
            os.mkdir(directory)
        with timed():
            os.symlink("somewhere", directory / "symbolic")
        assert os.readlink(directory / "symbolic") == "somewhere"
        with timed():
            os.mknod(directory / "node", 0o644)
        with timed():
            exchanged = _libc.renameat2(
                _AT_FDCWD, os.fsencode(two), _AT_FDCWD, os.fsencode(directory / "node"), _RENAME_EXCHANGE
            )
        assert exchanged == 0, os.strerror(ctypes.get_errno())
        assert (directory / "node").read_bytes() == content
        assert two.read_bytes() == b""
        with timed():
            os.setxattr(link, "user.a", b"1", os.XATTR_CREATE)
        assert os.getxattr(link, "user.a") == b"1"
        with timed():
            os.removexattr(link, "user.a")
        for path in (link, two, directory / "node", directory / "symbolic"):
            with timed():
                os.unlink(path)
        with timed():
            os.rmdir(directory)
        if rnd.random() < 0.1:
            assert os.listdir(where) == []
    assert os.listdir(where) == []


def unpack(where: Path, rnd: random.Random) -> None:
    """Files made as tar(1) makes them: contents, times, owner and mode set while they are open; all stay as they were set."""
    where.mkdir()
    known: dict[Path, tuple[bytes, int, int, int]] = {}

    def right(path: Path) -> bool:
        found = path.stat()
        content, *attributes = known[path]
        attributes_found = [found.st_mtime_ns, found.st_uid, found.st_mode & 0o7777]
        assert attributes_found == attributes, f"{path}: {attributes_found}, set were {attributes}"
        return content == path.read_bytes()

    while not ended:
        path = where / f"file{len(known)}"
        content, mtime, uid, mode = rnd.randbytes(rnd.randrange(9000)), rnd.randrange(1 << 60), rnd.randrange(9), 0o640
        with timed():
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(fd, content)
        with timed():
            os.utime(fd, ns=(mtime, mtime))
        with timed():
            os.fchown(fd, uid, uid)
        with timed():
            os.fchmod(fd, mode)
        if rnd.random() < 0.5:
            time.sleep(rnd.uniform(0, 0.1))
        os.close(fd)
        known[path] = (content, mtime, uid, mode)
        assert right(path)
        assert right(rnd.choice(list(known)))
    assert all(map(right, known))


def locks(where: Path, rnd: random.Random) -> None:
    """Two processes add to a number under a lock; none of the additions is lost, and nobody is alone who must not be."""
    path = where / "number"
    path.write_text("0")
    kinds: list[Callable[[int, int], object]] = [fcntl.flock, fcntl.lockf]
    take = kinds[rnd.randrange(2)]
    read, write = os.pipe()
    child = os.fork()
    done = 0
    fd = os.open(path, os.O_RDWR)
    while not ended:
        with timed():
            take(fd, fcntl.LOCK_EX)
        number = int(os.pread(fd, 20, 0))
        os.pwrite(fd, b"%020d" % (number + 1), 0)
        done += 1
        take(fd, fcntl.LOCK_UN)
    os.close(fd)
    if not child:
        os.write(write, b"%d" % done)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0
    assert int(path.read_text()) == done + int(os.read(read, 20))


def unlinked(where: Path, rnd: random.Random) -> None:
    """A file without a name, open all the time, that others come and go beside; and files made without a name."""
    path = where / "nameless"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    content = bytearray(rnd.randbytes(200_000))
    os.write(fd, content)
    os.unlink(path)
    while not ended:
        at, piece = rnd.randrange(190_000), rnd.randbytes(3000)
        with timed():
            os.pwrite(fd, piece, at)
        content[at : at + 3000] = piece
        with timed():
            assert os.pread(fd, len(content) + 1, 0) == content
        with timed():
            other = os.open(where, os.O_TMPFILE | os.O_RDWR)
        os.write(other, b"temporary")
        assert os.pread(other, 20, 0) == b"temporary"
        assert os.fstat(other).st_nlink == 0
        os.close(other)
        with timed():
            short = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.unlink(path)
        os.close(short)
    os.close(fd)


def listing(where: Path, rnd: random.Random) -> None:
    """A large directory is listed slowly while others come and go in it: what is there all the time is seen once."""
    where.mkdir()
    stay = {f"stays-{number:05}" for number in range(3000)}
    for name in stay:
        (where / name).touch()
    number = 0
    while not ended:
        seen: list[str] = []
        with os.scandir(where) as entries:
            for at, entry in enumerate(entries):
                seen.append(entry.name)
                if at % 200 == 0:
                    number += 1
                    (where / f"comes-{number}").touch()
                    time.sleep(0.005)
        with timed():
            counted = [name for name in seen if name.startswith("stays-")]
            assert len(counted) == len(set(counted)) == len(stay), (len(counted), len(set(counted)))
        for name in os.listdir(where):
            if name.startswith("comes-"):
                os.unlink(where / name)


KINDS = {kind.__name__: kind for kind in (append, overwrite, names, unpack, locks, unlinked, listing)}


def main() -> int:
    def end(_number: int, _frame: object) -> None:
        global ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    kind, where, seed = sys.argv[1:4]
    error = ""
    try:
        KINDS[kind](Path(where), random.Random(seed))
    except (OSError, AssertionError, ValueError) as raised:
        name = errno.errorcode.get(raised.errno or 0, "") if isinstance(raised, OSError) else ""
        import traceback

        error = f"{kind}: {name} {raised!r} {traceback.format_exc()}"
    slow.sort(reverse=True)
    print(json.dumps({"kind": kind, "operations": operations, "slow": slow[:64], "error": error}))
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
