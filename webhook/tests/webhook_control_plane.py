"""A real kube-apiserver with its etcd, without a node: what the chart and the webhook are to an API server is true there.

RBAC, admission, validation and Helm work as in any cluster; pods are never scheduled. Services are reached by their
EndpointSlices (`--enable-aggregator-routing`), so a Service of a test may point to a process on this machine.
"""

import base64
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from e2e import tools

KUBECTL = Path(sys.executable).with_name("kubectl")
START_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody has, below those that the kernel gives to outgoing connections: it is bound only seconds later."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        try:
            with socket.create_server(("0.0.0.0", port)):
                return port
        except OSError:
            continue


def own_address() -> str:
    """An address of this machine that is not the loopback, which no EndpointSlice may name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, only chooses the route
        address: str = probe.getsockname()[0]
        return address


def until(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@contextmanager
def process(arguments: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the background, ended with the block; its output goes to the log."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment}
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


class ControlPlane:
    """The API server as its administrator sees it."""

    def __init__(self, folder: Path, url: str, authority: bytes, token: str) -> None:
        self.folder = folder
        self.url = url
        self._authority = authority
        self.kubeconfig = self.kubeconfig_for("admin", token)

    def kubeconfig_for(self, name: str, token: str) -> Path:
        """A kubeconfig in JSON for the bearer of a token."""
        authority = base64.b64encode(self._authority).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def service_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig with the rights of a ServiceAccount and nothing else."""
        token = self.kubectl("create", "token", name, "-n", namespace).strip()
        return self.kubeconfig_for(f"{namespace}-{name}", token)

    def run(self, program: Path, *arguments: str, document: Any = None) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "HOME": str(self.folder),
            "HELM_CACHE_HOME": str(self.folder / "helm"),
        }
        return subprocess.run(
            [str(program), *arguments],
            input=None if document is None else json.dumps(document),
            stdin=subprocess.DEVNULL if document is None else None,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=120,
        )

    def kubectl(self, *arguments: str, document: Any = None) -> str:
        answer = self.run(KUBECTL, *arguments, document=document)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def helm(self, *arguments: str) -> str:
        answer = self.run(tools.path("helm"), *arguments)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def create(self, document: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
        """`kubectl create`; the answer's standard output is the created object."""
        return self.run(KUBECTL, "create", "-o", "json", "-f", "-", *arguments, document=document)

    def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "-o", "json", *arguments))
        return found


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Start etcd and the API server in the folder; both end with the block."""
    etcd = shutil.which("etcd")
    assert etcd, "etcd is not installed (Debian's package etcd-server)"
    client, peer, port = free_port(), free_port(), free_port()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "sa.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,1,system:masters\n")
    certificates = folder / "certificates"
    certificates.mkdir()
    with ExitStack() as stack:
        stack.enter_context(
            process(
                [
                    etcd,
                    f"--data-dir={folder / 'etcd'}",
                    f"--listen-client-urls=http://127.0.0.1:{client}",
                    f"--advertise-client-urls=http://127.0.0.1:{client}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-cluster=default=http://127.0.0.1:{peer}",
                ],
                folder / "etcd.log",
            )
        )
        server = stack.enter_context(
            process(
                [
                    str(tools.path("onenode")),
                    "kube-apiserver",
                    f"--etcd-servers=http://127.0.0.1:{client}",
                    "--bind-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--cert-dir={certificates}",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={folder / 'sa.key'}",
                    f"--service-account-signing-key-file={folder / 'sa.key'}",
                    f"--token-auth-file={folder / 'tokens.csv'}",
                    "--authorization-mode=RBAC",
                    "--allow-privileged=true",
                    "--service-cluster-ip-range=10.98.0.0/16",
                    "--enable-aggregator-routing=true",
                    # no address of ours goes into the Service `kubernetes`
                    "--endpoint-reconciler-type=none",
                ],
                folder / "apiserver.log",
            )
        )
        url = f"https://127.0.0.1:{port}"
        authority = certificates / "apiserver.crt"
        until(
            lambda: server.poll() is None and _is_ready(url, authority, token),
            START_SECONDS,
            lambda: (folder / "apiserver.log").read_text()[-3000:],
        )
        yield ControlPlane(folder, url, authority.read_bytes(), token)


def _is_ready(url: str, authority: Path, token: str) -> bool:
    if not authority.exists():
        return False
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
