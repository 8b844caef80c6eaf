"""The gRPC services in this process, without mounting anything: registration, identity, and requests that are refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from csi_fake_api import FakeApi
from csi_node_harness import call
from jfs_csi.api import ApiClient
from jfs_csi.main import NodeService, Settings, parse
from jfs_csi.proto import csi_pb2 as csi
from jfs_csi.proto import pluginregistration_pb2 as registration

UID = "8f5c1a2e-0d5b-4a53-9f3b-2d8d3f6c1a77"
SECRETS = {"metaurl": "redis://:hush-hush@db/1"}


class Service:
    """A running node service on a temporary kubelet directory, and the API it asks."""

    def __init__(self, kubelet: Path, api: FakeApi, port: int) -> None:
        self.kubelet, self.api, self.port = kubelet, api, port

    def target(self, volume: str = "pv-1") -> str:
        return f"{self.kubelet}/pods/{UID}/volumes/kubernetes.io~csi/{volume}/mount"

    def request(self, **fields: Any) -> csi.NodePublishVolumeRequest:
        defaults: dict[str, Any] = {
            "volume_id": "handle",
            "target_path": self.target(),
            "volume_capability": {"mount": {}, "access_mode": {"mode": 5}},
            "volume_context": {
                "csi.storage.k8s.io/pod.name": "app",
                "csi.storage.k8s.io/pod.namespace": "default",
                "csi.storage.k8s.io/pod.uid": UID,
            },
            "secrets": SECRETS,
        }
        return csi.NodePublishVolumeRequest(**{**defaults, **fields})

    async def call(self, name: str, request: Any, response: Any) -> Any:
        return await call(self.kubelet / "csi.sock", f"/csi.v1.{name}", request, response)

    async def refusal(self, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.call(f"Node/{method}", request, csi.NodePublishVolumeResponse)
        return refused.value.code(), refused.value.details() or ""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    (tmp_path / "pods").mkdir()
    (tmp_path / "registry").mkdir()
    settings = Settings(
        endpoint=f"unix://{tmp_path}/csi.sock",
        kubelet_dir=tmp_path,
        node_name="node-1",
        registration_dir=tmp_path / "registry",
        metrics="127.0.0.1:0",
    )
    async with FakeApi().serving() as api:
        node = NodeService(settings, ApiClient(api.url))
        async with node.running():
            yield Service(tmp_path, api, node.http_addresses[0][1])


async def test_identity(service: Service) -> None:
    info = await service.call("Identity/GetPluginInfo", csi.GetPluginInfoRequest(), csi.GetPluginInfoResponse)
    assert (info.name, bool(info.vendor_version)) == ("sidecar.juicefs.io", True)
    probe = await service.call("Identity/Probe", csi.ProbeRequest(), csi.ProbeResponse)
    assert probe.ready.value is True
    node = await service.call("Node/NodeGetInfo", csi.NodeGetInfoRequest(), csi.NodeGetInfoResponse)
    assert node.node_id == "node-1"


async def test_registration_and_readiness(service: Service) -> None:
    path = service.kubelet / "registry" / "sidecar.juicefs.io-reg.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    info = await call(
        path, "/pluginregistration.Registration/GetInfo", registration.InfoRequest(), registration.PluginInfo
    )
    assert (info.type, info.name, list(info.supported_versions)) == ("CSIPlugin", "sidecar.juicefs.io", ["1.0.0"])
    assert info.endpoint == f"{service.kubelet}/csi.sock"
    notify = "/pluginregistration.Registration/NotifyRegistrationStatus"
    async with aiohttp.ClientSession() as session:
        for registered, status in ((False, 503), (True, 200)):
            outcome = registration.RegistrationStatus(plugin_registered=registered, error="" if registered else "no")
            await call(path, notify, outcome, registration.RegistrationStatusResponse)
            async with session.get(f"http://127.0.0.1:{service.port}/readyz") as ready:
                assert ready.status == status
        async with session.get(f"http://127.0.0.1:{service.port}/metrics") as metrics:
            text = await metrics.text()
    assert 'jfs_csi_calls_total{code="OK",method="GetInfo"} 1.0' in text
    assert "jfs_csi_attached_volumes 0.0" in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"volume_id": ""}, "names no volume"),
        ({"target_path": ""}, "no target path"),
        ({"target_path": "relative/path"}, "is relative"),
        ({"target_path": "/etc"}, "not below the kubelet's directory"),
        ({"volume_capability": None}, "no volume capability"),
        ({"volume_capability": {"block": {}}}, "block device"),
        ({"volume_context": {"csi.storage.k8s.io/pod.uid": "another"}}, "belongs to another pod"),
        ({"volume_context": {"kind": "nonsense"}}, "is unknown"),
        ({"volume_context": {"kind": "control", "csi.storage.k8s.io/ephemeral": "false"}}, "only be an inline volume"),
        ({"secrets": {}}, "lacks the key metaurl"),
        ({"secrets": {**SECRETS, "envs": "hush-hush"}}, "not a JSON object"),
    ],
)
async def test_bad_requests_to_publish(
    service: Service, fields: dict[str, Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, details = await service.refusal("NodePublishVolume", service.request(**fields))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in details
    assert "hush-hush" not in details + caplog.text
    assert list((service.kubelet / "pods").iterdir()) == []


async def test_bad_requests_to_unpublish_and_measure(service: Service) -> None:
    for request in (
        csi.NodeUnpublishVolumeRequest(target_path=service.target()),
        csi.NodeUnpublishVolumeRequest(volume_id="handle"),
        csi.NodeUnpublishVolumeRequest(volume_id="handle", target_path="/etc"),
    ):
        assert (await service.refusal("NodeUnpublishVolume", request))[0] is grpc.StatusCode.INVALID_ARGUMENT
    unknown = csi.NodeGetVolumeStatsRequest(volume_id="handle", volume_path=service.target())
    assert (await service.refusal("NodeGetVolumeStats", unknown))[0] is grpc.StatusCode.NOT_FOUND


async def test_unpublish_of_what_is_unknown_is_fine(service: Service) -> None:
    request = csi.NodeUnpublishVolumeRequest(volume_id="handle", target_path=service.target())
    for _ in range(2):
        await service.call("Node/NodeUnpublishVolume", request, csi.NodeUnpublishVolumeResponse)
    assert list((service.kubelet / "plugins" / "sidecar.juicefs.io").rglob("*.json")) == []


async def test_a_pod_without_sidecar_is_refused_and_told(service: Service) -> None:
    service.api.add_pod("app", UID, ["main"])
    code, details = await service.refusal("NodePublishVolume", service.request())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "label the namespace" in details
    url = f"http://127.0.0.1:{service.port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as metrics:
        assert 'code="FAILED_PRECONDITION"' in await metrics.text()
    while not service.api.events:  # posted by another task; the test's timeout is the deadline
        await service.call("Identity/Probe", csi.ProbeRequest(), csi.ProbeResponse)
    (event,) = service.api.events.values()
    assert (event["reason"], event["message"]) == ("JuiceFSSidecarMissing", details)
    assert list((service.kubelet / "pods").iterdir()) == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = ["--endpoint=unix:///csi.sock", "--node-name=n", f"--kubelet-dir={tmp_path}", "--health=:9809"]
    assert parse(good).health == ":9809"
    for bad, sentence in (
        ("--endpoint=/csi.sock", "unix:///path"),
        ("--metrics=9a", "[HOST]:PORT"),
        ("--kubelet-dir=/no/such", "existing directory"),
    ):
        with pytest.raises(SystemExit):
            parse([*good, bad])
        assert sentence in capsys.readouterr().err


def test_generated_modules_are_current(tmp_path: Path) -> None:
    from jfs_csi.proto import generate

    generate.generate(tmp_path)
    fresh = sorted((tmp_path / "jfs_csi" / "proto").iterdir())
    assert [path.name for path in fresh] == [
        "csi_pb2.py",
        "csi_pb2.pyi",
        "pluginregistration_pb2.py",
        "pluginregistration_pb2.pyi",
    ]
    for path in fresh:
        assert path.read_text() == (generate.HERE / path.name).read_text(), path.name
