"""Events on the objects we look after: one per transition, counted up when it repeats, never a flood.

The name of an event is made of its object and its text, so that a repetition (also by a successor of this process) finds the
former one. Losing an event never fails a reconcile. Messages come in scrubbed.
"""

import hashlib
import logging
from collections.abc import Callable

from jfs_api import names
from jfs_api.conditions import Condition

from jfs_operator.api import EVENTS, Api, ApiError, ApiUnavailable, Object, metadata, uid_of

_log = logging.getLogger(__name__)
_LONGEST_NAME = 253


class Recorder:
    """Blocking, like `Api`. `now` gives RFC 3339."""

    def __init__(self, api: Api, now: Callable[[], str], instance: str = names.OPERATOR) -> None:
        self._api = api
        self._now = now
        self._instance = instance

    def record(self, body: Object, condition: Condition) -> None:
        """Normal for a condition that became True, else Warning."""
        try:
            self._record(body, condition)
        except (ApiError, ApiUnavailable) as error:
            _log.warning("the event %s on %s could not be posted: %s", condition.reason, metadata(body)["name"], error)

    def _record(self, body: Object, condition: Condition) -> None:
        head, now = metadata(body), self._now()
        namespace = head.get("namespace") or "default"  # where events of cluster-scoped objects live
        digest = hashlib.sha256(f"{uid_of(body)} {condition.reason} {condition.message}".encode()).hexdigest()[:16]
        name = f"{head['name'][: _LONGEST_NAME - 17]}.{digest}"
        former = self._api.get(EVENTS, namespace, name)
        if former is not None:
            count = int(former.get("count") or 1) + 1
            self._api.patch(EVENTS, namespace, name, {"count": count, "lastTimestamp": now})
            return
        self._api.create(
            EVENTS,
            {
                "apiVersion": EVENTS.api_version,
                "kind": EVENTS.kind,
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {
                    "apiVersion": body["apiVersion"],
                    "kind": body["kind"],
                    "name": head["name"],
                    "uid": uid_of(body),
                    **({"namespace": head["namespace"]} if head.get("namespace") else {}),
                },
                "type": "Normal" if condition.status == "True" else "Warning",
                "reason": condition.reason,
                "message": condition.message,
                "count": 1,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "source": {"component": names.OPERATOR},
                "reportingComponent": names.OPERATOR,
                "reportingInstance": self._instance,
            },
        )
