"""The back ends of a run: a Redis of its own, and SeaweedFS as S3 server. Both live in the scratch folder and end with the run."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "bench", "bench-secret"
BIN = Path(sys.executable).parent
_PATIENCE = 60.0  # seconds


class Redis:
    """On a socket, with an append-only file like one that holds metadata."""

    def __init__(self, scratch: Path) -> None:
        folder = scratch / "redis"
        folder.mkdir()
        self.socket = folder / "s"
        options = [
            "--port",
            "0",
            "--unixsocket",
            f"{self.socket}",
            "--dir",
            f"{folder}",
            "--appendonly",
            "yes",
            "--save",
            "",
        ]
        self._process = subprocess.Popen(
            ["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _PATIENCE
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start; is the package redis-server installed?")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self._process.pid

    def url(self, number: int) -> str:
        """The metadata URL of database *number*."""
        return f"unix://{self.socket}?db={number}"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Seaweed:
    """`weed server -s3` with one set of keys; a bucket for each volume."""

    def __init__(self, scratch: Path) -> None:
        folder = scratch / "weed"
        folder.mkdir()
        identity = {
            "name": "bench",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master", "volume", "filer", "s3")
        ports = _free_ports(2 * len(names))
        options = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
        options += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)]
        options += [f"-s3.config={folder}/s3.json", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        options += ["-master.volumeSizeLimitMB=1024", "-volume.max=60"]
        self.endpoint = f"http://127.0.0.1:{ports[3]}"
        self._log = folder / "log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "weed", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start; its log: {self._log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/status", timeout=2):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def bucket(self, volume: str) -> str:
        """The bucket URL of a volume."""
        return f"{self.endpoint}/{volume}-bench"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def keys() -> dict[str, str]:
    """The environment in which `format` finds the keys of the S3 server."""
    return {**os.environ, "ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY}


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
