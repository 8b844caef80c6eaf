"""PostgreSQL and MariaDB for tests: one server of each for the whole run, a database of its own for each test.

A server is started when the first test asks for it, in a temporary directory, on a Unix socket and a free port; the kernel ends
it with the test process.
"""

import asyncio
import atexit
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jfs.errors import JfsError

_NUMBERS = itertools.count(1)
_PG_BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/usr/bin"))


@dataclass(frozen=True)
class SqlServer:
    """A running server: its directory, and its port on 127.0.0.1."""

    engine: str
    folder: Path
    port: int

    def url(self, database: str) -> str:
        """The metadata address of a database, as both clients take it."""
        if self.engine == "postgres":
            return f"postgres://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"
        return f"mysql://root@(127.0.0.1:{self.port})/{database}"

    def run(self, sql: str, database: str = "") -> str:
        """Run a text of statements by the server's own tool; what it printed."""
        if self.engine == "postgres":
            command = [
                _PG_BIN / "psql",
                "-h",
                self.folder,
                "-p",
                str(self.port),
                "-U",
                "postgres",
                "-qAt",
                database or "postgres",
            ]
        else:
            command = [
                "mariadb",
                "--no-defaults",
                "-uroot",
                "-S",
                self.folder / "s",
                "-N",
                *([database] if database else []),
            ]
        done = subprocess.run(command, input=sql.encode(), capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(errors="surrogateescape")

    def new_database(self) -> str:
        """Make a database; its name."""
        name = f"jfs{os.getpid()}_{next(_NUMBERS)}"
        self.run(f"CREATE DATABASE {name}")
        return name


def _as_user(name: str) -> list[str]:
    dying = ["setpriv", "--pdeathsig", "KILL"]
    return [*dying, f"--reuid={name}", f"--regid={name}", "--clear-groups"] if os.geteuid() == 0 else dying


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@cache
def sql_server(engine: str) -> SqlServer:
    """The server of this test run."""
    folder = Path(tempfile.mkdtemp(prefix=f"jfs-{engine}-"))  # a socket's path must be short
    server = SqlServer(engine, folder, _free_port())
    user = "postgres" if engine == "postgres" else "mysql"
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    data = folder / "data"
    if engine == "postgres":
        prepare = [
            _PG_BIN / "initdb",
            "-D",
            data,
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        start = [_PG_BIN / "postgres", "-D", data, "-p", str(server.port), "-k", folder, "-c", "fsync=off"]
        start += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
    else:
        prepare = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        prepare += ["--auth-root-authentication-method=normal"]
        start = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={folder}/s", f"--port={server.port}"]
        start += ["--bind-address=127.0.0.1", f"--pid-file={folder}/pid", "--innodb-flush-log-at-trx-commit=0"]
    subprocess.run(
        [*_as_user(user), *prepare], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([*_as_user(user), *start], stdout=log, stderr=log, cwd=folder)
    log.close()

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return server


async def accepting(engine: str) -> SqlServer:
    """The server, when it accepts connections."""
    server = sql_server(engine)  # not in a thread: the kernel would end the server with it
    async with asyncio.timeout(30):
        while True:
            try:
                await asyncio.to_thread(server.run, "SELECT 1")
                return server
            except (AssertionError, JfsError):
                await asyncio.sleep(0.1)
