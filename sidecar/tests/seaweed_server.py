"""A real S3 server for tests: SeaweedFS in one process (`weed server -s3`) on free ports in a temporary directory."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret-that-must-not-leak"
BUCKET = "volumes"


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class SeaweedServer:
    """One server with one bucket; tests take prefixes, because every bucket takes volumes of the server."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="seaweed-"))
        config = {
            "identities": [
                {
                    "name": "test",
                    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                },
                {
                    "name": "reader",
                    "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}],
                    "actions": ["Read", "List"],
                },
            ]
        }
        (self.directory / "s3.json").write_text(json.dumps(config))
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(names) + 1)
        self._ports = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
        self._ports += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=False)]
        self.port = ports[3]
        self.log = self.directory / "weed.log"
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    os.path.join(os.path.dirname(sys.executable), "weed"),
                    *("server", f"-dir={self.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
                    *(
                        f"-s3.config={self.directory}/s3.json",
                        "-s3.iam=false",
                        "-s3.autoCreateBucket=false",
                        "-s3.port.iceberg=0",
                        "-s3.port.lance=0",
                    ),
                    *("-master.volumeSizeLimitMB=64", "-volume.max=60", "-volume.minFreeSpace=100MiB", *self._ports),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bucket_url(self) -> str:
        return f"{self.endpoint}/{BUCKET}"

    def wait(self, patience: float = 90.0) -> None:
        """Until an object can be put, which comes a few seconds after the port answers."""
        end = time.monotonic() + patience
        while True:
            try:
                self._try_put()
                return
            except (OSError, urllib.error.URLError) as error:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"SeaweedFS did not start: {error}\n{self.log.read_text()[-3000:]}") from error
                time.sleep(0.2)

    def _try_put(self) -> None:
        from jfs.object.s3_signing import Credentials, Signer

        for path in (f"/{BUCKET}", f"/{BUCKET}/ready"):
            headers: dict[str, str] = {}
            Signer("us-east-1").sign(
                Credentials(ACCESS_KEY, SECRET_KEY), "PUT", f"127.0.0.1:{self.port}", path, headers
            )
            request = urllib.request.Request(self.endpoint + path, data=b"", headers=headers, method="PUT")
            try:
                urllib.request.urlopen(request, timeout=5).close()
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 409:  # the bucket is there
                        raise OSError(f"{path}: {error.code} {error.read()[:300]!r}") from None

    def kill(self) -> None:
        """SIGKILL; the files stay."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again after `kill`, with the same files and ports; `wait` tells when it answers."""
        self.process = self._start()

    def stop(self) -> None:
        """End the server and remove its files. It takes long to end by itself, and what it holds is of no use."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
