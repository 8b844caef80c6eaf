"""Every name the Kubernetes parts agree on, once: groups, labels, annotations, containers, reasons, Secret keys.

A name that two parts must spell alike is defined here and nowhere else. Plain constants: nothing here runs anything.
"""

from typing import Final

GROUP: Final = "juicefs.io"
VERSION: Final = "v1alpha1"
VOLUME_KIND: Final = "JuiceFSVolume"
VOLUME_PLURAL: Final = "juicefsvolumes"
SECRET_KIND: Final = "JuiceFSSecret"
SECRET_PLURAL: Final = "juicefssecrets"
# What one node service says about its node; in the namespace of the release, named after the node.
NODE_KIND: Final = "JuiceFSNode"
NODE_PLURAL: Final = "juicefsnodes"
NODE_SERVICE: Final = "juicefs-node"  # field manager of what it applies

DRIVER: Final = "sidecar.juicefs.io"

# Namespaces and pods that take part in injection.
INJECT_LABEL: Final = "juicefs.io/inject"
INJECT_ENABLED: Final = "enabled"
INJECT_DISABLED: Final = "disabled"
# JuiceFS CSI's namespace label, so that its users keep theirs.
CSI_INJECT_LABEL: Final = "juicefs.com/enable-injection"
CSI_INJECT_ENABLED: Final = "true"

# On an injected pod.
INJECTED_LABEL: Final = "juicefs.io/injected"
INJECTED_ANNOTATION: Final = "juicefs.io/injected"

# On PersistentVolumes and claims: the JuiceFSVolume they belong to ("namespace/name") and its `spec.sidecar` as JSON.
VOLUME_ANNOTATION: Final = "juicefs.io/volume"
SIDECAR_ANNOTATION: Final = "juicefs.io/sidecar"

# Rollout of a sidecar image: on a pod whose turn it is; on a volume (JuiceFSVolume, or static PersistentVolume) the image that failed.
ROLLOUT_ANNOTATION: Final = "juicefs.io/rollout"
ROLLOUT_STOPPED_ANNOTATION: Final = "juicefs.io/rollout-stopped"
# Values of `spec.sidecar.rollout`.
AUTOMATIC: Final = "Automatic"
MANUAL: Final = "Manual"

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
OPERATOR: Final = "juicefs-operator"
FINALIZER: Final = "juicefs.io/volume"

# The injected container and its control volume.
SIDECAR_CONTAINER: Final = "juicefs-sidecar"
CONTROL_VOLUME: Final = "juicefs-control"
CONTROL_PATH: Final = "/run/jfs"
CONTROL_KIND_ATTRIBUTE: Final = "kind"
CONTROL_KIND: Final = "control"
# How the pod's sidecar works, decided by the webhook: an attribute of the control volume, beside its kind. With `auto` a volume
# leaves it to the namespace: privileged where its PodSecurity level allows that.
MODE_ATTRIBUTE: Final = "mode"
PRIVILEGED: Final = "privileged"
RESTRICTED: Final = "restricted"
AUTO: Final = "auto"
# Below the control directory: the socket, and one directory per data volume.
CONTROL_SOCKET: Final = "s"
CONTROL_VOLUMES: Final = "volumes"
GRACE_ENVIRONMENT: Final = "JFS_GRACE_SECONDS"
# Where the sidecar keeps what a successor needs: handles, journal, data not uploaded yet.
STATE_VOLUME: Final = "juicefs-state"
STATE_PATH: Final = "/var/lib/juicefs"
# Where the disk cache lies unless a volume's options say otherwise; the real client's directory.
CACHE_DIRECTORY: Final = "/var/jfsCache"

# Event reasons on pods and PersistentVolumes (reporting component: the driver's name).
EVENT_MOUNTED: Final = "JuiceFSMounted"
EVENT_MOUNT_FAILED: Final = "JuiceFSMountFailed"
EVENT_SIDECAR_MISSING: Final = "JuiceFSSidecarMissing"
EVENT_MOUNT_LOST: Final = "JuiceFSMountLost"
EVENT_SIDECAR_RESTARTED: Final = "JuiceFSSidecarRestarted"
EVENT_STALLED: Final = "JuiceFSStalled"
EVENT_RECOVERED: Final = "JuiceFSRecovered"
EVENT_UPDATED: Final = "JuiceFSUpdated"
EVENT_FORCED: Final = "JuiceFSForcedUnmount"
# … and those of the operator on pods, while it rolls a sidecar image out.
EVENT_SIDECAR_REPLACED: Final = "JuiceFSSidecarReplaced"
EVENT_SIDECAR_ROLLED_BACK: Final = "JuiceFSSidecarRolledBack"
# Those after which the volume works in that pod, and those after which it does not (or not as wished).
EVENTS_WORKING: Final = frozenset({EVENT_MOUNTED, EVENT_SIDECAR_RESTARTED, EVENT_RECOVERED, EVENT_UPDATED})
EVENTS_FAILING: Final = frozenset({EVENT_MOUNT_FAILED, EVENT_MOUNT_LOST, EVENT_STALLED})

# Keys of JuiceFS CSI's Secret.
SECRET_KEYS: Final = (
    "name",
    "metaurl",
    "storage",
    "bucket",
    "access-key",
    "secret-key",
    "token",
    "format-options",
    "envs",
    "encrypt_rsa_key",
    "passphrase",
)

# What the operator writes on PersistentVolumes and bound claims: the UUID of the file system behind them. Two volumes share
# data when it is equal.
FILE_SYSTEM_ANNOTATION: Final = "juicefs.io/file-system"

# Conditions of a JuiceFSVolume …
READY: Final = "Ready"
SECRET_VALID: Final = "SecretValid"
FORMATTED: Final = "Formatted"
BOUND: Final = "Bound"
MOUNTABLE: Final = "Mountable"
STALLED: Final = "Stalled"
SIDECARS_CURRENT: Final = "SidecarsCurrent"
ROLLOUT_STOPPED: Final = "RolloutStopped"  # a reason of the last one
# … and of a JuiceFSSecret (beside Ready).
METADATA_REACHABLE: Final = "MetadataReachable"
STORAGE_REACHABLE: Final = "StorageReachable"

# Values of `spec.reclaimPolicy`.
RETAIN: Final = "Retain"
DELETE: Final = "Delete"
