"""The operator as a process on a real API server with the real binder, with just the rights that the chart gives it."""

import asyncio
import base64
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import OPERATOR_NAMESPACE, ControlPlane, FakeJfsProgram, OperatorProcess, secret_free, until
from jfs_api.attachments import Attachment
from jfs_csi.api import ApiClient
from jfs_csi.reporting import NodeReporter
from jfs_operator.api import Object

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CORE, GROUP = "/api/v1", "/apis/juicefs.io/v1alpha1"
PASSWORD, SECRET_KEY, ENVIRONMENT = "hunter2-in-url", "s3cr3t-access-key", "env-passw0rd"


class Namespace:
    """One test's namespace and what lies in it."""

    def __init__(self, plane: ControlPlane, name: str) -> None:
        self.plane, self.name = plane, plane.namespace(name)

    def add_secret(self, name: str = "demo", **changes: str) -> None:
        """JuiceFS CSI's keys; the file system is named after the namespace."""
        values = {
            "name": self.name,
            "metaurl": f"redis://user:{PASSWORD}@{self.name}:6379/1",
            "storage": "s3",
            "bucket": "http://s3:8333/demo",
            "access-key": "AKIA",
            "secret-key": SECRET_KEY,
            "envs": json.dumps({"META_PASSWORD": ENVIRONMENT}),
            **changes,
        }
        body = {"metadata": {"name": name}, "stringData": values}
        self.plane.create(f"{CORE}/namespaces/{self.name}/secrets", body)

    def add(self, kind: str, name: str, spec: dict[str, Any]) -> Object:
        body = {"apiVersion": "juicefs.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        return self.plane.create(f"{GROUP}/namespaces/{self.name}/{kind.lower()}s", body)

    def add_volume(self, name: str = "data", **spec: Any) -> str:
        """Returns the name of its PersistentVolume."""
        body = self.add("JuiceFSVolume", name, {"secretRef": {"name": "demo"}, **spec})
        return f"jfsv-{body['metadata']['uid']}"

    def add_pod(self, name: str, claim: str) -> None:
        volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]
        spec = {"containers": [{"name": "c", "image": "none"}], "volumes": volumes}
        self.plane.create(f"{CORE}/namespaces/{self.name}/pods", {"metadata": {"name": name}, "spec": spec})

    def get(self, plural: str, name: str) -> Object | None:
        root = GROUP if plural.startswith("juicefs") else CORE
        status, found = self.plane.request("GET", f"{root}/namespaces/{self.name}/{plural}/{name}")
        return found if status == 200 else None

    def delete(self, plural: str, name: str, grace: int | None = None) -> None:
        root = GROUP if plural.startswith("juicefs") else CORE
        query = "" if grace is None else f"?gracePeriodSeconds={grace}"
        self.plane.request("DELETE", f"{root}/namespaces/{self.name}/{plural}/{name}{query}")

    def patch(self, plural: str, name: str, patch: Object) -> None:
        root = GROUP if plural.startswith("juicefs") else CORE
        status, answer = self.plane.request("PATCH", f"{root}/namespaces/{self.name}/{plural}/{name}", patch)
        assert status == 200, answer

    def condition(self, type: str, name: str = "data", plural: str = "juicefsvolumes") -> tuple[str, str, str]:
        """Status, reason and message; empty when there is none."""
        body = self.get(plural, name) or {}
        for condition in (body.get("status") or {}).get("conditions") or []:
            if condition["type"] == type:
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""

    def becomes(
        self, type: str, status: str, reason: str = "", name: str = "data", plural: str = "juicefsvolumes"
    ) -> str:
        """Wait for a condition; returns its message."""

        def reached() -> tuple[str, str, str] | None:
            found = self.condition(type, name, plural)
            return found if found[0] == status and reason in {"", found[1]} else None

        found: tuple[str, str, str] = until(
            f"{self.name}/{name}: {type}={status} {reason}; now {self.condition('Ready', name, plural)}", reached
        )
        return found[2]

    def gone(self, name: str = "data") -> None:
        until(
            f"{self.name}/{name} is gone; now {self.condition('Ready', name)}",
            lambda: self.get("juicefsvolumes", name) is None,
        )

    def reasons(self) -> set[str]:
        items = self.plane.request("GET", f"{CORE}/namespaces/{self.name}/events")[1]["items"]
        return {event["reason"] for event in items}


