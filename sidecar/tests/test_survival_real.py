"""Workers and whole sidecars that die or are replaced under applications: real kernel mounts, a real Redis, the real supervisor; the
node service is played by the test (`survival_parts`)."""

import errno
import hashlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from jfs.meta.connect import connect
from jfs.meta.volume.session import load_setting
from mount_parts import REAL, Volume, eventually, is_mounted, redis_server, run
from survival_parts import VOLUME, sidecar

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

KINDS = ("append", "overwrite", "names", "unpack", "locks", "unlinked", "listing")
KILLS = int(os.environ.get("JFS_SURVIVAL_KILLS", "20"))
SEED = int(os.environ.get("JFS_SURVIVAL_SEED", "0")) or random.randrange(1 << 30)
APPLICATION = Path(__file__).with_name("survival_application.py")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as url:
        yield Volume(f"{url}/1", tmp_path / "bucket").format("--trash-days", "0")


def start(kind: str, where: Path) -> "subprocess.Popen[str]":
    (where / kind).mkdir()
    command = [sys.executable, str(APPLICATION), kind, str(where / kind / "work"), str(SEED)]
    if kind in ("append", "overwrite", "locks", "unlinked"):
        command[3] = str(where / kind)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(application: "subprocess.Popen[str]") -> dict[str, object]:
    """What it says at its end, which may have come by itself."""
    application.terminate()
    said = json.loads(application.communicate(timeout=60)[0].splitlines()[-1])
    assert not said["error"], said["error"]
    return dict(said)


def tell_redis(url: str, command: bytes) -> None:
    host, port = url.removeprefix("redis://").split("/")[0].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(command + b"\r\n")
        assert connection.recv(100) == b"+OK\r\n"


def pause_redis(url: str, seconds: float) -> None:
    """Redis answers nothing for so long."""
    tell_redis(url, b"CLIENT PAUSE %d ALL" % (seconds * 1000))


def sound(volume: Volume) -> None:
    """The real client finds nothing wrong; objects that nobody refers to may be left."""
    checked = run(REAL, "fsck", volume.url)
    assert "<ERROR>" not in checked.stdout + checked.stderr


