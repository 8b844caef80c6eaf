"""Carries a rollout out: look, act, wait for the one pod whose turn it is, look again.

A task of the operator's event loop, so there is one at a time (the lease). It looks when a volume changes, and every so often;
while a pod's sidecar is being replaced only that pod is read, by polling: the operator watches no pods, of which there may be thousands.
Every write is guarded by the resourceVersion that was looked at.
"""

import asyncio
import contextlib
import datetime
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from jfs_api import names
from jfs_api.conditions import Condition

from jfs_operator.api import (
    EVENTS,
    JUICEFS_VOLUMES,
    PERSISTENT_VOLUMES,
    PODS,
    Api,
    ApiError,
    ApiUnavailable,
    Conflict,
    Object,
    annotation,
    metadata,
    uid_of,
)
from jfs_operator.recorder import Recorder
from jfs_operator.rollout.members import Member, members, pull_trouble, ready_for
from jfs_operator.rollout.plan import Conclude, GiveBack, Replace, Settings, Wait, conditions, judge, next_action

_log = logging.getLogger(__name__)

POLL: Final = 1.0  # seconds between looks at the pod whose turn it is
_QUIET: Final = 5.0  # seconds between looks at everything, however much happens


class Rollout:
    """`report` hears the conditions by PersistentVolume after each look; `now` gives the time in UTC."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        recorder: Recorder,
        report: Callable[[dict[str, Condition]], None],
        *,
        interval: float,
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._api, self._settings, self._recorder, self._report = api, settings, recorder, report
        self._interval, self._now = interval, now
        self._woken = asyncio.Event()
        self._told: dict[str, tuple[str, ...]] = {}  # what matters here of each volume, by UID

    def seen(self, body: Object) -> None:
        """An event about a JuiceFSVolume or PersistentVolume: look soon, if it says anything else about rollouts."""
        keys = (names.ROLLOUT_STOPPED_ANNOTATION, names.SIDECAR_ANNOTATION, names.VOLUME_ANNOTATION)
        told = (json.dumps((body.get("spec") or {}).get("sidecar")), *(annotation(body, key) for key in keys))
        if self._told.get(uid_of(body)) != told:
            self._told[uid_of(body)] = told
            self._woken.set()

    def gone(self, body: Object) -> None:
        """It was deleted."""
        self._told.pop(uid_of(body), None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._woken.clear()
            try:
                while await self.step():
                    pass
            except (ApiError, ApiUnavailable) as error:
                _log.warning("the rollout of %s is put off: %s", self._settings.image, error)
            except Exception:  # nobody awaits this task: it must not end unseen
                _log.exception("the rollout of %s failed, and is tried again", self._settings.image)
            await asyncio.sleep(_QUIET)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._interval - _QUIET)):
                    await self._woken.wait()

    async def step(self) -> bool:
        """One look and what follows from it; whether there may be more to do at once. Raises ApiError, ApiUnavailable."""
        found, owners, stopped = await asyncio.to_thread(self._look)
        action = next_action(found, stopped, self._settings, self._now())
        self._report(conditions(found, stopped))
        try:
            match action:
                case Replace():
                    await asyncio.to_thread(self._replace, action, owners)
                case Conclude(member):
                    await asyncio.to_thread(self._patch, member, None, None)
                    _log.info("%s: the sidecar works with %s", member.name, member.image)
                case GiveBack():
                    await asyncio.to_thread(self._give_back, action, owners)
                case Wait(member):
                    await self._until_it_is_over(member)
                case None:
                    return False
        except Conflict:
            pass  # the pod changed meanwhile: look again
        return True

    async def _until_it_is_over(self, member: Member) -> None:
        while True:
            await asyncio.sleep(POLL)
            head = metadata(member.pod)
            pod = await asyncio.to_thread(self._api.get, PODS, head["namespace"], head["name"])
            if pod is None or uid_of(pod) != uid_of(member.pod):
                return
            member = await asyncio.to_thread(self._with_trouble, replace(member, pod=pod))
            mark = member.mark
            if mark is None or not isinstance(judge(member, mark, self._settings, self._now()), Wait):
                return
            if self._woken.is_set():  # perhaps another image is wanted by now
                self._woken.clear()
                return

    def _look(self) -> tuple[list[Member], dict[str, Object], dict[str, str]]:
        """The pods, the object that speaks for each PersistentVolume, and the images that failed, by PersistentVolume."""
        pods = self._api.list(PODS, labels=f"{names.INJECTED_LABEL}=true")
        volumes = self._api.list(PERSISTENT_VOLUMES)
        mine = {f"{metadata(v)['namespace']}/{metadata(v)['name']}": v for v in self._api.list(JUICEFS_VOLUMES)}
        owners = {metadata(pv)["name"]: mine.get(annotation(pv, names.VOLUME_ANNOTATION), pv) for pv in volumes}
        stopped = {
            name: image
            for name, owner in owners.items()
            if (image := annotation(owner, names.ROLLOUT_STOPPED_ANNOTATION))
        }
        found = members(pods, volumes, self._settings.image, self._settings.driver)
        return [self._with_trouble(member) for member in found], owners, stopped

    def _with_trouble(self, member: Member) -> Member:
        """What the events of a pod tell whose sidecar is being replaced."""
        mark = member.mark
        if mark is None or ready_for(member.pod, self._now()) is not None:
            return member
        fields = f"involvedObject.uid={uid_of(member.pod)},reason=Failed"
        events = self._api.list(EVENTS, metadata(member.pod)["namespace"], fields=fields)
        return replace(member, trouble=pull_trouble(events, mark.since))

    def _replace(self, action: Replace, owners: dict[str, Object]) -> None:
        member = action.member
        try:
            self._patch(member, action.image, action.mark.text())
        except Conflict:
            raise
        except ApiError as error:  # a policy, most likely, which refuses the next pod as well
            self._stop((owners[name] for name in member.volumes), action.image)
            message = f"The API server refuses the image {action.image} in this pod: {error}"
            self._tell(member, "False", names.EVENT_SIDECAR_ROLLED_BACK, message)
            return
        message = f"The sidecar is replaced: image {action.image} instead of {member.image}; the application goes on."
        self._tell(member, "True", names.EVENT_SIDECAR_REPLACED, message)

    def _give_back(self, action: GiveBack, owners: dict[str, Object]) -> None:
        member, failed = action.member, action.mark.image
        self._stop((owners[name] for name in member.volumes), failed)
        self._patch(member, action.mark.former, None)
        message = (
            f"The sidecar did not come back with the image {failed} ({action.why}); it has {action.mark.former} again, and no"
            " other pod gets that image."
        )
        self._tell(member, "False", names.EVENT_SIDECAR_ROLLED_BACK, message)

    def _stop(self, owners: Iterable[Object], image: str) -> None:
        for owner in owners:
            head = metadata(owner)
            resource = JUICEFS_VOLUMES if head.get("namespace") else PERSISTENT_VOLUMES
            patch = {"metadata": {"annotations": {names.ROLLOUT_STOPPED_ANNOTATION: image}}}
            self._api.patch(resource, head.get("namespace"), head["name"], patch)

    def _patch(self, member: Member, image: str | None, mark: str | None) -> None:
        """The sidecar's image, unless None, and the pod's mark."""
        head = metadata(member.pod)
        patch: Object = {
            "metadata": {
                "uid": uid_of(member.pod),
                "resourceVersion": head["resourceVersion"],
                "annotations": {names.ROLLOUT_ANNOTATION: mark},
            }
        }
        if image is not None:
            patch["spec"] = {"initContainers": [{"name": names.SIDECAR_CONTAINER, "image": image}]}
        try:
            self._api.patch(PODS, head["namespace"], head["name"], patch, strategic=True)
        except ApiError as error:
            if error.status != 404:  # gone meanwhile
                raise

    def _tell(self, member: Member, status: str, reason: str, message: str) -> None:
        _log.info("%s: %s", member.name, message)
        good = Condition("", "True", reason, message) if status == "True" else Condition("", "False", reason, message)
        self._recorder.record({"apiVersion": "v1", "kind": PODS.kind, **member.pod}, good)
