"""One scenario's part of the cluster: a namespace, file systems of its own, and what a scenario does with pods.

A scenario reads as a user's story; what it needs to look behind (the node's mount table, processes and directories, the sessions in
Redis) is here too. Every file system has a Redis database of its own, so scenarios do not see each other.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jfs_api import names

from e2e import documents, install
from e2e.cluster import Cluster, Document, Kubectl, diagnosis, until
from e2e.cluster.layout import KUBELET_ROOT

LABELS = {names.INJECT_LABEL: names.INJECT_ENABLED}
REPORTS = Path(__file__).parents[1] / "reports"
PLUGIN = f"{KUBELET_ROOT}/plugins/{names.DRIVER}"


@dataclass
class Scenario:
    """Use `begin`; `end` removes the namespace with all that is in it."""

    cluster: Cluster
    name: str
    kubectl: Kubectl
    databases: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, cluster: Cluster, name: str, labels: Mapping[str, str] = LABELS) -> "Scenario":
        kubectl = cluster.kubectl(name)
        if kubectl.find("namespace", name):  # of a run that was killed, on a kept cluster
            kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
            kubectl("delete", "namespace", name)
        kubectl.apply(documents.namespace(name, labels))
        until("the namespace's service account", lambda: kubectl.find("serviceaccount", "default"))
        return cls(cluster, name, kubectl)

    def end(self) -> None:
        # what is left of pods, claims and volumes goes in the background, beside the next scenario
        self.kubectl("delete", "namespace", self.name, "--wait=false")

    # -- volumes -------------------------------------------------------------------------------------------------------

    def credentials(self, name: str = "files", **changed: str) -> dict[str, str]:
        """The values of a Secret with JuiceFS CSI's keys for a new file system of this name in this scenario."""
        if name not in self.databases:
            # counted in Redis, for a kept cluster has the databases of former runs; 1 is the demo's
            self.databases[name] = 1 + int(self._redis("incr", "databases", database=0))
        database = self.databases[name]
        values = {
            "name": f"{self.name}-{name}"[:50].rstrip("-") + f"-{database}",
            "metaurl": f"redis://:redis-password@redis.{install.BACKENDS_NAMESPACE}:6379/{database}",
            "storage": "s3",
            "bucket": f"http://s3.{install.BACKENDS_NAMESPACE}:8333/volumes",
            "access-key": "s3-access-key",
            "secret-key": "s3-secret-key",
        }
        return values | changed

    def volume(self, name: str = "files", ready: bool = True, **spec: Any) -> str:
        """A Secret and a JuiceFSVolume of a new file system; returns the claim's name, which is the volume's."""
        self.kubectl.apply(
            documents.secret(f"{name}-credentials", self.credentials(name)),
            documents.volume(name, f"{name}-credentials", **spec),
        )
        if ready:
            self.ready(name)
        return name

    def ready(self, name: str) -> None:
        self.kubectl.wait(f"jfsv/{name}", "condition=Ready")

    def condition(self, volume: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a JuiceFSVolume's condition; three empty texts when it has none of that type."""
        status = self.kubectl.get("jfsv", volume).get("status", {})
        for condition in status.get("conditions", ()):
            if condition["type"] == kind:
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""

    def redis(self, *command: str, volume: str = "files") -> str:
        """What redis-cli answers in the volume's database."""
        return self._redis(*command, database=self.databases[volume])

    def _redis(self, *command: str, database: int) -> str:
        storage = self.cluster.kubectl(install.BACKENDS_NAMESPACE)
        cli = ["redis-cli", "--no-auth-warning", "-a", "redis-password", "-n", str(database), *command]
        return storage("exec", "deployment/redis", "--", *cli).strip()

    def sessions(self, volume: str = "files") -> int:
        """Clients that have the volume mounted, by the format's sorted set of all sessions."""
        return int(self.redis("zcard", "allSessions", volume=volume))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def start(self, *pods: Document) -> None:
        """Apply pods and wait until each is ready."""
        self.kubectl.apply(*pods)
        for document in pods:
            self.kubectl.wait(f"pod/{document['metadata']['name']}", "condition=Ready")

    def pod(self, name: str, mounts: dict[str, Any], script: str = documents.IDLE, **more: Any) -> None:
        """Start one pod and wait until it is ready."""
        self.start(documents.pod(name, script, mounts, **more))

    def sh(self, pod: str, script: str, container: str = "app") -> str:
        """What a shell script in the pod prints; raises KubectlError when it fails."""
        return self.kubectl.sh(pod, script, container).strip()

    def fails(self, pod: str, script: str, container: str = "app") -> str:
        """What a shell script in the pod prints, both streams; the script has to fail."""
        done = self.kubectl.process("exec", pod, "-c", container, "--", "sh", "-c", script)
        assert done.returncode != 0, f"{script!r} succeeded in {pod}: {done.stdout}"
        return done.stdout + done.stderr

    def uid(self, pod: str) -> str:
        return str(self.kubectl.get("pod", pod)["metadata"]["uid"])

    def containers(self, pod: str) -> list[str]:
        """Names of all containers, the injected sidecar's among them."""
        spec = self.kubectl.get("pod", pod)["spec"]
        return [c["name"] for c in (*spec.get("initContainers", ()), *spec["containers"])]

    def event(self, about: str, reason: str, seconds: float = 60) -> str:
        """The message of the first event of that reason about an object of this namespace."""

        def look() -> str | None:
            return next((message for seen, message in self.kubectl.events(about) if seen == reason), None)

        return until(f"an event {reason} about {about}", look, seconds)

    def delete(self, pod: str, *options: str) -> None:
        """Delete a pod and wait until the API server has no such object."""
        self.kubectl("delete", "pod", pod, *options)

    # -- behind the scenes ---------------------------------------------------------------------------------------------

    def left_of(self, uid: str) -> list[str]:
        """What the node still has of a pod: mounts, directories, processes. Empty once it is cleanly gone."""
        return list(self._left_of(uid))

    def _left_of(self, uid: str) -> Iterator[str]:
        for mount in self.cluster.mounts():
            if uid in mount:
                yield f"mount: {mount}"
        folders = (f"{KUBELET_ROOT}/pods", f"{PLUGIN}/pods", f"{PLUGIN}/state")
        for line in self.cluster.run("find", *folders, "-maxdepth", "1", "-name", uid, check=False).splitlines():
            yield f"directory: {line}"
        for number, command in self.cluster.pod_processes(uid):
            yield f"process: {number} {command}"

    def gone(self, uid: str) -> None:
        """Wait until the node has nothing of the pod any more."""
        until(f"nothing to be left of pod {uid}", lambda: not self.left_of(uid) or None, seconds=120, pause=1)


@contextmanager
def reported(
    cluster: Cluster, name: str, failures: Callable[[], int], labels: Mapping[str, str] = LABELS
) -> Iterator[Scenario]:
    """A scenario that ends with the block; when `failures` has grown by then, with a report of what a person would look at."""
    scenario = Scenario.begin(cluster, name, labels)
    before = failures()
    yield scenario
    if failures() > before:
        REPORTS.mkdir(exist_ok=True)
        place = REPORTS / f"scenario-{name}.txt"
        text = diagnosis.report(cluster.kubectl(), [name], install.NAMESPACE)
        mounts = "\n".join(line for line in cluster.mounts() if "juicefs" in line.lower())
        place.write_text(f"{text}\n== kubelet\n{cluster.log('kubelet', 80)}\n== mounts\n{mounts}\n")
        print(f"What the cluster looked like: {place}\n" + "\n".join(text.splitlines()[:40]))
    scenario.end()
