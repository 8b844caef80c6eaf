"""A program that works in a directory of a mount and logs, outside of it, what it asked for and what was acknowledged.

    python crash_writer.py DIRECTORY LOG SEED STATE [SECONDS]

Each line of LOG is a step of `crash_model`: once before the call, once after it with its errno. It goes on until the mount is
gone (ENOTCONN, ECONNABORTED) or SECONDS are over, then closes its files. A step on names that ended with an error is looked
at, for as long as that takes, before the next one: so it is known whether it happened. STATE is a pickled `Tree`, what is there
at the start. Whatever it reads and knows exactly it compares; a line with `violation` says what was wrong.
"""

import errno
import fcntl
import json
import os
import pickle
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from crash_model import Content, Step, Tree, payload

GONE: Final = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESHUTDOWN)
FILES: Final = 25
HANDLES: Final = 5


class Writer:
    """The program's state: the model of its own tree, and its descriptors."""

    def __init__(self, directory: str, log: str, seed: int, tree: Tree) -> None:
        self._top = directory
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._random = random.Random(seed)
        self._number = seed * 1_000_000
        self.tree = tree
        self._fds: dict[int, int] = {}  # handle of the model → descriptor
        self._paths: dict[int, str] = {}  # of handles, "" once unlinked

    def _path(self, name: str) -> str:
        return os.path.join(self._top, name)

    def _say(self, line: dict[str, Any]) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def do(self, step: Step, call: Callable[[], Any], happened: Callable[[], bool] | None = None) -> bool:
        """Log, act, log; whether it was acknowledged. *happened* tells after an error whether it was done all the same."""
        self._number += 1
        step["n"] = self._number
        self._say(step)
        self.tree.begin(step)
        try:
            call()
        except OSError as error:
            if error.errno in GONE:
                raise
            done = {"n": step["n"], "errno": error.errno}
            if happened is not None and self._find_out(happened):
                if step["op"] != "create":
                    self._say({**done, "errno": 0, "told": error.errno})
                    self.tree.apply(step)
                    return True
                done["happened"] = True
            self._say(done)
            self.tree.fail(step | done)
            return False
        self._say({"n": step["n"], "errno": 0})
        self.tree.apply(step)
        return True

    def _find_out(self, happened: Callable[[], bool]) -> bool:
        while True:
            try:
                return happened()
            except OSError as error:
                if error.errno in GONE:
                    raise
                time.sleep(0.05)

    def _exists(self, name: str) -> bool:
        try:
            os.lstat(self._path(name))
        except FileNotFoundError:
            return False
        return True

    # -- steps --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step that makes sense now."""
        choices: list[tuple[int, Callable[[], None]]] = [
            (6, self._create),
            (16, self._write),
            (6, self._fsync),
            (6, self._close),
            (4, self._open),
            (3, self._truncate),
            (3, self._unlink),
            (4, self._rename),
            (2, self._directory),
            (2, self._link),
            (1, self._symlink),
            (1, self._xattr),
            (3, self._read),
        ]
        weights, calls = zip(*choices, strict=True)
        self._random.choices(calls, weights)[0]()

    def _new_name(self) -> str:
        folder = self._random.choice(["", *sorted(self.tree.directories)])
        return os.path.join(folder, f"f{self._number}")

    def _some_file(self) -> str | None:
        names = sorted(self.tree.files)
        return self._random.choice(names) if names else None

    def _handle(self) -> int | None:
        return self._random.choice(sorted(self._fds)) if self._fds else None

    def _create(self) -> None:
        if len(self.tree.files) >= FILES:
            self._unlink()
            return
        if len(self._fds) >= HANDLES:
            self._close()
        name, fd = self._new_name(), self._number + 1

        def call() -> None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_APPEND if self._random.random() < 0.3 else 0)
            self._fds[fd] = os.open(self._path(name), flags, 0o644)

        if self.do({"op": "create", "path": name, "fd": fd}, call, lambda: self._exists(name)):
            self._paths[fd] = name

    def _open(self) -> None:
        name = self._some_file()
        # One handle for a file: another one's fsync would be told of nothing that failed before it was opened.
        if name is None or self.tree.files[name] in self.tree.handles.values():
            return
        if len(self._fds) >= HANDLES:
            self._close()
        fd = self._number + 1

        def call() -> None:
            flags = os.O_RDWR | (os.O_APPEND if self._random.random() < 0.5 else 0)
            self._fds[fd] = os.open(self._path(name), flags)

        if self.do({"op": "open", "path": name, "fd": fd}, call):
            self._paths[fd] = name

    def _write(self) -> None:
        handle = self._handle()
        if handle is None:
            return
        fd, length = self._fds[handle], self.tree.handles[handle].length
        size = self._random.choice([1, 100, 5000, 5000, 70_000, self._random.randrange(1, 300_000)])
        try:
            end = os.fstat(fd).st_size
        except OSError as error:
            if error.errno in GONE:
                raise
            return
        at = end
        if not self._appends(fd):
            at = self._random.choice([end, end, self._random.randrange(length + 1), length + 1000])
        if at + size > 600_000:
            return
        step: Step = {"op": "write", "fd": handle, "at": at, "size": size}

        def call() -> None:
            data = payload(step["n"], size)
            written = os.write(fd, data) if self._appends(fd) else os.pwrite(fd, data, at)
            if written != size:  # what came after failed, which the next call would tell
                raise OSError(errno.EIO, "short write")

        self.do(step, call)

    @staticmethod
    def _appends(fd: int) -> bool:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)

    def _fsync(self) -> None:
        handle = self._handle()
        if handle is not None:
            self.do({"op": "fsync", "fd": handle}, lambda: os.fsync(self._fds[handle]))

    def _close(self) -> None:
        handle = self._handle()
        if handle is not None:
            self.close(handle)

    def close(self, handle: int) -> None:
        """Close one."""
        fd = self._fds.pop(handle)
        self._paths.pop(handle)
        self.do({"op": "close", "fd": handle}, lambda: os.close(fd))

    def _truncate(self) -> None:
        name = self._some_file()
        if name is None or self.tree.files[name].doubtful or self.tree.files[name].open:
            return
        size = self._random.choice([0, self._random.randrange(self.tree.files[name].length + 2000)])
        self.do(
            {"op": "truncate", "path": name, "size": size},
            lambda: os.truncate(self._path(name), size),
            lambda: os.lstat(self._path(name)).st_size == size,
        )

    def _unlink(self) -> None:
        name = self._some_file()
        if name is not None:
            self.do({"op": "unlink", "path": name}, lambda: os.unlink(self._path(name)), lambda: not self._exists(name))

    def _rename(self) -> None:
        name = self._some_file()
        if name is None:
            return
        to = self._new_name()
        if self._random.random() < 0.5:
            to = self._random.choice(sorted(self.tree.files))
            if self.tree.files[to] is self.tree.files[name]:
                return
        self.do(
            {"op": "rename", "path": name, "to": to},
            lambda: os.rename(self._path(name), self._path(to)),
            lambda: not self._exists(name),
        )

    def _directory(self) -> None:
        used = {os.path.dirname(name) for name in (*self.tree.files, *self.tree.symlinks)}
        unused = sorted(self.tree.directories - used)
        if unused and self._random.random() < 0.4:
            name = unused[0]
            self.do({"op": "rmdir", "path": name}, lambda: os.rmdir(self._path(name)), lambda: not self._exists(name))
        elif len(self.tree.directories) < 4:
            name = f"d{self._number}"
            self.do({"op": "mkdir", "path": name}, lambda: os.mkdir(self._path(name)), lambda: self._exists(name))

    def _link(self) -> None:
        name = self._some_file()
        if name is not None and len(self.tree.files) < FILES:
            to = self._new_name()
            self.do(
                {"op": "link", "path": name, "to": to},
                lambda: os.link(self._path(name), self._path(to)),
                lambda: self._exists(to),
            )

    def _symlink(self) -> None:
        if len(self.tree.symlinks) < 5:
            name, to = self._new_name(), "../somewhere"
            self.do(
                {"op": "symlink", "path": name, "to": to},
                lambda: os.symlink(to, self._path(name)),
                lambda: self._exists(name),
            )

    def _xattr(self) -> None:
        name = self._some_file()
        if name is not None:
            value = f"v{self._number}"

            def happened() -> bool:
                try:
                    return os.getxattr(self._path(name), "user.k") == value.encode()
                except OSError as error:
                    if error.errno == errno.ENODATA:
                        return False
                    raise

            self.do(
                {"op": "setxattr", "path": name, "value": value},
                lambda: os.setxattr(self._path(name), "user.k", value.encode()),
                happened,
            )

    def _read(self) -> None:
        handle = self._handle()
        if handle is not None:
            content = self.tree.handles[handle]
            self._compare(content, self._paths[handle], self._fds[handle])

    def _compare(self, content: Content, name: str, fd: int) -> None:
        if content.doubtful:
            return
        expected = Content(bytearray(content.sure), list(content.open))
        expected.acknowledge()
        try:
            found = os.pread(fd, content.length + 10, 0)
        except OSError as error:
            if error.errno in GONE:
                raise
            return
        if found != bytes(expected.sure):
            self._say({"violation": f"read of {name} (handle) gave other bytes than were written", "n": self._number})

    def finish(self) -> None:
        """Close everything."""
        for handle in sorted(self._fds):
            self.close(handle)
        self._say({"finished": True})


def main(directory: str, log: str, seed: str, state: str, seconds: str = "3600") -> int:
    """See the module."""
    with open(state, "rb") as file:
        tree: Tree = pickle.load(file)
    writer = Writer(directory, log, int(seed), tree)
    end = time.monotonic() + float(seconds)
    try:
        while time.monotonic() < end:
            writer.step()
        writer.finish()
    except OSError as error:
        if error.errno not in GONE:
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
