"""Rounds of writer → kill -9 → mount again → verify, on real servers that can be killed and started again.

A `Rig` has a database, an object storage, a volume and one mount at a time. A round works like this: writers (`crash_writer`)
work on the mount; at a random instant a victim dies by SIGKILL: the client itself, or first the database or the object storage, which
comes back and after which the same mount must go on. In the end the client is killed, the volume is mounted anew, each
writer's directory is compared with its log, and the volume is examined: by our fsck and gc, and by the real client's fsck.
"""

import asyncio
import contextlib
import json
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from crash_model import Found, Step, Tree, candidates
from jfs.check.examination import examine
from jfs.check.objects import Expectation, compare, confirm
from jfs.meta.connect import connect
from jfs.object.connect import open_volume
from mount_parts import JFS, REAL, Mounted, Volume, eventually, free_port, run
from seaweed_server import ACCESS_KEY, SECRET_KEY, SeaweedServer

from e2e.databases import SERVERS, Server

WRITERS: Final = 2
_WRITER: Final = str(Path(__file__).with_name("crash_writer.py"))
_SCANNED: Final = re.compile(r"scanned .*, (\d+) leaked ")


class KillableRedis:
    """A Redis that syncs each command to its file before it answers; it can be killed and comes back at the same port."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._command += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(directory), *options]
        self.process = self._start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _start(self, *options: str, wait: bool = True) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([*self._command, *options], stdout=subprocess.DEVNULL)
        try:
            if wait:
                eventually(self._answers, "redis-server answers")
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(100).startswith(b"+PONG")
        return False

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def restart(self, *options: str, wait: bool = True) -> None:
        """Start it again after `kill`; returns when it answers, unless it is not to *wait*."""
        self.process = self._start(*options, wait=wait)

    def ask(self, *command: str) -> str:
        """The answer of redis-cli."""
        return run("redis-cli", "-p", str(self.port), *command).stdout.strip()


class Rig:
    """One volume under test. *engine* is `redis`, `sqlite3` or one of `e2e.databases`, *storage* `file` or `s3`; *seed* decides
    everything random."""

    def __init__(self, folder: Path, engine: str, storage: str, seed: int, *, thorough: bool) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.thorough = thorough  # whether the programs are run after every fifth round, not only after the last one
        self.database: KillableRedis | Server | None = None
        self.weed: SeaweedServer | None = None
        self.mount: Mounted | None = None
        self.rounds = 0
        self.acknowledged = 0
        self.leaked = 0
        self.killed: dict[str, int] = {}
        self._trees = [Tree() for _ in range(WRITERS)]
        self._storage = storage
        self._engine = engine
        if engine == "redis":
            self.database = KillableRedis(folder / "redis")
            url = f"{self.database.url}/1"
        elif engine == "sqlite3":
            url = f"sqlite3://{folder}/meta.db"
        else:  # other users' servers, and sockets, whose paths must be short
            self.database = SERVERS[engine](Path(tempfile.mkdtemp(prefix="jfs-crash-")))
            url = self.database.url("crash")
        self.volume = Volume(url, folder / "bucket")

    def start(self) -> None:
        """Format, mount, make the writers' directories."""
        options = ["--block-size", "64K", "--trash-days", "0"]
        if self._storage == "s3":
            self.weed = SeaweedServer()
            self.weed.wait()
            command = [*JFS, "format", "--storage", "s3", "--bucket", self.weed.bucket_url, *options]
            run(
                *command,
                self.volume.url,
                self.volume.name,
                env={**os.environ, "ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY},
            )
        else:
            self.volume.format(*options)
        self.remount()
        for number in range(WRITERS):
            self.directory(number).mkdir()

    def close(self) -> None:
        """End everything."""
        if self.mount is not None:
            self.mount.kill()
        if isinstance(self.database, Server):
            self.database.stop()
        elif self.database is not None:
            self.database.kill()
        if self.weed is not None:
            self.weed.stop()

    @property
    def where(self) -> Path:
        return self.folder / "mnt"

    def directory(self, number: int) -> Path:
        """Of a writer."""
        return self.where / f"w{number}"

    def remount(self) -> None:
        """A new client at the same place. Sessions end soon, so that dead ones are cleared while the rounds go on."""
        options = ("--heartbeat", "1s", "--enable-xattr", "--attr-cache", "0", "--entry-cache", "0")
        self.mount = Mounted(self.volume, self.where, *options)

    # -- one round ----------------------------------------------------------------------------------------------

    def victims(self) -> list[str]:
        """What can be killed."""
        found = ["client"]
        if self.database is not None:
            found.append("database")
        if self.weed is not None:
            found.append("storage")
        return found

    def round(self, victim: str) -> None:
        """See the module; AssertionError says what was lost or wrong."""
        assert self.mount is not None
        self.rounds += 1
        self.killed[victim] = self.killed.get(victim, 0) + 1
        writers = [self._write(number) for number in range(WRITERS)]
        try:
            eventually(lambda: all(self._lines(number) > 10 for number in range(WRITERS)), "the writers work")
            time.sleep(self.random.uniform(0.0, 0.7))
            if victim == "database":
                assert self.database is not None
                self._outage(self.database)
            elif victim == "storage":
                assert self.weed is not None
                self._outage(self.weed)
            self.mount.kill()
            for writer in writers:
                _, said = writer.communicate(timeout=60)
                assert writer.returncode == 0, said.decode()
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()
        assert "Traceback" not in self.mount.log.read_text(), self.mount.log.read_text()
        self.remount()
        for number in range(WRITERS):
            self._verify(number)
        self.examine(programs=self.thorough and self.rounds % 5 == 0)

    def _outage(self, server: KillableRedis | Server | SeaweedServer) -> None:
        server.kill()
        time.sleep(self.random.choice([0.0, self.random.uniform(0, 1), self.random.uniform(0, 3)]))
        server.restart()
        if isinstance(server, SeaweedServer):
            server.wait()
        before = [self._lines(number) for number in range(WRITERS)]
        eventually(
            lambda: all(self._lines(number) > lines + 20 for number, lines in enumerate(before)),
            "the mount goes on after an outage",
            90,
        )
        time.sleep(self.random.uniform(0.0, 0.3))

    def _write(self, number: int) -> "subprocess.Popen[bytes]":
        log = self._log(number)
        log.unlink(missing_ok=True)
        state = self.folder / f"state{number}"
        state.write_bytes(pickle.dumps(self._trees[number]))
        seed = self.rounds * 10 + number
        command = [sys.executable, _WRITER, str(self.directory(number)), str(log), str(seed), str(state)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _log(self, number: int) -> Path:
        return self.folder / f"log{number}"

    def _lines(self, number: int) -> int:
        try:
            return self._log(number).read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def _steps(self, number: int) -> list[Step]:
        return [json.loads(line) for line in self._log(number).read_text().splitlines()]

    def _verify(self, number: int) -> None:
        steps = self._steps(number)
        violations = [step for step in steps if "violation" in step]
        assert not violations, violations
        self.acknowledged += sum(step.get("errno") == 0 for step in steps)
        possible = candidates(self._trees[number], [step for step in steps if "op" in step or "errno" in step])
        found = look(self.directory(number))
        faults = [tree.fault(found) for tree in possible]
        if all(faults):
            kept = self.folder / f"failed{number}.jsonl"
            kept.write_bytes(self._log(number).read_bytes())
            raise AssertionError(f"round {self.rounds}, writer {number}: {faults}; its log is {kept}")
        self._trees[number] = found.tree()

    # -- the volume as a whole ----------------------------------------------------------------------------------

    def examine(self, *, programs: bool) -> None:
        """The metadata are sound, no object is missing, and what is leaked is found; with *programs* by the commands, too."""
        damages, lost = asyncio.run(_survey(self.volume.url))
        if self._engine == "etcd":  # where usage is stored once a second: see SEMANTICS
            damages = [damage for damage in damages if damage.kind not in ("usage", "counter")]
        assert not damages, damages
        assert not lost, lost
        if not programs:
            return
        if self._engine == "etcd":
            run(*JFS, "fsck", self.volume.url, "--repair", check=False)
        checked = run(*JFS, "fsck", self.volume.url, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        leaked = self._collect()
        self.leaked += leaked
        if leaked:
            self._collect("--delete")
            # The mount may be clearing a dead session: objects are deleted after the records that name them.
            eventually(lambda: self._collect() == 0, "what was leaked is deleted")
        # It believes a list that it read before the mount compacted the chunk, and then misses the old objects: it may look again.
        eventually(self._really_sound, f"the real client finds nothing wrong with {self.volume.url}")

    def _really_sound(self) -> bool:
        real = run(REAL, "fsck", self.volume.url, check=False)
        return real.returncode == 0 and "<ERROR>" not in real.stdout + real.stderr

    def _collect(self, *options: str) -> int:
        """`jfs gc`: how many objects are leaked. No writer is at work, so that nothing is too young."""
        collected = run(
            *JFS, "gc", self.volume.url, *options, check=False, env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"}
        )
        said = collected.stdout + collected.stderr
        line = _SCANNED.search(said)
        assert line is not None, said
        leaked = int(line.group(1))
        assert collected.returncode == (1 if leaked and not options else 0), said
        return leaked


async def _survey(url: str) -> tuple[list[Any], list[Any]]:
    """Damages of the metadata, and blocks that are missing or have a wrong size."""
    store = await connect(url)
    try:
        facts, damages = await examine(store)
        storage = open_volume(facts.setting)
        try:
            listing = await compare(storage, Expectation(facts), young_from=0)
            lost = [block async for block in confirm(storage, store, listing.absent)]
        finally:
            await storage.close()
        damages = [damage for damage in damages if not damage.note]
        return damages, [*lost, *listing.wrong_sizes]
    finally:
        await store.close()


def look(top: Path) -> Found:
    """The tree below *top*."""

    def unreadable(error: OSError) -> None:
        raise error

    found = Found()
    for folder, directories, files in os.walk(top, onerror=unreadable):
        for name in directories:
            found.directories.add(os.path.relpath(os.path.join(folder, name), top))
        for name in files:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, top)
            if os.path.islink(path):
                found.symlinks[key] = os.readlink(path)
                continue
            with open(path, "rb") as file:
                found.files[key] = file.read()
            found.inodes[key] = os.stat(path).st_ino
            with contextlib.suppress(OSError):
                found.xattrs[key] = os.getxattr(path, "user.k").decode()
    return found


@contextlib.contextmanager
def rig(folder: Path, engine: str, storage: str, seed: int, *, thorough: bool) -> Iterator[Rig]:
    """A started rig, closed at the end."""
    made = Rig(folder, engine, storage, seed, thorough=thorough)
    try:
        made.start()
        yield made
    finally:
        made.close()
