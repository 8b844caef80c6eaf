"""The demo: from nothing to two pods that share a volume, and what to look at.

`python -m e2e.demo up` does it on a one-node Kubernetes of its own, `--cluster current` on the user's kubectl context. Whatever is
there already is kept, so that a second run takes seconds. `python -m e2e.demo down` takes all of it away.
"""

import argparse
import sys
import time

from e2e import images, install
from e2e.cluster import Cluster, ClusterError, Kubectl, KubectlError, Timeout, until
from e2e.images.buildah import BuildError
from e2e.install import InstallError
from e2e.progress import say, step

NAME = "demo"
NAMESPACE = "demo"
VOLUME = "shared"


def up(own: bool) -> None:
    started = time.monotonic()
    replaced: dict[str, str] = {}
    if own:
        cluster = Cluster.named(NAME)
        archives = {name: images.path(name) for name in ("pause", "coredns", *images.DEMO)}
        if cluster.healthy():
            say(f"✓ the one-node cluster {NAME} runs already")
        else:
            cluster.up(archives["pause"], archives["coredns"])
        install.load(cluster, [archives[name] for name in images.DEMO])
        kubectl = cluster.kubectl()
    else:
        replaced = install.PUBLIC
        kubectl = install.current()
        with step("building the two images"):
            archives = {name: images.path(name) for name in images.PRODUCT}
        context = kubectl("config", "current-context").strip()
        say(f"The nodes of {context} must hold the images of these archives:")
        for name, archive in archives.items():
            say(f"  {images.NAMES[name]}  {archive}")
    install.chart(kubectl, archives["operator"])
    install.backends(kubectl, replaced)
    pods = _volume(kubectl, replaced)
    _show(kubectl, pods, own)
    say(f"✓ done in {time.monotonic() - started:.0f} s")


def _volume(kubectl: Kubectl, replaced: dict[str, str]) -> list[str]:
    """Applies what a user would write; the names of the two pods once both write."""
    demo = kubectl.into(NAMESPACE)
    with step("applying a namespace with the injection label, a Secret, a JuiceFSVolume and a Deployment of two pods"):
        kubectl("apply", "-f", "-", given=install.manifest("demo", replaced))
    with step("waiting until the volume is formatted and its claim is there"):
        demo.wait(f"jfsv/{VOLUME}", "condition=Ready")
    with step("waiting until both pods run with the volume"):
        demo("rollout", "status", "deployment/writers", "--timeout=180s")

    def both() -> list[str] | None:
        running = demo.items("pods", "-l", "app=writers", "--field-selector=status.phase=Running")
        names = sorted(pod["metadata"]["name"] for pod in running if "deletionTimestamp" not in pod["metadata"])
        seen = [all(other in demo.logs(name, "-c", "writer") for other in names) for name in names]
        return names if len(names) == 2 and all(seen) else None

    with step("waiting until each pod has read what the other wrote"):
        return until("each pod to see the other's file", both, pause=0.5)


def _show(kubectl: Kubectl, pods: list[str], own: bool) -> None:
    demo = kubectl.into(NAMESPACE)
    for pod in pods:
        print(f"\n$ kubectl -n {NAMESPACE} logs {pod} -c writer --tail=4")
        print(demo.logs(pod, "-c", "writer", "--tail=4").rstrip())
    print(f"\n$ kubectl -n {NAMESPACE} exec {pods[0]} -c writer -- grep ' /data ' /proc/mounts")
    print(demo.exec(pods[0], "grep", " /data ", "/proc/mounts", container="writer").rstrip())
    print(f"\n$ kubectl -n {NAMESPACE} get jfsv -o wide")
    print(demo("get", "jfsv", "-o", "wide").rstrip())
    prefix = ".venv/bin/python -m e2e.cluster exec demo " if own else ""
    rest = "" if own else " CLUSTER=current"
    print(f"""
Look around:
  {prefix}kubectl -n {NAMESPACE} get pods,pvc,jfsv
  {prefix}kubectl -n {NAMESPACE} describe jfsv {VOLUME}
  {prefix}kubectl -n {NAMESPACE} exec -it {pods[0]} -c writer -- sh
  {prefix}kubectl -n {NAMESPACE} logs {pods[0]} -c juicefs-sidecar
  {prefix}kubectl -n {install.NAMESPACE} get pods
The applied files: e2e/manifests/demo.yaml, e2e/manifests/backends.yaml
Take it down: make demo-down{rest}""")


def down(own: bool) -> None:
    if own:
        with step(f"ending the one-node cluster {NAME}"):
            Cluster.named(NAME).down()
        return
    kubectl = install.current()
    # the volume while its operator and its back ends live, then the rest
    with step("removing the pods and the volume"):
        demo = kubectl.into(NAMESPACE)
        demo("delete", "deployment", "writers", "--ignore-not-found", "--wait", "--cascade=foreground")
        if kubectl.find("crd", "juicefsvolumes.juicefs.io"):
            demo("delete", "jfsv", VOLUME, "--ignore-not-found", "--wait")
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
    install.remove_chart(kubectl)
    with step("removing the back ends"):
        kubectl("delete", "namespace", install.BACKENDS_NAMESPACE, install.NAMESPACE, "--ignore-not-found", "--wait")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m e2e.demo", description="A volume shared by two pods on Kubernetes."
    )
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument(
        "--cluster",
        choices=["own", "current"],
        default="own",
        help="own: a one-node Kubernetes on this machine (default); current: the current kubectl context",
    )
    arguments = parser.parse_args()
    try:
        (up if arguments.action == "up" else down)(arguments.cluster == "own")
    except (ClusterError, KubectlError, InstallError, BuildError, Timeout) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
