"""The envelope: what is accepted, what is said about the rest, and what an answer looks like."""

import base64
import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs_webhook.inject import InjectionRefused, inject
from jfs_webhook.review import MalformedReview, allowed, parse_review, refused
from jfs_webhook.skip import reason_to_skip
from webhook_pods import SETTINGS, claim_volume, ours, pod_with


def review_of(pod: Any, **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": "team",
            "object": pod,
            "dryRun": True,
            **request,
        },
    }


def parsed(document: Any) -> Any:
    return parse_review(json.dumps(document).encode())


def test_pod_and_namespace_of_the_request() -> None:
    review = parsed(review_of(pod_with(claim_volume("data", "data"))))
    assert (review.uid, review.namespace, review.described) == ("u-1", "team", "team/web-6d4f-*")
    assert review.pod is not None


@pytest.mark.parametrize(
    "request_fields",
    [
        {"operation": "UPDATE"},
        {"subResource": "ephemeralcontainers"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": {"group": "metrics.k8s.io", "version": "v1", "kind": "Pod"}},
    ],
)
def test_anything_but_the_creation_of_a_pod_is_none_of_our_business(request_fields: dict[str, Any]) -> None:
    assert parsed(review_of({"any": "thing"}, **request_fields)).pod is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[]", "not an AdmissionReview"),
        (b'{"kind": "Pod"}', "not an AdmissionReview"),
        (b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}', "not an AdmissionReview"),
        (b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}', "no request object"),
        (json.dumps(review_of({}, uid="")).encode(), "request.uid"),
        (json.dumps(review_of({}, uid=7)).encode(), "request.uid"),
        (json.dumps(review_of({}, kind="Pod")).encode(), "request.kind"),
        (json.dumps(review_of({}, namespace=1)).encode(), "request.namespace"),
        (json.dumps(review_of({}, namespace="")).encode(), "request.namespace"),
        (json.dumps(review_of(None)).encode(), "request.object of the pod must be an object"),
        (json.dumps(review_of({"metadata": {}})).encode(), "spec of the pod must be an object"),
        (json.dumps(review_of({"metadata": {}, "spec": {"containers": []}})).encode(), "at least one container"),
    ],
)
def test_malformed_requests_get_a_sentence(body: bytes, said: str) -> None:
    with pytest.raises(MalformedReview, match=said) as caught:
        parse_review(body)
    assert "\n" not in str(caught.value)


# Any valid pod with one value anywhere replaced by junk: either a sentence or a decision, never a stumble.

FULL = pod_with(
    claim_volume("data", "data"),
    {"name": "inline", "csi": {"driver": "sidecar.juicefs.io", "volumeAttributes": {"kind": "x"}}},
    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"metadata": {}, "spec": {"storageClassName": "x"}}}},
    initContainers=[
        {
            "name": "juicefs-sidecar",
            "env": [{"name": "A", "value": "1"}],
            "volumeMounts": [{"name": "data", "mountPath": "/x"}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
        }
    ],
    imagePullSecrets=[{"name": "registry"}],
    nodeSelector={"kubernetes.io/os": "linux"},
    os={"name": "linux"},
    resources={},
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, each in value.items():
            found += places(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found += places(each, (*path, index))
    return found


JUNK: list[Any] = [None, 0, -1, 1.5, True, "", "x", [], [None], [[]], {}, {"a": {}}, [{}], [{"name": {}}]]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.sampled_from(places(FULL)), st.sampled_from(JUNK))
def test_junk_anywhere_in_a_pod_is_a_sentence_or_a_decision(place: tuple[str | int, ...], junk: Any) -> None:
    pod = copy.deepcopy(FULL)
    holder: Any = pod
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = junk
    with suppress(MalformedReview, InjectionRefused):
        review = parsed(review_of(pod))
        assert review.pod is not None
        reason_to_skip(review.pod, review.namespace, SETTINGS)
        json.dumps(inject(review.pod, ours("data"), SETTINGS))
        assert review.described


def test_answers() -> None:
    review = parsed(review_of(pod_with()))
    assert allowed(review) == {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": "u-1", "allowed": True},
    }
    patch = [{"op": "add", "path": "/metadata/labels/a", "value": "ü"}]
    response = allowed(review, patch, ["careful"])["response"]
    assert response["patchType"] == "JSONPatch"
    assert json.loads(base64.b64decode(response["patch"])) == patch
    assert response["warnings"] == ["careful"]
    assert refused(review, 422, "no")["response"] == {
        "uid": "u-1",
        "allowed": False,
        "status": {"code": 422, "message": "JuiceFS sidecar: no"},
    }


@pytest.mark.parametrize(
    ("change", "namespace", "reason"),
    [
        ({}, "team", None),
        ({}, "kube-system", "protected namespace"),
        ({"metadata": {"labels": {"juicefs.io/inject": "disabled"}}}, "team", "opted out by label"),
        ({"metadata": {"labels": {"juicefs.io/inject": "enabled"}}}, "team", None),
        ({"metadata": {"annotations": {"kubernetes.io/config.mirror": ""}}}, "team", "mirror pod"),
        ({"spec": {"os": {"name": "windows"}}}, "team", "not a Linux pod"),
        ({"spec": {"nodeSelector": {"kubernetes.io/os": "windows"}}}, "team", "not a Linux pod"),
        ({"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}, "os": {"name": "linux"}}}, "team", None),
    ],
)
def test_pods_left_alone(change: dict[str, Any], namespace: str, reason: str | None) -> None:
    assert reason_to_skip({"metadata": {}, "spec": {}} | change, namespace, SETTINGS) == reason
