"""Where secrets can be read that must not be: arguments and environments of all processes of the node, logs, events, and the objects of
the application's namespace. The back ends and the pod that checks the file systems are not looked at: they are given passwords by us.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from e2e.chaos.world import SECRETS, World

# Kinds of which a user's own objects, or ours, may carry texts of ours.
_KINDS = ("pods", "persistentvolumeclaims", "configmaps", "events", "jfsv", "jfss")


def found(world: World) -> list[str]:
    """A sentence for each place; never the secret."""
    told = [f"a secret is in {place}" for place in sorted({*_processes(world), *_logs(world), *_objects(world)})]
    ours = [
        f"the application's namespace has the Secret {secret['metadata']['name']}"
        for secret in world.scenario.kubectl.items("secrets")
        if not secret["metadata"]["name"].endswith("-credentials")
    ]
    return told + ours


def _has(data: bytes) -> bool:
    return any(secret.encode() in data for secret in SECRETS.values())


def _processes(world: World) -> Iterator[str]:
    storage = world.scenario.cluster.kubectl(world.storage)
    skipped = [pod["metadata"]["uid"] for pod in storage.items("pods")]
    for entry in Path("/proc").iterdir():
        try:
            group = (entry / "cgroup").read_text() if entry.name.isdigit() else ""
            if f"{world.scenario.cluster.instance.cgroup}/" not in group or any(uid in group for uid in skipped):
                continue
            for part in ("cmdline", "environ"):
                if _has((entry / part).read_bytes()):
                    yield f"{part} of {(entry / 'comm').read_text().strip()}"
        except OSError:  # it ended meanwhile
            continue


def _logs(world: World) -> Iterator[str]:
    cluster = world.scenario.cluster
    for folder, _, files in os.walk(f"/proc/{cluster.pid()}/root/var/log/pods"):
        if Path(folder).parent.name.startswith(f"{world.storage}_"):
            continue
        for file in files:
            if _has(Path(folder, file).read_bytes()):
                yield f"the log {Path(folder).parent.name}/{Path(folder).name}/{file}"
    for file in ("kubelet", "containerd", "kube-controller-manager"):
        if _has((cluster.instance.state / "log" / f"{file}.log").read_bytes()):
            yield f"the log of {file}"


def _objects(world: World) -> Iterator[str]:
    kubectl = world.scenario.kubectl
    for kind in _KINDS:
        for item in kubectl.items(kind):
            # what we applied the Secret with stands in its own annotation, which is no object of these kinds
            if _has(str(item).encode()):
                yield f"{kind}/{item['metadata']['name']}"
    for kind in ("events", "persistentvolumes"):
        for item in world.scenario.cluster.kubectl().items(kind, "-A"):
            if item["metadata"].get("namespace") != world.storage and _has(str(item).encode()):
                yield f"{kind}/{item['metadata']['name']}"
