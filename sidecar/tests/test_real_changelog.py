"""The change log: the same operations through a mount of the real client and through one of ours leave the same lines, on volumes
that the real client made, and the real `changelog` command follows ours."""

import contextlib
import ctypes
import fcntl
import os
import re
import sqlite3
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from database_servers import blank
from mount_parts import JFS, REAL, Volume, check_by_real, eventually, mounted, really_mounted, redis_server, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

# What depends on the moment, on other clients, or on how much is done at a time: jobs, allotments, deletions in the background.
_NOBODY = 0xFFFFFFFF
_PASSING = ("CLEANSESSION(", "SET(", "INCR_COUNTER(", "DIRSTAT(", "DELCHUNK(", "DELETESLICE(", "NEWSESSION(", "ACCESS(")


@contextlib.contextmanager
def database(engine: str, directory: Path) -> Iterator[str]:
    directory.mkdir()
    if engine not in ("sqlite3", "redis"):
        yield blank(engine)
        return
    if engine == "sqlite3":
        yield f"sqlite3://{directory}/meta.db"
        return
    with redis_server(directory) as url:
        yield f"{url}/1"


def lines(url: str) -> list[str]:
    """The log as it is stored."""
    if url.startswith("sqlite3"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite3://"))) as connection:
            return [entry for (entry,) in connection.execute("SELECT entry FROM jfs_change_log ORDER BY id")]
    said = run("redis-cli", "-u", url, "--raw", "lrange", "txnLog", "0", "-1").stdout.splitlines()
    said = [line for line in said if line]
    if said:
        assert int(run("redis-cli", "-u", url, "get", "txnLastLog").stdout) == len(said)
    return said


def work(top: Path) -> None:
    """Every kind of change that an application can make, each with one possible outcome."""
    a = top / "a"
    a.mkdir(0o750)
    f = a / "f"
    f.write_bytes(b"x" * 5000)
    with open(f, "r+b") as file:
        file.truncate(100)
        file.truncate(70 << 20)
        os.posix_fallocate(file.fileno(), 0, 80 << 20)
    os.truncate(f, 10)
    os.symlink("f, (g)", a / "l")
    os.link(f, a / "g")
    os.chmod(f, 0o6755)
    os.chown(f, 5, 6)
    os.utime(f, ns=(1_500_000_001, 2_000_000_003))
    os.setxattr(f, "user.a", b"1,2\0\xff")
    os.setxattr(f, "user.a", b"2", os.XATTR_REPLACE)
    os.removexattr(f, "user.a")
    os.mknod(a / "fifo", 0o10600)
    os.mknod(a / "dev", 0o20644, os.makedev(1, 3))
    (a / os.fsdecode(b'n\xe4me\n%"\\')).write_bytes(b"")
    os.rename(a / "g", top / "b")
    (top / "c").write_bytes(b"1")
    (top / "e").write_bytes(b"1")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, bytes(top / "b"), -100, bytes(top / "c"), 2) == 0
    os.rename(top / "c", top / "e")
    os.unlink(top / "e")
    (a / "d").mkdir()
    (a / "d").rmdir()
    with open(top / "p", "wb") as file:
        for _ in range(4):
            file.write(b"z" * 10)
            file.flush()
            os.fsync(file.fileno())
    with open(top / "p", "r+b") as source, open(top / "q", "wb") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 30, 0, 0)
        assert libc.fallocate(source.fileno(), 3, ctypes.c_long(5), ctypes.c_long(10)) == 0
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN):
            fcntl.flock(source, kind)
        fcntl.lockf(source, fcntl.LOCK_EX, 10, 5, 0)
        fcntl.lockf(source, fcntl.LOCK_UN, 10, 5, 0)
    for flag in (0x10, 0x20, 0x1, 0):
        descriptor = os.open(top / "q", os.O_RDONLY)
        fcntl.ioctl(descriptor, 0x40086602, struct.pack("l", flag))
        os.close(descriptor)
    (top / "acl").mkdir()
    rule = [(1, 7, _NOBODY), (2, 4, 1000), (4, 5, _NOBODY), (0x10, 7, _NOBODY), (0x20, 4, _NOBODY)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in rule)
    os.setxattr(top / "acl", "system.posix_acl_access", packed)
    os.setxattr(top / "acl", "system.posix_acl_default", packed)
    os.chmod(top / "acl", 0o700)
    (top / "acl" / "inherits").write_bytes(b"")
    os.removexattr(top / "acl", "system.posix_acl_default")
    with open(top / "young", "wb") as file:
        file.write(b"1")
        os.fchmod(file.fileno(), 0o600)
        os.fchown(file.fileno(), 7, 8)
        os.utime(file.fileno(), ns=(1_500_000_001, 1_500_000_002))
    (top / "t" / "s").mkdir(parents=True)
    (top / "t" / "1").write_bytes(b"q")
    os.mkdir(top / "k")
    with open(top / "k" / "open", "wb") as file:
        file.write(b"1")
        file.flush()
        os.fsync(file.fileno())
        os.unlink(top / "k" / "open")


