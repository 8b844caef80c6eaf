"""The checks of `jfs doctor` on the pod's node: scheduling, node service, the sidecar's container, the attachment. Pure."""

from collections.abc import Iterator
from typing import Any

from jfs_api import attachments as words
from jfs_api import names

from jfs_operator.api import Object, metadata, uid_of
from jfs_operator.doctor.facts import Facts
from jfs_operator.doctor.findings import Finding, note, ok, problem, unknown

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})


def container(pod: Object) -> dict[str, Any] | None:
    """The injected container in the pod's spec."""
    spec = pod.get("spec") or {}
    every = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    return next((each for each in every if each.get("name") == names.SIDECAR_CONTAINER), None)


def is_ready(pod: Object) -> bool:
    return _condition(pod, "Ready").get("status") == "True"


def scheduling(facts: Facts) -> Iterator[Finding]:
    if node := facts.pod["spec"].get("nodeName"):
        yield ok("scheduling", f"The pod is on node {node}.")
        return
    found = _condition(facts.pod, "PodScheduled")
    yield problem(
        "scheduling",
        f"The pod is on no node yet: {found.get('message') or 'the scheduler has not looked at it'}",
        "What the message names has to be there first; a claim is bound as soon as its JuiceFSVolume is ready.",
    )


def node_service(facts: Facts) -> Iterator[Finding]:
    node = facts.pod["spec"].get("nodeName")
    if not node:
        return
    logs = f"kubectl logs -n {facts.system} -l app.kubernetes.io/component=node --all-containers"
    mine = [
        pod
        for pod in facts.parts or ()
        if (metadata(pod).get("labels") or {}).get("app.kubernetes.io/component") == "node"
        and pod["spec"].get("nodeName") == node
    ]
    if facts.csi_node.denied:
        yield unknown("node service", facts.csi_node.denied)
    drivers = [each["name"] for each in ((facts.csi_node.body or {}).get("spec") or {}).get("drivers") or []]
    if facts.parts is not None and not mine:
        yield problem(
            "node service",
            f"No node service runs on node {node}.",
            f"See why the DaemonSet juicefs-node of namespace {facts.system} has no pod there (tolerations, selectors).",
        )
    elif mine and not any(is_ready(pod) for pod in mine):
        yield problem("node service", f"The node service on node {node} is not ready.", f"{logs} tells why.")
    elif facts.csi_node.body is not None and facts.driver not in drivers:
        yield problem(
            "node service",
            f"The kubelet of node {node} does not know the driver {facts.driver}.",
            f"The chart's kubeletDir must be the kubelet's directory; {logs} tells more.",
        )
    elif mine or drivers:
        yield ok(
            "node service", f"It runs on node {node}" + (", and the kubelet knows the driver." if drivers else ".")
        )


def running(facts: Facts) -> Iterator[Finding]:
    """The sidecar's container as the kubelet sees it."""
    found = container(facts.pod)
    if found is None or not facts.pod["spec"].get("nodeName"):
        return
    state = status(facts.pod)
    logs = f"kubectl logs -n {facts.namespace} {metadata(facts.pod)['name']} -c {names.SIDECAR_CONTAINER}"
    if state is None or "ContainerCreating" in _waiting(state) or "PodInitializing" in _waiting(state):
        reason = _last(facts, "FailedMount", "FailedCreatePodSandBox") or "the kubelet is still preparing the pod"
        yield problem("sidecar", f"The sidecar has not been started: {reason}", _WAIT)
        return
    reason = _waiting(state)
    ended = (state.get("lastState") or {}).get("terminated") or (state.get("state") or {}).get("terminated") or {}
    pull = str(state["state"]["waiting"].get("message", "")) if reason in _IMAGE else _pull_trouble(facts, state)
    if pull or reason in _IMAGE:
        yield problem(
            "sidecar",
            f"Its image {found.get('image')} cannot be had ({reason or 'it was changed in the pod'}): {pull}",
            "Correct the chart's images.sidecar (or the volume's spec.sidecar.image), or give pull secrets for it.",
        )
    elif reason or not (state.get("state") or {}).get("running"):
        why = _ending(ended) if ended else reason or "it has ended"
        remedy = f"{logs} --previous tells more; operations of the application wait meanwhile."
        if ended.get("reason") == "OOMKilled":
            remedy = "Give it more memory: spec.sidecar.resources of the volume, or a smaller buffer-size and cache."
        yield problem("sidecar", f"The sidecar does not run ({reason or 'terminated'}): {why}", remedy)
    elif not state.get("started"):
        told = _last(facts, names.EVENT_MOUNT_FAILED) or "it runs, and not all volumes are mounted yet"
        yield problem(
            "sidecar",
            f"The sidecar has not mounted everything: {told}",
            f"{logs} tells more; what the message names must be reachable from the pod.",
        )
    else:
        restarts = state.get("restartCount", 0)
        more = f", after {restarts} restarts (the last: {_ending(ended)})" if restarts and ended else ""
        yield ok("sidecar", f"It runs{more}.")


