"""PID 1 of the node: builds the node's own root and network, starts the components in order, then reaps and restarts.

Runs inside fresh mount, network, PID, UTS and IPC namespaces (see `instance`), so nothing here reaches the host, and killing
this process ends the whole node. A component that ends while the node starts ends the node; later it is started again, as a
service manager would. Everything is imported before the root changes. Usage: python -m e2e.cluster.node NAME BINARY
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from e2e.cluster import layout

READY = "node started"
START_SECONDS = 120.0  # of each wait; a busy machine takes ten times as long as an idle one
RESTART_PAUSE = 0.5


class Node:
    def __init__(self, instance: layout.Instance, binary: str) -> None:
        self.instance = instance
        self.binary = binary
        self.started = time.monotonic()
        self.components: dict[str, subprocess.Popen[bytes]] = {}
        self.commands = layout.commands(instance)

    def run(self) -> None:
        self.build_root()
        self.shadow_sysctls()
        self.build_network()
        self.mark("root and network ready")
        for name in ("etcd", "containerd", "kube-apiserver"):
            self.start(name)
        self.wait("containerd", self.containerd_ready)  # the kubelet exits without it
        self.mark("loading the pause image")
        pause = self.instance.state / "pause.tar"
        _run("ctr", "-n", "k8s.io", "images", "import", str(pause))
        self.start("kubelet")
        self.wait("kube-apiserver", self.apiserver_ready)  # the controller manager exits without it
        for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
            self.start(name)
        self.mark(READY)
        self.reap()

    def build_root(self) -> None:
        """An overlay of the host's root becomes the node's root; the state folder and the two big folders are on real disk."""
        state = self.instance.state
        scratch = state / "scratch"
        _run("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(scratch))
        root = scratch / "root"
        for name in ("root", "upper", "work"):
            (scratch / name).mkdir()
        layers = f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work"
        _run("mount", "-t", "overlay", "-o", layers, "overlay", str(root))
        _run("mount", "-t", "proc", "proc", f"{root}/proc")
        _run("mount", "-t", "sysfs", "sysfs", f"{root}/sys")
        _run("mount", "--rbind", "/sys/fs/cgroup", f"{root}/sys/fs/cgroup")
        _run("mount", "--rbind", "/dev", f"{root}/dev")
        _run("mount", "-t", "tmpfs", "tmpfs", f"{root}/run")
        folders = {
            str(state): str(state),
            f"{state}/kubelet": layout.KUBELET_ROOT,
            f"{state}/containerd": "/var/lib/containerd",
        }
        for source, target in folders.items():
            place = root / target.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            _run("mount", "--bind", source, str(place))
        binary = root / layout.BINARY.lstrip(
            "/"
        )  # the cache folder may be on a file system that the overlay does not show
        binary.parent.mkdir(parents=True, exist_ok=True)
        binary.touch()
        _run("mount", "--bind", self.binary, str(binary))
        (root / "run/old").mkdir()
        _run("pivot_root", str(root), f"{root}/run/old")
        os.chroot("/")
        os.chdir("/")
        _run("umount", "-l", "/run/old")
        _run("mount", "--make-rshared", "/")

    def shadow_sysctls(self) -> None:
        folder = Path("/run/sysctl")
        for name, value in layout.SHADOWED_SYSCTLS.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value + "\n")
            _run("mount", "--bind", str(file), f"/proc/sys/{name}")

    def build_network(self) -> None:
        socket.sethostname(layout.NODE)
        _run("ip", "link", "set", "lo", "up")
        # a veth pair serves as the node's interface: not every kernel has the `dummy` type
        _run("ip", "link", "add", "node0", "type", "veth", "peer", "name", "peer0")
        _run("ip", "addr", "add", layout.NODE_NET, "dev", "node0")
        _run("ip", "link", "set", "peer0", "up")
        _run("ip", "link", "set", "node0", "up")
        _run("ip", "route", "add", "default", "via", layout.NODE_IP)
        if not Path("/proc/sys/net/bridge").exists():
            # answers of a service whose pod is on the same bridge would go past the address translation
            subprocess.run(["modprobe", "br_netfilter"], check=False)
        for name in ("ipv4/ip_forward", "ipv4/conf/all/route_localnet", "bridge/bridge-nf-call-iptables"):
            file = Path("/proc/sys/net") / name
            if file.exists():
                file.write_text("1")
        Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n{layout.NODE_IP} {layout.NODE}\n")
        Path("/etc/resolv.conf").unlink(missing_ok=True)  # may be a symbolic link into /run
        Path("/etc/resolv.conf").write_text("")
        cni = Path("/etc/cni/net.d")
        cni.mkdir(parents=True, exist_ok=True)
        (cni / "10-onenode.conflist").write_text(json.dumps(layout.CNI))

    def start(self, name: str) -> None:
        executable = layout.BINARY if name.startswith("kube") else None  # one binary, picked by argv[0]
        with (self.instance.state / "log" / f"{name}.log").open("ab") as log:
            self.components[name] = subprocess.Popen(
                self.commands[name], executable=executable, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        (self.instance.state / "pids" / name).write_text(str(self.components[name].pid))
        self.mark(f"{name} started")

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            ended = [name for name, process in self.components.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                sys.exit(f"{what} is not ready after {time.monotonic() - self.started:.0f} s; ended: {ended or 'none'}")
            time.sleep(0.1)
        self.mark(f"{what} ready")

    def mark(self, event: str) -> None:
        print(f"{time.monotonic() - self.started:7.2f} {event}", flush=True)

    def containerd_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(layout.CONTAINERD_SOCKET) == 0

    def apiserver_ready(self) -> bool:
        pki = self.instance.state / "pki"
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        try:
            with urllib.request.urlopen(f"{layout.API}/readyz", context=context, timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def reap(self) -> None:
        """Waits for every process of the node that loses its parent, for ever."""
        while True:
            pid, status = os.wait()
            for name, process in list(self.components.items()):
                if process.pid == pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    self.mark(f"{name} ended, exit code {process.returncode}")
                    time.sleep(RESTART_PAUSE)  # bounds the load of a component that ends at once
                    self.start(name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    Node(layout.Instance(sys.argv[1]), sys.argv[2]).run()
