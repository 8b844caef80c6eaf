"""Taking entries out of the trash: every kind of entry comes back where it was, or the trees are built again inside the trash. `volume`
examines the metadata at the end of each test. The real client's `restore` does the same."""

import errno
import os
from pathlib import Path

import pytest
from jfs.errors import FsError
from jfs.format.constants import ROOT, TRASH
from jfs.meta.volume import SUPERUSER, Meta
from jfs.meta.volume.restoring import parse, restore_hour
from meta_volumes import entries, new_file, volume, write
from mount_parts import JFS, REAL, Volume, eventually, mounted, run, tree
from store_engines import ALL


async def hours(meta: Meta) -> list[bytes]:
    return list(await entries(meta.store, TRASH))


async def build(meta: Meta) -> tuple[int, int, int]:
    """d/f, d/e/g, top and a hard link h of top; the inodes of d, e and top."""
    d, _ = await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
    e, _ = await meta.mkdir(SUPERUSER, d, b"e", 0o755)
    await write(meta, await new_file(meta, b"f", parent=d), 0, 5000)
    await write(meta, await new_file(meta, b"g", parent=e), 0, 100)
    top = await new_file(meta, b"top")
    await meta.link(SUPERUSER, top, ROOT, b"h")
    return d, e, top


@pytest.mark.parametrize("engine", ALL)
async def test_everything_goes_back(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=1) as made:
        meta = await made.client()
        d, e, top = await build(meta)
        before = await entries(meta.store, ROOT), await entries(meta.store, d), await entries(meta.store, e)
        await meta.remove_tree(SUPERUSER, ROOT, b"d")
        await meta.unlink(SUPERUSER, ROOT, b"top")
        (hour,) = await hours(meta)
        assert await restore_hour(meta, hour, put_back=True, at_once=3) == (5, 0, [])
        after = await entries(meta.store, ROOT), await entries(meta.store, d), await entries(meta.store, e)
        for old, new in zip(before, after, strict=True):
            assert {n: ino for n, (ino, _) in old.items()} == {n: ino for n, (ino, _) in new.items()}
        attr = await meta.getattr(top)
        assert attr.nlink == 2
        assert (await meta.getattr(d)).nlink == 3
        assert not await entries(meta.store, (await entries(meta.store, TRASH))[hour][0])
        assert await restore_hour(meta, hour, put_back=True, at_once=3) == (0, 0, [])


async def test_trees_are_built_again_inside_the_trash(tmp_path: Path) -> None:
    async with volume("memory", tmp_path, trash_days=1) as made:
        meta = await made.client()
        d, e, _ = await build(meta)
        await meta.remove_tree(SUPERUSER, ROOT, b"d")
        await meta.unlink(SUPERUSER, ROOT, b"top")
        (hour,) = await hours(meta)
        assert await restore_hour(meta, hour, put_back=False, at_once=10) == (3, 2, [])
        left = await entries(meta.store, (await entries(meta.store, TRASH))[hour][0])
        assert {name.rpartition(b"-")[2] for name in left} == {b"d", b"top"}
        assert (await entries(meta.store, d)).keys() == {b"e", b"f"}
        assert (await entries(meta.store, e)).keys() == {b"g"}
        assert await restore_hour(meta, hour, put_back=True, at_once=10) == (2, 0, [])
        assert (await entries(meta.store, ROOT)).keys() == {b"d", b"h", b"top"}


async def test_nothing_is_replaced_and_what_has_no_place_is_told(tmp_path: Path) -> None:
    async with volume("memory", tmp_path, trash_days=1) as made:
        meta = await made.client()
        await build(meta)
        await meta.unlink(SUPERUSER, ROOT, b"top")
        again = await new_file(meta, b"top")
        (hour,) = await hours(meta)
        done = await restore_hour(meta, hour, put_back=True, at_once=1)
        assert (done.moved, [error.errno for _, error in done.failed]) == (0, [errno.EEXIST])
        assert (await meta.lookup(SUPERUSER, ROOT, b"top"))[0] == again
        await meta.remove_tree(SUPERUSER, ROOT, b"d")
        trash = (await entries(meta.store, TRASH))[hour][0]
        (gone,) = [name for name in await entries(meta.store, trash) if name.endswith(b"-e")]
        await meta.rmdir(SUPERUSER, trash, gone)  # for good
        done = await restore_hour(meta, hour, put_back=True, at_once=1)
        assert {error.errno for _, error in done.failed} == {errno.EEXIST, errno.ENOENT}
        assert (await meta.lookup(SUPERUSER, ROOT, b"d"))[0]
        with pytest.raises(FsError):
            await restore_hour(meta, b"2020-01-01-00", put_back=True, at_once=1)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (b"1-2-name", (1, b"name")),
        (b"1-2-a-b-c", (1, b"a-b-c")),
        (b"12-345-\xff", (12, b"\xff")),
        (b"1-2-", None),
        (b"x-2-name", None),
        (b"name", None),
    ],
)
def test_names_in_the_trash(entry: bytes, wanted: tuple[int, bytes] | None) -> None:
    assert parse(entry) == wanted


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(("now",), "no hour of the trash"), (("2026-01-31-23", "--threads", "0"), "1 or more")]
)
def test_bad_arguments(arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    from jfs.cli.main import main

    assert main(["restore", "memory://x", *arguments]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.timeout(90)
def test_restore_is_the_real_clients(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()
    with mounted(volume, tmp_path / "ours") as where:
        for name in ("d", "c"):
            (where / name / "e").mkdir(parents=True)
            (where / name / "f").write_bytes(b"x" * 5000)
            (where / name / "e/g").write_bytes(b"y" * 100)
        before = {name: seen[-1] for name, seen in tree(where).items()}
        run("rm", "-r", str(where / "d"), str(where / "c"))
        removed = os.listdir(where / ".trash")
        for program in (JFS, [REAL]):
            run(*program, "restore", volume.url, *removed)
            inside = [name for hour in removed for name in os.listdir(where / ".trash" / hour)]
            assert sorted(name.rpartition("-")[2] for name in inside) == ["c", "d"]
            run(*program, "restore", "--put-back", volume.url, *removed)
            eventually((where / "d/e/g").exists, "it is back")
            assert {name: seen[-1] for name, seen in tree(where).items()} == before
            run("rm", "-r", str(where / "d"), str(where / "c"))
            removed = [hour for hour in os.listdir(where / ".trash") if os.listdir(where / ".trash" / hour)]
    run(*JFS, "fsck", volume.url)