_WAIT = "If that lasts, see the events below and the node service; publishing a volume takes milliseconds otherwise."


def attachments(facts: Facts) -> Iterator[Finding]:
    """What the node service says of each volume."""
    if container(facts.pod) is None or not facts.pod["spec"].get("nodeName"):
        return
    known = _attachments(facts)
    if not known and facts.node.body is None:
        if facts.node.denied and not any(volume.juicefs.body for volume in facts.volumes):
            yield unknown("attachment", facts.node.denied)
        return
    for volume in facts.volumes:
        name = volume.persistent_volume
        entry = known.get(name)
        if not name:
            continue
        subject = f"attachment {volume.name}"
        if entry is None:
            yield note(subject, "The node service has not told of it (yet).")
        elif entry.state == words.PENDING and (status(facts.pod) or {}).get("started"):
            # Its startup probe looks through each mount; node services tell news every few seconds.
            yield note(subject, "The sidecar has mounted it; the node service has not told of that yet.")
        elif entry.state == words.ATTACHED:
            stall = "" if entry.last_stall_ms is None else f", the last of which cost {entry.last_stall_ms} ms"
            yield ok(subject, f"Served since {entry.since or 'just now'}; {entry.restarts} takeovers{stall}.")
        else:
            yield problem(
                subject,
                f"{_STATES[entry.state]}{f': {entry.message}' if entry.message else '.'}",
                "The sidecar's finding above is the cause if there is one; else the metadata engine or the object storage"
                " that the message names.",
            )


_STATES = {
    words.STALLED: "Operations have been waiting for long",
    words.WAITING: "The application has the volume and its operations wait for a sidecar",
    words.PENDING: "The volume is published and not mounted yet",
}


def application(facts: Facts) -> Iterator[Finding]:
    """What is not ours."""
    for each in (facts.pod.get("status") or {}).get("containerStatuses") or []:
        reason = _waiting(each)
        if reason and reason not in ("PodInitializing", "ContainerCreating"):
            message = str(each["state"]["waiting"].get("message", ""))
            yield note(f"container {each['name']}", f"It is not running ({reason}): {message}")


def status(pod: Object) -> dict[str, Any] | None:
    """The sidecar's container status."""
    found = pod.get("status") or {}
    every = [*(found.get("initContainerStatuses") or []), *(found.get("containerStatuses") or [])]
    return next((each for each in every if each.get("name") == names.SIDECAR_CONTAINER), None)


def _attachments(facts: Facts) -> dict[str, words.Attachment]:
    """By PersistentVolume: from the node's object, or, for who may not read it, from the volumes' statuses."""
    found: dict[str, words.Attachment] = {}
    for volume in facts.volumes:
        for raw in ((volume.juicefs.body or {}).get("status") or {}).get("attachments") or []:
            full = {**raw, "volume": volume.persistent_volume, "namespace": facts.namespace}
            if (entry := words.Attachment.read(full)) and entry.pod_uid == uid_of(facts.pod):
                found[entry.volume] = entry
    for raw in (facts.node.body or {}).get("attachments") or []:
        if (entry := words.Attachment.read(raw)) and entry.pod_uid == uid_of(facts.pod):
            found[entry.volume] = entry
    return found


def _waiting(state: dict[str, Any]) -> str:
    return str(((state.get("state") or {}).get("waiting") or {}).get("reason") or "")


def _ending(ended: dict[str, Any]) -> str:
    text = f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode')}"
    lines = str(ended.get("message") or "").strip().splitlines()
    return f"{text}: {lines[-1][:200]}" if lines else text


def _last(facts: Facts, *reasons: str) -> str:
    """The message of the newest event of these reasons."""
    found = [each for each in facts.events if each.get("reason") in reasons]
    return str(max(found, key=event_time)["message"]) if found else ""


def _pull_trouble(facts: Facts, state: dict[str, Any]) -> str:
    """What the events tell of the image of a container that ended: its status shows only how the former one did."""
    ended = ((state.get("state") or {}).get("terminated") or {}).get("finishedAt")
    found = [
        each
        for each in facts.events
        if each.get("reason") in ("Failed", "BackOff")
        and names.SIDECAR_CONTAINER in str((each.get("involvedObject") or {}).get("fieldPath", ""))
        and "image" in str(each.get("message", "")).lower()
        and event_time(each) >= str(ended)
    ]
    return str(max(found, key=event_time)["message"]) if ended and found else ""


def event_time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or metadata(event).get("creationTimestamp") or "")


def _condition(pod: Object, kind: str) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = (pod.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})