def normal(line: str) -> str | None:
    """An entry without what differs by nature; None for one that is left out."""
    match = re.fullmatch(r"\d+\.\d{9}\|(.*)\|\(\d+,\d+\)", line)
    assert match is not None, line
    text = match[1]
    if text.startswith(_PASSING):
        return None
    text = re.sub(r"^((?:FLOCK|SETLK)\(\d+),\d+", r"\1,owner", text)
    text = re.sub(r"^(SETLK.*),[1-9]\d*\)$", r"\1,pid)", text)
    if text.startswith("SETATTR("):  # times are kept when they were given
        *head, atime, mtime, atime_ns, mtime_ns, _, _, acl = text[:-1].split(",")
        given = [
            time if int(seconds) < 1_600_000_000 else "" for seconds, time in ((atime, atime_ns), (mtime, mtime_ns))
        ]
        text = ",".join([*head, *given, acl])
    text = re.sub(r"^(WRITE\(\d+,\d+,\d+),\d+(,\d+),\d+,\d+", r"\1,slice\2", text)
    text = re.sub(r"^(COMPACTCHUNK\(.*),\d+(,\d+)\)", r"\1,slice\2)", text)
    if re.match(
        r"MOVE\(\d+,b,\d+,c,2,", text
    ):  # an exchange has no trash: the real client names it on SQL all the same
        text = re.sub(r",\d+\):", ",0):", text)
    return re.sub(r"\d{4}-\d\d-\d\d-\d\d", "hour", text)


@pytest.mark.parametrize("engine", ["redis", "sqlite3"])
def test_the_same_operations_leave_the_same_lines(engine: str, tmp_path: Path) -> None:
    logs: dict[str, list[str]] = {}
    for client in ("real", "ours"):
        with database(engine, tmp_path / client) as url:
            volume = Volume(url, tmp_path / client / "objects").format("--enable-acl", by_real=True)
            run(REAL, "config", url, "--changelog", "--yes")
            mount = really_mounted if client == "real" else mounted
            options = ("--enable-xattr", "--enable-ioctl", "--skip-dir-mtime", "0s")
            with mount(volume, tmp_path / client / "mnt", *options) as where:
                work(where)
                run(REAL, "clone", str(where / "t"), str(where / "t2"))
                run(REAL, "clone", str(where / "t" / "1"), str(where / "c2"))
                run(REAL, "compact", str(where / "p"))
                run(REAL, "rmr", str(where / "t"))
            logs[client] = [text for line in lines(url) if (text := normal(line)) is not None]
            if client == "ours":
                check_by_real(volume)
    # In a cloned tree the order of the copies is any, and the real client does not log those of files.
    directories = [
        line for line in logs["ours"] if line.startswith("CLONE(") and not re.match(r"CLONE\(\d+,\d+,1,", line)
    ]
    copies = [re.sub(r"\d+(,\d,\d+,\w+\):)\d+$", r"ino\1ino", line) for line in directories]
    real = [re.sub(r"\d+(,\d,\d+,\w+\):)\d+$", r"ino\1ino", line) for line in logs["real"] if line.startswith("CLONE(")]
    assert sorted(copies) == sorted(real)
    rest = {client: sorted(line for line in log if not line.startswith("CLONE(")) for client, log in logs.items()}
    assert rest["ours"] == rest["real"]
    before = [line for line in logs["real"] if not line.startswith(("CLONE(", "UNLINKBATCH(", "RMDIR("))]
    assert before == [line for line in logs["ours"] if not line.startswith(("CLONE(", "UNLINKBATCH(", "RMDIR("))]


@contextlib.contextmanager
def following(program: list[str], url: str, said: Path, version: int) -> Iterator[None]:
    with said.open("wb") as file:
        follower = subprocess.Popen([*program, "changelog", url, "--from", str(version)], stdout=file)
    try:
        yield
    finally:
        follower.terminate()
        follower.wait()


@pytest.mark.parametrize("engine", ["redis", "sqlite3", "tikv", "postgres", "mysql"])
def test_the_log_is_followed_by_both_clients_in_the_same_words(engine: str, tmp_path: Path) -> None:
    with database(engine, tmp_path / "db") as url:
        volume = Volume(url, tmp_path / "objects").format()
        run(*JFS, "config", url, "--changelog", "--changelog-max-lines", "5", "--yes")
        with mounted(volume, tmp_path / "mnt") as where:
            (where / "first").write_bytes(b"1")
            real, ours = tmp_path / "real", tmp_path / "ours"
            with following([REAL], url, real, 1), following(list(JFS), url, ours, 1):
                for said in (real, ours):
                    eventually(
                        lambda said=said: b"CREATE(1,first," in said.read_bytes(),
                        "the log is followed from its beginning",
                    )
                os.rename(where / "first", where / "second, too")
                for said in (real, ours):
                    eventually(lambda said=said: b"second%2C too" in said.read_bytes(), "the log is followed")
            entries = [[line for line in said.read_bytes().splitlines() if line[:1].isdigit()] for said in (real, ours)]
            both = min(map(len, entries))
            assert entries[0][:both] == entries[1][:both]
        if engine in ("redis", "sqlite3"):
            assert [line for line in lines(url) if "CLEANSESSION(1)" in line]


def test_a_volume_without_a_log_is_not_followed(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "objects").format()
    for program in ([REAL], JFS):
        done = subprocess.run([*program, "changelog", volume.url], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "--changelog" in done.stderr


def test_the_log_begins_on_a_mounted_volume_and_ends_there(tmp_path: Path) -> None:
    with database("redis", tmp_path / "db") as url:
        volume = Volume(url, tmp_path / "objects").format()
        with mounted(volume, tmp_path / "mnt", "--heartbeat", "1s") as where:
            (where / "unlogged").mkdir()
            run(REAL, "config", url, "--changelog", "--yes")
            made = 0

            def logged() -> bool:
                nonlocal made
                made += 1
                (where / f"d{made}").mkdir()
                return any(f"CREATE(1,d{made}," in line for line in lines(url))

            eventually(logged, "the mount writes the log")
            run(REAL, "config", url, "--changelog=false", "--yes")
            eventually(lambda: not logged(), "the mount writes no log any more")