def test_applications_do_not_notice_that_workers_are_killed(volume: Volume, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    rnd = random.Random(SEED)
    with sidecar(tmp_path, volume.url, "enable-xattr") as (keeper, pod, where):

        def served() -> int:
            return pod.log.read_text().count(" was taken over after ")

        def more_than(count: int) -> bool:
            return served() > count

        applications = [start(kind, where) for kind in KINDS]
        try:
            for _ in range(KILLS):
                time.sleep(rnd.uniform(0.05, 0.8))
                for application in applications:
                    assert application.poll() is None, end(application)
                before = served()
                pod.kill_worker()
                if rnd.random() < 0.8:  # else the next one may die before it serves
                    eventually(partial(more_than, before), "the volume is served again")
            eventually(lambda: pod.worker, "a worker serves")
            said = [end(application) for application in applications]
        finally:
            for application in applications:
                application.kill()
                application.wait(30)
    assert all(one["operations"] for one in said if one["kind"] != "listing")
    state = [frame for frame in keeper.frames if frame["type"] == "STATE"]
    assert state[-1]["sid"] == state[0]["sid"]
    log = pod.log.read_text()
    stalls = [int(line.split()[-2]) for line in log.splitlines() if " was taken over after " in line]
    print(f"{len(stalls)} successions, ms: median {statistics.median(stalls)}, longest {max(stalls)}")
    assert "Traceback" not in log
    sound(volume)


def test_the_container_dies_and_another_one_is_given_the_connection(volume: Volume, tmp_path: Path) -> None:
    """Supervisor and workers die at once, twice; the next supervisor gets descriptor and state directory."""
    with sidecar(tmp_path, volume.url, "enable-xattr") as (keeper, pod, where):
        applications = [start(kind, where) for kind in ("append", "names", "unpack", "unlinked")]
        try:
            for _ in range(2):
                time.sleep(0.7)
                pod.kill()
                seen = len(keeper.frames)
                pod.start(tmp_path / "state")
                assert keeper.wait("HELLO", seen)["attached"] == []
                keeper.attach(volume.url, "enable-xattr")
                keeper.wait("READY", seen)
                keeper.wait("DEPOSIT", seen)
            time.sleep(0.5)
            for application in applications:
                end(application)
        finally:
            for application in applications:
                application.kill()
                application.wait(30)
    sound(volume)


def test_a_sidecar_is_replaced_and_nothing_is_lost(volume: Volume, tmp_path: Path) -> None:
    """SIGTERM, and the node service says that a successor comes: the mount, the session and what is open stay."""
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        application = start("append", where)
        try:
            time.sleep(0.5)
            sid = keeper.wait("STATE")["sid"]
            keeper.keep = True
            assert pod.end() == 0
            assert is_mounted(where)
            assert "could not be stored" not in pod.log.read_text()
            status = json.loads(run(REAL, "status", volume.url).stdout)
            assert [session["Sid"] for session in status["Sessions"]] == [sid]
            seen = len(keeper.frames)
            pod.start(tmp_path / "state")
            keeper.wait("HELLO", seen)
            keeper.attach(volume.url)
            keeper.wait("READY", seen)
            assert keeper.wait("STATE", seen)["sid"] == sid
            time.sleep(0.3)
            end(application)
        finally:
            application.kill()
            application.wait(30)
        keeper.keep = False
        assert pod.end() == 0
        assert not is_mounted(where)
        assert json.loads(run(REAL, "status", volume.url).stdout)["Sessions"] == []
        assert list((tmp_path / "state").iterdir()) == []


def test_options_change_under_an_application(volume: Volume, tmp_path: Path) -> None:
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        application = start("overwrite", where)
        try:
            first = eventually(lambda: pod.worker, "a worker serves")
            update = {"type": "UPDATE", "volume": VOLUME, "gen": 1, "secrets": {"metaurl": volume.url}}
            seen = len(keeper.frames)
            keeper.send({**update, "config": {"options": ["attr-cache=3"]}})
            assert keeper.wait("READY", seen)["gen"] == 1
            assert eventually(lambda: pod.worker, "a worker serves") != first
            seen = len(keeper.frames)
            keeper.send({**update, "config": {"options": ["no-such-option"]}})
            assert "no-such-option" in keeper.wait("ERROR", seen)["message"]
            time.sleep(0.3)
            end(application)
        finally:
            application.kill()
            application.wait(30)


@pytest.mark.parametrize("switch", ["option", "environment"])
def test_without_resending_what_was_under_way_fails_and_nothing_hangs(
    volume: Volume, tmp_path: Path, switch: str
) -> None:
    options = ("fuse-resend=off",) if switch == "option" else ()
    resend = "off" if switch == "environment" else "on"
    with sidecar(tmp_path, volume.url, *options, JFS_FUSE_RESEND=resend) as (keeper, pod, where):
        assert keeper.wait("DEPOSIT")["init"]["flags"] & 1 << 39 == 0
        (where / "file").write_bytes(b"x" * 100)
        kept = os.open(where / "file", os.O_RDWR)
        failures: list[int] = []

        def make(name: str) -> None:
            try:
                os.mkdir(where / name)
            except OSError as error:
                failures.append(error.errno or 0)

        pause_redis(volume.url, 3.0)  # the worker has read the request, and waits
        making = [threading.Thread(target=make, args=(name,)) for name in ("one", "other")]
        for thread in making:
            thread.start()
        time.sleep(0.5)
        pod.kill_worker()
        for thread in making:
            thread.join(30)
        assert not any(thread.is_alive() for thread in making)
        assert failures
        assert set(failures) == {errno.ECONNABORTED}
        assert os.pread(kept, 10, 0) == b"x" * 10
        os.close(kept)
        (where / "later").mkdir()


def test_requests_that_wait_for_the_database_are_answered_by_the_successor(volume: Volume, tmp_path: Path) -> None:
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        pause_redis(volume.url, 2.0)
        making = threading.Thread(target=os.mkdir, args=(where / "made",))
        making.start()
        time.sleep(0.5)
        pod.kill_worker()
        making.join(30)
        assert not making.is_alive()
        assert (where / "made").is_dir()
        told = eventually(lambda: [one for one in keeper.frames if one.get("replayed")], "what was repeated is told")
        assert told[-1]["restarts"] == 1


def test_restricted_mode_serves_a_passed_connection_without_rights(volume: Volume, tmp_path: Path) -> None:
    """No capability: the mount was made by another process, which is all that the mode is for the client."""
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        keeper.keep = True
        application = start("overwrite", where)
        try:
            time.sleep(0.3)
            assert pod.end() == 0
            seen = len(keeper.frames)
            pod.start(tmp_path / "state", "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
            keeper.wait("HELLO", seen)
            keeper.attach(volume.url, restricted=True)
            keeper.wait("READY", seen)
            for _ in range(3):
                worker = eventually(lambda: pod.worker, "a worker serves")
                status = Path(f"/proc/{worker}/status").read_text()
                assert "CapEff:\t0000000000000000" in status
                time.sleep(0.3)
                pod.kill_worker()
            time.sleep(0.3)
            end(application)
        finally:
            application.kill()
            application.wait(30)
        assert pod.end() == 0
        assert (tmp_path / "state" / VOLUME).is_dir()
        assert is_mounted(where)


def test_the_probe_asks_the_supervisor_for_what_it_cannot_see(volume: Volume, tmp_path: Path) -> None:
    with sidecar(tmp_path, volume.url) as (_keeper, _pod, _where):
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "volumes" / VOLUME).mkdir(parents=True)
        command = (sys.executable, "-m", "jfs", "ready", "--control", str(elsewhere))
        environment = {**os.environ, "JFS_STATE": str(tmp_path / "state")}
        assert run(*command, env=environment).returncode == 0
        (elsewhere / "volumes" / "another").mkdir()
        said = run(*command, env=environment, check=False)
        assert said.returncode == 1
        assert "volume another is not mounted" in said.stdout
        assert VOLUME + " " not in said.stdout


def test_workers_die_with_their_supervisor(volume: Volume, tmp_path: Path) -> None:
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        worker = eventually(lambda: pod.worker, "a worker serves")
        keeper.wait("DEPOSIT")
        pod.kill()
        eventually(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")
        assert is_mounted(where)


def test_a_full_state_directory_makes_writes_slow_not_wrong(volume: Volume, tmp_path: Path) -> None:
    """A state volume of 24 MiB: more than that is never held back, and nothing of what survives is lost."""
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        keeper.keep = True
        assert pod.end() == 0
        small = tmp_path / "small"
        small.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small))
        try:
            seen = len(keeper.frames)
            shutil.copytree(tmp_path / "state" / VOLUME, small / VOLUME)
            pod.start(small)
            keeper.wait("HELLO", seen)
            keeper.attach(volume.url, "upload-limit=300")
            keeper.wait("READY", seen)
            script = (
                "import hashlib, os, sys\n"
                "digest, fd = hashlib.sha256(), os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
                "for _ in range(96):\n"
                "    piece = os.urandom(1 << 20)\n"
                "    digest.update(piece)\n"
                "    assert os.write(fd, piece) == len(piece)\n"
                "os.close(fd)\n"
                "print(digest.hexdigest())\n"
            )
            writing = subprocess.Popen(
                [sys.executable, "-c", script, str(where / "large")], stdout=subprocess.PIPE, text=True
            )
            time.sleep(1.5)
            pod.kill_worker()
            said = writing.communicate(timeout=60)[0].strip()
            assert writing.returncode == 0
            assert hashlib.sha256((where / "large").read_bytes()).hexdigest() == said
            assert "is full" in pod.log.read_text()
            keeper.keep = False
            assert pod.end() == 0
        finally:
            run("umount", "-l", str(small))


