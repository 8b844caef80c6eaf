"""Writes down what a plan found: the status of the object by server-side apply, and an event for what changed.

Compare and skip: an unchanged status is not written. Everything that leaves here has gone through the scrubber. Blocking.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jfs_api import names
from jfs_api.attachments import Attachment, of_volume
from jfs_api.conditions import Condition, merge, transitions

from jfs_operator import desired
from jfs_operator.api import JUICEFS_VOLUMES, Api, ApiError, Object, Resource, metadata, uid_of
from jfs_operator.recorder import Recorder
from jfs_operator.scrub import Scrubber
from jfs_operator.steps import Next, Plan

_log = logging.getLogger(__name__)

# The conditions that get events: the summary speaks for its parts.
_ANNOUNCED = frozenset({names.READY, names.MOUNTABLE, names.SIDECARS_CURRENT})


class Reporter:
    """`now` gives RFC 3339."""

    def __init__(self, api: Api, recorder: Recorder, scrubber: Scrubber, now: Callable[[], str]) -> None:
        self._api = api
        self._recorder = recorder
        self._scrubber = scrubber
        self._now = now

    def report(
        self,
        body: Object,
        plan: Plan,
        resource: Resource,
        attachments: Sequence[tuple[str, Attachment]] | None = None,
    ) -> Object:
        """Write the status if it changed; returns the object as it is then. `attachments` None: they stay as they are."""
        head, old = metadata(body), body.get("status") or {}
        conditions = [self._clean(condition) for condition in plan.conditions]
        before = old.get("conditions") or []
        generation = head.get("generation", 1)
        status: dict[str, Any] = {
            "observedGeneration": generation,
            "conditions": merge(before, conditions, generation=generation, now=self._now()),
        }
        if plan.file_system is not None:
            status["fileSystem"] = {"name": plan.file_system.name, "uuid": plan.file_system.uuid}
            if resource is JUICEFS_VOLUMES:
                status["persistentVolume"] = desired.object_name(body)
        if attachments is None:
            status.update({key: old[key] for key in ("pods", "attachments") if old.get(key)})
        elif attachments:
            status["pods"] = len(attachments)
            status["attachments"] = of_volume((node, self._clean_entry(entry)) for node, entry in attachments)
        if plan.fingerprint:
            status["credentials"] = plan.fingerprint
        if status == {key: value for key, value in old.items() if value}:
            return body
        manifest = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": head["name"], "namespace": head["namespace"], "uid": uid_of(body)},
            "status": status,
        }
        try:
            written = self._api.apply(resource, manifest, status=True)
        except ApiError as error:
            if error.status in {404, 409}:  # deleted meanwhile
                return body
            raise
        for condition in transitions(before, conditions):
            if condition.type in _ANNOUNCED and _worth_an_event(condition, plan):
                _log.info("%s/%s: %s: %s", head["namespace"], head["name"], condition.reason, condition.message)
                self._recorder.record(body, condition)
        return written

    def announce(self, body: Object, plan: Plan) -> None:
        """For an object that is not ours and has no status for us: an event only."""
        condition = self._clean(plan.conditions[0])
        _log.info("%s: %s: %s", metadata(body)["name"], condition.reason, condition.message)
        self._recorder.record(body, condition)

    def _clean_entry(self, entry: Attachment) -> Attachment:
        return replace(entry, message=self._scrubber.clean(entry.message))

    def _clean(self, condition: Condition) -> Condition:
        return Condition(condition.type, condition.status, condition.reason, self._scrubber.clean(condition.message))


def _worth_an_event(condition: Condition, plan: Plan) -> bool:
    """Progress is not: what waits for a step or for another controller is in the status alone."""
    if condition.status == "Unknown" or plan.next is Next.GONE:
        return False
    if condition.type == names.SIDECARS_CURRENT:
        return condition.reason == names.ROLLOUT_STOPPED
    return (
        condition.status == "True"
        or condition.type != names.READY
        or (plan.step is None and plan.next is not Next.EVENT)
    )
