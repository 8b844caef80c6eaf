"""The checks of `jfs doctor` up to the node, in the order in which one thing leads to the next. Pure.

Namespace and webhook decide whether a pod gets its sidecar at all: for a pod that has one they are notes, not its cause.
"""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

from cryptography import x509
from jfs_api import attachments as words
from jfs_api import names

from jfs_operator.api import Object, is_deleting, metadata
from jfs_operator.doctor import sidecar
from jfs_operator.doctor.facts import Facts, Read, VolumeFacts, ca_bundle, name_of
from jfs_operator.doctor.findings import Finding, Status, note, ok, problem, unknown

_CONDITIONS = (names.STALLED, names.SECRET_VALID, names.FORMATTED, names.BOUND)


def examine(facts: Facts, now: datetime.datetime) -> list[Finding]:
    """All findings about a pod, or about a JuiceFSVolume when the facts are of one."""
    if not facts.pod:
        return [*_parts(facts), *(finding for volume in facts.volumes for finding in _volume(facts, volume))]
    injected = sidecar.container(facts.pod) is not None
    steps: list[Callable[[], Iterator[Finding]]] = [
        lambda: _demote(_namespace(facts), injected),
        lambda: _demote(_webhook(facts, now), injected),
        lambda: _injection(facts, injected),
        lambda: _parts(facts),
        lambda: (finding for volume in facts.volumes for finding in _volume(facts, volume)),
        lambda: sidecar.scheduling(facts),
        lambda: sidecar.node_service(facts),
        lambda: sidecar.running(facts),
        lambda: sidecar.attachments(facts),
        lambda: sidecar.application(facts),
    ]
    return [finding for step in steps for finding in step()]


def _demote(findings: Iterator[Finding], demoted: bool) -> Iterator[Finding]:
    for finding in findings:
        if demoted and finding.status is Status.PROBLEM:
            text = f"{finding.text} (This pod has its sidecar; new pods are concerned.)"
            yield note(finding.subject, text, finding.remedy)
        else:
            yield finding


def _selects(webhook: Object, labels: dict[str, str]) -> bool:
    """Whether a webhook's namespaceSelector selects a namespace of these labels."""
    selector = webhook.get("namespaceSelector") or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or []:
        value, values = labels.get(term["key"]), term.get("values") or []
        fits = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not fits.get(term["operator"], True):
            return False
    return True


def _label(facts: Facts) -> str:
    """The label that the first webhook wants, as `key=value`."""
    for webhook in (facts.webhook.body or {}).get("webhooks") or []:
        for term in (webhook.get("namespaceSelector") or {}).get("matchExpressions") or []:
            if term["operator"] == "In":
                return f"{term['key']}={term['values'][0]}"
    return f"{names.INJECT_LABEL}={names.INJECT_ENABLED}"


def _namespace(facts: Facts) -> Iterator[Finding]:
    if facts.labels.denied or facts.labels.body is None:
        yield unknown("namespace", facts.labels.denied or "the namespace is gone")
        return
    labels = metadata(facts.labels.body).get("labels") or {}
    webhooks = (facts.webhook.body or {}).get("webhooks") or []
    if webhooks:
        selected = any(_selects(webhook, labels) for webhook in webhooks)
    else:
        selected = (
            labels.get(names.INJECT_LABEL) == names.INJECT_ENABLED
            or labels.get(names.CSI_INJECT_LABEL) == names.CSI_INJECT_ENABLED
        )
    if selected:
        yield ok("namespace", f"Namespace {facts.namespace} is labelled for injection.")
        return
    label = _label(facts)
    yield problem(
        "namespace",
        f"Namespace {facts.namespace} is not labelled {label} (or it is excluded): its pods get no sidecar.",
        f"kubectl label namespace {facts.namespace} {label} --overwrite, then create the pod again.",
    )


def _webhook(facts: Facts, now: datetime.datetime) -> Iterator[Finding]:
    if facts.webhook.denied:
        yield unknown("webhook", facts.webhook.denied)
        return
    configuration = facts.webhook.body
    if configuration is None:
        yield problem(
            "webhook",
            "There is no MutatingWebhookConfiguration juicefs-webhook: no pod gets a sidecar.",
            "Install the chart, or repair the release with helm upgrade.",
        )
        return
    ready = _ready(facts, "webhook")
    bundle = ca_bundle(configuration)
    logs = f"kubectl logs -n {facts.system} deployment/juicefs-webhook tells why."
    if ready == 0:
        yield problem("webhook", f"No webhook pod of namespace {facts.system} is ready.", logs)
    elif not bundle:
        yield problem("webhook", "The webhook has not written its certificate authority yet.", logs)
    elif trouble := _certificates(bundle, now) or facts.webhook_trouble:
        yield problem("webhook", f"The API server cannot trust the webhook: {trouble}.", logs)
    else:
        pods = "" if ready is None else f"; {ready} pods are ready"
        yield ok("webhook", f"The webhook is registered and its certificate authority is valid{pods}.")


