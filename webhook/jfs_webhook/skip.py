"""Which pods are left alone before anything is read from the cluster. Pure.

The webhook configuration's selectors already keep most of these away; they are checked again here because selectors
are the cluster administrator's to edit, and a sidecar in kube-system or on a Windows node is never right.
"""

from jfs_api import names

from jfs_webhook.settings import JsonObject, Settings

# The kubelet's marker of pods made from files on the node: their API object is a mirror, changing it changes nothing.
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
OS_LABEL = "kubernetes.io/os"


def reason_to_skip(pod: JsonObject, namespace: str, settings: Settings) -> str | None:
    """Why the pod gets no sidecar, in a few words for the log; None if its volumes decide."""
    metadata, spec = pod["metadata"], pod["spec"]
    if namespace in settings.protected_namespaces:
        return "protected namespace"
    if (metadata.get("labels") or {}).get(names.INJECT_LABEL) == names.INJECT_DISABLED:
        return "opted out by label"
    if MIRROR_ANNOTATION in (metadata.get("annotations") or {}):
        return "mirror pod"
    system = (spec.get("os") or {}).get("name") or (spec.get("nodeSelector") or {}).get(OS_LABEL) or "linux"
    return None if system == "linux" else "not a Linux pod"
