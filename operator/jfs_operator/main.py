"""`jfs-operator`: takes the lease, then runs kopf until it is told to stop or the lease is lost.

Order: logs → health (a standby answers probes) → lease → kopf. A lost lease ends the process at once, without tidying up: from
that moment another one may write. A second life is cheap, since a reconcile goes on wherever the first one stopped.
"""

import argparse
import asyncio
import datetime
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import kopf
from jfs_api import names
from kubernetes.config.config_exception import ConfigException

from jfs_operator import handlers, health, kube, logs
from jfs_operator.api import JUICEFS_NODES, Api, ApiError, ApiUnavailable, Object, metadata, uid_of
from jfs_operator.command import JfsCommand
from jfs_operator.handlers import Handlers
from jfs_operator.lease import RENEW_DEADLINE, Lease
from jfs_operator.reconcile import Reconciler
from jfs_operator.recorder import Recorder
from jfs_operator.report import Reporter
from jfs_operator.rollout.plan import Settings
from jfs_operator.rollout.runner import Rollout
from jfs_operator.scrub import Scrubber

_log = logging.getLogger(__name__)
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LOST_LEASE = 3  # exit code


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jfs-operator", description="Makes volumes out of JuiceFSVolumes.")
    parser.add_argument("--namespace", help="where managed Secrets and the lease live (default: the pod's namespace)")
    parser.add_argument("--driver-name", default=names.DRIVER, help="name of the CSI driver (default: %(default)s)")
    parser.add_argument("--jfs", default="jfs", help="the client's program (default: %(default)s)")
    parser.add_argument("--kubeconfig", help="reach the API server by this file instead of the service account")
    parser.add_argument("--lease", default=names.OPERATOR, help="name of the Lease (default: %(default)s)")
    parser.add_argument(
        "--health", default="0.0.0.0:8080", help="address of /healthz and /readyz (default: %(default)s)"
    )
    parser.add_argument(
        "--resync", type=float, default=60.0, help="seconds between checks of each object (default: 60)"
    )
    parser.add_argument("--rollout-image", help="bring this sidecar image to pods that run, one by one (default: none)")
    parser.add_argument(
        "--rollout-pause",
        type=float,
        default=10.0,
        help="seconds that a new sidecar must be ready before the next (10)",
    )
    parser.add_argument(
        "--rollout-timeout",
        type=float,
        default=300.0,
        help="seconds after which one that is not stops the rollout (300)",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parsed = parser.parse_args(argv)
    if parsed.namespace is None:
        if not _OWN_NAMESPACE.exists():
            parser.error("--namespace is needed outside a pod")
        parsed.namespace = _OWN_NAMESPACE.read_text().strip()
    host, colon, port = parsed.health.rpartition(":")
    if not colon or not port.isdigit():
        parser.error(f"--health {parsed.health!r} is not host:port")
    parsed.health = (host.strip("[]"), int(port))
    for option in ("resync", "rollout_pause", "rollout_timeout"):
        if getattr(parsed, option) <= 0:
            parser.error(f"--{option.replace('_', '-')} must be more than nothing")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT; exit code 3 when the lease was lost, 1 when kopf failed."""
    options = arguments(argv)
    scrubber = Scrubber()
    logs.configure(options.log_level, scrubber)
    try:
        api = kube.connect(options.kubeconfig)
    except ConfigException as error:
        sys.exit(f"jfs-operator: no way to reach the API server: {error}")
    state = health.Health()
    server = health.serve(state, *options.health)
    lease = Lease(
        api,
        options.namespace,
        options.lease,
        f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        lost=lambda: os._exit(LOST_LEASE),
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if lease.acquire(stop):
        state.lease_limit, state.lease_age = RENEW_DEADLINE + 5, lease.age
        lease.keep()
        failed = False
        try:
            asyncio.run(run(api, options, scrubber, state, stop))
        except Exception:
            failed = True
            _log.exception("the operator failed")  # and not by the interpreter, which scrubs nothing
        finally:
            lease.release()
        if failed:
            sys.exit(1)
    server.shutdown()
    server.server_close()


async def run(
    api: kube.KubeApi, options: argparse.Namespace, scrubber: Scrubber, state: health.Health, stop: threading.Event
) -> None:
    """kopf, the queue and the audits, until one of them ends."""
    recorder = Recorder(api, _now)
    reconciler = Reconciler(
        api,
        JfsCommand(options.jfs),
        namespace=options.namespace,
        driver=options.driver_name,
        clock=time.monotonic,
        reporter=Reporter(api, recorder, scrubber, _now),
        scrubber=scrubber,
    )
    mine = Handlers(reconciler, resync=options.resync)
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry, id="login")(lambda **_: kopf.ConnectionInfo(**api.connection()._asdict()))
    mine.register(registry)
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    ready_flag = asyncio.Event()
    # Made before kopf looks at the loop's tasks: those that it finds there are not its own to wait for at the end.
    background = [
        *mine.queue.start(),
        asyncio.create_task(_tick(state, ready_flag, stop)),
        asyncio.create_task(_audit(api, mine, state, options.resync)),
    ]
    if options.rollout_image:
        reconciler.sidecars = None
        rollout = Rollout(
            api,
            Settings(options.rollout_image, options.driver_name, options.rollout_pause, options.rollout_timeout),
            recorder,
            mine.rolled_out,
            interval=options.resync,
            now=lambda: datetime.datetime.now(datetime.UTC),
        )
        mine.rollout = rollout
        background.append(asyncio.create_task(rollout.run()))
    try:
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=True,
            ready_flag=ready_flag,
        )
    finally:
        state.ready = False
        mine.queue.stop()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        reconciler.close()


async def _tick(state: health.Health, ready_flag: asyncio.Event, stop: threading.Event) -> None:
    while True:
        state.tick()
        state.ready = ready_flag.is_set()
        if stop.is_set():  # the signal came before kopf's own handlers were there; by now they are
            stop.clear()
            signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(health.TICK)


async def _audit(api: Api, mine: Handlers, state: health.Health, interval: float) -> None:
    """Compare what the API server lists with what the watches told, every interval."""
    try:  # else the first round does it
        mine.nodes_listed(await asyncio.to_thread(api.list, JUICEFS_NODES))
    except (ApiError, ApiUnavailable) as error:
        _log.warning("the node services' objects could not be listed yet: %s", error)
    while True:
        await asyncio.sleep(interval)
        dead = []
        for resource, audit in mine.audits.items():
            try:
                listed: list[Object] = await asyncio.to_thread(api.list, resource)
            except (ApiError, ApiUnavailable) as error:
                _log.warning("the audit of %s was put off: %s", resource.plural, error)
                continue
            if resource is JUICEFS_NODES:
                await _forget_nodes(api, mine, listed)
            if not audit.audit(listed):
                dead.append(resource.plural)
        state.dead_watches = tuple(dead)


async def _forget_nodes(api: Api, mine: Handlers, listed: list[Object]) -> None:
    for body in mine.nodes_listed(listed):
        head = metadata(body)
        _log.info("the node service of %s has written nothing for long; its JuiceFSNode goes", head["name"])
        try:
            await asyncio.to_thread(api.delete, JUICEFS_NODES, head["namespace"], head["name"], uid_of(body))
        except (ApiError, ApiUnavailable) as error:
            _log.warning("the JuiceFSNode %s could not be deleted, it is tried again: %s", head["name"], error)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
