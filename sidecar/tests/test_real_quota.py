"""Quotas through mounts and commands, beside the real client: the same operations leave the same usage, each finds the other's records
consistent, both at once on one volume, limits as errors of the operations."""

import errno
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import JFS, REAL, Volume, check_by_real, eventually, mounted, really_mounted, redis_server, run
from test_real_golden import restored

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

BEAT = ("--heartbeat", "1")
ENGINES = ("redis", "sqlite3")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


def address(engine: str, redis: str, folder: Path, number: int) -> str:
    return f"{redis}/{number}" if engine == "redis" else f"sqlite3://{folder}/meta{number}.db"


def quota(program: list[str], volume: Volume, command: str, *options: str, check: bool = True) -> str:
    return run(*program, "quota", command, volume.url, *options, check=check).stdout


def listed(volume: Volume) -> str:
    """As the real client shows the quotas; it keeps usage of mounts back for some seconds."""
    return quota([REAL], volume, "list")


def owners_consistent(volume: Volume) -> None:
    quota(JFS, volume, "check", "--uid", "1001")


def consistent(volume: Volume, *paths: str, owners: bool = True) -> None:
    """The real client's check and ours agree that nothing is wrong. With *owners* the real one is asked for users and groups, too: its
    check overlooks symbolic links and special files, which its mounts count, and counts the trash's directories, which they do not."""
    for program in (JFS, [REAL]):
        for path in paths:
            for strict in ((), ("--strict",)):
                quota(program, volume, "check", "--path", path, *strict)
        if owners:
            quota(program, volume, "check", "--uid", "1001")
            quota(program, volume, "check", "--gid", "2001")


def summaries(where: Path) -> None:
    fast = run(REAL, "summary", "--csv", "--depth", "10", str(where)).stdout
    assert fast == run(REAL, "summary", "--strict", "--csv", "--depth", "10", str(where)).stdout


def set_up(program: list[str], volume: Volume, where: Path) -> None:
    with mounted(volume, where) as top:
        (top / "q/in").mkdir(parents=True, exist_ok=True)
    quota(program, volume, "set", "--path", "/q", "--capacity", "1", "--inodes", "1000")
    quota(program, volume, "set", "--path", "/q/in", "--inodes", "200")
    quota(program, volume, "set", "--uid", "1001", "--capacity", "2", "--inodes", "500")
    quota(program, volume, "set", "--gid", "2001", "--capacity", "3")


def work(top: Path, seed: int) -> None:
    """Random operations, the same for the same seed. Only files change their owners: the real client loses count of symbolic links."""
    chance = random.Random(seed)
    places = ["", "q/", "q/in/", "other/"]
    (top / "other").mkdir(exist_ok=True)
    for number in range(150):
        where, to = (top / chance.choice(places) for _ in range(2))
        files = sorted(path for path in where.iterdir() if path.name.startswith("f"))
        new = f"f{seed}-{number}"
        match chance.choice(("write", "write", "append", "cut", "link", "move", "move", "unlink", "chown", "tree")):
            case "write":
                (where / new).write_bytes(chance.randbytes(chance.choice((0, 1, 5000, 70_000))))
            case "link" if files:
                os.link(chance.choice(files), to / new)
            case "append" if files:
                with open(chance.choice(files), "ab") as file:
                    file.write(chance.randbytes(9000))
            case "cut" if files:
                os.truncate(chance.choice(files), chance.choice((0, 3000, 30_000)))
            case "move" if files:
                os.rename(chance.choice(files), to / new)
            case "unlink" if files:
                chance.choice(files).unlink()
            case "chown" if files:
                os.chown(chance.choice(files), chance.choice((0, 1001, 1002)), chance.choice((0, 2001)))
            case "tree":
                base = where / f"t{seed}-{number}"
                (base / "deep").mkdir(parents=True)
                (base / "deep/x").write_bytes(chance.randbytes(12_345))
                os.symlink("x" * 50, base / "l")
                os.mkfifo(base / "p")
                os.rename(base, to / base.name)
                if chance.random() < 0.3:
                    shutil.rmtree(to / base.name)
            case _:
                pass


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_work_leaves_the_same_usage(engine: str, redis: str, tmp_path: Path) -> None:
    ours = Volume(address(engine, redis, tmp_path, 1), tmp_path / "b1").format("--trash-days", "0")
    theirs = Volume(address(engine, redis, tmp_path, 2), tmp_path / "b2").format("--trash-days", "0", by_real=True)
    set_up(JFS, ours, tmp_path / "ours")
    set_up([REAL], theirs, tmp_path / "ours")
    with mounted(ours, tmp_path / "ours") as here, really_mounted(theirs, tmp_path / "real") as there:
        work(here, 1)
        work(there, 1)
    with really_mounted(ours, tmp_path / "real") as there:
        summaries(there)
    assert listed(ours) == listed(theirs)
    for volume in (ours, theirs):
        assert quota(JFS, volume, "list") == listed(volume)
        for options in (("--path", "/q"), ("--uid", "1001"), ("--gid", "2001")):
            assert quota(JFS, volume, "get", *options) == quota([REAL], volume, "get", *options)
    consistent(ours, "/q", "/q/in", owners=False)
    owners_consistent(ours)
    consistent(theirs, "/q", "/q/in", owners=False)
    # Each goes on with the other's volume.
    with mounted(theirs, tmp_path / "ours") as here, really_mounted(ours, tmp_path / "real") as there:
        work(here, 2)
        work(there, 2)
    assert listed(ours) == listed(theirs)
    consistent(theirs, "/q", "/q/in", owners=False)
    check_by_real(ours)
    check_by_real(theirs)


