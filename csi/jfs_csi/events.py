"""Events on pods and PersistentVolumes: how the reasons of the control socket reach `kubectl describe`.

`report` only queues; one task posts in order, so that publish never waits for the API server. The same happening again
within an hour raises the count of the existing event instead of making a new one; its name is derived from what it says,
so this holds across restarts too. Messages are redacted before they get here. A queue that is full drops the new event
with a log line – the log has said the same.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jfs_api import names

from jfs_csi.api import MERGE_PATCH, ApiClient, ApiError, ApiUnreachable

log = logging.getLogger(__name__)

_QUEUED = 200
_REMEMBERED = 1000
_QUIET = 20.0  # seconds in which the same event is not repeated: publishes are retried every second
_MOST_PER_SUBJECT, _PER_SECONDS = 20, 60.0  # a sidecar is the tenant's: it must not flood the API server
_LONGEST = 1000  # characters; the API server allows 1024


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about."""

    kind: str
    namespace: str  # "" for a PersistentVolume
    name: str
    uid: str = ""

    @property
    def event_namespace(self) -> str:
        return self.namespace or "default"


@dataclass(frozen=True, slots=True)
class _Event:
    subject: Subject
    reason: str
    message: str

    @property
    def name(self) -> str:
        text = "\0".join((self.subject.kind, self.subject.uid, self.reason, self.message))
        # An object's name may have 253 characters.
        return f"{self.subject.name[:220]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class EventReporter:
    """`api` None: events are only logged (outside a cluster)."""

    def __init__(self, api: ApiClient | None, node: str, component: str) -> None:
        self._api, self._node, self._component = api, node, component
        self._queue: asyncio.Queue[_Event] = asyncio.Queue(_QUEUED)
        self._recent: OrderedDict[Subject, deque[float]] = OrderedDict()  # when events of the subject were queued
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # event name → count, when posted

    def report(self, subject: Subject, reason: str, message: str) -> None:
        """Queue an event; logs it at once."""
        level = logging.INFO if reason in names.EVENTS_WORKING else logging.WARNING
        log.log(level, "%s %s/%s: %s: %s", subject.kind, subject.namespace, subject.name, reason, message)
        if self._api is None or self._too_many(subject):
            return
        try:
            self._queue.put_nowait(_Event(subject, reason, message[:_LONGEST]))
        except asyncio.QueueFull:
            log.warning("Too many events are waiting; the last one is only in this log.")

    def _too_many(self, subject: Subject) -> bool:
        now = time.monotonic()
        recent = self._recent.setdefault(subject, deque(maxlen=_MOST_PER_SUBJECT))
        self._recent.move_to_end(subject)
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        if len(recent) == _MOST_PER_SUBJECT and now - recent[0] < _PER_SECONDS:
            return True
        recent.append(now)
        return False

    async def run(self) -> None:
        """Post queued events until cancelled."""
        while True:
            event = await self._queue.get()
            try:
                await self._post(event)
            except (ApiError, ApiUnreachable) as error:
                log.warning("Event %s on %s could not be posted: %s", event.reason, event.subject.name, error)
            finally:
                self._queue.task_done()

    async def drain(self) -> None:
        """Wait until all queued events have been posted or given up."""
        await self._queue.join()

    async def _post(self, event: _Event) -> None:
        if self._api is None:
            return
        now = asyncio.get_running_loop().time()
        count, posted = self._counts.get(event.name, (0, -_QUIET))
        if now - posted < _QUIET:
            return
        collection = f"/api/v1/namespaces/{quote(event.subject.event_namespace)}/events"
        path = f"{collection}/{quote(event.name)}"
        if count == 0:
            try:
                await self._api.request("POST", collection, self._body(event))
                count = 1
            except ApiError as error:
                if error.status != 409:
                    raise
                # Made before our last restart. A patch tells its count too, and so no right to read events is needed.
                patch = {"lastTimestamp": _timestamp()}
                former = await self._api.request("PATCH", path, patch, content_type=MERGE_PATCH)
                count = int(former.get("count") or 1)
                count = await self._raise(path, collection, event, count)
        else:
            count = await self._raise(path, collection, event, count)
        self._counts[event.name] = (count, now)
        self._counts.move_to_end(event.name)
        while len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)

    async def _raise(self, path: str, collection: str, event: _Event, count: int) -> int:
        assert self._api is not None
        try:
            patch = {"count": count + 1, "lastTimestamp": _timestamp()}
            await self._api.request("PATCH", path, patch, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status != 404:
                raise
            await self._api.request("POST", collection, self._body(event))  # the first one has expired
            return 1
        return count + 1

    def _body(self, event: _Event) -> dict[str, Any]:
        subject, timestamp = event.subject, _timestamp()
        involved = {"apiVersion": "v1", "kind": subject.kind, "name": subject.name}
        if subject.namespace:
            involved["namespace"] = subject.namespace
        if subject.uid:
            involved["uid"] = subject.uid
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event.name, "namespace": subject.event_namespace},
            "involvedObject": involved,
            "reason": event.reason,
            "message": event.message,
            "type": "Normal" if event.reason in names.EVENTS_WORKING else "Warning",
            "source": {"component": self._component, "host": self._node},
            "reportingComponent": self._component,
            "reportingInstance": self._node,
            "firstTimestamp": timestamp,
            "lastTimestamp": timestamp,
            "count": 1,
        }


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
