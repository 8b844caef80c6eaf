"""Which volumes of a pod are ours, told from what the cluster knows about them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jfs_webhook.api import ApiClient, ApiError
from jfs_webhook.resolve import Resolution, label_selector, resolve
from jfs_webhook.settings import Settings
from jfs_webhook.volumes import PodVolume, Wish
from webhook_api_server import FakeApiServer, api_server, claims, classes, juicefs_volumes, persistent_volumes
from webhook_pods import SETTINGS, claim_volume, pod_with

DRIVER = "sidecar.juicefs.io"


class Cluster:
    """The fake server with the few objects these tests are about."""

    def __init__(self, server: FakeApiServer, client: ApiClient) -> None:
        self.server = server
        self.client = client

    def claim(self, name: str, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        self.server.put(claims(name), {"metadata": {"name": name, "annotations": annotations or {}}, "spec": spec})

    def persistent_volume(self, name: str, driver: str = DRIVER, wish: Any = None, **spec: Any) -> None:
        metadata: dict[str, Any] = {"name": name, "labels": spec.pop("labels", {})}
        if wish is not None:
            metadata["annotations"] = {"juicefs.io/sidecar": wish if isinstance(wish, str) else json.dumps(wish)}
        self.server.put(persistent_volumes(name), {"metadata": metadata, "spec": {"csi": {"driver": driver}, **spec}})

    def storage_class(self, name: str, provisioner: str = DRIVER, default: bool = False) -> None:
        annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
        self.server.put(
            classes(name), {"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner}
        )

    async def resolve(self, *volumes: dict[str, Any], settings: Settings = SETTINGS) -> Resolution:
        return await resolve(pod_with(*volumes), "team", self.client, settings)

    async def ours(self, *volumes: dict[str, Any]) -> list[str]:
        return [volume.name for volume in (await self.resolve(*volumes)).volumes]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with api_server() as (server, client):
        yield Cluster(server, client)


def template(spec: dict[str, Any], annotations: dict[str, str] | None = None) -> dict[str, Any]:
    claim = {"metadata": {"annotations": annotations or {}}, "spec": spec}
    return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": claim}}


async def test_bound_claims_are_judged_by_their_volume_driver(cluster: Cluster) -> None:
    cluster.claim("mine", volumeName="jfsv-1")
    cluster.claim("foreign", volumeName="nfs-1", storageClassName="juicefs")
    cluster.persistent_volume("jfsv-1")
    cluster.persistent_volume("nfs-1", driver="nfs.csi.k8s.io")
    assert await cluster.ours(claim_volume("a", "foreign"), claim_volume("b", "mine"), claim_volume("c", "mine")) == [
        "b",
        "c",
    ]


async def test_other_sources_need_no_request_but_for_the_namespace(cluster: Cluster) -> None:
    inline = {"name": "inline", "csi": {"driver": DRIVER}}
    control = {"name": "juicefs-control", "csi": {"driver": DRIVER, "volumeAttributes": {"kind": "control"}}}
    other = {"name": "other", "csi": {"driver": "secrets-store.csi.k8s.io"}}
    assert await cluster.ours({"name": "tmp", "emptyDir": {}}, inline, control, other) == ["inline"]
    assert cluster.server.requests == [("GET", "/api/v1/namespaces/team")]


async def test_unbound_claim_of_our_class(cluster: Cluster) -> None:
    cluster.storage_class("juicefs")
    cluster.storage_class("gp3", provisioner="ebs.csi.aws.com")
    cluster.claim("mine", storageClassName="juicefs")
    cluster.claim("foreign", storageClassName="gp3")
    assert await cluster.ours(claim_volume("a", "mine"), claim_volume("b", "foreign")) == ["a"]


async def test_class_without_object_can_be_named_in_the_settings(cluster: Cluster) -> None:
    cluster.claim("mine", storageClassName="static-juicefs")
    settings = Settings(sidecar_image="i", storage_classes=frozenset({"static-juicefs"}))
    assert (await cluster.resolve(claim_volume("a", "mine"))).volumes == []
    assert (await cluster.resolve(claim_volume("a", "mine"), settings=settings)).volumes == [
        PodVolume("a", "claim/mine")
    ]


async def test_pre_bound_claim_whose_volume_is_not_there_yet(cluster: Cluster) -> None:
    cluster.claim("mine", {"juicefs.io/volume": "team/mine"}, volumeName="jfsv-2", storageClassName="")
    cluster.claim("unknown", volumeName="pv-3", storageClassName="")
    assert await cluster.ours(claim_volume("a", "mine"), claim_volume("b", "unknown")) == ["a"]


async def test_static_volume_bound_by_labels_after_admission(cluster: Cluster) -> None:
    cluster.persistent_volume("juicefs-pv", labels={"juicefs-name": "ten-pb-fs"})
    cluster.claim("mine", storageClassName="", selector={"matchLabels": {"juicefs-name": "ten-pb-fs"}})
    cluster.claim("foreign", storageClassName="", selector={"matchLabels": {"juicefs-name": "other"}})
    cluster.claim("classed", storageClassName="fast", selector={"matchLabels": {"juicefs-name": "ten-pb-fs"}})
    volumes = [claim_volume("a", "mine"), claim_volume("b", "foreign"), claim_volume("c", "classed")]
    assert await cluster.ours(*volumes) == ["a"]
    assert {"labelSelector": "juicefs-name=ten-pb-fs", "resourceVersion": "0"} in cluster.server.queries


async def test_static_volume_that_waits_for_the_claim_or_for_another(cluster: Cluster) -> None:
    cluster.claim("mine", storageClassName="")
    cluster.persistent_volume("taken", claimRef={"namespace": "team", "name": "else"})
    assert await cluster.ours(claim_volume("a", "mine")) == []
    cluster.persistent_volume("waiting", claimRef={"namespace": "team", "name": "mine"})
    assert await cluster.ours(claim_volume("a", "mine")) == ["a"]


async def test_unbound_claim_that_fits_several_drivers_is_left_to_the_user(cluster: Cluster) -> None:
    size = {"resources": {"requests": {"storage": "10Gi"}}, "accessModes": ["ReadWriteMany"]}
    cluster.claim("mine", storageClassName="", **size)
    cluster.persistent_volume("ours", capacity={"storage": "1Pi"}, accessModes=["ReadWriteMany", "ReadWriteOnce"])
    for name, spec in {"small": {"storage": "1Gi"}, "large": {"storage": "10Gi"}}.items():
        modes = ["ReadWriteOnce"] if name == "large" else ["ReadWriteMany"]
        cluster.persistent_volume(name, driver="nfs.csi.k8s.io", capacity=spec, accessModes=modes)
    assert await cluster.ours(claim_volume("a", "mine")) == ["a"]
    cluster.persistent_volume(
        "nfs", driver="nfs.csi.k8s.io", capacity={"storage": "1Ti"}, accessModes=["ReadWriteMany"]
    )
    resolution = await cluster.resolve(claim_volume("a", "mine"))
    assert resolution.volumes == []
    assert "fits volumes of several drivers" in resolution.warnings[0]


async def test_missing_claim_is_no_error_and_a_juicefs_volume_speaks_for_it(cluster: Cluster) -> None:
    cluster.server.put(
        juicefs_volumes("soon"), {"spec": {"sidecar": {"image": "i:2", "resources": {"limits": {"memory": "2Gi"}}}}}
    )
    resolution = await cluster.resolve(claim_volume("a", "missing"), claim_volume("b", "soon"))
    assert resolution.volumes == [
        PodVolume("b", "claim/soon", Wish("i:2", {"limits": {"memory": "2Gi"}})),
    ]
    assert len(resolution.warnings) == 1
    assert "team/missing does not exist" in resolution.warnings[0]


async def test_generic_ephemeral_volumes_by_class(cluster: Cluster) -> None:
    cluster.storage_class("juicefs")
    wish = {"juicefs.io/sidecar": '{"resources": {"requests": {"cpu": 1}}}'}
    found = await cluster.resolve(template({"storageClassName": "juicefs"}, wish))
    assert found.volumes == [PodVolume("scratch", "ephemeral/scratch", Wish(None, {"requests": {"cpu": "1"}}))]
    assert await cluster.ours(template({"storageClassName": "gone"})) == []
    assert await cluster.ours(template({})) == []
    cluster.storage_class("standard", default=True)
    assert await cluster.ours(template({})) == ["scratch"]


async def test_image_comes_from_volumes_not_from_claims(cluster: Cluster) -> None:
    wish = json.dumps({"image": "evil:1", "resources": {"requests": {"cpu": "2"}}})
    cluster.claim("mine", {"juicefs.io/sidecar": wish}, volumeName="pv")
    cluster.persistent_volume("pv", wish={"image": "good:1", "resources": {"requests": {"cpu": "1"}}})
    resolution = await cluster.resolve(claim_volume("a", "mine"))
    assert resolution.volumes[0].wish == Wish("good:1", {"requests": {"cpu": "2"}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must be an object"),
        ('{"image": 1}', "image must be a string"),
        ('{"resources": 1}', "requests and limits"),
        ('{"resources": {"claims": []}}', "unknown field"),
        ('{"resources": {"limits": {"cpu": "many"}}}', "is not a quantity"),
        ('{"resources": {"limits": {"cpu": true}}}', "must be a quantity"),
        ('{"resources": {"limits": {"cpu": "-1"}}}', "must not be negative"),
    ],
)
async def test_unusable_annotation_costs_a_warning_only(cluster: Cluster, text: str, said: str) -> None:
    cluster.claim("mine", volumeName="pv")
    cluster.persistent_volume("pv", wish=text)
    resolution = await cluster.resolve(claim_volume("a", "mine"))
    assert resolution.volumes == [PodVolume("a", "claim/mine")]
    assert len(resolution.warnings) == 1
    assert "PersistentVolume pv is ignored" in resolution.warnings[0]
    assert said in resolution.warnings[0]


async def test_different_images_are_pointed_out(cluster: Cluster) -> None:
    for name in ("one", "two"):
        cluster.claim(name, volumeName=name)
        cluster.persistent_volume(name, wish={"image": f"{name}:1"})
    resolution = await cluster.resolve(claim_volume("a", "one"), claim_volume("b", "two"))
    assert resolution.warnings == [
        "the pod's volumes ask for different sidecar images (one:1, two:1); the first one is used"
    ]


async def test_host_network_with_the_nodes_dns_is_pointed_out(cluster: Cluster) -> None:
    cluster.claim("mine", volumeName="pv")
    cluster.persistent_volume("pv")
    pod = pod_with(claim_volume("a", "mine"))
    pod["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirst"}
    (warning,) = (await resolve(pod, "team", cluster.client, SETTINGS)).warnings
    assert "ClusterFirstWithHostNet" in warning
    pod["spec"]["dnsPolicy"] = "ClusterFirstWithHostNet"
    assert (await resolve(pod, "team", cluster.client, SETTINGS)).warnings == []
    plain = {**pod_with({"name": "tmp", "emptyDir": {}})}
    plain["spec"] |= {"hostNetwork": True}
    assert (await resolve(plain, "team", cluster.client, SETTINGS)).warnings == []


@pytest.mark.parametrize("name", ["../../secrets/x", "..", "", "a/b", "A", "x" * 300])
async def test_impossible_claim_names_never_reach_the_api_server(cluster: Cluster, name: str) -> None:
    assert await cluster.ours(claim_volume("a", name)) == []
    assert cluster.server.requests == []


async def test_api_failure_is_an_error_after_a_second_attempt(cluster: Cluster) -> None:
    cluster.claim("mine", storageClassName="juicefs")
    cluster.storage_class("juicefs")
    cluster.server.failures["GET"] = [503]
    assert await cluster.ours(claim_volume("a", "mine")) == ["a"]
    cluster.server.failures["GET"] = [503, 503]
    with pytest.raises(ApiError, match=r"persistentvolumeclaims/mine .*HTTP 503, made to fail"):
        await cluster.ours(claim_volume("a", "mine"))
    cluster.server.failures["GET"] = [403]
    with pytest.raises(ApiError, match="HTTP 403"):
        await cluster.ours(claim_volume("a", "mine"))


async def test_volumes_and_classes_are_read_once_in_a_row_claims_always(cluster: Cluster) -> None:
    cluster.claim("mine", volumeName="pv")
    cluster.persistent_volume("pv")
    for _ in range(3):
        assert await cluster.ours(claim_volume("a", "mine")) == ["a"]
    assert cluster.server.requests.count(("GET", persistent_volumes("pv"))) == 1
    assert cluster.server.requests.count(("GET", claims("mine"))) == 3


def test_label_selectors_as_query() -> None:
    assert label_selector({}) == ""
    selector = {
        "matchLabels": {"b": "2", "a": "1"},
        "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]},
            {"key": "d", "operator": "NotIn", "values": ["z"]},
            {"key": "e", "operator": "Exists"},
            {"key": "f", "operator": "DoesNotExist"},
        ],
    }
    assert label_selector(selector) == "a=1,b=2,c in (x,y),d notin (z),e,!f"
    assert label_selector({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}) is None


async def test_mode_and_cache_come_from_the_persistent_volume_and_the_namespace(cluster: Cluster) -> None:
    cluster.server.put(
        "/api/v1/namespaces/team", {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    )
    cluster.claim("mine", annotations={"juicefs.io/sidecar": '{"mode":"privileged"}'}, volumeName="jfsv-1")
    cluster.persistent_volume(
        "jfsv-1",
        wish={"cache": {"emptyDir": {"sizeLimit": "1Gi"}}},
        mountOptions=["cache-dir=/var/jfsCache", "cache-dir=/usr"],
    )
    found = await cluster.resolve(claim_volume("a", "mine"))
    # A claim's own wish for rights is not heard; a directory that cannot be costs the cache, not the pod.
    assert found.mode == "restricted"
    assert found.volumes[0].wish.cache == {"emptyDir": {"sizeLimit": "1Gi"}}
    assert found.volumes[0].cache_directories == ()
    assert "cache-dir=/usr cannot be" in found.warnings[0]


async def test_cache_of_a_volume_whose_claim_does_not_exist_yet(cluster: Cluster) -> None:
    spec = {"cache": {"hostPath": {"path": "/ssd"}}, "sidecar": {"mode": "restricted"}}
    cluster.server.put(juicefs_volumes("soon"), {"metadata": {"name": "soon"}, "spec": spec})
    found = await cluster.resolve(claim_volume("a", "soon"))
    assert found.mode == "restricted"
    assert found.volumes[0].cache_directories == ("/var/jfsCache",)
    assert found.volumes[0].wish.cache == {"hostPath": {"path": "/ssd"}}
