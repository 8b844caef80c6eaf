"""Database servers for tests and the benchmark: PostgreSQL, MariaDB, etcd, and a server of TiKV's protocol; each in a folder of its own.

A server listens on a free port of 127.0.0.1 and keeps its data without waiting for a disk: they outlive its process (TiKV's do not).
The kernel ends it with the thread that started it, so start it from one that lasts. `url` names a volume's place, as both clients take it.
"""

import abc
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from e2e import tools

_PATIENCE = 60.0  # seconds


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Server(abc.ABC):
    """A process that serves; use one of the classes below."""

    engine = ""
    user = ""  # who it runs as, when we are root

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._prepare()
        self.restart()

    def restart(self) -> None:
        """Start it (again after `kill`), and wait until it answers."""
        deadline = time.monotonic() + _PATIENCE
        self._process = self._spawn()
        while not self._answers():
            if self._process.poll() is not None and not self._may_be_tried_again():
                raise RuntimeError(f"{self.engine} did not start; its log: {self._log.read_text()[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.engine} does not answer; its log: {self._log.read_text()[-2000:]}")
            if self._process.poll() is not None:
                self._process = self._spawn()
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """The server's process; it may have children."""
        return self._process.pid

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen([*self._as_user(), *self._command()], stdout=log, stderr=log, cwd=self.folder)

    def _may_be_tried_again(self) -> bool:
        """Whether what it died of at its start passes."""
        return False

    def kill(self) -> None:
        """SIGKILL: what it has not given to the kernel is lost."""
        self._process.kill()
        self._process.wait()

    def _as_user(self) -> list[str]:
        dying = ["setpriv", "--pdeathsig", "KILL"]
        if not self.user or os.geteuid() != 0:
            return dying
        return [*dying, f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]

    def _prepare(self) -> None:
        """Make the folder; a server that wants more before its start extends this."""
        self.folder.mkdir(exist_ok=True)

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """What serves `self.port`."""

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    @abc.abstractmethod
    def url(self, name: str) -> str:
        """The metadata address of a new volume's place (letters, digits and _ only)."""

    def stop(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class SqlServer(Server):
    """One that the tools of its package talk to."""

    @abc.abstractmethod
    def tool(self, database: str) -> list[str]:
        """The command that runs statements given to it, and prints rows bare."""

    def run(self, sql: str, database: str = "") -> str:
        """Run a text of statements; what it printed."""
        done = subprocess.run(self.tool(database), input=sql.encode(), capture_output=True, check=False, timeout=60)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return done.stdout.decode(errors="surrogateescape")

    def _init(self, command: list[str]) -> None:
        if self.user and os.geteuid() == 0:
            shutil.chown(self.folder, self.user)
        subprocess.run([*self._as_user(), *command], check=True, capture_output=True, cwd=self.folder)

    def _answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except RuntimeError:
            return False
        return True


class Postgres(SqlServer):
    """PostgreSQL, of the newest version that the machine has."""

    engine = "postgres"
    user = "postgres"

    @property
    def _programs(self) -> Path:
        return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))

    def _prepare(self) -> None:
        super()._prepare()
        options = [
            "-D",
            f"{self.folder}/data",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        self._init([str(self._programs / "initdb"), *options])

    def _command(self) -> list[str]:
        options = ["-D", f"{self.folder}/data", "-p", str(self.port), "-k", str(self.folder), "-c", "fsync=off"]
        options += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        options += ["-c", "dynamic_shared_memory_type=mmap"]  # goes with the folder, also when the server is killed
        return [str(self._programs / "postgres"), *options]

    def _may_be_tried_again(self) -> bool:
        """Processes of the server that was killed end a moment later, and keep its memory until then."""
        return "pre-existing shared memory block" in self._log.read_text()[-500:]

    def tool(self, database: str) -> list[str]:
        psql = [str(self._programs / "psql"), "-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-qAt"]
        return [*psql, database or "postgres"]

    def url(self, name: str) -> str:
        self.run(f"CREATE DATABASE {name}")
        return f"postgres://postgres@127.0.0.1:{self.port}/{name}?sslmode=disable"


class Mariadb(SqlServer):
    """MariaDB."""

    engine = "mysql"
    user = "mysql"

    def _prepare(self) -> None:
        super()._prepare()
        options = ["--no-defaults", f"--datadir={self.folder}/data", "--skip-test-db"]
        self._init(["mariadb-install-db", *options, "--auth-root-authentication-method=normal"])

    def _command(self) -> list[str]:
        command = ["mariadbd", "--no-defaults", f"--datadir={self.folder}/data", f"--socket={self.folder}/s"]
        command += [f"--port={self.port}", "--bind-address=127.0.0.1", f"--pid-file={self.folder}/pid"]
        return [*command, "--innodb-flush-log-at-trx-commit=2"]

    def tool(self, database: str) -> list[str]:
        return ["mariadb", "--no-defaults", "-uroot", "-S", f"{self.folder}/s", "-N", *([database] if database else [])]

    def url(self, name: str) -> str:
        self.run(f"CREATE DATABASE {name}")
        return f"mysql://root@(127.0.0.1:{self.port})/{name}"


class Etcd(Server):
    """etcd, one member; give it a folder in memory, or its fsync decides every time."""

    engine = "etcd"

    def _command(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{free_port()}"
        command = ["etcd", "--data-dir", f"{self.folder}/data", "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        return [*command, "--initial-cluster", f"default={peer}"]

    def url(self, name: str) -> str:
        return f"etcd://127.0.0.1:{self.port}/{name}"


class Tikv(Server):
    """TiKV's protocol over client-go's mock: data in memory, one region (`e2e/tools/tikv`)."""

    engine = "tikv"

    def _command(self) -> list[str]:
        return [str(tools.path("tikv")), "-listen", f"127.0.0.1:{self.port}"]

    def url(self, name: str) -> str:
        return f"tikv://127.0.0.1:{self.port}/{name}"


SERVERS: dict[str, type[Server]] = {kind.engine: kind for kind in (Postgres, Mariadb, Etcd, Tikv)}
