"""Which mode the pod's sidecar works in: the volumes' wishes, the chart's default and the namespace's PodSecurity level. Pure.

A privileged sidecar mounts by itself; a restricted one is handed what the node service mounted and needs no rights at all.
One sidecar serves all volumes of a pod, so there is one answer for the pod.
"""

from collections.abc import Sequence

from jfs_api import names

from jfs_webhook.settings import JsonObject
from jfs_webhook.volumes import PodVolume

ENFORCE_LABEL = "pod-security.kubernetes.io/enforce"


class ModeRefused(Exception):
    """A volume insists on a mode that the namespace forbids; the message tells what to change."""


def allows_privileged(namespace: JsonObject | None) -> bool:
    """Whether the namespace's PodSecurity level lets privileged containers in; without a label the cluster's default
    counts, which is privileged unless its administrator changed it."""
    labels = ((namespace or {}).get("metadata") or {}).get("labels") or {}
    return bool(labels.get(ENFORCE_LABEL, "privileged") == "privileged")


def decide(volumes: Sequence[PodVolume], default: str, namespace: JsonObject | None) -> tuple[str, list[str]]:
    """The mode, and warnings for the pod's author. Raises ModeRefused."""
    allowed = allows_privileged(namespace)
    wished = {volume.name: volume.wish.mode or default for volume in volumes}
    insisting = [name for name, mode in wished.items() if mode == names.PRIVILEGED]
    restricted = [name for name, mode in wished.items() if mode == names.RESTRICTED]
    if insisting and not restricted and not allowed:
        raise ModeRefused(
            f"volume {insisting[0]} asks for a privileged sidecar, which the PodSecurity level of the namespace forbids; "
            "set the volume's spec.sidecar.mode to auto or restricted"
        )
    if restricted:
        warnings = [
            f"volumes {', '.join(insisting)} ask for a privileged sidecar and {', '.join(restricted)} for a restricted one;"
            " the pod's one sidecar is restricted"
        ]
        return names.RESTRICTED, warnings if insisting else []
    return names.PRIVILEGED if allowed else names.RESTRICTED, []
