"""The product and its back ends on a cluster: loads the images, installs the chart with helm, starts Redis and an S3 server.

Used by the demo and by the scenarios, so that both see what a user gets from the chart. Everything may be repeated.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e import cache, images, tools
from e2e.cluster import Cluster, Kubectl
from e2e.progress import step

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "charts" / "juicefs-sidecar"
MANIFESTS = REPOSITORY / "e2e" / "manifests"
RELEASE = "juicefs"
NAMESPACE = "juicefs-system"
BACKENDS_NAMESPACE = "storage"
WORKLOADS = ("deployment/juicefs-operator", "deployment/juicefs-webhook", "daemonset/juicefs-node")
# Where a cluster reaches a registry, the programs' own images serve; here they are made from Debian's and PyPI's programs.
PUBLIC = {
    "localhost/redis:1": "docker.io/library/redis:7",
    "localhost/seaweedfs:1": "docker.io/chrislusf/seaweedfs:latest",
    "localhost/busybox:1": "docker.io/library/busybox:1",
}


class InstallError(Exception):
    """helm ended with an error; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Helm:
    """helm with a way to reach a cluster, as `Kubectl` has one."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]

    def __call__(self, *arguments: str) -> str:
        command = [*self.prefix, str(tools.path("helm")), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=dict(self.environment), check=False, timeout=900
        )
        if done.returncode != 0:
            raise InstallError(f"helm {arguments[0]}: {done.stderr.strip()}")
        return done.stdout


def helm(kubectl: Kubectl) -> Helm:
    return Helm(kubectl.prefix, kubectl.environment)


def load(cluster: Cluster, archives: Iterable[Path]) -> None:
    """Import image archives into the one-node cluster; what is there already is left alone."""
    with step("loading the images into the node"):
        for archive in archives:
            cluster.load(archive)


def chart(kubectl: Kubectl, operator: Path, settings: Sequence[str] = ()) -> None:
    """Install or upgrade the chart and wait until it is ready.

    `operator` is the archive of the operator's image, whose name tells its content; `settings` are more `--set` values, which
    go before the usual ones.
    """
    images_set = []
    for name in images.PRODUCT:
        repository, tag = images.NAMES[name].rsplit(":", 1)
        images_set += [f"images.{name}.repository={repository}", f"images.{name}.tag={tag}"]
    # the tag stays when the image changes, so the pods' template must say that it did
    rolled = [f"{part}.podAnnotations.image={operator.name}" for part in ("operator", "webhook", "node")]
    given = {value.partition("=")[0] for value in settings}
    usual = [value for value in (*images_set, *rolled) if value.partition("=")[0] not in given]
    options = [option for value in usual for option in ("--set-string", value)]
    options += [option for value in settings for option in ("--set", value)]
    with step("installing the chart"):
        base = ["upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"]
        helm(kubectl)(*base, "--wait", "--timeout", "5m", *options)


def remove_chart(kubectl: Kubectl) -> None:
    with step("uninstalling the chart"):
        helm(kubectl)("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--ignore-not-found", "--timeout", "5m")


def manifest(name: str, replaced: Mapping[str, str] | None = None) -> str:
    """A manifest's text, with image names replaced."""
    text = (MANIFESTS / f"{name}.yaml").read_text()
    for old, new in (replaced or {}).items():
        text = text.replace(old, new)
    return text


def backends(kubectl: Kubectl, replaced: Mapping[str, str] | None = None) -> None:
    """Start Redis and the S3 server and wait until they answer."""
    with step("starting Redis and an S3 server (SeaweedFS) in the cluster"):
        kubectl("apply", "-f", "-", given=manifest("backends", replaced))
        for name in ("redis", "s3"):
            kubectl.into(BACKENDS_NAMESPACE)("rollout", "status", f"deployment/{name}", "--timeout=300s", timeout=330)


def databases(kubectl: Kubectl) -> None:
    """Start PostgreSQL and TiKV's protocol beside Redis and wait until they answer."""
    with step("starting PostgreSQL and TiKV in the cluster"):
        kubectl("apply", "-f", "-", given=manifest("databases"))
        for name in ("postgres", "tikv"):
            kubectl.into(BACKENDS_NAMESPACE)("rollout", "status", f"deployment/{name}", "--timeout=300s", timeout=330)


@contextlib.contextmanager
def running(name: str, keep: bool) -> Iterator[Cluster]:
    """The one-node cluster of that name with all images and the chart, for as long as the block lasts.

    With `keep` one that is there already is upgraded in place of starting from nothing, and it stays.
    """
    archives = {image: images.path(image) for image in images.NAMES}
    cluster = Cluster.named(name)
    with cache.locked(f"cluster-{name}"):  # a second run waits instead of taking this one's down
        try:
            if not (keep and cluster.healthy()):
                cluster.up(archives["pause"], archives["coredns"])
            load(cluster, [archive for image, archive in archives.items() if image not in ("pause", "coredns")])
            chart(cluster.kubectl(), archives["operator"])
            yield cluster
        finally:
            if not keep:
                cluster.down()


def current() -> Kubectl:
    """The cluster of the user's own kubectl context."""
    return Kubectl((), dict(os.environ))
