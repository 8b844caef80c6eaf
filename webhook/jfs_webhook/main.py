"""Entry of `jfs-webhook`: command line → API client → certificate rounds → the two servers → an orderly end.

Order: the plain port first (the kubelet may ask at once), the TLS port only when a certificate is served, readiness
last. At SIGTERM readiness goes first, requests are taken for the drain time, and those under way are finished.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from aiohttp import web

from jfs_webhook.api import ApiClient, NoAccess, find_access
from jfs_webhook.arguments import Arguments, parse_arguments
from jfs_webhook.certificates import Lifetimes
from jfs_webhook.server import Webhook
from jfs_webhook.trust import ROUND_SECONDS, Trust

log = logging.getLogger("jfs_webhook")

# Longer than any admission can take, shorter than what is left of Kubernetes' grace period after draining.
SHUTDOWN_SECONDS = 6.0


def listen(port: int) -> socket.socket:
    """A listening socket on all addresses, of both families where the machine has both. Raises OSError."""
    try:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except ValueError:
        pass  # no dual stack here
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    return socket.create_server(("0.0.0.0", port))


async def serve(
    arguments: Arguments,
    client: ApiClient,
    stop: asyncio.Event,
    admission_socket: socket.socket,
    health_socket: socket.socket,
    lifetimes: Lifetimes | None = None,
    round_seconds: float = ROUND_SECONDS,
) -> None:
    """Serve on the two sockets until `stop`; closes them."""
    trust = Trust(client, arguments.identity, lifetimes=lifetimes)
    webhook = Webhook(client, arguments.settings, trust)
    health = web.AppRunner(webhook.health(), access_log=None)
    admission = web.AppRunner(webhook.admission(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await health.setup()
    await admission.setup()
    rounds = asyncio.create_task(trust.run(round_seconds), name="trust")
    try:
        await web.SockSite(health, health_socket).start()
        # A handshake before the first certificate fails, which is what a webhook that is not ready should do.
        await web.SockSite(admission, admission_socket, ssl_context=trust.tls).start()
        log.info("started: sidecar %s, driver %s", arguments.settings.sidecar_image, arguments.settings.driver)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, rounds}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if rounds.done():
            rounds.result()  # the rounds end only by an error nobody expected: let the process end with it
        webhook.draining = True
        log.info("stopping: taking requests for another %g s", arguments.drain_seconds)
        # Endpoints are removed by others, at their pace; nothing tells us when the last proxy has heard of it.
        await asyncio.sleep(arguments.drain_seconds)
    finally:
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
        await admission.cleanup()
        await health.cleanup()


async def run(arguments: Arguments, lifetimes: Lifetimes | None = None, round_seconds: float = ROUND_SECONDS) -> None:
    """Run until SIGTERM or SIGINT; `lifetimes` of certificates are the usual ones if not given. Raises NoAccess and OSError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    access = find_access(os.environ)
    with listen(arguments.port) as admission, listen(arguments.health_port) as health:
        async with ApiClient(access) as client:
            await serve(arguments, client, stop, admission, health, lifetimes, round_seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit status."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(run(arguments))
    except (NoAccess, OSError) as error:
        print(f"jfs-webhook: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
