"""`/healthz` and `/readyz`, served by a thread of its own so that a stuck event loop is seen and not merely suffered.

Alive: the event loop has ticked lately, the lease was renewed in time, no watch is dead; a standby that waits for the lease is
alive too. Ready: the lease is held and kopf watches. Answers are one line of text per finding.
"""

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

TICK: Final = 1.0  # seconds between the event loop's signs of life
_LONGEST_SILENCE: Final = 30.0  # seconds


class Health:
    """What the probes say. Written by the event loop and the main thread, read by the server's threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ticked: float | None = None
        self.lease_age: Callable[[], float] | None = None
        self.lease_limit = 0.0
        self.dead_watches: tuple[str, ...] = ()
        self.ready = False

    def tick(self) -> None:
        """The event loop runs."""
        self._ticked = self._clock()

    def ailments(self) -> list[str]:
        """Why the process should be restarted; empty when it is well."""
        found = []
        if self._ticked is not None and self._clock() - self._ticked > _LONGEST_SILENCE:
            found.append("the event loop is stuck")
        if self.lease_age is not None and self.lease_age() > self.lease_limit:
            found.append("the lease is lost")
        found += [f"the watch of {plural} is dead" for plural in self.dead_watches]
        return found


def serve(health: Health, host: str, port: int) -> ThreadingHTTPServer:
    """Start serving in the background; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ailments = health.ailments()
            if self.path == "/healthz":
                self._answer(ailments)
            elif self.path == "/readyz":
                self._answer(ailments or ([] if health.ready else ["waiting for the lease"]))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are not worth a log line."""

        def _answer(self, ailments: list[str]) -> None:
            body = ("\n".join(ailments) or "ok").encode() + b"\n"
            self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if ailments else HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
