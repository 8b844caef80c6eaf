"""Proof against the real JuiceFS 1.4.2, in both directions: what `Meta` made is accepted by its fsck, gc, dump, summary and mount;
what it made through a mount reads equal here, down to every side record. Needs FUSE and the `juicefs` program beside Python."""

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jfs.format.constants import DIRECTORY, FILE, SYMLINK
from jfs.format.setting import new_setting
from jfs.format.slices import view
from jfs.meta.connect import connect
from jfs.meta.model.keys import DirStatKey
from jfs.meta.volume import EXCHANGE, SUPERUSER, AttrChange, Meta, MetaOptions, format_volume, status
from meta_volumes import UUID, audit, new_file
from store_engines import redis_server

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

JUICEFS = str(Path(sys.executable).parent / "juicefs")
ENVIRONMENT = {**os.environ, "JFS_GC_SKIPPEDTIME": "0", "HOME": "/tmp"}
BLOCK = 64 << 10


@pytest.fixture(params=["sqlite3", "redis"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite3":
        yield f"sqlite3://{tmp_path}/meta.db"
    else:
        async with redis_server() as socket:
            yield f"unix://{socket}?db=1"


async def juicefs(*arguments: str, code: int = 0) -> str:
    """Run the real client; its whole output. Warnings about the server are left out (format §13)."""
    process = await asyncio.create_subprocess_exec(
        JUICEFS, *arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace")
    assert process.returncode == code, f"juicefs {arguments[0]}: {process.returncode}\n{output}"
    return output


def assert_clean(output: str) -> None:
    """No line that the format document takes for damage (§13.2)."""
    for line in output.splitlines():
        bad = (
            "<ERROR>" in line
            or "<FATAL>" in line
            or "leaked chunk" in line
            or ("<WARNING>" in line and "Check@" in line)
        )
        assert not bad, line


async def check(url: str) -> None:
    """Everything the real client can check without a mount."""
    assert_clean(await juicefs("fsck", url))
    assert_clean(await juicefs("fsck", url, "--path", "/", "-r", "--sync-dir-stat"))
    output = await juicefs("gc", url)
    assert_clean(output)
    numbers = re.search(r"scanned (\d+) objects, (\d+) valid, (.*)", output)
    assert numbers is not None, output
    assert numbers[1] == numbers[2], output
    for number, what in re.findall(r"(\d+) (pending delete|leaked|delslices|delfiles|skipped)", numbers[3]):
        assert number == "0", f"{number} {what}"


class Files:
    """Writes data as the data path does, into the directory that the volume's objects are in."""

    def __init__(self, meta: Meta, objects: Path) -> None:
        self.meta = meta
        self.objects = objects / "demo"

    async def write(self, ino: int, offset: int, data: bytes) -> None:
        from jfs.format.constants import CHUNK
        from jfs.format.slices import Slice

        assert offset // CHUNK == (offset + len(data) - 1) // CHUNK
        id = await self.meta.new_slice_id()
        for indx in range((len(data) + BLOCK - 1) // BLOCK):
            block = data[indx * BLOCK : (indx + 1) * BLOCK]
            path = self.path(id, indx, len(block))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(block)
        pos = offset % CHUNK
        mtime = self.meta._clock()
        await self.meta.commit_slice(ino, offset // CHUNK, pos, Slice(pos, id, len(data), 0, len(data)), mtime)

    def path(self, id: int, indx: int, size: int) -> Path:
        return self.objects / "chunks" / f"{id // 1_000_000}" / f"{id // 1000}" / f"{id}_{indx}_{size}"

    async def delete(self, id: int, size: int) -> None:
        for indx in range((size + BLOCK - 1) // BLOCK):
            self.path(id, indx, min(BLOCK, size - indx * BLOCK)).unlink(missing_ok=True)

    async def read(self, ino: int) -> bytes:
        """Content of a file, from its slices and objects."""
        from jfs.format.constants import CHUNK

        length = (await self.meta.getattr(ino)).length
        content = bytearray(length)
        for indx, records in await self.meta.file_chunks(ino):
            for segment in view(records):
                begin = indx * CHUNK + segment.pos
                if not segment.id or begin >= length:
                    continue
                blocks = (segment.size + BLOCK - 1) // BLOCK
                whole = b"".join(
                    self.path(segment.id, block, min(BLOCK, segment.size - block * BLOCK)).read_bytes()
                    for block in range(blocks)
                )
                piece = whole[segment.off : segment.off + segment.len][: length - begin]
                content[begin : begin + len(piece)] = piece
        return bytes(content)


@asynccontextmanager
async def opened(url: str, objects: Path) -> AsyncIterator[tuple[Meta, Files]]:
    files: list[Files] = []

    async def delete(id: int, size: int) -> None:
        await files[0].delete(id, size)

    meta = await Meta.load(await connect(url), MetaOptions(no_bgjob=True), delete_objects=delete)
    files.append(Files(meta, objects))
    try:
        await meta.start_session()
        yield meta, files[0]
    finally:
        await meta.close()


@asynccontextmanager
async def mounted(url: str, folder: Path) -> AsyncIterator[Path]:
    """The volume mounted by the real client."""
    point = folder / "mnt"
    point.mkdir(exist_ok=True)
    cache = ("--cache-dir", str(folder / "cache"), "--log", str(folder / "mount.log"), "--no-usage-report")
    await juicefs(
        "mount", "-d", "--enable-xattr", "--backup-meta", "0", *cache, "--metrics", "127.0.0.1:0", url, str(point)
    )
    pid = json.loads((point / ".config").read_bytes())["Pid"]
    try:
        yield point
    finally:
        await juicefs("umount", str(point))
        async with asyncio.timeout(30):  # it writes the usage of directories after the unmount
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110 - no child of ours
                await asyncio.sleep(0.05)


async def workload(meta: Meta, files: Files) -> None:
    """A tree that has every kind of record the client keeps."""
    d, _ = await meta.mkdir(SUPERUSER, 1, b"dir", 0o755)
    e, _ = await meta.mkdir(SUPERUSER, d, b"empty", 0o2775)
    for number in range(30):
        ino = await new_file(meta, b"small-%d" % number, parent=d)
        await files.write(ino, 0, b"%d" % number * 100)
    big = await new_file(meta, b"big")
    await files.write(big, 0, os.urandom(200_000))
    await files.write(big, 1000, b"overwritten")
    await files.write(big, (64 << 20) + 5, b"second chunk")
    await meta.truncate(SUPERUSER, big, 150_000, opened=False)
    await meta.truncate(SUPERUSER, big, 160_000, opened=False)
    await files.write(big, 190_000, b"after a hole")
    await meta.link(SUPERUSER, big, d, b"linked")
    await meta.link(SUPERUSER, big, e, "später".encode())
    await files.write(big, 200_000, b"grown while linked")
    await meta.symlink(SUPERUSER, e, b"symlink", b"../../big")
    await meta.mknod(SUPERUSER, e, b"fifo", 4, 0o640)
    await meta.setxattr(SUPERUSER, big, b"user.key", b"value\0binary")
    await meta.setxattr(SUPERUSER, d, b"user.empty", b"")
    await meta.setattr(SUPERUSER, e, AttrChange(uid=1000, gid=1001, mtime=1_500_000_000_123_456_789))
    for number in range(10):
        await meta.unlink(SUPERUSER, d, b"small-%d" % number)
    await meta.rename(SUPERUSER, d, b"small-10", d, b"small-11")
    await meta.rename(SUPERUSER, d, b"small-12", 1, b"moved")
    await meta.rename(SUPERUSER, d, b"small-13", 1, b"moved", EXCHANGE)
    gone, _ = await meta.mkdir(SUPERUSER, 1, b"gone", 0o755)
    await new_file(meta, b"f", parent=gone)
    await meta.remove_tree(SUPERUSER, 1, b"gone")
    await meta.unlink(SUPERUSER, d, b"linked")


async def ours(meta: Meta, files: Files, ino: int = 1, path: str = "") -> dict[str, tuple[Any, ...]]:
    """Path → what stat, readlink, xattrs and reading give, by our client."""
    found: dict[str, tuple[Any, ...]] = {}
    async for page in meta.list_directory(SUPERUSER, ino, plus=True):
        for name, entry, attr in zip(page.names, page.entries, page.attrs or (), strict=True):
            assert attr is not None
            below = f"{path}/{os.fsdecode(name)}"
            content: Any = None
            if attr.kind == FILE:
                content = await files.read(entry.ino)
            elif attr.kind == SYMLINK:
                content = await meta.readlink(entry.ino)
            xattrs = {key.decode(): await meta.getxattr(entry.ino, key) for key in await meta.listxattr(entry.ino)}
            times = [s * 10**9 + n for s, n in ((attr.mtime, attr.mtimensec), (attr.ctime, attr.ctimensec))]
            found[below] = (
                entry.ino,
                attr.st_mode,
                attr.uid,
                attr.gid,
                attr.nlink,
                attr.length,
                times,
                xattrs,
                content,
            )
            if attr.kind == DIRECTORY:
                found |= await ours(meta, files, entry.ino, below)
    return found


def theirs(point: Path) -> dict[str, tuple[Any, ...]]:
    """The same through a mount."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, directories, names in os.walk(point):
        directories[:] = [name for name in directories if name != ".trash"]
        for name in directories + names:
            path = os.path.join(folder, name)
            if Path(path).parent == point and name.startswith("."):
                continue
            info = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(info.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.fsencode(os.readlink(path))
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            found["/" + os.path.relpath(path, point)] = (
                info.st_ino,
                info.st_mode,
                info.st_uid,
                info.st_gid,
                info.st_nlink,
                info.st_size,
                [info.st_mtime_ns, info.st_ctime_ns],
                xattrs,
                content,
            )
    return found


def differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {
        path: (left.get(path), right.get(path))
        for path in left.keys() | right.keys()
        if left.get(path) != right.get(path)
    }


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_the_real_client_accepts_what_we_made(url: str, tmp_path: Path, trash_days: int) -> None:
    objects = tmp_path / "objects"
    (objects / "demo").mkdir(parents=True)
    (objects / "demo" / "juicefs_uuid").write_text(UUID)
    setting = new_setting("demo", UUID, bucket=f"{objects}/", block_size=BLOCK, trash_days=trash_days)
    store = await connect(url)
    await format_volume(store, setting, force=False, no_update=False, now=1_700_000_000 * 10**9)
    await store.close()
    async with opened(url, objects) as (meta, files):
        await workload(meta, files)
        await meta.close_session()
        await audit(meta.store)
        wanted = await ours(meta, files)
        shown = await status(meta.store)
    await check(url)
    dump = str(tmp_path / "dump.json")
    await juicefs("dump", url, dump)
    loaded = await juicefs("load", f"sqlite3://{tmp_path}/loaded.db", dump)
    counters = re.findall(r"(?:Dumped|Loaded) counters: \{(UsedSpace:\d+ UsedInodes:\d+)", loaded)
    assert len(counters) == 2, loaded
    assert counters[0] == counters[1]
    assert f"UsedSpace:{shown['Stat']['UsedSpace']} UsedInodes:{shown['Stat']['UsedInodes']}" == counters[0]
    async with mounted(url, tmp_path) as point:
        assert not (found := differences(wanted, theirs(point))), found
        quick = await juicefs("summary", "--csv", str(point))
        exact = await juicefs("summary", "--strict", "--csv", str(point))
        assert table(quick) == table(exact)


def table(output: str) -> list[str]:
    """The lines of a summary without those of the log."""
    return [line for line in output.splitlines() if "<INFO>" not in line and "<WARNING>" not in line]


def real_workload(point: Path) -> None:
    d = point / "dir"
    d.mkdir()
    (d / "sub").mkdir(mode=0o700)
    for number in range(20):
        (d / f"f{number}").write_bytes(b"%d" % number * 1000)
    for number in range(5):
        (d / f"f{number}").unlink()
    big = point / "big"
    with big.open("wb") as file:
        file.write(os.urandom(300_000))
        file.seek(100)
        file.write(b"over")
        file.truncate(150_000)
        file.seek((64 << 20) + 3)
        file.write(b"far away")
    os.link(big, d / "hard")
    os.link(big, d / "sub" / "hard")
    (point / "symlink").symlink_to("dir/f7")
    os.mkfifo(point / "fifo")
    os.setxattr(big, "user.a", b"b\0c")
    os.chown(d / "f9", 1000, 1001)
    os.utime(d / "f8", ns=(-1_000_000_001, -5_000_000_003))
    os.rename(d / "f10", d / "f11")
    os.rename(d / "f12", point / "f12")
    (point / "gone").mkdir()
    (point / "gone").rmdir()
    (d / "hard").unlink()


@pytest.mark.parametrize("trash_days", ["0", "1"])
async def test_what_the_real_client_made_reads_equal_and_can_be_changed(
    url: str, tmp_path: Path, trash_days: str
) -> None:
    objects = tmp_path / "objects"
    await juicefs(
        "format", url, "demo", "--bucket", str(objects), "--block-size", "64K", "--trash-days", trash_days, "--no-agent"
    )
    async with mounted(url, tmp_path) as point:
        await asyncio.to_thread(real_workload, point)
        wanted = theirs(point)
    async with opened(url, objects) as (meta, files):
        await audit(meta.store)
        assert not (found := differences(wanted, await ours(meta, files))), found
        await workload_on_top(meta, files)
        await meta.close_session()
        await audit(meta.store)
        wanted = await ours(meta, files)
    await check(url)
    async with mounted(url, tmp_path) as point:
        assert not (found := differences(wanted, theirs(point))), found


async def workload_on_top(meta: Meta, files: Files) -> None:
    """Changes to what another client made: appends, links, renames over, removals."""
    d, _ = await meta.lookup(SUPERUSER, 1, b"dir")
    big, attr = await meta.lookup(SUPERUSER, 1, b"big")
    await files.write(big, attr.length, b"appended")
    await meta.link(SUPERUSER, big, 1, b"another")
    await meta.rename(SUPERUSER, 1, b"f12", d, b"f13")
    await meta.truncate(SUPERUSER, (await meta.lookup(SUPERUSER, d, b"f14"))[0], 10, opened=False)
    await meta.unlink(SUPERUSER, d, b"f15")
    sub, _ = await meta.lookup(SUPERUSER, d, b"sub")
    await meta.rename(SUPERUSER, d, b"sub", 1, b"sub")
    await meta.unlink(SUPERUSER, sub, b"hard")
    await meta.rmdir(SUPERUSER, 1, b"sub")


async def test_both_at_once(url: str, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    await juicefs("format", url, "demo", "--bucket", str(objects), "--block-size", "64K", "--trash-days", "0")
    async with mounted(url, tmp_path) as point, opened(url, objects) as (meta, files):
        (point / "theirs").write_bytes(b"from the real client")
        # It adds to directories' usage a second later, and counts a directory that has no record by listing it: wait for that,
        # since what others add meanwhile would be counted twice.
        async with asyncio.timeout(30):
            while await meta.store.get(DirStatKey(1)) == (None,):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.1)
        ino, _ = await meta.lookup(SUPERUSER, 1, b"theirs")
        assert await files.read(ino) == b"from the real client"
        mine = await new_file(meta, b"ours")
        await files.write(mine, 0, b"from us")
        assert await asyncio.to_thread((point / "ours").read_bytes) == b"from us"
        shown = await status(meta.store)
        assert {session["MountPoint"] for session in shown["Sessions"]} == {str(point), ""}
        assert "from" not in await juicefs("status", url)
        await asyncio.to_thread((point / "ours").unlink)
        await meta.unlink(SUPERUSER, 1, b"theirs")
    await check(url)
    async with opened(url, objects) as (meta, _):
        await audit(meta.store)
