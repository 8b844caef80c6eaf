"""A real one-node Kubernetes on this machine, in namespaces of its own.

`layout` has every name, flag and file, `pki` the certificates, `cgroups` the control groups, `node` the first process inside,
`instance` start, stop and entry from the host, `kubectl` the way to speak to it, `diagnosis` what to look at after a failure.
"""

from e2e.cluster.instance import Cluster, ClusterError
from e2e.cluster.kubectl import Document, Kubectl, KubectlError, Timeout, until

__all__ = ["Cluster", "ClusterError", "Document", "Kubectl", "KubectlError", "Timeout", "until"]
