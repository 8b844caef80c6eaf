"""A worker for tests: the supervisor's contract with a FUSE file system of one file, and levers to misbehave.

Reads the document, mounts, says ready; `quiesce` is answered; SIGTERM unmounts. The document's options are the levers:
`fail=<code>` reports an error instead of mounting, `hang` makes the root's getattr never answer once the file
`<meta_url path>/hang` exists, `stubborn` ignores SIGTERM. `meta_url` is `tiny:///directory`; the document is written to
`<directory>/document.json` for the test to look at.
"""

import asyncio
import ctypes
import errno
import json
import os
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pyfuse3
import pyfuse3.asyncio

pyfuse3.asyncio.enable()
_CONTENT = b"tiny\n"
_FILE = 2


class Tiny(pyfuse3.Operations):
    def __init__(self, hang: Path | None) -> None:
        super().__init__()
        self._hang = hang

    async def getattr(self, inode: Any, ctx: Any = None) -> Any:
        if self._hang is not None and self._hang.exists():
            await asyncio.Event().wait()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else len(_CONTENT)
        entry.st_nlink = 1
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def lookup(self, parent_inode: Any, name: bytes, ctx: Any = None) -> Any:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_FILE, ctx)

    async def open(self, inode: Any, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: Any, off: int, size: int) -> bytes:
        return _CONTENT[off : off + size]

    async def opendir(self, inode: Any, ctx: Any) -> Any:
        return inode

    async def statfs(self, ctx: Any) -> Any:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks, data.f_bfree, data.f_bavail = 1000, 600, 600
        data.f_files, data.f_ffree, data.f_favail = 100, 90, 90
        return data


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def mount(path: str, read_only: bool) -> int:
    """mount(2) itself: libfuse would stat the mount point, which fails on top of a dead mount."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    flags = 2 | 4 | (1 if read_only else 0)  # nosuid, nodev, ro
    if libc.mount(b"JuiceFS:tiny", path.encode(), b"fuse.juicefs", flags, data.encode()) != 0:
        say(event="error", code="MountFailed", message=os.strerror(ctypes.get_errno()), retryable=True)
        sys.exit(1)
    return fd


def main() -> None:
    document = json.loads(sys.stdin.readline())
    directory = Path(document["meta_url"].removeprefix("tiny://"))
    (directory / "document.json").write_text(json.dumps(document))
    options = document["options"]
    for option in options:
        if option.startswith("fail="):
            say(event="error", code=option[5:], message=f"No entry for {document['meta_url']}.", retryable=False)
            sys.exit(1)
    hang = directory / "hang" if "hang" in options else None
    fd = mount(document["mountpoint"], document["read_only"])
    pyfuse3.init(Tiny(hang), f"/dev/fd/{fd}", set(pyfuse3.default_options))
    (directory / "pid").write_text(str(os.getpid()))

    def listen() -> None:
        for line in sys.stdin:
            if json.loads(line)["command"] == "quiesce":
                say(event="flushed", dirty_bytes=0)
        # The supervisor is gone.
        os.kill(os.getpid(), signal.SIGTERM)

    async def serve() -> None:
        def stop() -> None:
            if "stubborn" not in options:
                pyfuse3.terminate()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        threading.Thread(target=listen, daemon=True).start()
        say(event="ready", sid=1, pid=os.getpid())
        say(event="beat", inflight=0, dirty_bytes=7)
        await pyfuse3.main()

    try:
        asyncio.run(serve())
    finally:
        libc.umount2(document["mountpoint"].encode(), 2 | 8)  # MNT_DETACH | UMOUNT_NOFOLLOW
        pyfuse3.close(unmount=False)


libc = ctypes.CDLL(None, use_errno=True)
main()