def _certificates(bundle: bytes, now: datetime.datetime) -> str:
    """What is wrong with the authorities of the bundle; empty when one is good."""
    try:
        found = x509.load_pem_x509_certificates(bundle)
    except ValueError:
        return "its caBundle holds no PEM certificate"
    valid = [each for each in found if each.not_valid_before_utc <= now <= each.not_valid_after_utc]
    if valid:
        return ""
    last = max(each.not_valid_after_utc for each in found)
    return f"the certificate authority in its caBundle is not valid now (it ended {last:%Y-%m-%d})"


def _injection(facts: Facts, injected: bool) -> Iterator[Finding]:
    if injected:
        yield ok("injection", f"The pod has the container {names.SIDECAR_CONTAINER}.")
        return
    name = name_of(facts.pod)
    labels = metadata(facts.pod).get("labels") or {}
    if labels.get(names.INJECT_LABEL) == names.INJECT_DISABLED:
        yield problem(
            "injection",
            f"The pod opts out of injection by its label {names.INJECT_LABEL}={names.INJECT_DISABLED}.",
            "Remove the label where the pod is made (its Deployment, StatefulSet …) and create the pod again.",
        )
        return
    if not facts.volumes:
        yield problem(
            "injection",
            f"The pod has no volume of the driver {facts.driver}, so there is nothing to mount.",
            "Name the claim of a JuiceFSVolume of this namespace in the pod's volumes (kubectl get jfsv).",
        )
        return
    yield problem(
        "injection",
        f"The pod has no container {names.SIDECAR_CONTAINER}, so nothing mounts its volumes: it was created before the"
        " namespace was labelled, or while no webhook answered.",
        f"kubectl delete pod -n {facts.namespace} {name}, so that it is created again (a bare pod: apply it again).",
    )


def _parts(facts: Facts) -> Iterator[Finding]:
    if facts.parts is None:
        yield unknown("operator", facts.parts_denied)
        return
    if _ready(facts, "operator") == 0:
        yield problem(
            "operator",
            f"No operator pod of namespace {facts.system} is ready: JuiceFSVolumes are not looked after.",
            f"kubectl describe pod -n {facts.system} -l app.kubernetes.io/component=operator tells why.",
        )


def _ready(facts: Facts, component: str) -> int | None:
    """Ready pods of a part of the release; None when they may not be listed."""
    if facts.parts is None:
        return None
    mine = [
        pod
        for pod in facts.parts
        if (metadata(pod).get("labels") or {}).get("app.kubernetes.io/component") == component
    ]
    return sum(sidecar.is_ready(pod) for pod in mine)


def _volume(facts: Facts, volume: VolumeFacts) -> Iterator[Finding]:
    subject = f"volume {volume.name}"
    if not volume.claim_name:
        yield ok(subject, "An inline volume of the driver; its Secret is named in the pod.")
        return
    bad = [*_juicefs_volume(facts, subject, volume), *_claim(facts, subject, volume)]
    yield from bad
    if all(finding.status is not Status.PROBLEM for finding in bad) and volume.claim.body is not None:
        yield ok(subject, f"The claim {volume.claim_name} is bound to {volume.persistent_volume or 'its volume'}.")


def _juicefs_volume(facts: Facts, subject: str, volume: VolumeFacts) -> Iterator[Finding]:
    if volume.secret is not None:
        yield from _juicefs_secret(subject, volume.secret)
    body = volume.juicefs.body
    if volume.juicefs.denied:
        yield unknown(subject, volume.juicefs.denied)
    if body is None:
        return
    describe = f"kubectl describe jfsv -n {facts.namespace} {volume.juicefs_name}"
    if is_deleting(body):
        yield problem(
            subject,
            f"The JuiceFSVolume {volume.juicefs_name} is being deleted.",
            f"{describe} tells what it waits for; for another volume make one of another name.",
        )
    conditions = _conditions(body)
    if not conditions:
        yield problem(
            subject,
            f"The JuiceFSVolume {volume.juicefs_name} has no status: no operator has looked at it.",
            f"kubectl get pods -n {facts.system} shows whether the operator runs.",
        )
        return
    for kind in _CONDITIONS:
        status, reason, message = conditions.get(kind, ("", "", ""))
        if status == ("True" if kind == names.STALLED else "False"):
            yield problem(subject, f"{kind}={status} ({reason}): {message}.", _REMEDIES.get(kind, describe))
            return
    status, reason, message = conditions.get(names.READY, ("", "", ""))
    if status != "True":
        yield problem(subject, f"The JuiceFSVolume is not ready ({reason}): {message}.", describe)
    yield from _pods(subject, body) if not facts.pod else iter(())


