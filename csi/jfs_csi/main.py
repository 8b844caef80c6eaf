"""`jfs-csi`: the node service's process, one per node, in a privileged DaemonSet.

Order of start: sweep and take over what a predecessor published, serve CSI, then the registration socket – the kubelet
calls as soon as it sees that. SIGTERM stops serving and leaves all mounts: sidecars keep working and reconnect to the
successor. One event loop; system calls that may block run in threads; nothing forks.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from aiohttp import web
from jfs_api import names

from jfs_csi.api import ApiClient
from jfs_csi.control.server import ControlServer
from jfs_csi.directories import Tree
from jfs_csi.ending import PodEnd
from jfs_csi.events import EventReporter, Subject
from jfs_csi.fuse.custody import Custody
from jfs_csi.fuse.holder import SOCKET, HolderClient
from jfs_csi.fuse.keeper import Keeper
from jfs_csi.identity import Identity, Registration
from jfs_csi.injection import SidecarCheck
from jfs_csi.layout import Layout
from jfs_csi.metrics import Metrics, application
from jfs_csi.mounts import FuseConnections
from jfs_csi.node import Node
from jfs_csi.publish import Publisher
from jfs_csi.reporting import NodeReporter
from jfs_csi.rpc import RpcHandler
from jfs_csi.state import DATA, StateStore
from jfs_csi.stats import UsageProbe

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_HEAL_SECONDS = 3.0  # between looks for mounts that nobody serves; sidecars reconnect faster


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line."""

    endpoint: str
    kubelet_dir: Path
    node_name: str
    registration_dir: Path | None = None
    driver_name: str = names.DRIVER
    metrics: str | None = None
    health: str | None = None
    holder: bool = False
    namespace: str | None = None


