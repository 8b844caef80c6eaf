"""The single writer: a coordination.k8s.io Lease that is held before kopf starts, renewed by a thread, and lost only with the process.

The rules are those of client-go's leader election: a holder renews every few seconds; others take over when they have seen no
renewal for the lease's duration by *their own* clock; whoever cannot renew in time stops writing before others may start. A
replacement of a process that ended in order starts at once, since it gives the lease back.
"""

import datetime
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from jfs_operator.api import LEASES, Api, ApiError, ApiUnavailable, Conflict, Object

_log = logging.getLogger(__name__)

DURATION: Final = 15.0  # seconds without renewal until others may take over
RENEW_DEADLINE: Final = 10.0  # seconds without renewal until the holder gives up
PERIOD: Final = 2.0  # seconds between attempts


class Lease:
    """One lease of one process. `acquire` and `release` are called by the main thread, renewal has a thread of its own."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        period: float = PERIOD,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lost = lost
        self._clock = clock
        self._period = period
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._observed: tuple[object, float] | None = None
        self._renewed = 0.0
        self._other_holds = False

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until the lease is ours; False when `stop` was set first."""
        announced = False
        while not stop.is_set():
            try:
                if self.try_once():
                    _log.info("holding the lease %s/%s as %s", self._namespace, self._name, self._identity)
                    return True
                if not announced:
                    _log.info("another operator holds the lease %s/%s; waiting", self._namespace, self._name)
                    announced = True
            except (ApiError, ApiUnavailable) as error:
                _log.warning("the lease %s/%s cannot be taken: %s", self._namespace, self._name, error)
            stop.wait(self._period)
        return False

    def try_once(self) -> bool:
        """Take or renew the lease if that is allowed now. Raises ApiError and ApiUnavailable."""
        current = self._api.get(LEASES, self._namespace, self._name)
        now = self._clock()
        try:
            if current is None:
                self._api.create(LEASES, self._manifest(None))
            else:
                spec = current.get("spec") or {}
                holder = spec.get("holderIdentity")
                self._other_holds = bool(holder) and holder != self._identity
                if self._other_holds and not self._expired(spec, now):
                    return False
                self._api.replace(LEASES, self._manifest(current))
        except Conflict:
            return False
        self._renewed = now
        return True

    def keep(self) -> None:
        """Renew in the background; calls `lost` once when that fails for too long."""
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def age(self) -> float:
        """Seconds since the last renewal."""
        return self._clock() - self._renewed

    def release(self) -> None:
        """Give the lease back, so that a successor need not wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=RENEW_DEADLINE)
        try:
            current = self._api.get(LEASES, self._namespace, self._name)
            if current is not None and (current.get("spec") or {}).get("holderIdentity") == self._identity:
                current["spec"]["holderIdentity"] = ""
                self._api.replace(LEASES, current)
        except (ApiError, ApiUnavailable) as error:
            _log.warning("the lease %s/%s was not given back: %s", self._namespace, self._name, error)

    def _renew(self) -> None:
        while not self._stop.wait(self._period):
            taken = False
            try:
                taken = not self.try_once() and self._other_holds
            except (ApiError, ApiUnavailable) as error:
                _log.warning("the lease %s/%s was not renewed: %s", self._namespace, self._name, error)
            if taken or self.age() > RENEW_DEADLINE:
                _log.error("the lease %s/%s is lost", self._namespace, self._name)
                self._lost()
                return

    def _expired(self, spec: Object, now: float) -> bool:
        """By our own clock: how long has this very renewal been the last one?"""
        renewal = (spec.get("holderIdentity"), spec.get("renewTime"))
        if self._observed is None or self._observed[0] != renewal:
            self._observed = (renewal, now)
        return now - self._observed[1] > float(spec.get("leaseDurationSeconds") or DURATION)

    def _manifest(self, current: Object | None) -> Object:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((current or {}).get("spec") or {})
        taken = spec.get("holderIdentity") != self._identity
        spec.update(holderIdentity=self._identity, leaseDurationSeconds=int(DURATION), renewTime=stamp)
        if taken:
            spec.update(acquireTime=stamp, leaseTransitions=int(spec.get("leaseTransitions") or 0) + 1)
        head = (current or {}).get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": head, "spec": spec}
