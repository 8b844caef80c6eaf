"""AdmissionReview (admission.k8s.io/v1) in and out: the only place that knows its envelope. Pure.

Invariant: a Review that exists has the shape the injection relies on (objects where it looks things up, lists where it
iterates), so nothing behind this module can stumble over a malformed request.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jfs_webhook.settings import JsonObject

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"


class MalformedReview(ValueError):
    """The request is no AdmissionReview of a pod; the message is one sentence that says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Review:
    """A request of the API server. `pod` is None if it is about anything but the creation of a pod."""

    uid: str
    namespace: str
    pod: JsonObject | None

    @property
    def described(self) -> str:
        """namespace/name for log lines; the name of a controller's pod is not yet known, its prefix is."""
        metadata = self.pod["metadata"] if self.pod else {}
        name = metadata.get("name") or f"{metadata.get('generateName') or ''}*"
        return f"{self.namespace}/{name}"


def parse_review(body: bytes) -> Review:
    """Read and check a request body. Raises MalformedReview."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedReview("the request body is not valid JSON; send an AdmissionReview") from error
    if not isinstance(document, dict) or document.get("kind") != KIND or document.get("apiVersion") != API_VERSION:
        raise MalformedReview(f"the request body is not an {KIND} of {API_VERSION}")
    request = document.get("request")
    if not isinstance(request, dict):
        raise MalformedReview("the AdmissionReview has no request object")
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= 128:
        raise MalformedReview("request.uid of the AdmissionReview must be a string of 1 to 128 characters")
    kind = request.get("kind")
    if not isinstance(kind, dict):
        raise MalformedReview("request.kind of the AdmissionReview must be an object")
    namespace = request.get("namespace", "")
    if not isinstance(namespace, str):
        raise MalformedReview("request.namespace of the AdmissionReview must be a string")
    is_pod = kind.get("kind") == "Pod" and kind.get("group", "") == "" and kind.get("version") == "v1"
    if not is_pod or request.get("operation") != "CREATE" or request.get("subResource"):
        return Review(uid, namespace, None)
    if not namespace:
        raise MalformedReview("request.namespace of the AdmissionReview is missing, and pods have a namespace")
    return Review(uid, namespace, _checked_pod(request.get("object")))


def allowed(review: Review, patch: Sequence[JsonObject] = (), warnings: Sequence[str] = ()) -> JsonObject:
    """The answer that lets the pod pass, with the patch if there is one."""
    response: JsonObject = {"uid": review.uid, "allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(list(patch), separators=(",", ":")).encode()).decode()
    if warnings:
        response["warnings"] = list(warnings)
    return {"apiVersion": API_VERSION, "kind": KIND, "response": response}


def refused(review: Review, code: int, sentence: str) -> JsonObject:
    """The answer that stops the pod; `code` is an HTTP status, the sentence is shown to the user as it is."""
    status = {"code": code, "message": f"JuiceFS sidecar: {sentence}"}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "response": {"uid": review.uid, "allowed": False, "status": status},
    }


def _checked_pod(pod: Any) -> JsonObject:
    _object(pod, "request.object")
    _object(pod.get("metadata"), "metadata")
    spec = pod.get("spec")
    _object(spec, "spec")
    for field in ("labels", "annotations"):
        _optional_object(pod["metadata"], field, f"metadata.{field}")
    for field in ("securityContext", "nodeSelector", "os", "resources"):
        _optional_object(spec, field, f"spec.{field}")
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise MalformedReview("spec.terminationGracePeriodSeconds of the pod must be a whole number of seconds")
    if not spec.get("containers"):
        raise MalformedReview("spec.containers of the pod must be a list with at least one container")
    for field in ("containers", "initContainers", "volumes", "imagePullSecrets"):
        for entry in _objects(spec, field, f"spec.{field}"):
            _optional_text(entry, "name", f"spec.{field}[].name")
            if field in ("containers", "initContainers"):
                where = f"spec.{field}[].{{}}"
                for listed in ("volumeMounts", "env"):
                    for item in _objects(entry, listed, where.format(listed)):
                        _optional_text(item, "name", where.format(f"{listed}[].name"))
                        _optional_text(item, "mountPath", where.format(f"{listed}[].mountPath"))
                _optional_object(entry, "resources", where.format("resources"))
                for amounts in ("limits", "requests"):
                    _optional_object(entry.get("resources") or {}, amounts, where.format(f"resources.{amounts}"))
            elif field == "volumes":
                _checked_volume(entry)
    return dict(pod)


def _checked_volume(volume: JsonObject) -> None:
    if not isinstance(volume.get("name"), str) or not volume["name"]:
        raise MalformedReview("spec.volumes[].name of the pod must be a string")
    for source in ("csi", "persistentVolumeClaim", "ephemeral", "emptyDir"):
        _optional_object(volume, source, f"spec.volumes[].{source}")
    _optional_object(volume.get("csi") or {}, "volumeAttributes", "spec.volumes[].csi.volumeAttributes")
    claim = volume.get("persistentVolumeClaim")
    if claim is not None and not isinstance(claim.get("claimName"), str):
        raise MalformedReview("spec.volumes[].persistentVolumeClaim.claimName of the pod must be a string")
    template = volume.get("ephemeral") or {}
    for field in ("volumeClaimTemplate", "metadata", "spec"):
        where = "spec.volumes[].ephemeral.volumeClaimTemplate"
        if field == "volumeClaimTemplate":
            _optional_object(template, field, where)
            template = template.get(field) or {}
        else:
            _optional_object(template, field, f"{where}.{field}")


def _object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise MalformedReview(f"{where} of the pod must be an object")


def _optional_object(holder: JsonObject, field: str, where: str) -> None:
    if holder.get(field) is not None:
        _object(holder[field], where)


def _optional_text(holder: JsonObject, field: str, where: str) -> None:
    if holder.get(field) is not None and not isinstance(holder[field], str):
        raise MalformedReview(f"{where} of the pod must be a string")


def _objects(holder: JsonObject, field: str, where: str) -> list[JsonObject]:
    entries = holder.get(field)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MalformedReview(f"{where} of the pod must be a list of objects")
    return entries
