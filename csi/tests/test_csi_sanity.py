"""The CSI project's own conformance program, csi-sanity, against the node service.

Its node tests want a controller to create volumes. A node-only driver has none, so the test serves a minimal one on the
controller endpoint: it invents volumes whose context is what the kubelet would add for a pod.
"""

import asyncio
import contextlib
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from csi_node_harness import Node, Pod, a_running_node

from e2e import tools

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def program() -> str:
    """csi-sanity of the environment, of PATH, or built by the end-to-end tools (minutes, once)."""
    found = os.environ.get("CSI_SANITY") or shutil.which("csi-sanity")
    return found or str(tools.path("csi-sanity"))


def text(number: int, value: str) -> bytes:
    """A string field of a protobuf message."""
    return message(number, value.encode())


def message(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


@contextlib.asynccontextmanager
async def controller(socket: Path, context: dict[str, str]) -> AsyncIterator[None]:
    """csi.v1.Controller as far as csi-sanity's node tests need it: create and delete."""

    async def create(_request: bytes, _context: Any) -> bytes:
        entries = b"".join(message(3, text(1, key) + text(2, value)) for key, value in context.items())
        return message(1, text(2, f"sanity-{uuid.uuid4()}") + entries)

    async def delete(_request: bytes, _context: Any) -> bytes:
        return b""

    async def controller_capabilities(_request: bytes, _context: Any) -> bytes:
        create_delete_volume = b"\x08\x01"
        return message(1, message(1, create_delete_volume))

    async def plugin_capabilities(_request: bytes, _context: Any) -> bytes:
        controller_service = b"\x08\x01"
        return message(1, message(1, controller_service))

    async def plugin_info(_request: bytes, _context: Any) -> bytes:
        return text(1, "sidecar.juicefs.io") + text(2, "test")

    server = grpc.aio.server()
    for service, methods in (
        (
            "csi.v1.Controller",
            {"CreateVolume": create, "DeleteVolume": delete, "ControllerGetCapabilities": controller_capabilities},
        ),
        (
            "csi.v1.Identity",
            {"GetPluginCapabilities": plugin_capabilities, "GetPluginInfo": plugin_info, "Probe": delete},
        ),
    ):
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    server.add_insecure_port(f"unix://{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(1)


async def run_sanity(node: Node, *arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *("nsenter", "-t", str(node.pid), "-m", program(), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


def passed(output: str) -> int:
    """How many specifications passed, if none failed."""
    found = re.search(r"(\d+) Passed \| 0 Failed", output)
    assert found, output
    return int(found[1])


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_running_node() as node:
        yield node


async def test_identity_and_what_needs_no_volume(node: Node) -> None:
    socket = node.kubelet / "plugins" / "sidecar.juicefs.io" / "csi.sock"
    focus = "--ginkgo.focus=Identity Service|NodeGetCapabilities|NodeGetInfo"
    code, output = await run_sanity(node, f"--csi.endpoint=unix://{socket}", focus, "--ginkgo.no-color")
    assert code == 0, output
    assert passed(output) == 5, output


async def test_publish_unpublish_and_stats_with_volumes(node: Node) -> None:
    pod = Pod(node)
    parent = Path(pod.target("sanity")).parent
    make = node.root / "make-target"
    # csi-sanity publishes at <target>/target; the kubelet's layout is prepared for that.
    make.write_text(f"#!/bin/sh\nmkdir -p {parent}\necho {parent}\n")
    make.chmod(0o755)
    remove = node.root / "remove-target"
    remove.write_text('#!/bin/sh\nrmdir "$1"\n')
    remove.chmod(0o755)
    secrets = node.root / "secrets.yaml"
    secrets.write_text('NodePublishVolumeSecret:\n  metaurl: "sqlite3:///nowhere.db"\n  name: sanity\n')
    context = {
        "csi.storage.k8s.io/pod.name": pod.name,
        "csi.storage.k8s.io/pod.namespace": "default",
        "csi.storage.k8s.io/pod.uid": pod.uid,
    }
    # The driver says truthfully that it has no controller, and csi-sanity then leaves out what needs a volume. So it is
    # given an endpoint with the test's identity and the driver's node service.
    async with (
        controller(node.root / "controller.sock", context),
        proxy(node.root / "front.sock", node.plugin / "csi.sock", node.root / "controller.sock"),
    ):
        code, output = await run_sanity(
            node,
            f"--csi.endpoint=unix://{node.root}/front.sock",
            f"--csi.controllerendpoint=unix://{node.root}/controller.sock",
            f"--csi.secrets={secrets}",
            f"--csi.mountdir={parent}",
            f"--csi.createmountpathcmd={make}",
            f"--csi.removemountpathcmd={remove}",
            f"--csi.checkpathcmd={check_path(node.root)}",
            f"--csi.stagingdir={node.root}/staging",
            "--ginkgo.focus=Node Service",
            "--ginkgo.no-color",
        )
    assert code == 0, output
    assert passed(output) >= 14, output
    assert [mount for mount in node.mounts() if pod.uid in mount.path] == []


def check_path(root: Path) -> Path:
    script = root / "check-path"
    script.write_text('#!/bin/sh\nif [ -d "$1" ]; then printf directory; else printf not_found; fi\n')
    script.chmod(0o755)
    return script


if TYPE_CHECKING:
    Forwarder = grpc.GenericRpcHandler[bytes, bytes]
else:
    Forwarder = grpc.GenericRpcHandler  # generic in the type stubs only


@contextlib.asynccontextmanager
async def proxy(front: Path, node: Path, identity: Path) -> AsyncIterator[None]:
    """Passes csi.v1.Node through to the driver and csi.v1.Identity to the test's controller."""
    async with (
        grpc.aio.insecure_channel(f"unix://{node}", options=[("grpc.default_authority", "localhost")]) as to_node,
        grpc.aio.insecure_channel(
            f"unix://{identity}", options=[("grpc.default_authority", "localhost")]
        ) as to_identity,
    ):

        class Forward(Forwarder):
            def service(self, handler_call_details: Any) -> Any:
                method = handler_call_details.method
                channel = to_node if method.startswith("/csi.v1.Node/") else to_identity

                async def call(request: bytes, context: Any) -> bytes:
                    try:
                        return bytes(await channel.unary_unary(method, bytes, bytes)(request))
                    except grpc.aio.AioRpcError as error:
                        await context.abort(error.code(), error.details())
                        raise AssertionError("abort returns") from error

                return grpc.unary_unary_rpc_method_handler(call)

        server = grpc.aio.server()
        server.add_generic_rpc_handlers([Forward()])
        server.add_insecure_port(f"unix://{front}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(1)
