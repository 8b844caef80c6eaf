"""What a person would look at after a failure, as one text: pods, volumes, events, logs of what is not well."""

from collections.abc import Sequence

from e2e.cluster.kubectl import Kubectl

_VOLUMES = ("jfsv", "jfss")


def report(kubectl: Kubectl, namespaces: Sequence[str], product: str, lines: int = 60) -> str:
    """Never raises for a cluster that does not answer: what could not be had is said in its place."""
    parts = [_part(kubectl, "get", "pods", "-A", "-o", "wide")]
    for namespace in namespaces:
        inside = kubectl.into(namespace)
        parts += [_part(inside, "get", kind, "-o", "yaml", "--show-managed-fields=false") for kind in _VOLUMES]
        parts.append(_part(inside, "get", "pvc"))
        parts.append(_part(inside, "get", "events", "--sort-by=.lastTimestamp"))
        names = inside.process("get", "pods", "-o", "name").stdout.split()
        parts += [_part(inside, "logs", name, "--all-containers", "--prefix", f"--tail={lines}") for name in names]
    inside = kubectl.into(product)
    for name in inside.process("get", "pods", "-o", "name").stdout.split():
        parts.append(_part(inside, "logs", name, "--all-containers", f"--tail={lines}"))
    return "\n".join(parts)


def _part(kubectl: Kubectl, *arguments: str) -> str:
    done = kubectl.process(*arguments, timeout=60)
    return f"$ kubectl -n {kubectl.namespace} {' '.join(arguments)}\n{(done.stdout + done.stderr).strip()}\n"
