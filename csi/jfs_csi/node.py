"""CSI node service: checks the kubelet's requests and hands them to `publish.py`.

Every refusal is one sentence, because the kubelet shows it to the pod's owner as an event. Requests carry secrets: they
are never logged and go nowhere but into the pod's control session. No state of its own.
"""

import asyncio
import json
import time
from typing import Any

import grpc
from jfs_api import names

from jfs_csi import rpc
from jfs_csi.directories import NotADirectory
from jfs_csi.events import EventReporter, Subject
from jfs_csi.injection import SidecarCheck
from jfs_csi.layout import InvalidPath, Layout, Target
from jfs_csi.metrics import Metrics
from jfs_csi.proto import csi_pb2 as csi
from jfs_csi.publish import Publication, Publisher
from jfs_csi.state import CONTROL, DATA, StateStore
from jfs_csi.stats import UsageProbe

_POD = "csi.storage.k8s.io/pod."
_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_READ_ONLY_MODES = (
    csi.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY,
    csi.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY,
)


class Node:
    """csi.v1.Node."""

    def __init__(
        self,
        name: str,
        layout: Layout,
        states: StateStore,
        publisher: Publisher,
        check: SidecarCheck,
        events: EventReporter,
        metrics: Metrics,
        usage: UsageProbe,
    ) -> None:
        self._name, self._layout, self._states, self._publisher = name, layout, states, publisher
        self._check, self._events, self._metrics = check, events, metrics
        self._usage = usage

    def handler(self, observe: rpc.Observer) -> rpc.RpcHandler:
        return rpc.service(
            "csi.v1.Node",
            {
                "NodePublishVolume": (csi.NodePublishVolumeRequest, self.publish),
                "NodeUnpublishVolume": (csi.NodeUnpublishVolumeRequest, self.unpublish),
                "NodeGetVolumeStats": (csi.NodeGetVolumeStatsRequest, self.get_volume_stats),
                "NodeGetCapabilities": (csi.NodeGetCapabilitiesRequest, self.get_capabilities),
                "NodeGetInfo": (csi.NodeGetInfoRequest, self.get_info),
            },
            observe,
        )

    async def get_info(self, _request: Any) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(node_id=self._name)

    async def get_capabilities(self, _request: Any) -> csi.NodeGetCapabilitiesResponse:
        stats = csi.NodeServiceCapability.RPC(type=csi.NodeServiceCapability.RPC.GET_VOLUME_STATS)
        return csi.NodeGetCapabilitiesResponse(capabilities=[csi.NodeServiceCapability(rpc=stats)])

    async def publish(self, request: csi.NodePublishVolumeRequest) -> csi.NodePublishVolumeResponse:
        started = time.monotonic()
        publication = self._checked(request)
        target = publication.target
        # Repeated every second while a pod starts: what is mounted needs no second look at the API server.
        if not await asyncio.to_thread(self._publisher.is_published, target):
            sentence = await self._check.missing(
                publication.pod_namespace, publication.pod_name, publication.target.pod_uid
            )
            if sentence is not None:
                self._events.report(
                    Subject("Pod", publication.pod_namespace, publication.pod_name, target.pod_uid),
                    names.EVENT_SIDECAR_MISSING,
                    sentence,
                )
                raise rpc.Refusal(grpc.StatusCode.FAILED_PRECONDITION, sentence)
            await self._publish(publication)
            self._metrics.published(publication.kind, time.monotonic() - started)
        else:
            await self._publish(publication)
        return csi.NodePublishVolumeResponse()

    async def unpublish(self, request: csi.NodeUnpublishVolumeRequest) -> csi.NodeUnpublishVolumeResponse:
        if not request.volume_id:
            raise rpc.invalid("The request names no volume.")
        target = self._target(request.target_path)
        try:
            await self._publisher.unpublish(target)
        except NotADirectory as error:
            raise rpc.invalid(f"{error.strerror}.") from error
        self._usage.forget(target.path)
        return csi.NodeUnpublishVolumeResponse()

    async def get_volume_stats(self, request: csi.NodeGetVolumeStatsRequest) -> csi.NodeGetVolumeStatsResponse:
        """Figures of the mounted file system; the last known ones while it does not answer, zeros before it first did."""
        if not request.volume_id or not request.volume_path:
            raise rpc.invalid("The request names no volume or no path.")
        state = self._states.by_target(request.volume_path)
        if state is None or state.volume_id != request.volume_id:
            raise rpc.Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"Volume {request.volume_id} is not published at {request.volume_path}.",
            )
        usage = None
        if state.kind == DATA:
            # Only through the FUSE mount: the directory below it would give the node's own disk.
            relative = self._layout.target(state.target).relative
            if await asyncio.to_thread(self._publisher.is_mounted, relative):
                usage = await self._usage.usage(state.target)
        unit = csi.VolumeUsage
        if usage is None:
            return csi.NodeGetVolumeStatsResponse(usage=[csi.VolumeUsage(unit=unit.BYTES)])
        return csi.NodeGetVolumeStatsResponse(
            usage=[
                csi.VolumeUsage(
                    unit=unit.BYTES,
                    total=usage.total_bytes,
                    available=usage.available_bytes,
                    used=usage.used_bytes,
                ),
                csi.VolumeUsage(
                    unit=unit.INODES,
                    total=usage.total_inodes,
                    available=usage.available_inodes,
                    used=usage.used_inodes,
                ),
            ]
        )

    async def _publish(self, publication: Publication) -> None:
        try:
            await self._publisher.publish(publication)
        except NotADirectory as error:
            raise rpc.invalid(f"{error.strerror}.") from error

    # --- checks ------------------------------------------------------------------------------------------------

    def _target(self, path: str) -> Target:
        if not path:
            raise rpc.invalid("The request has no target path.")
        try:
            return self._layout.target(path)
        except InvalidPath as error:
            raise rpc.invalid(str(error)) from None

    def _checked(self, request: csi.NodePublishVolumeRequest) -> Publication:
        """The request as a `Publication`; raises `rpc.Refusal` with INVALID_ARGUMENT."""
        if not request.volume_id:
            raise rpc.invalid("The request names no volume.")
        target = self._target(request.target_path)
        if not request.HasField("volume_capability"):
            raise rpc.invalid("The request has no volume capability.")
        capability = request.volume_capability
        if capability.HasField("block"):
            raise rpc.invalid("A JuiceFS volume is a file system; it cannot be published as a block device.")
        context = dict(request.volume_context)
        pod_uid = context.get(_POD + "uid", target.pod_uid)
        if pod_uid != target.pod_uid:
            raise rpc.invalid(f"Target path {target.path} belongs to another pod than the request ({pod_uid}).")
        ephemeral = context.get(_EPHEMERAL) == "true"
        kind = context.get(names.CONTROL_KIND_ATTRIBUTE, DATA)
        if kind == names.CONTROL_KIND:
            if not ephemeral and _EPHEMERAL in context:
                raise rpc.invalid("A control volume can only be an inline volume of the pod.")
            mode = context.get(names.MODE_ATTRIBUTE, names.PRIVILEGED)
            if mode not in (names.PRIVILEGED, names.RESTRICTED):
                raise rpc.invalid(f"Volume attribute {names.MODE_ATTRIBUTE}={mode!r} is unknown.")
            return Publication(
                target,
                CONTROL,
                request.volume_id,
                pod_name=context.get(_POD + "name", ""),
                pod_namespace=context.get(_POD + "namespace", ""),
                mode=mode,
                # A sidecar that mounts nothing writes nothing there either.
                read_only=request.readonly or mode == names.RESTRICTED,
            )
        if kind != DATA:
            raise rpc.invalid(f"Volume attribute {names.CONTROL_KIND_ATTRIBUTE}={kind!r} is unknown.")
        options = [*capability.mount.mount_flags, *_split(context.get("mountOptions", ""))]
        read_only = request.readonly or capability.access_mode.mode in _READ_ONLY_MODES or "ro" in options
        return Publication(
            target,
            DATA,
            request.volume_id,
            pod_name=context.get(_POD + "name", ""),
            pod_namespace=context.get(_POD + "namespace", ""),
            persistent=not ephemeral,
            read_only=read_only,
            options=tuple(dict.fromkeys(option for option in options if option not in ("ro", "rw"))),
            secrets=_secrets(dict(request.secrets)),
        )


def _split(options: str) -> list[str]:
    return [option.strip() for option in options.split(",") if option.strip()]


def _secrets(secrets: dict[str, str]) -> dict[str, Any]:
    """The Secret's keys with `envs` as an object. Raises `rpc.Refusal` if it cannot serve."""
    if not secrets.get("metaurl"):
        raise rpc.invalid(
            "The volume's Secret (nodePublishSecretRef) is missing or lacks the key metaurl, the metadata engine's URL."
        )
    result: dict[str, Any] = dict(secrets)
    if "envs" in secrets:
        try:
            envs = json.loads(secrets["envs"] or "{}")
        except ValueError:
            envs = None
        if not isinstance(envs, dict):
            # The text itself stays out of the message: it may hold credentials.
            raise rpc.invalid("Key envs of the volume's Secret is not a JSON object of environment variables.")
        result["envs"] = {str(name): str(value) for name, value in envs.items()}
    return result
