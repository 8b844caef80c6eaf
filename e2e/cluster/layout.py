"""Names, addresses, configuration files and command lines of every component. Plain data: nothing here runs anything.

Everything of an instance derives from its name. Addresses are the same in each instance, for each has its own network namespace.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE = "node1"
NODE_IP = "10.231.0.1"
NODE_NET = "10.231.0.1/24"
SERVICE_NET = "10.232.0.0/16"
API_SERVICE_IP = "10.232.0.1"
DNS_SERVICE_IP = "10.232.0.10"
POD_NET = "10.233.0.0/24"
DOMAIN = "cluster.local"
API = f"https://{NODE_IP}:6443"
PAUSE_IMAGE = "localhost/pause:1"
DNS_IMAGE = "localhost/coredns:1"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KUBELET_ROOT = "/var/lib/kubelet"
BINARY = "/usr/local/bin/onenode"  # inside the node, bound there

# On a real disk: containerd's overlays cannot lie on a tmpfs with large images, and sometimes not on another overlay.
STATES = Path("/var/tmp/juicefs-sidecar")


@dataclass(frozen=True, slots=True)
class Instance:
    """A cluster's name and what derives from it."""

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.name):
            raise ValueError(
                f"{self.name!r} cannot name a cluster: use up to 31 lower-case letters, digits and dashes."
            )

    @property
    def state(self) -> Path:
        """The folder with certificates, configuration, logs, and the kubelet's and containerd's data."""
        return STATES / self.name

    @property
    def manifests(self) -> Path:
        """The kubelet's folder of static pods."""
        return self.state / "manifests"

    @property
    def cgroup(self) -> str:
        return f"onenode-{self.name}"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "pki" / "admin.kubeconfig"


# The kubelet writes these global sysctls; inside the node they are private files (path under /proc/sys -> first content).
SHADOWED_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

CONTAINERD = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"""

CNI: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "name": "onenode",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_NET}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def kubelet(instance: Instance) -> dict[str, Any]:
    pki = instance.state / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "imageServiceEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet-server.key",
        "staticPodPath": str(instance.manifests),
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{instance.cgroup}",
        "cgroupsPerQOS": True,
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "protectKernelDefaults": False,
        "localStorageCapacityIsolation": False,
        "volumeStatsAggPeriod": "0s",
        "imageGCHighThresholdPercent": 100,
        # a machine that is short of disk for others must not evict the pods of a test
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
        "fileCheckFrequency": "10s",
    }


def proxy(instance: Instance) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": NODE,
        "clientConnection": {"kubeconfig": f"{instance.state}/pki/proxy.kubeconfig"},
        "clusterCIDR": POD_NET,
        "oomScoreAdj": 0,
        # zero leaves the host's conntrack sysctls alone
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nodePortAddresses": ["127.0.0.0/8"],
    }


def write_configs(instance: Instance) -> None:
    state = instance.state
    (state / "containerd.toml").write_text(CONTAINERD)
    (state / "kubelet.json").write_text(json.dumps(kubelet(instance)))
    (state / "proxy.json").write_text(json.dumps(proxy(instance)))


def commands(instance: Instance) -> dict[str, list[str]]:
    """The command line of every component."""
    state, pki = instance.state, instance.state / "pki"

    def kubeconfigs(name: str) -> list[str]:
        return [f"--{use}kubeconfig={pki}/{name}.kubeconfig" for use in ("", "authentication-", "authorization-")]

    return {
        "etcd": [
            "etcd",
            "--data-dir=/run/etcd",  # a tmpfs: no time lost in fsync
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "containerd": ["containerd", f"--config={state}/containerd.toml"],
        "kube-apiserver": [
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={NODE_IP}",
            f"--advertise-address={NODE_IP}",
            "--secure-port=6443",
            f"--service-cluster-ip-range={SERVICE_NET}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=lease",
        ],
        "kube-controller-manager": [
            "kube-controller-manager",
            *kubeconfigs("controller-manager"),
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            f"--cluster-cidr={POD_NET}",
            "--allocate-node-cidrs=false",
        ],
        "kube-scheduler": ["kube-scheduler", *kubeconfigs("scheduler"), "--leader-elect=false"],
        "kube-proxy": ["kube-proxy", f"--config={state}/proxy.json"],
        "kubelet": [
            "kubelet",
            f"--config={state}/kubelet.json",
            f"--kubeconfig={pki}/kubelet.kubeconfig",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_IP}",
            f"--root-dir={KUBELET_ROOT}",
        ],
    }


def dns_documents() -> list[dict[str, Any]]:
    """Cluster DNS: CoreDNS with what it needs, as Kubernetes documents."""
    name, namespace = "coredns", "kube-system"
    metadata = {"name": name, "namespace": namespace}
    corefile = f".:53 {{\n  errors\n  ready\n  kubernetes {DOMAIN} in-addr.arpa\n  cache 5\n}}\n"
    readable = [
        {"apiGroups": [""], "resources": ["services", "endpoints", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    container = {
        "name": name,
        "image": DNS_IMAGE,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    }
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"Corefile": corefile}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": readable},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "serviceAccountName": name,
                        "priorityClassName": "system-cluster-critical",
                        "dnsPolicy": "Default",
                        "terminationGracePeriodSeconds": 1,
                        "containers": [container],
                        "volumes": [{"name": "config", "configMap": {"name": name}}],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": namespace},
            "spec": {
                "clusterIP": DNS_SERVICE_IP,
                "selector": {"app": name},
                "ports": [
                    {"name": "udp", "port": 53, "protocol": "UDP"},
                    {"name": "tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        },
    ]
