"""Two replicas of the webhook behind a real API server: certificates and authorities change under a steady stream of pods, and
other webhooks change what ours has made.
"""

import base64
import json
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection
from typing import Any
from urllib.parse import urlsplit

import pytest
from jfs_webhook.certificates import issue, make_authority, pem
from jfs_webhook.memfile import memory_file
from rotating_webhook import SETTLING
from webhook_control_plane import ControlPlane, control_plane, free_port, until
from webhook_installed import SYSTEM, Installed, installed_chart, replica, sidecar_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

HOST = f"juicefs-webhook.{SYSTEM}.svc"
LAG = 1.0  # seconds between reading what the API server trusts and believing it: API servers hear of changes that late
ENABLED = {"juicefs.io/inject": "enabled"}


@dataclass
class Replicas:
    chart: Installed
    ports: list[int]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with control_plane(tmp_path_factory.mktemp("control-plane")) as cluster:
        chart = installed_chart(cluster)
        ports = [free_port(), free_port()]
        program = (sys.executable, str(Path(__file__).with_name("rotating_webhook.py")))
        with replica(chart, ports[0], free_port(), *program), replica(chart, ports[1], free_port(), *program):
            yield Replicas(chart, ports)


@dataclass
class Watched:
    """What the threads of the load saw; each list and set has one writer at a time or is only added to."""

    failures: list[str] = field(default_factory=list[str])
    admitted: int = 0
    certificates: dict[int, set[str]] = field(default_factory=dict[int, set[str]])  # by replica's port
    authorities: set[str] = field(default_factory=set[str])
    stop: threading.Event = field(default_factory=threading.Event)


def apply_pods(cluster: ControlPlane, pod: dict[str, Any], watched: Watched) -> None:
    """Pods without end, by a dry run on the server: each must come out with its sidecar."""
    config = json.loads(cluster.kubeconfig.read_text())
    address = urlsplit(cluster.url)
    authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"])
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}", "Content-Type": "application/json"}
    context = ssl.create_default_context(cadata=authority.decode())
    connection = HTTPSConnection(str(address.hostname), address.port, context=context)
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?dryRun=All"
    while not watched.stop.is_set():
        connection.request("POST", path, json.dumps(pod), headers)
        answer = connection.getresponse()
        created = json.loads(answer.read())
        if answer.status != 201:
            watched.failures.append(f"{answer.status} {created.get('message')}")
        elif sidecar_of(created) is None:
            watched.failures.append("a pod without its sidecar was let in")
        else:
            watched.admitted += 1
    connection.close()


def shake_hands(cluster: ControlPlane, port: int, watched: Watched) -> None:
    """New connections to a replica, as an API server makes them that knows what was written a second ago."""
    while not watched.stop.is_set():
        configuration = cluster.get("mutatingwebhookconfiguration", "juicefs-webhook")
        bundles = {each["clientConfig"]["caBundle"] for each in configuration["webhooks"]}
        read = time.monotonic()
        watched.authorities |= bundles
        if watched.stop.wait(LAG):
            return
        for bundle in bundles:
            context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
            try:
                with (
                    create_connection(("127.0.0.1", port), timeout=20) as plain,
                    context.wrap_socket(plain, server_hostname=HOST) as tls,
                ):
                    serial = str((tls.getpeercert() or {})["serialNumber"])
                    watched.certificates.setdefault(port, set()).add(serial)
            except ssl.SSLError as error:
                if time.monotonic() - read < SETTLING - 1:  # else this machine was too slow to be an API server
                    watched.failures.append(f"replica {port}: {error}")


def test_certificates_and_authorities_change_under_load(replicas: Replicas) -> None:
    cluster = replicas.chart.cluster
    team = replicas.chart.namespace("rotating", **ENABLED)
    replicas.chart.volume(team, "data")
    watched = Watched()
    pods = [replicas.chart.pod(team, f"web-{number}") for number in range(2)]
    threads = [threading.Thread(target=apply_pods, args=(cluster, pod, watched)) for pod in pods]
    threads += [threading.Thread(target=shake_hands, args=(cluster, port, watched)) for port in replicas.ports]
    for thread in threads:
        thread.start()
    try:

        def rotated() -> bool:
            # each change of the authority shows as two bundles: both of them, then the new one alone
            served = [len(watched.certificates.get(port, ())) for port in replicas.ports]
            return bool(watched.failures) or (len(watched.authorities) >= 5 and min(served) >= 4)

        until(rotated, 240, lambda: f"{len(watched.authorities)} bundles, {watched.certificates}")
    finally:
        watched.stop.set()
        for thread in threads:
            thread.join(60)
    print(f"{watched.admitted} pods admitted, {len(watched.authorities)} bundles, {watched.certificates}")
    assert watched.failures == []
    assert watched.admitted > 100


# --- other webhooks ------------------------------------------------------------------------------------------------