def test_the_trash_is_counted_for_its_owners_only(redis: str, tmp_path: Path) -> None:
    volume = Volume(f"{redis}/3", tmp_path / "b").format("--trash-days", "1")
    set_up(JFS, volume, tmp_path / "ours")
    with mounted(volume, tmp_path / "ours") as here:
        work(here, 3)
        shutil.rmtree(here / "q/in")
    with really_mounted(volume, tmp_path / "real") as there:
        summaries(there)
    consistent(volume, "/q", owners=False)
    owners_consistent(volume)
    assert "/q/in" not in listed(volume)
    check_by_real(volume)


@pytest.mark.parametrize("engine", ENGINES)
def test_both_clients_at_once(engine: str, redis: str, tmp_path: Path) -> None:
    volume = Volume(address(engine, redis, tmp_path, 4), tmp_path / "b").format("--trash-days", "0")
    set_up(JFS, volume, tmp_path / "ours")
    with mounted(volume, tmp_path / "ours", *BEAT) as here, really_mounted(volume, tmp_path / "real", *BEAT) as there:
        for number in range(30):
            for where in (here, there):
                path = where / "q/in" / f"{where.name}{number}"
                path.write_bytes(b"x" * number * 1000)
                os.chown(path, 1001, 2001)
        # What the one makes the other changes.
        for number in range(30):
            with open(there / f"q/in/ours{number}", "ab") as file:
                file.write(b"y" * 5000)
            (here / f"q/in/real{number}").rename(here / f"q/moved{number}")
    consistent(volume, "/q", "/q/in")
    check_by_real(volume)


def test_limits_are_errors_of_the_operations(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "b")
    volume.format("--trash-days", "0", "--inodes", "40", "--capacity", "1G")
    with mounted(volume, tmp_path / "ours", *BEAT) as here:
        (here / "d").mkdir()
        (here / "d/sub").mkdir()
        (here / "plain").mkdir()
        quota(JFS, volume, "set", "--path", "/d", "--capacity", "1M", "--inodes", "6")
        eventually(lambda: os.statvfs(here / "d").f_favail == 5, "the mount learns of the quota")
        for name in ("a", "b", "c", "sub/d", "sub/e"):
            (here / "d" / name).touch()
        for name in ("d/more", "d/sub/more"):
            with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                (here / name).touch()
        (here / "outside").touch()
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            os.link(here / "outside", here / "d/more")
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            os.rename(here / "outside", here / "d/sub/more")
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            os.truncate(here / "d/a", 2 << 20)
        over = ("dd", "if=/dev/zero", f"of={here}/d/a", "bs=2M", "count=1", "conv=fsync")
        assert os.strerror(errno.EDQUOT) in run(*over, check=False, env={**os.environ, "LC_ALL": "C"}).stderr
        assert (here / "d/a").stat().st_size == 0
        (here / "plain/big").write_bytes(bytes(2 << 20))
        room = os.statvfs(here / "d")
        assert room.f_blocks * room.f_frsize == 1 << 20
        assert room.f_favail == 0
        for number in range(30):
            (here / f"plain/{number}").touch()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (here / "plain/one-too-many").touch()
    check_by_real(volume)
    consistent(volume, "/d", owners=False)


