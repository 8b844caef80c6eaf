"""A real API server for the operator's tests: etcd, kube-apiserver and the controllers that bind and protect volumes.

No kubelet and no node; five seconds to start, on free ports of the loopback, everything in one folder. The operator's user and the
node service's have exactly the rights that the chart gives their ServiceAccounts. Also here: the operator as a process, and a `jfs`
program that keeps its file systems in a folder and writes down how it was called.
"""

import base64
import json
import re
import secrets
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jfs_operator import kube
from jfs_operator.api import Object

from e2e import tools

CHART = Path(__file__).parents[2] / "charts" / "juicefs-sidecar"
OPERATOR_NAMESPACE = "juicefs-system"
_CONTROLLERS = ",".join(
    f"{name}-controller"
    for name in (
        "persistentvolume-binder",
        "persistentvolume-protection",
        "persistentvolumeclaim-protection",
        "namespace",
    )
)


def until(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `condition`; AssertionError when none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


class ControlPlane:
    """Start with `start`, end with `stop`. `api` has all rights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._tokens = {user: secrets.token_hex(16) for user in ("admin", "operator", "node")}
        self._port = _free_port()

    def start(self) -> None:
        self._write_credentials()
        client, peer, kubernetes = _free_port(), _free_port(), str(tools.path("onenode"))
        etcd = f"http://127.0.0.1:{client}"
        self._run(
            "etcd",
            "etcd",
            f"--data-dir={self._folder}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
        )
        self._run(
            "kube-apiserver",
            kubernetes,
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self._folder}",
            f"--token-auth-file={self._folder}/tokens.csv",
            "--service-cluster-ip-range=10.99.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._folder}/sa.pub",
            f"--service-account-signing-key-file={self._folder}/sa.key",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes any
            "--endpoint-reconciler-type=none",
        )
        until("the API server is ready", self._ready)
        for user in self._tokens:
            self._write_kubeconfig(user)
        self.api = kube.connect(str(self.kubeconfig("admin")))
        self._run(
            "kube-controller-manager",
            kubernetes,
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('admin')}",
            f"--controllers={_CONTROLLERS}",
            "--leader-elect=false",
            "--secure-port=0",
        )
        self._install()

    def stop(self) -> None:
        if hasattr(self, "api"):
            self.api.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def token(self, user: str) -> Path:
        """A file with the user's token."""
        place = self._folder / f"{user}.token"
        place.write_text(self._tokens[user])
        return place

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca(self) -> Path:
        return self._folder / "apiserver.crt"

    def kubeconfig(self, user: str) -> Path:
        return self._folder / f"{user}.kubeconfig"

    def table(self, path: str) -> dict[str, str]:
        """The first row of what `kubectl get -o wide` prints of a collection, by column."""
        answer = self.request("GET", path, accept="application/json;as=Table;v=v1;g=meta.k8s.io")[1]
        columns = [column["name"] for column in answer["columnDefinitions"]]
        return dict(zip(columns, map(str, answer["rows"][0]["cells"]), strict=True)) if answer.get("rows") else {}

    def request(
        self, method: str, path: str, body: Object | None = None, accept: str = "application/json"
    ) -> tuple[int, Any]:
        """Any request by the administrator: status code and answer."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._tokens['admin']}",
                "Content-Type": "application/json",
                "Accept": accept,
            },
        )
        if method == "PATCH":
            request.add_header("Content-Type", "application/merge-patch+json")
        try:
            with urllib.request.urlopen(request, context=self._tls(), timeout=20) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else {"message": text}

    def create(self, path: str, body: Object) -> Object:
        """POST, with the namespace made when it is missing; AssertionError unless it is created."""
        status, answer = self.request("POST", path, body)
        assert status == 201, answer
        created: Object = answer
        return created

    def namespace(self, name: str) -> str:
        self.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def _install(self) -> None:
        """The namespace, the CRDs as plain YAML, and the operator's rights as the chart has them."""
        self.namespace(OPERATOR_NAMESPACE)
        for name in ("juicefsvolumes", "juicefssecrets", "juicefsnodes"):
            crd = yaml.safe_load((CHART / "templates" / f"crd-{name}.yaml").read_text())
            self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
            until(
                f"{name} are served",
                lambda name=name: self.request("GET", f"/apis/juicefs.io/v1alpha1/{name}")[0] == 200,
            )
        rendered = subprocess.run(
            [
                str(tools.path("helm")),
                "template",
                "juicefs",
                str(CHART),
                f"--namespace={OPERATOR_NAMESPACE}",
                f"--kube-version={tools.KUBERNETES_VERSION}",
                "--show-only=templates/operator-rbac.yaml",
                "--show-only=templates/node-rbac.yaml",
                "--set=rollout.enabled=true",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for document in yaml.safe_load_all(rendered):
            if document is None or document["kind"] == "ServiceAccount":
                continue
            scope = "" if document["kind"].startswith("Cluster") else f"namespaces/{OPERATOR_NAMESPACE}/"
            self.create(f"/apis/rbac.authorization.k8s.io/v1/{scope}{document['kind'].lower()}s", document)

    def _ready(self) -> bool:
        ended = [process.args for process in self._processes if process.poll() is not None]
        assert not ended, f"ended: {ended}; see the logs in {self._folder}"
        try:
            return self.request("GET", "/api/v1/namespaces/default")[0] == 200
        except (OSError, ValueError):
            return False

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def _run(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _write_credentials(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self._folder / "sa.key").write_bytes(private)
        (self._folder / "sa.pub").write_bytes(public)
        lines = [f'{self._tokens["admin"]},admin,1,"system:masters"']
        for number, part in enumerate(("operator", "node"), 2):
            account = f"system:serviceaccount:{OPERATOR_NAMESPACE}:juicefs-{part}"
            lines.append(f'{self._tokens[part]},{account},{number},"system:serviceaccounts"')
        (self._folder / "tokens.csv").write_text("\n".join(lines) + "\n")

    def _write_kubeconfig(self, user: str) -> None:
        cluster = {
            "server": self.url,
            "certificate-authority": str(self.ca),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        self.kubeconfig(user).write_text(json.dumps(document))


# Keeps each file system as a file named by the hash of its metadata URL; `trouble` and `hold` steer it.
_JFS = """#!{python}
import hashlib, json, os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
document = json.load(sys.stdin)
command = sys.argv[1]
with (folder / "calls").open("a") as calls:
    call = {{"argv": sys.argv[1:], "environ": dict(os.environ), "name": document["name"], "path": document.get("path")}}
    calls.write(json.dumps(call) + "\\n")
while command == "format" and (folder / "hold").exists():
    time.sleep(0.05)
if (folder / "trouble").exists():
    sys.exit("no connection to " + document["metaurl"] + " with " + document.get("secret-key", ""))
place = folder / ("fs-" + hashlib.sha256(document["metaurl"].encode()).hexdigest()[:16])
found = json.loads(place.read_text()) if place.exists() else None
if command == "format":
    made = found is None
    found = found or {{"name": document["name"], "uuid": document["uuid"]}}
    place.with_suffix(".new").write_text(json.dumps(found))
    place.with_suffix(".new").rename(place)
    print(json.dumps({{**found, "formatted": made}}))
elif command == "status":
    setting = found and {{"Name": found["name"], "UUID": found["uuid"]}}
    print(json.dumps({{"metadata": {{"ok": True}}, "storage": {{"ok": True}}, "setting": setting}}))
elif command == "destroy":
    if found and found["uuid"] != document["uuid"]:
        sys.exit("the volume has another UUID")
    place.unlink(missing_ok=True)
"""


class FakeJfsProgram:
    """A `jfs` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "jfs"
        self.path.write_text(_JFS.format(python=sys.executable))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name: str) -> list[str]:
        """The commands so far on the file system of that name, with the path of a removal."""
        found = []
        if (self._folder / "calls").exists():
            for line in (self._folder / "calls").read_text().splitlines():
                call = json.loads(line)
                if call["name"] == name:
                    found.append(" ".join(filter(None, (call["argv"][0], call["path"]))))
        return found

    def everything_seen(self) -> str:
        """Arguments and environment of every call."""
        return (self._folder / "calls").read_text()

    def flag(self, name: str, on: bool) -> None:
        if on:
            (self._folder / name).touch()
        else:
            (self._folder / name).unlink(missing_ok=True)


class OperatorProcess:
    """`jfs-operator` as the chart runs it, with the rights the chart gives it."""

    def __init__(self, plane: ControlPlane, jfs: Path, folder: Path) -> None:
        self._plane = plane
        self._jfs = jfs
        self._log = folder / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, *more: str, wait: bool = True) -> None:
        """`more` are arguments."""
        self.port = _free_port()
        command = [
            str(Path(sys.executable).parent / "jfs-operator"),
            f"--namespace={OPERATOR_NAMESPACE}",
            f"--kubeconfig={self._plane.kubeconfig('operator')}",
            f"--jfs={self._jfs}",
            f"--health=127.0.0.1:{self.port}",
            "--resync=5",
            "--log-level=debug",
            *more,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            until("the operator is ready", lambda: self.probe("/readyz") == 200)

    def probe(self, path: str) -> int:
        """Status code of a probe; 0 when nothing answers."""
        assert self._process is not None
        assert self._process.poll() is None, f"the operator ended: {self.log()[-2000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(60)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self._log.read_text()

    def environment(self) -> str:
        """Its command line and environment."""
        assert self._process is not None
        place = Path(f"/proc/{self._process.pid}")
        return (place / "cmdline").read_text() + (place / "environ").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def secret_free(text: str, values: list[str]) -> list[str]:
    """Which of the values occur in the text, plainly or as base64 (any alignment)."""
    found = []
    for value in values:
        spellings = [value]
        for pad in range(3):
            encoded = base64.b64encode(b"x" * pad + value.encode()).decode()
            spellings.append(re.sub("=+$", "", encoded)[4 if pad else 0 : -2])
        found += [spelling for spelling in spellings if spelling in text]
    return found
