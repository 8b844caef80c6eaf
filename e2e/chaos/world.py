"""What a chaos run happens in: back ends of its own that survive SIGKILL, file systems, and the application's pods.

The back ends are those of the manifests with some changes: a namespace and passwords of their own, so that other users of the cluster
are not hit and a password that shows up anywhere is ours; a share of the processor; and Redis and the S3 server run below a shell that
starts them again at once, because the kubelet would wait longer each time than operations may.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e import documents, images, install
from e2e.chaos import workload
from e2e.cluster import Document
from e2e.scenario import Scenario

SECRETS = {
    "redis-password": "chaos-redis-cb1f0a7e5d",
    "s3-secret-key": "chaos-s3-6e2f9d4a81",
    "postgres-password": "chaos-postgres-90b3c6d2f4",
}
PYTHON = images.NAMES["operator"]  # an image with Python
OUT, CODE = "/out", "/code"
CHECKER = "checker"
_AGAIN = "trap 'kill $!; exit' TERM; while true; do {command} & wait $!; done"
SERVERS = {"redis": "redis-server", "s3": "weed", "postgres": "postgres"}  # and their programs


@dataclass(frozen=True, slots=True)
class Volume:
    engine: str
    mode: str | None  # of its sidecars; None leaves it to the chart, which says auto
    database: int


VOLUMES = {
    "shared": Volume("redis", None, 1),
    "second": Volume("redis", "restricted", 2),
    "sql": Volume("postgres", "restricted", 3),
    "fourth": Volume("redis", "privileged", 4),
}
VISITS = 10  # databases from here on are those of visits
# Pod 0 is privileged, 1 restricted because one of its volumes is, 2 restricted, 3 privileged; 2 and 3 share with nobody.
PODS = (("shared",), ("shared", "second"), ("sql",), ("fourth",))


@dataclass(frozen=True, slots=True)
class World:
    scenario: Scenario

    @property
    def storage(self) -> str:
        """The back ends' namespace."""
        return f"{self.scenario.name}-storage"

    def prepare(self) -> None:
        """Back ends, volumes and the script; returns when all are ready."""
        everywhere = self.scenario.cluster.kubectl()
        everywhere("delete", "namespace", self.storage, "--ignore-not-found")
        everywhere.apply(*self._backends())
        inside = everywhere.into(self.storage)
        for name in SERVERS:
            inside("rollout", "status", f"deployment/{name}", "--timeout=300s", timeout=330)
        checker = documents.pod(CHECKER)
        checker["spec"]["containers"][0]["image"] = images.NAMES["sidecar"]
        inside.apply(checker)
        inside.wait(f"pod/{CHECKER}", "condition=Ready")
        script = Path(workload.__file__).read_text()
        self.scenario.kubectl.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"workload.py": script}}
        )
        for name, volume in VOLUMES.items():
            self.make_volume(name, volume)
        for name in VOLUMES:
            self.scenario.ready(name)

    def end(self) -> None:
        self.scenario.cluster.kubectl()("delete", "namespace", self.storage, "--wait=false")

    def make_volume(self, name: str, volume: Volume, **spec: Any) -> None:
        if volume.mode:
            spec["sidecar"] = {"mode": volume.mode}
        self.scenario.kubectl.apply(
            documents.secret(f"{name}-credentials", self._credentials(name, volume)),
            documents.volume(name, f"{name}-credentials", **spec),
        )

    def pod(self, number: int, round_number: int, seed: int) -> Document:
        """The application's pod of that ordinal, which works in a directory of its own in each round."""
        volumes = PODS[number]
        name = f"app-{number}"
        command = ["python3", f"{CODE}/workload.py", "run", OUT, str(seed), f"round-{round_number}-{name}"]
        return self._python(name, volumes, [*command, *(f"/{volume}" for volume in volumes)])

    def reader(self, name: str) -> Document:
        """A pod that has all volumes and does nothing."""
        return self._python(name, tuple(VOLUMES), ["sh", "-c", documents.IDLE])

    def _python(self, name: str, volumes: tuple[str, ...], command: list[str]) -> Document:
        mounts = {volume: f"/{volume}" for volume in volumes}
        container = documents.container(mounts=mounts, image=PYTHON, command=command)
        container["volumeMounts"] += [{"name": "out", "mountPath": OUT}, {"name": "code", "mountPath": CODE}]
        spec = documents.pod_spec([container], volumes)
        spec["volumes"] += [{"name": "out", "emptyDir": {}}, {"name": "code", "configMap": {"name": "code"}}]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

    # -- the file systems, past all sidecars ---------------------------------------------------------------------------

    def tree(self, pod: str) -> dict[str, dict[str, workload.Content]]:
        """What the pod finds in each volume."""
        paths = [f"/{volume}" for volume in VOLUMES]
        found: dict[str, dict[str, workload.Content]] = json.loads(
            self.scenario.kubectl.exec(pod, "python3", f"{CODE}/workload.py", "tree", *paths, container="app")
        )
        return found

    def sessions(self, volume: str) -> list[object]:
        """Clients in the volume's database."""
        found: list[object] = json.loads(self._jfs("status", volume)).get("Sessions") or []
        return found

    def damages(self, volume: str) -> str:
        """What `jfs fsck` says of a volume that is not sound; empty when it is."""
        inside = self.scenario.cluster.kubectl(self.storage)
        done = inside.process(*self._jfs_command("fsck", volume), timeout=300)
        return done.stdout + done.stderr if done.returncode else ""

    def _jfs(self, command: str, volume: str) -> str:
        return self.scenario.cluster.kubectl(self.storage)(*self._jfs_command(command, volume))

    def _jfs_command(self, command: str, volume: str) -> list[str]:
        url = self._credentials(volume, VOLUMES[volume])["metaurl"]
        return ["exec", CHECKER, "--", "jfs", command, url]

    def _credentials(self, name: str, volume: Volume) -> dict[str, str]:
        urls = {
            "redis": f"redis://:{SECRETS['redis-password']}@redis.{self.storage}:6379/{volume.database}",
            "postgres": f"postgres://postgres:{SECRETS['postgres-password']}@postgres.{self.storage}:5432/postgres"
            f"?sslmode=disable&table_prefix=v{volume.database}",
        }
        return {
            "name": f"{self.scenario.name}-{name}",
            "metaurl": urls[volume.engine],
            "storage": "s3",
            "bucket": f"http://s3.{self.storage}:8333/volumes",
            "access-key": "s3-access-key",
            "secret-key": SECRETS["s3-secret-key"],
        }

    def _backends(self) -> list[Document]:
        found: list[dict[str, Any]] = []
        for name in ("backends", "databases"):
            found += yaml.safe_load_all(install.manifest(name, SECRETS))
        kept = [d for d in found if d["metadata"]["name"] in (install.BACKENDS_NAMESPACE, "backends", *SERVERS)]
        for document in kept:
            if document["kind"] == "Namespace":
                document["metadata"]["name"] = self.storage
                continue
            document["metadata"]["namespace"] = self.storage
            if document["kind"] == "Deployment":
                container = document["spec"]["template"]["spec"]["containers"][0]
                # a share of a crowded machine with which they are back in time
                container["resources"] = {"requests": {"cpu": "300m"}}
                if document["metadata"]["name"] != "postgres":
                    container["command"] = ["sh", "-c", _AGAIN.format(command=" ".join(container["command"]))]
        return list(kept)