@pytest.fixture
def space(plane: ControlPlane, operator: OperatorProcess, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace, and a look at the operator's health afterwards."""
    yield Namespace(plane, request.node.name.removeprefix("test_").replace("_", "-")[:50].strip("-"))
    if operator.running:
        assert operator.probe("/healthz") == 200


def exists(plane: ControlPlane, path: str) -> bool:
    return plane.request("GET", CORE + path)[0] == 200


def managed(persistent_volume: str) -> str:
    return f"/namespaces/{OPERATOR_NAMESPACE}/secrets/{persistent_volume}"


def test_bound(plane: ControlPlane, space: Namespace, jfs: FakeJfsProgram) -> None:
    space.add_secret()
    volume = space.add_volume(subPath="team", capacity="1024Mi", mountOptions=["cache-size=1G"])
    space.becomes("Ready", "True")
    claim = space.get("persistentvolumeclaims", "data")
    assert claim is not None
    assert (claim["status"]["phase"], claim["spec"]["volumeName"]) == ("Bound", volume)
    persistent = plane.request("GET", f"{CORE}/persistentvolumes/{volume}")[1]
    assert persistent["spec"]["mountOptions"] == ["cache-size=1G", "subdir=/team"]
    assert persistent["spec"]["csi"]["nodePublishSecretRef"] == {"name": volume, "namespace": OPERATOR_NAMESPACE}
    body = space.get("juicefsvolumes", "data")
    assert body is not None
    assert body["metadata"]["finalizers"] == ["juicefs.io/volume"]
    assert {condition["status"] for condition in body["status"]["conditions"]} == {"True", "Unknown"}
    assert jfs.calls(space.name) == ["format"]
    until("the event Bound", lambda: "Bound" in space.reasons())
    # Settled: nothing is written any more, through several rounds of the timer.
    until("the objects settle", lambda: settled(plane, space, volume))


def settled(plane: ControlPlane, space: Namespace, volume: str) -> bool:
    """Whether two looks with more than a round of the timer (5 s) between them see the same versions."""

    def versions() -> list[str]:
        bodies = [
            space.get("juicefsvolumes", "data"),
            space.get("persistentvolumeclaims", "data"),
            plane.request("GET", f"{CORE}/persistentvolumes/{volume}")[1],
            plane.request("GET", CORE + managed(volume))[1],
        ]
        return [body["metadata"]["resourceVersion"] for body in bodies if body is not None]

    before = versions()
    time.sleep(6)  # there is no event of nothing happening
    return versions() == before


def test_secret_comes_later(space: Namespace, jfs: FakeJfsProgram) -> None:
    volume = space.add_volume()
    assert "does not exist" in space.becomes("SecretValid", "False", "SecretNotFound")
    assert not exists(space.plane, f"/persistentvolumes/{volume}")
    space.add_secret(metaurl="")
    assert "metaurl" in space.becomes("SecretValid", "False", "KeyMissing")
    space.patch("secrets", "demo", {"data": {"metaurl": base64.b64encode(b"redis://later:6379/1").decode()}})
    space.becomes("Ready", "True")
    assert jfs.calls(space.name) == ["format"]
    until("the warnings", lambda: {"SecretNotFound", "KeyMissing", "Bound"} <= space.reasons())
    secret = space.get("secrets", "demo")
    assert secret is not None
    assert "finalizers" not in secret["metadata"]
    assert "annotations" not in secret["metadata"]


def test_rotated_credentials_reach_the_managed_secret(space: Namespace) -> None:
    space.add_secret()
    volume = space.add_volume()
    space.becomes("Ready", "True")
    rotated = base64.b64encode(b"rotated-secret").decode()
    space.patch("secrets", "demo", {"data": {"secret-key": rotated}})
    until(
        "the managed Secret follows",
        lambda: space.plane.request("GET", CORE + managed(volume))[1]["data"]["secret-key"] == rotated,
    )


def test_a_changed_spec_reaches_volume_and_claim(plane: ControlPlane, space: Namespace) -> None:
    space.add_secret()
    volume = space.add_volume(capacity="1Gi", mountOptions=["prefetch=1"])
    space.becomes("Ready", "True")
    change = {"capacity": "2Gi", "mountOptions": ["prefetch=2", "writeback"], "sidecar": {"image": "x:2"}}
    space.patch("juicefsvolumes", "data", {"spec": change})

    def followed() -> bool:
        persistent = plane.request("GET", f"{CORE}/persistentvolumes/{volume}")[1]
        claim = space.get("persistentvolumeclaims", "data")
        return (
            persistent["spec"]["mountOptions"] == ["prefetch=2", "writeback"]
            and persistent["spec"]["capacity"] == {"storage": "2Gi"}
            and claim is not None
            and json.loads(claim["metadata"]["annotations"]["juicefs.io/sidecar"]) == {"image": "x:2"}
        )

    until("the objects follow", followed)
    until(
        "it is ready for this generation",
        lambda: (space.get("juicefsvolumes", "data") or {})["status"]["observedGeneration"] == 2,
    )
    assert space.condition("Ready")[0] == "True"


def test_what_was_deleted_by_hand_comes_back(plane: ControlPlane, space: Namespace) -> None:
    space.add_secret()
    volume = space.add_volume()
    space.becomes("Ready", "True")

    def bound_anew(plural: str, former: str) -> bool:
        path = f"{CORE}/persistentvolumes/{volume}" if plural == "persistentvolumes" else None
        found = plane.request("GET", path)[1] if path else space.get(plural, "data") or {}
        uid = (found.get("metadata") or {}).get("uid")
        return uid not in {None, former} and (found.get("status") or {}).get("phase") == "Bound"

    claim = space.get("persistentvolumeclaims", "data")
    assert claim is not None
    space.delete("persistentvolumeclaims", "data")
    until("a new claim is bound", lambda: bound_anew("persistentvolumeclaims", claim["metadata"]["uid"]))
    persistent = plane.request("GET", f"{CORE}/persistentvolumes/{volume}")[1]
    # By force, as its protection would keep it while the claim is bound.
    plane.request("DELETE", f"{CORE}/persistentvolumes/{volume}")
    plane.request("PATCH", f"{CORE}/persistentvolumes/{volume}", {"metadata": {"finalizers": None}})
    until("a new volume is bound", lambda: bound_anew("persistentvolumes", persistent["metadata"]["uid"]))
    space.becomes("Ready", "True")


def test_retain(plane: ControlPlane, space: Namespace, jfs: FakeJfsProgram) -> None:
    space.add_secret()
    volume = space.add_volume()
    space.becomes("Ready", "True")
    space.delete("juicefsvolumes", "data")
    space.gone()
    assert space.get("persistentvolumeclaims", "data") is None
    assert not exists(plane, f"/persistentvolumes/{volume}")
    assert not exists(plane, managed(volume))
    assert jfs.calls(space.name) == ["format"]


def test_delete_of_a_directory(space: Namespace, jfs: FakeJfsProgram) -> None:
    space.add_secret()
    space.add_volume("a", subPath="a", reclaimPolicy="Delete")
    space.add_volume("b", subPath="b")
    for name in ("a", "b"):
        space.becomes("Ready", "True", name=name)
    space.delete("juicefsvolumes", "a")
    space.gone("a")
    assert "rmr /a" in jfs.calls(space.name)
    assert "destroy" not in jfs.calls(space.name)
    assert space.condition("Ready", "b")[0] == "True"


def test_delete_is_refused(plane: ControlPlane, space: Namespace, jfs: FakeJfsProgram) -> None:
    space.add_secret()
    volume = space.add_volume(reclaimPolicy="Delete")
    space.add_volume("other", subPath="x")
    for name in ("data", "other"):
        space.becomes("Ready", "True", name=name)
    space.add_pod("writer", "data")
    space.delete("juicefsvolumes", "data")
    assert f"{space.name}/other" in space.becomes("Ready", "False", "DeletionRefused")
    space.delete("juicefsvolumes", "other")
    space.gone("other")
    until(
        "what kubectl shows",
        lambda: (
            "pods still use the claim"
            in plane.table(f"{GROUP}/namespaces/{space.name}/juicefsvolumes").get("Message", "")
        ),
    )
    until("the pod is the reason", lambda: "pods still use the claim: writer" in space.condition("Ready")[2])
    assert exists(plane, f"/persistentvolumes/{volume}")
    space.delete("pods", "writer", grace=0)
    space.gone()
    assert "destroy" in jfs.calls(space.name)
    assert not exists(plane, managed(volume))
    until("the event", lambda: "DeletionRefused" in space.reasons())


def test_killed_while_formatting(space: Namespace, jfs: FakeJfsProgram, operator: OperatorProcess) -> None:
    space.add_secret()
    jfs.flag("hold", True)
    try:
        volume = space.add_volume()
        until("the format runs", lambda: jfs.calls(space.name) == ["format"])
        operator.end(signal.SIGKILL)
    finally:
        jfs.flag("hold", False)
    operator.start()
    space.becomes("Ready", "True")
    body = space.get("juicefsvolumes", "data")
    assert body is not None
    assert f"jfsv-{body['status']['fileSystem']['uuid']}" == volume
    assert set(jfs.calls(space.name)) == {"format"}


def test_one_writer(
    plane: ControlPlane, space: Namespace, jfs: FakeJfsProgram, operator: OperatorProcess, tmp_path: Any
) -> None:
    standby = OperatorProcess(plane, jfs.path, tmp_path)
    standby.start(wait=False)
    try:
        until(
            "the standby is alive and not ready",
            lambda: (standby.probe("/healthz"), standby.probe("/readyz")) == (200, 503),
        )
        path = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/juicefs-operator"
        holder = plane.request("GET", path)[1]["spec"]["holderIdentity"]
        assert operator.end() == 0
        assert plane.request("GET", path)[1]["spec"].get("holderIdentity") != holder, "it was not given back"
        until("the standby takes over", lambda: standby.probe("/readyz") == 200)
        space.add_secret()
        space.add_volume()
        space.becomes("Ready", "True")
        # Somebody takes the lease away: the process ends by itself rather than write beside the new holder.

        def taken() -> bool:
            plane.request(
                "PATCH", path, {"spec": {"holderIdentity": "another", "renewTime": "2099-01-01T00:00:00.000000Z"}}
            )
            return not standby.running

        until("the process that lost the lease ends", taken)
        assert standby.end() == 3
        plane.request("DELETE", path)
    finally:
        if standby.running:
            standby.end(signal.SIGKILL)
    operator.start()


def test_juicefs_secret(space: Namespace, jfs: FakeJfsProgram) -> None:
    fields = {
        "name": {"value": space.name},
        "metaURL": {"valueFrom": {"secretKeyRef": {"name": "raw", "key": "url"}}},
        "storage": {"value": "s3"},
        "secretKey": {"valueFrom": {"secretKeyRef": {"name": "raw", "key": "sk"}}},
    }
    plural = "juicefssecrets"
    space.add_volume("one", secretRef={"kind": "JuiceFSSecret", "name": "shared"}, subPath="one")
    space.becomes("SecretValid", "False", "SecretNotFound", name="one")
    space.add("JuiceFSSecret", "shared", fields)
    space.becomes("Ready", "False", "SecretNotFound", name="shared", plural=plural)
    body = {"metadata": {"name": "raw"}, "stringData": {"url": f"redis://:{PASSWORD}@{space.name}/1", "sk": SECRET_KEY}}
    space.plane.create(f"{CORE}/namespaces/{space.name}/secrets", body)
    space.becomes("Ready", "True", name="one")
    space.becomes("Ready", "True", name="shared", plural=plural)
    jfs.flag("trouble", True)
    try:
        message = space.becomes("Ready", "False", "CheckFailed", name="shared", plural=plural)
        assert "no connection to" in message
        assert not secret_free(message, [PASSWORD, SECRET_KEY])
    finally:
        jfs.flag("trouble", False)
    space.becomes("Ready", "True", name="shared", plural=plural)
    found = space.get(plural, "shared")
    assert found is not None
    assert "finalizers" not in found["metadata"]
    assert "annotations" not in found["metadata"]
    space.delete(plural, "shared")
    until("a JuiceFSSecret goes at once", lambda: space.get(plural, "shared") is None)


def test_static_volume(plane: ControlPlane, space: Namespace, jfs: FakeJfsProgram) -> None:
    """JuiceFS CSI's documented YAML with only the driver's name changed."""
    name = f"{space.name}-pv"
    body = {
        "metadata": {"name": name, "labels": {"juicefs-name": "ten-pb-fs"}},
        "spec": {
            "capacity": {"storage": "10Pi"},
            "volumeMode": "Filesystem",
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {
                "driver": "sidecar.juicefs.io",
                "volumeHandle": name,
                "fsType": "juicefs",
                "nodePublishSecretRef": {"name": "demo", "namespace": space.name},
            },
        },
    }
    plane.create(f"{CORE}/persistentvolumes", body)

    def reasons() -> set[str]:
        query = f"?fieldSelector=involvedObject.name={name}"
        return {
            event["reason"] for event in plane.request("GET", f"{CORE}/namespaces/default/events{query}")[1]["items"]
        }

    until("the missing Secret is told on the volume", lambda: "SecretNotFound" in reasons())
    space.add_secret()
    until("it is formatted", lambda: "Formatted" in reasons())
    assert jfs.calls(space.name) == ["format"]
    found = plane.request("GET", f"{CORE}/persistentvolumes/{name}")[1]
    assert found["metadata"]["annotations"] == {"juicefs.io/file-system": found["metadata"]["uid"]}
    assert found["metadata"]["finalizers"] == ["kubernetes.io/pv-protection"]
    plane.request("DELETE", f"{CORE}/persistentvolumes/{name}")
    until("it can be deleted", lambda: not exists(plane, f"/persistentvolumes/{name}"))


def test_mount_events(plane: ControlPlane, space: Namespace) -> None:
    space.add_secret()
    volume = space.add_volume()
    space.becomes("Ready", "True")
    uid = plane.request("GET", f"{CORE}/persistentvolumes/{volume}")[1]["metadata"]["uid"]
    involved = {"apiVersion": "v1", "kind": "PersistentVolume", "name": volume, "uid": uid}

    def post(reason: str, message: str, stamp: str) -> None:
        event = {
            "metadata": {"generateName": "mount-"},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": "Normal",
            "lastTimestamp": stamp,
            "reportingComponent": "sidecar.juicefs.io",
        }
        plane.create(f"{CORE}/namespaces/default/events", event)

    post("JuiceFSMountFailed", f"redis://u:{PASSWORD}@r: wrong password", "2030-01-01T00:00:00Z")
    message = space.becomes("Mountable", "False", "JuiceFSMountFailed")
    assert PASSWORD not in message
    post("JuiceFSMounted", "mounted for pod a/b", "2030-01-01T00:00:05Z")
    space.becomes("Mountable", "True", "JuiceFSMounted")


def test_attachments(plane: ControlPlane, space: Namespace) -> None:
    """A node service writes with its own rights; the operator makes the volume's status of it and clears up after it."""
    space.add_secret()
    volume = space.add_volume()
    space.becomes("Ready", "True")
    entries = [
        Attachment(volume, space.name, "app", "uid-1", "restricted", "Attached", 2, 1, 17, "2030-01-01T00:00:00Z")
    ]

    def pods() -> list[str]:
        return [each["pod"] for each in space.get("juicefsvolumes", "data")["status"].get("attachments", ())]  # type: ignore[index]

    async def report() -> None:
        api = ApiClient(plane.url, plane.token("node"), plane.ca)
        reporter = NodeReporter(api, OPERATOR_NAMESPACE, f"node-of-{space.name}", lambda: entries)
        task = asyncio.create_task(reporter.run())
        try:
            await asyncio.to_thread(until, "the status", lambda: pods() == ["app"])
            assert plane.table(f"{GROUP}/namespaces/{space.name}/juicefsvolumes")["Pods"] == "1"
            entries.clear()
            reporter.changed()
            await asyncio.to_thread(until, "the end of it", lambda: pods() == [])
        finally:
            task.cancel()
            await api.close()

    asyncio.run(report())
    path = f"{GROUP}/namespaces/{OPERATOR_NAMESPACE}/juicefsnodes/node-of-{space.name}"
    assert plane.request("GET", path)[1]["attachments"] == []
    plane.request("DELETE", path)


def test_bad_spec(space: Namespace, jfs: FakeJfsProgram) -> None:
    space.add_secret()
    space.add_volume(mountOptions=["cache-sise=1"])
    assert "cache-size" in space.becomes("Stalled", "True", "InvalidSpec")
    assert jfs.calls(space.name) == []
    space.patch("juicefsvolumes", "data", {"spec": {"mountOptions": ["cache-size=1"]}})
    space.becomes("Ready", "True")
    assert space.condition("Stalled") == ("", "", "")


def test_a_whole_namespace_goes(plane: ControlPlane, space: Namespace) -> None:
    space.add_secret()
    volume = space.add_volume(reclaimPolicy="Delete")
    space.becomes("Ready", "True")
    plane.request("DELETE", f"{CORE}/namespaces/{space.name}")
    until("the namespace is gone", lambda: not exists(plane, f"/namespaces/{space.name}"))
    assert not exists(plane, f"/persistentvolumes/{volume}")
    assert not exists(plane, managed(volume))


def test_zz_no_secret_anywhere(
    plane: ControlPlane, space: Namespace, jfs: FakeJfsProgram, operator: OperatorProcess
) -> None:
    """After all the tests above: nothing but Secrets holds a secret, not the log at debug level, not a command line."""
    space.add_secret()
    jfs.flag("trouble", True)
    try:
        space.add_volume()
        message = space.becomes("Formatted", "False", "FormatFailed")
    finally:
        jfs.flag("trouble", False)
    assert "***" in message
    space.becomes("Ready", "True")
    everything = [operator.log(), operator.environment(), jfs.everything_seen()]
    paths = (
        f"{GROUP}/juicefsvolumes",
        f"{GROUP}/juicefssecrets",
        f"{CORE}/persistentvolumes",
        f"{CORE}/persistentvolumeclaims",
        f"{CORE}/configmaps",
        "/apis/coordination.k8s.io/v1/leases",
    )
    everything += [json.dumps(plane.request("GET", path)[1]) for path in paths]
    # The one event that this file posts itself with a password in it is the node service's business, not ours.
    events = [
        event
        for event in plane.request("GET", f"{CORE}/events")[1]["items"]
        if event.get("reportingComponent") == "juicefs-operator"
    ]
    assert events
    everything.append(json.dumps(events))
    for text in everything:
        assert secret_free(text, [PASSWORD, SECRET_KEY, ENVIRONMENT, "rotated-secret"]) == []
    secrets = plane.request("GET", f"{CORE}/secrets")[1]["items"]
    assert any(secret_free(json.dumps(secret), [SECRET_KEY]) for secret in secrets), "the search finds what is there"
    for secret in secrets:
        assert not secret_free(json.dumps(secret["metadata"].get("annotations") or {}), [SECRET_KEY, PASSWORD])