async def test_what_a_dead_client_had_sent_is_not_done_later(volume: Volume) -> None:
    dead, successor = await connect(volume.url), await connect(volume.url)
    try:
        told: list[str] = []
        dead.on_presence = told.append
        before = dead.presence()
        assert await successor.cut_off(before)
        assert await successor.cut_off(before)  # they are gone already
        assert await load_setting(dead)  # it was not dead, and comes back
        assert told == [dead.presence()] != [before]
        assert await successor.cut_off('["another process of the server", 1]')
        assert not await successor.cut_off("")
        assert not await successor.cut_off("rubbish")
    finally:
        await dead.close()
        await successor.close()


def test_a_successor_does_not_wait_for_the_storage(volume: Volume, tmp_path: Path) -> None:
    """Operations that need no data are answered though the storage is gone; the others are once it is back."""
    bucket = tmp_path / "bucket"
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        (where / "file").write_bytes(b"content")
        bucket.rename(tmp_path / "elsewhere")
        seen = len(keeper.frames)
        pod.kill_worker()
        (where / "directory").mkdir()
        assert keeper.wait("STATE", seen)["restarts"] == 1
        (tmp_path / "elsewhere").rename(bucket)
        assert (where / "file").read_bytes() == b"content"
    sound(volume)


def test_a_successor_that_cannot_begin_loses_nothing(volume: Volume, tmp_path: Path) -> None:
    with sidecar(tmp_path, volume.url) as (keeper, pod, where):
        application = start("unlinked", where)
        try:
            time.sleep(0.5)
            tell_redis(volume.url, b"REPLICAOF 127.0.0.1 1")  # refuses to write
            pod.kill_worker()
            assert keeper.wait("ERROR")["retryable"]
            tell_redis(volume.url, b"REPLICAOF NO ONE")
            eventually(lambda: keeper.frames[-1]["type"] in ("STATE", "BEAT"), "the volume is served again")
            time.sleep(0.5)
            end(application)
        finally:
            application.kill()
            application.wait(30)
        sids = {frame["sid"] for frame in keeper.frames if frame["type"] == "STATE"}
        assert len(sids) == 1
    sound(volume)
