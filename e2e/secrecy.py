"""Everything in a one-node cluster that people or programs can read and that may hold no secret: where it does, by name.

Looked at are: argument lists and environments of all processes of the node and its pods; logs of all containers, of those
before them, and of the node's components; every object but Secrets, events and annotations among them; the driver's
files on the node and the volumes that a sidecar writes. The back ends' own pods are left out: they are given their
passwords as anybody gives them.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e import install
from e2e.cluster import Cluster
from e2e.cluster.layout import KUBELET_ROOT

_OBJECTS = (
    "events,pods,persistentvolumes,persistentvolumeclaims,juicefsvolumes,juicefssecrets,configmaps,deployments,daemonsets,"
    "replicasets,jobs,cronjobs,leases,namespaces,nodes,storageclasses,csinodes,csidrivers,volumeattachments,"
    "mutatingwebhookconfigurations,validatingwebhookconfigurations"
)


def found(cluster: Cluster, secrets: Sequence[str]) -> list[str]:
    """Places that hold one of the secrets, each with the number of the secret (never the secret itself)."""
    wanted = [secret.encode() for secret in secrets]
    return [
        f"{place}: secret {number}"
        for place, content in _contents(cluster)
        for number, secret in enumerate(wanted)
        if secret in content
    ]


def _contents(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    yield from _processes(cluster)
    yield from _logs(cluster)
    yield "objects", cluster.kubectl()("get", _OBJECTS, "-A", "-o", "yaml", "--show-managed-fields").encode()
    yield from _files(cluster)


def _processes(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    node = os.readlink(f"/proc/{cluster.pid()}/ns/pid")
    backends = [pod["metadata"]["uid"] for pod in cluster.kubectl(install.BACKENDS_NAMESPACE).items("pods")]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            group = (entry / "cgroup").read_text()
            ours = f"{cluster.instance.cgroup}/" in group or os.readlink(entry / "ns/pid") == node
            if ours and not any(uid in group for uid in backends):
                for part in ("cmdline", "environ"):
                    yield f"{part} of {(entry / 'comm').read_text().strip()}", (entry / part).read_bytes()


def _logs(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    # The container runtime's own files have those of former containers too, as long as their pod exists.
    for pod in Path(f"/proc/{cluster.pid()}/root/var/log/pods").iterdir():
        if not pod.name.startswith(f"{install.BACKENDS_NAMESPACE}_"):
            for log in pod.rglob("*.log"):
                yield f"log {pod.name.rpartition('_')[0]}/{log.parent.name}", log.read_bytes()
    for log in (cluster.instance.state / "log").iterdir():
        yield f"log of {log.stem}", log.read_bytes()


def _files(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    # The host's view of the driver's folder shows what lies there, without the volumes that are mounted in it.
    plugins = cluster.instance.state / "kubelet" / "plugins"
    pods = Path(f"/proc/{cluster.pid()}/root{KUBELET_ROOT}/pods")
    volumes = pods.glob("*/volumes/kubernetes.io~empty-dir/juicefs-*")
    for file in (file for folder in (plugins, *volumes) for file in folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            if file.is_file() and not file.is_symlink():
                yield f"file {'/'.join(file.parts[-4:])}", file.read_bytes()
