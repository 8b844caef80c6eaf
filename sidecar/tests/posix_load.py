"""Random changes of a tree that several clients change at once, by one of them; run as a program of its own on one mount.

Two kinds of work are mixed. In `shared/` everybody makes, links, moves, writes and removes the same few names: any of the errors that
a race can cause is right, others are not. In `own/N` only this client works, and knows what must be there: it prints that as JSON at its
end, so that another client can look for lost files. usage: posix_load.py MOUNTPOINT NUMBER SEED OPERATIONS
"""

import errno
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

RACES = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.EPERM,  # a directory into what another client has just moved below it
    errno.ELOOP,
    errno.ESTALE,
}
# Of a file that another client has removed while it was open here (SEMANTICS, consistency between clients).
REMOVED = RACES | {errno.EIO, errno.EBADF}
NAMES = ("a", "b", "c", "d")


class Load:
    """One client's work."""

    def __init__(self, top: Path, number: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.shared = top / "shared"
        self.own = top / "own" / str(number)
        self.own.mkdir()
        self.known: dict[str, str] = {}

    def path(self) -> Path:
        depth = self.random.choice((1, 1, 2, 2, 3))
        return self.shared.joinpath(*(self.random.choice(NAMES) for _ in range(depth)))

    def step(self) -> None:
        actions: list[Callable[[], None]] = [
            *(self.make, self.write, self.write, self.remove, self.move, self.move, self.link),
            *(self.attributes, self.keep, self.keep, self.drop, self.replace),
        ]
        self.random.choice(actions)()

    def racing(self, action: Callable[[], object], allowed: set[int] = RACES) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in allowed:
                raise

    # -- among others ---------------------------------------------------------------------------------------------

    def make(self) -> None:
        path = self.path()
        if self.random.random() < 0.6:
            self.racing(path.mkdir)
        elif self.random.random() < 0.5:
            self.racing(lambda: path.symlink_to(self.random.choice(NAMES)))
        else:
            self.racing(lambda: os.mkfifo(path))

    def write(self) -> None:
        path, data, offset = (
            self.path(),
            self.random.randbytes(self.random.choice((10, 5000))),
            self.random.randrange(9000),
        )
        flags = self.random.choice((0, os.O_EXCL, os.O_TRUNC, os.O_APPEND))

        def work() -> None:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | flags, 0o644)
            try:
                if os.lseek(fd, 0, os.SEEK_CUR) == 0:
                    os.pwrite(fd, data, offset)
                    os.ftruncate(fd, self.random.randrange(9000))
            finally:
                os.close(fd)

        self.racing(work, REMOVED | {errno.ENXIO, errno.ESPIPE})

    def remove(self) -> None:
        path = self.path()
        self.racing(path.unlink if self.random.random() < 0.6 else path.rmdir)

    def move(self) -> None:
        source, target = self.path(), self.path()
        self.racing(lambda: source.rename(target))

    def link(self) -> None:
        source, target = self.path(), self.path()
        self.racing(lambda: os.link(source, target, follow_symlinks=False), RACES | {errno.EXDEV})

    def attributes(self) -> None:
        path = self.path()
        self.racing(lambda: os.chmod(path, self.random.choice((0o777, 0o755))))
        self.racing(lambda: os.setxattr(path, "user.a", b"x" * self.random.randrange(50)), RACES | {errno.ENOTSUP})
        self.racing(lambda: os.listdir(path))

    # -- alone ------------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        name, data = f"f{self.random.randrange(40)}", self.random.randbytes(self.random.randrange(20_000))
        (self.own / name).write_bytes(data)
        self.known[name] = hashlib.sha256(data).hexdigest()

    def drop(self) -> None:
        if self.known:
            name = self.random.choice(sorted(self.known))
            (self.own / name).unlink()
            del self.known[name]

    def replace(self) -> None:
        if len(self.known) > 1:
            source, target = self.random.sample(sorted(self.known), 2)
            (self.own / source).rename(self.own / target)
            self.known[target] = self.known.pop(source)


def main(top: str, number: str, seed: str, operations: str) -> None:
    load = Load(Path(top), int(number), int(seed))
    for _ in range(int(operations)):
        load.step()
    print(json.dumps(load.known))


if __name__ == "__main__":
    main(*sys.argv[1:])