def strip(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Takes away the field that makes a sidecar, as a webhook built before sidecars does, and what only sidecars may have."""
    inits = pod["spec"].get("initContainers") or []
    return [
        {"op": "remove", "path": f"/spec/initContainers/{index}/{name}"}
        for index, each in enumerate(inits)
        for name in ("restartPolicy", "startupProbe")
        if name in each
    ]


def put_before(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Wants its own init container to be the first, always."""
    inits = pod["spec"].get("initContainers") or []
    if not inits or inits[0]["name"] == "first":
        return []
    mine = [{"op": "remove", "path": f"/spec/initContainers/{i}"} for i, c in enumerate(inits) if c["name"] == "first"]
    return [*mine, {"op": "add", "path": "/spec/initContainers/0", "value": {"name": "first", "image": "x"}}]


def put_mesh_before(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """A service mesh: a native sidecar of its own in front of everything."""
    inits = pod["spec"].get("initContainers") or []
    if any(each["name"] == "istio-proxy" for each in inits):
        return []
    proxy = {"name": "istio-proxy", "image": "x", "restartPolicy": "Always"}
    return [{"op": "add", "path": "/spec/initContainers/0", "value": proxy}]


def add_container(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """An agent beside the application, and a limit for every container, as policies give it."""
    if any(each["name"] == "agent" for each in pod["spec"]["containers"]):
        return []
    inits = pod["spec"].get("initContainers") or []
    return [
        {"op": "add", "path": "/spec/containers/-", "value": {"name": "agent", "image": "x"}},
        *(
            {"op": "add", "path": f"/spec/initContainers/{index}/env", "value": [{"name": "AGENT", "value": "on"}]}
            for index, _ in enumerate(inits)
        ),
    ]


@contextmanager
def another_webhook(
    cluster: ControlPlane, change: Callable[[dict[str, Any]], list[Any]], again: bool
) -> Iterator[None]:
    """A mutating webhook that is asked after ours; `again`: also after ours has been asked a second time."""
    now = datetime.now(UTC)
    authority, authority_key = make_authority(now, timedelta(hours=1))
    certificate, key = issue(authority, authority_key, ["localhost"], now, timedelta(hours=1))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = review["request"]
            response: dict[str, Any] = {"uid": request["uid"], "allowed": True}
            if operations := change(request["object"]):
                response |= {
                    "patchType": "JSONPatch",
                    "patch": base64.b64encode(json.dumps(operations).encode()).decode(),
                }
            body = json.dumps(
                {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the test asks the API server what came of it."""

    from cryptography.hazmat.primitives import serialization

    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with memory_file(pem(certificate)) as certificate_file, memory_file(key_pem) as key_file:
        context.load_cert_chain(certificate_file, key_file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zz-another"},  # they are asked in the order of their names
        "webhooks": [
            {
                "name": "another.example.org",
                "clientConfig": {
                    "url": f"https://localhost:{server.server_port}/",
                    "caBundle": base64.b64encode(pem(authority)).decode(),
                },
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"another": "yes"}},
                "reinvocationPolicy": "IfNeeded" if again else "Never",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }
    try:
        answer = cluster.create(configuration)
        assert answer.returncode == 0, answer.stderr
        yield
    finally:
        cluster.kubectl("delete", "mutatingwebhookconfiguration", "zz-another", "--ignore-not-found")
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("change", "again", "sentence"),
    [
        (strip, False, ""),
        (strip, True, "has lost its restartPolicy: Always"),
        (put_before, False, ""),
        (put_before, True, "init container first would run before juicefs-sidecar"),
        (put_mesh_before, False, ""),
        (put_mesh_before, True, ""),
        (add_container, False, ""),
        (add_container, True, ""),
    ],
)
def test_what_later_webhooks_do_is_mended_or_told(
    replicas: Replicas, change: Callable[[dict[str, Any]], list[Any]], again: bool, sentence: str
) -> None:
    """Ours is asked again after them and puts right what it can; who insists is told on by the last look."""
    cluster = replicas.chart.cluster
    name = f"another-{change.__name__.replace('_', '-')}-{again}".lower()
    team = replicas.chart.namespace(name, another="yes", **ENABLED)
    replicas.chart.volume(team, "data")
    pod = replicas.chart.pod(team, "web")
    with another_webhook(cluster, change, again):
        seen: list[dict[str, Any]] = []

        def asked() -> bool:
            # the API server hears of a configuration a moment after it was made
            answer = cluster.create(pod, "--dry-run=server")
            if sentence:
                return sentence in answer.stderr
            assert answer.returncode == 0, answer.stderr
            seen[:] = [json.loads(answer.stdout)]
            return changed(seen[0], change)

        until(asked, 30, lambda: f"not as expected: {seen}")
    if not sentence:
        inits = seen[0]["spec"]["initContainers"]
        ordinary = [each["name"] for each in inits if each.get("restartPolicy") != "Always"]
        assert [each["name"] for each in inits].index("juicefs-sidecar") < min(
            [each["name"] for each in inits].index(name) for name in ordinary
        )
        sidecar = sidecar_of(seen[0])
        assert sidecar is not None
        assert sidecar["restartPolicy"] == "Always"


def changed(pod: dict[str, Any], change: Callable[..., Any]) -> bool:
    """Whether the other webhook was asked: what it adds is there (or what it takes away was put back, which shows nowhere)."""
    wanted = {put_before: "first", put_mesh_before: "istio-proxy", add_container: "agent"}.get(change)
    found = [each["name"] for each in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])]
    return wanted is None or wanted in found