_REMEDIES = {
    names.STALLED: "Correct the JuiceFSVolume's spec.",
    names.SECRET_VALID: "Correct the Secret or JuiceFSSecret that the JuiceFSVolume names; it is looked at again at once.",
    names.FORMATTED: "See that metadata engine and object storage can be reached from the operator with the credentials given.",
}


def _pods(subject: str, body: Object) -> Iterator[Finding]:
    status = body.get("status") or {}
    mountable = _conditions(body).get(names.MOUNTABLE, ("", "", ""))
    if mountable[0] == "False":
        yield note(subject, f"{names.MOUNTABLE}=False ({mountable[1]}): {mountable[2]}")
    bad = [entry for entry in status.get("attachments") or [] if entry.get("state") != words.ATTACHED]
    for entry in bad[:5]:
        if entry.get("state") == words.PENDING:  # a pod that starts; only the pod shows whether it should have by now
            yield note(
                f"pod {entry['pod']}",
                f"On node {entry['node']} it is not mounted yet; jfs doctor -n {metadata(body)['namespace']} {entry['pod']}",
            )
            continue
        yield problem(
            f"pod {entry['pod']}",
            f"On node {entry['node']} the volume is {entry['state']}: {entry.get('message') or 'no more is known'}.",
            f"jfs doctor -n {metadata(body)['namespace']} {entry['pod']}",
        )
    if not bad:
        yield ok(subject, f"Pods that have it: {status.get('pods', 0)}, all of them served.")


def _juicefs_secret(subject: str, secret: Read) -> Iterator[Finding]:
    if secret.denied:
        yield unknown(subject, secret.denied)
    elif secret.body is None:
        yield problem(subject, "The JuiceFSSecret that it names does not exist.", "Create it, or correct secretRef.")
    else:
        for kind in (names.SECRET_VALID, names.METADATA_REACHABLE, names.STORAGE_REACHABLE):
            status, reason, message = _conditions(secret.body).get(kind, ("", "", ""))
            if status == "False":
                yield problem(
                    subject,
                    f"JuiceFSSecret {name_of(secret.body)}: {kind}=False ({reason}): {message}.",
                    "Correct the JuiceFSSecret, or make the service that it names reachable.",
                )
                return


def _claim(facts: Facts, subject: str, volume: VolumeFacts) -> Iterator[Finding]:
    name = volume.claim_name
    if volume.claim.denied:
        yield unknown(subject, volume.claim.denied)
        return
    if volume.claim.body is None:
        remedy = f"Create a JuiceFSVolume {name} in namespace {facts.namespace}, or correct the pod's claimName."
        if volume.juicefs.body is not None:
            remedy = f"The operator makes it once the JuiceFSVolume {volume.juicefs_name} is formatted."
        yield problem(subject, f"The claim {name} does not exist.", remedy)
        return
    phase = (volume.claim.body.get("status") or {}).get("phase", "Pending")
    if phase != "Bound":
        yield problem(
            subject,
            f"The claim {name} is {phase}, not bound to a PersistentVolume.",
            f"kubectl describe pvc -n {facts.namespace} {name} tells what it waits for.",
        )
    if volume.volume.denied:
        yield unknown(subject, volume.volume.denied)
    elif volume.volume.body is None and volume.persistent_volume:
        yield problem(
            subject,
            f"The PersistentVolume {volume.persistent_volume} of the claim is gone.",
            "The operator makes that of a JuiceFSVolume again; a hand-written one has to be applied again.",
        )


def _conditions(body: Object) -> dict[str, tuple[str, str, str]]:
    listed: list[dict[str, Any]] = (body.get("status") or {}).get("conditions") or []
    return {
        each["type"]: (each["status"], each.get("reason", ""), str(each.get("message", "")).rstrip("."))
        for each in listed
    }