class NodeService:
    """All parts of the process, put together. `api` None: no pod checks, events only in the log."""

    def __init__(self, settings: Settings, api: ApiClient | None) -> None:
        self._settings = settings
        self._layout = Layout(settings.kubelet_dir, settings.driver_name)
        self._tree = Tree(settings.kubelet_dir)
        self._states = StateStore(self._tree, self._layout)
        self._api = api
        self._metrics = Metrics()
        self._events = EventReporter(api, settings.node_name, settings.driver_name)
        self._connections = FuseConnections()
        holder = settings.kubelet_dir.joinpath(*self._layout.plugin, *SOCKET) if settings.holder else None
        self._keeper = Keeper(None if holder is None else HolderClient(holder))
        self._custody = Custody(self._tree, self._layout, self._states, self._keeper, self._connections)
        self._control = ControlServer(
            self._tree,
            self._layout,
            self._states,
            settings.node_name,
            self._notify,
            self._custody,
            self._metrics.taken_over,
            self._changed,
        )
        self._reporter: NodeReporter | None = None
        if api is not None and settings.namespace is not None:
            self._reporter = NodeReporter(api, settings.namespace, settings.node_name, self._control.attachments)
        usage = UsageProbe()
        self._publisher = Publisher(
            self._tree,
            self._layout,
            self._states,
            self._control,
            self._connections,
            self._custody,
            usage,
            PodEnd(api),
        )
        endpoint = settings.endpoint.removeprefix("unix://")
        self._registration = Registration(settings.driver_name, endpoint)
        self._node = Node(
            settings.node_name,
            self._layout,
            self._states,
            self._publisher,
            SidecarCheck(api),
            self._events,
            self._metrics,
            usage,
        )
        self._endpoint = endpoint
        self.http_addresses: list[tuple[str, int]] = []  # of the metrics and health ports, once serving

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves inside the block."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._connections.close)
            stack.callback(self._keeper.close)
            if self._api is not None:
                stack.push_async_callback(self._api.close)
            stack.push_async_callback(self._control.close)
            self._tree.make(self._layout.plugin, 0o711)
            await self._publisher.restore()
            reporting = [] if self._reporter is None else [self._reporter.run()]
            for work in (self._events.run(), self._sweep(), self._heal(), *reporting):
                task = asyncio.create_task(work)
                stack.push_async_callback(_cancel, task)
            self._metrics.watch(
                self._control.attached,
                self._control.sessions,
                self._published,
                self._control.dirty_bytes,
                lambda: len(self._keeper),
            )
            for address in {self._settings.metrics, self._settings.health} - {None}:
                await self._serve_http(stack, str(address))
            identity = Identity(self._settings.driver_name)
            observe = self._metrics.observe
            await _serve(stack, self._endpoint, [identity.handler(observe), self._node.handler(observe)])
            if self._settings.registration_dir is not None:
                socket = self._settings.registration_dir / f"{self._settings.driver_name}-reg.sock"
                await _serve(stack, str(socket), [self._registration.handler(observe)])
            log.info("Driver %s serves node %s.", self._settings.driver_name, self._settings.node_name)
            yield

    def _published(self) -> int:
        return sum(state.kind == DATA for state in self._states.all())

    def _notify(self, reason: str, pod_uid: str, volume: str, message: str) -> None:
        self._metrics.event(reason)
        state = self._states.get(pod_uid, volume)
        if state is None:
            return
        self._events.report(Subject("Pod", state.pod_namespace, state.pod_name, pod_uid), reason, message)
        if state.persistent:
            self._events.report(Subject("PersistentVolume", "", volume), reason, message)

    def _changed(self) -> None:
        if self._reporter is not None:
            self._reporter.changed()

    async def _sweep(self) -> None:
        # The kubelet announces nothing when it drops a force-deleted pod's directory.
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self._publisher.sweep()
            except OSError as error:
                log.error("The sweep of pods that are gone failed, it is tried again: %s", error)

    async def _heal(self) -> None:
        # A connection that ended while we were away, and a holder that was, announce nothing.
        while True:
            await asyncio.sleep(_HEAL_SECONDS)
            try:
                await asyncio.to_thread(self._keeper.synchronize)
                await self._publisher.heal()
                await self._publisher.end_waiting()
            except OSError as error:
                log.error("The look for mounts that nobody serves failed, it is tried again: %s", error)

    async def _serve_http(self, stack: contextlib.AsyncExitStack, address: str) -> None:
        host, _, port = address.rpartition(":")
        runner = web.AppRunner(application(self._metrics, lambda: self._registration.registered), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
        self.http_addresses += [(address[0], address[1]) for address in runner.addresses]


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _serve(stack: contextlib.AsyncExitStack, path: str, handlers: list[RpcHandler]) -> None:
    """A gRPC server on a Unix socket that only root may use."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a predecessor that was killed
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers)
    if server.add_insecure_port(f"unix://{path}") == 0:
        raise OSError(f"cannot listen on {path}")
    await server.start()
    os.chmod(path, 0o600)
    stack.push_async_callback(server.stop, 2.0)


async def serve(settings: Settings, api: ApiClient | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with NodeService(settings, api).running():
        await stop.wait()
        log.info("Stopping; mounts stay.")


def parse(arguments: Sequence[str] | None) -> Settings:
    """The command line; exits with a sentence on a wrong one."""
    parser = argparse.ArgumentParser(prog="jfs-csi", description="CSI node service of JuiceFS sidecars.")
    parser.add_argument("--endpoint", required=True, help="CSI socket, unix:///path, as the kubelet sees it")
    parser.add_argument("--registration-dir", type=Path, help="the kubelet's plugins_registry directory")
    parser.add_argument("--kubelet-dir", type=Path, default=Path("/var/lib/kubelet"))
    parser.add_argument("--node-name", required=True)
    parser.add_argument("--driver-name", default=names.DRIVER)
    parser.add_argument("--metrics", metavar="[HOST]:PORT", help="serve /metrics, /healthz and /readyz there")
    parser.add_argument("--health", metavar="[HOST]:PORT", help="the same, on another port")
    parser.add_argument(
        "--holder",
        action="store_true",
        help="keep duplicates of FUSE descriptors with jfs-csi-holder, at <driver>/holder/s",
    )
    parser.add_argument("--namespace", help="namespace of this node's JuiceFSNode; without it none is written")
    parser.add_argument("--verbose", action="store_true", help="log every call")
    options = parser.parse_args(arguments)
    if not options.endpoint.startswith("unix:///"):
        parser.error(f"--endpoint {options.endpoint} is not of the form unix:///path.")
    for address in (options.metrics, options.health):
        if address is not None and not address.rpartition(":")[2].isdigit():
            parser.error(f"{address} is not an address of the form [HOST]:PORT.")
    if not options.kubelet_dir.is_absolute() or not options.kubelet_dir.is_dir():
        parser.error(f"--kubelet-dir {options.kubelet_dir} is not an absolute path of an existing directory.")
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(logging.INFO)
    return Settings(
        endpoint=options.endpoint,
        kubelet_dir=options.kubelet_dir,
        node_name=options.node_name,
        registration_dir=options.registration_dir,
        driver_name=options.driver_name,
        metrics=options.metrics,
        health=options.health,
        holder=options.holder,
        namespace=options.namespace,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script."""
    settings = parse(arguments)
    try:
        asyncio.run(serve(settings, ApiClient.in_cluster()))
    except OSError as error:
        print(f"jfs-csi cannot serve: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
