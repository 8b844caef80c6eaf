"""Start and stop a node from the host's side, and reach into it.

The node is one process tree in namespaces of its own (see `node`), found again by the command line of its first process, so
that nothing on disk has to be true. Killing that process ends everything; `down` waits until it is really over and removes
the control group and the state folder, so that a later `up` of the same name starts from nothing.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e import tools
from e2e.cluster import cgroups, layout, node, pki
from e2e.cluster.kubectl import Kubectl, until
from e2e.progress import step

REPOSITORY = Path(__file__).parents[2]
_MODULE = "e2e.cluster.node"
_END_SECONDS = 60.0


class ClusterError(Exception):
    """The node could not be started, stopped or reached; the text says what happened and where its logs are."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The one-node cluster of a name. Creating the object starts nothing."""

    instance: layout.Instance

    @classmethod
    def named(cls, name: str) -> "Cluster":
        return cls(layout.Instance(name))

    # -- life ----------------------------------------------------------------------------------------------------------

    def up(self, pause: Path, dns: Path) -> None:
        """Start from nothing, with the image archives of the pause container and of cluster DNS; returns when pods can run.

        Raises ClusterError, and then nothing is left but the logs.
        """
        if os.geteuid() != 0:
            raise ClusterError("The one-node cluster needs root: it makes namespaces, mounts and control groups.")
        self.down()
        binary = tools.path("onenode")
        with step(f"starting the one-node cluster {self.instance.name} (Kubernetes {tools.KUBERNETES_VERSION})"):
            self._prepare(pause)
            try:
                self._start(binary)
                self.load(dns)
                self._settle()
            except BaseException as error:
                logs = self._keep_logs()
                self.down()
                if isinstance(error, Exception):
                    raise ClusterError(
                        f"The cluster {self.instance.name} did not start: {error} (logs: {logs})"
                    ) from error
                raise

    def _prepare(self, pause: Path) -> None:
        state = self.instance.state
        state.mkdir(parents=True, mode=0o700)
        for name in ("scratch", "kubelet", "containerd", "log", "pids", self.instance.manifests.name):
            (state / name).mkdir()
        shutil.copyfile(pause, state / "pause.tar")
        pki.write_all(state / "pki")
        layout.write_configs(self.instance)
        cgroups.make(self.instance.cgroup)

    def _start(self, binary: Path) -> None:
        state = self.instance.state
        namespaces = ["unshare", "-m", "-n", "-p", "-u", "-i", "--propagation", "private", "--fork", "--kill-child"]
        command = [*namespaces, sys.executable, "-m", _MODULE, self.instance.name, str(binary)]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        log = state / "log" / "node.log"
        with log.open("wb") as output:
            # its own session: an interrupt at the keyboard is for us, who then take it down in order
            first = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        started = time.monotonic()
        while node.READY not in log.read_text():
            if first.poll() is not None:
                raise ClusterError(log.read_text().strip().splitlines()[-1])
            if time.monotonic() - started > 4 * node.START_SECONDS:
                raise ClusterError(f"not started after {4 * node.START_SECONDS:.0f} s")
            time.sleep(0.1)
        first.returncode = 0  # it lives on; the interpreter must not warn about it

    def _settle(self) -> None:
        kubectl = self.kubectl()
        until("the node's object", lambda: kubectl.find("node", layout.NODE))
        kubectl.wait(f"node/{layout.NODE}", "condition=Ready")
        kubectl.apply(*layout.dns_documents())
        # pods are refused until this exists
        until("the default service account", lambda: kubectl.find("serviceaccount", "default"))
        kubectl.into("kube-system")("rollout", "status", "deployment/coredns", "--timeout=180s")

    def _keep_logs(self) -> Path:
        kept = layout.STATES / f"{self.instance.name}.failed"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.instance.state / "log", kept)
        return kept

    def down(self) -> None:
        """End the node, if it runs, and remove everything of it. Raises ClusterError when something will not go."""
        pid = self.pid()
        if pid is not None:
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                # readable only when every process of the PID namespace has ended; its command line is empty long before
                if not select.select([handle], [], [], _END_SECONDS)[0]:
                    raise ClusterError(
                        f"Processes of the cluster {self.instance.name} have not ended in {_END_SECONDS:.0f} s."
                    )
            finally:
                os.close(handle)
        cgroups.remove(self.instance.cgroup)
        if self.instance.state.exists():
            shutil.rmtree(self.instance.state)

    def pid(self) -> int | None:
        """The node's first process as the host sees it, or None when the node does not run."""
        arguments = f"\0-m\0{_MODULE}\0{self.instance.name}\0".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if arguments not in (entry / "cmdline").read_bytes():
                    continue
                status = (entry / "status").read_text()
            except OSError:  # it ended meanwhile
                continue
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1":  # not `unshare`, its parent
                return int(entry.name)
        return None

    def is_up(self) -> bool:
        return self.pid() is not None

    def healthy(self) -> bool:
        """Whether the node runs and its API server says it is ready."""
        return self.is_up() and self.kubectl().process("get", "--raw=/readyz", timeout=30).stdout == "ok"

    # -- reaching in ---------------------------------------------------------------------------------------------------

    def _inside(self, *namespaces: str) -> list[str]:
        pid = self.pid()
        if pid is None:
            raise ClusterError(f"The cluster {self.instance.name} does not run.")
        return ["nsenter", "-t", str(pid), *namespaces]

    def environment(self) -> dict[str, str]:
        """For programs of the host that are to reach the API server, like kubectl and helm."""
        proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "kubeconfig"}
        kept = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
        return kept | {"KUBECONFIG": str(self.instance.kubeconfig)}

    def network(self) -> tuple[str, ...]:
        """Before a command: it keeps the host's files and processes and gets the node's network."""
        return tuple(self._inside("-n"))

    def kubectl(self, namespace: str | None = None) -> Kubectl:
        return Kubectl(self.network(), self.environment(), namespace)

    def run(self, *command: str, check: bool = True) -> str:
        """Standard output of a command inside the node: its files, processes and network."""
        inside = self._inside("-m", "-n", "-p", "-u", "-i", "-r", "-w")
        done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False, timeout=300)
        if check and done.returncode != 0:
            raise ClusterError(f"{' '.join(command)} inside the node: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def load(self, archive: Path) -> bool:
        """Import an image archive into the node's containerd; False if this very archive is there already."""
        record = self.instance.state / "images.json"
        loaded: list[str] = json.loads(record.read_text()) if record.exists() else []
        if archive.name in loaded:
            return False
        command = [*self._inside("-m", "-p", "-r", "-w"), "ctr", "-n", "k8s.io", "images", "import", "-"]
        with archive.open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise ClusterError(f"containerd did not import {archive.name}: {done.stderr.strip()}")
        record.write_text(json.dumps([*loaded, archive.name]))
        return True

    def restart(self, component: str) -> None:
        """Kill a component (as `kubelet`) with SIGKILL and return when its successor runs."""
        place = self.instance.state / "pids" / component
        before = place.read_text()
        self.run("kill", "-KILL", before)
        until(f"a new {component}", lambda: place.read_text() not in ("", before), seconds=60, pause=0.05)

    def kill(self, number: int) -> None:
        """SIGKILL to a process of the node, by its number on the host; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)

    def mounts(self) -> list[str]:
        """The node's mount table: lines of /proc/self/mountinfo (proc(5)) of its first process."""
        return Path(f"/proc/{self.pid()}/mountinfo").read_text().splitlines()

    def pod_processes(self, uid: str) -> list[tuple[int, str]]:
        """Number (as the host sees it) and command line of every process of a pod, told by its control group."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and f"{self.instance.cgroup}/" in (group := (entry / "cgroup").read_text())
                    and uid in group
                ):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append((int(entry.name), command))
            except OSError:  # it ended meanwhile
                continue
        return found

    def log(self, component: str, lines: int = 40) -> str:
        file = self.instance.state / "log" / f"{component}.log"
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def components(names: Sequence[str] = ()) -> list[str]:
    return list(names) or ["node", *layout.commands(layout.Instance("any"))]