def test_commands_of_both_clients_agree(redis: str, tmp_path: Path) -> None:
    volume = Volume(f"{redis}/6", tmp_path / "b").format("--trash-days", "0")
    with mounted(volume, tmp_path / "ours") as here:
        work_top = here / "q"
        (work_top / "in").mkdir(parents=True)
        (work_top / "in/f").write_bytes(bytes(10_000))
        os.chown(work_top / "in/f", 1001, 2001)
    set_up(JFS, volume, tmp_path / "ours")
    assert run("redis-cli", "-u", volume.url, "hget", "dirQuotaUsedSpace", "2").stdout.strip() == "16384"
    consistent(volume, "/q", "/q/in")
    shown = listed(volume)
    assert "| /q/in    |" in shown
    run("redis-cli", "-u", volume.url, "hincrby", "dirQuotaUsedSpace", "2", "5")
    run("redis-cli", "-u", volume.url, "hincrby", "userQuotaUsedInodes", "1001", "5")
    for options, name in ((("--path", "/q"), "/q: usage(2"), (("--uid", "1001"), "uid:1001: usage(6")):
        for program in (JFS, [REAL]):
            assert run(*program, "quota", "check", volume.url, *options, check=False).returncode == 1
        said = run(*JFS, "quota", "check", volume.url, *options, "--repair").stderr
        assert name in said, said
    consistent(volume, "/q", "/q/in")
    assert listed(volume) == shown
    quota(JFS, volume, "delete", "--path", "/q")
    quota(JFS, volume, "delete", "--uid", "1001")
    after = listed(volume)
    assert "/q " not in after
    assert "uid" not in after
    consistent(volume, "/q/in")


def test_config_as_the_real_client(redis: str, tmp_path: Path) -> None:
    ours = Volume(f"{redis}/7", tmp_path / "b1").format()
    theirs = Volume(f"{redis}/8", tmp_path / "b1", name=ours.name)
    theirs.bucket = tmp_path / "b2"
    theirs.format(by_real=True)
    for options in (
        ("--capacity", "10"),
        ("--inodes", "100"),
        ("--inodes", "0"),
        ("--trash-days", "3"),
        ("--dir-stats=false",),
        ("--dir-stats=true",),
        ("--user-group-quota",),
        ("--user-group-quota=false",),
        ("--changelog",),
        ("--changelog-max-lines", "50", "--changelog-max-age", "90s"),
        ("--changelog-max-age", "0"),
        ("--changelog=false",),
        ("--tier", "1", "--storage-class", "GLACIER", "--yes"),
        ("--tier", "2", "--storage-class", "ONEZONE_IA", "--tag", "a=b", "--yes"),
        ("--storage-class", "STANDARD_IA", "--yes"),
        ("--tier", "1", "--tag", "c=d", "--yes"),
        ("--tag", "e=f", "--yes"),
        ("--enable-acl",),
        ("--enable-acl=false",),
        ("--min-client-version", "1.3.0"),
        ("--min-client-version", "1.1.0"),
        ("--max-client-version", "9.9.9"),
        ("--upload-limit", "10"),
        ("--trash-days", "-1"),
        ("--capacity", "10"),
    ):
        mine = run(*JFS, "config", ours.url, *options, check=False, stdin=subprocess.DEVNULL)
        wanted = run(REAL, "config", theirs.url, *options, check=False, stdin=subprocess.DEVNULL)
        assert (mine.returncode, mine.stdout) == (wanted.returncode, wanted.stdout), (
            options,
            mine.stderr,
            wanted.stderr,
        )
    shown = [
        {
            name: value
            for name, value in json.loads(run(*program, "config", volume.url).stdout).items()
            if name not in ("UUID", "Bucket")
        }
        for program, volume in ((JFS, ours), ([REAL], theirs))
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("name", ["redis-quota", "sqlite-acl-quota"])
def test_golden_volume_stays_consistent_when_we_write(name: str, tmp_path: Path) -> None:
    with restored(name, tmp_path) as volume:
        bucket = tmp_path / "objects"
        shutil.copytree(volume.bucket, bucket)
        owners_consistent(volume)
        with mounted(volume, tmp_path / "ours", "--bucket", f"{bucket}/") as here:
            work(here, 5)
            (here / "q/in/f0").unlink()
            os.rename(here / "q/in", here / "elsewhere")
            os.rename(here / "elsewhere", here / "q/back")
        owners_consistent(volume)
        consistent(volume, "/q", "/q/back", owners=False)
