"""CSI identity service and the kubelet's registration service: who we are and whether we are there.

The kubelet finds the registration socket in its plugins_registry directory, asks GetInfo, calls the CSI endpoint named
there, and reports the outcome. No state but that outcome.
"""

import logging
from importlib.metadata import version
from typing import Any

from google.protobuf.wrappers_pb2 import BoolValue

from jfs_csi import rpc
from jfs_csi.proto import csi_pb2 as csi
from jfs_csi.proto import pluginregistration_pb2 as registration

log = logging.getLogger(__name__)

# Versions of the CSI specification as the kubelet checks them: any 1.x.
_SUPPORTED = ("1.0.0",)


class Identity:
    """csi.v1.Identity of a node-only driver."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    def handler(self, observe: rpc.Observer) -> rpc.RpcHandler:
        return rpc.service(
            "csi.v1.Identity",
            {
                "GetPluginInfo": (csi.GetPluginInfoRequest, self.get_plugin_info),
                "GetPluginCapabilities": (csi.GetPluginCapabilitiesRequest, self.get_plugin_capabilities),
                "Probe": (csi.ProbeRequest, self.probe),
            },
            observe,
        )

    async def get_plugin_info(self, _request: Any) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._driver, vendor_version=version("juicefs-sidecar"))

    async def get_plugin_capabilities(self, _request: Any) -> csi.GetPluginCapabilitiesResponse:
        return csi.GetPluginCapabilitiesResponse()

    async def probe(self, _request: Any) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=BoolValue(value=True))


class Registration:
    """pluginregistration.Registration; `endpoint` is the CSI socket's path as the kubelet sees it."""

    def __init__(self, driver: str, endpoint: str) -> None:
        self._driver, self._endpoint = driver, endpoint
        self.registered = False

    def handler(self, observe: rpc.Observer) -> rpc.RpcHandler:
        return rpc.service(
            "pluginregistration.Registration",
            {
                "GetInfo": (registration.InfoRequest, self.get_info),
                "NotifyRegistrationStatus": (registration.RegistrationStatus, self.notify),
            },
            observe,
        )

    async def get_info(self, _request: Any) -> registration.PluginInfo:
        return registration.PluginInfo(
            type="CSIPlugin", name=self._driver, endpoint=self._endpoint, supported_versions=_SUPPORTED
        )

    async def notify(self, status: registration.RegistrationStatus) -> registration.RegistrationStatusResponse:
        self.registered = status.plugin_registered
        if self.registered:
            log.info("The kubelet registered driver %s.", self._driver)
        else:
            # The kubelet tries again by itself, with growing delays.
            log.error("The kubelet refused driver %s: %s", self._driver, status.error)
        return registration.RegistrationStatusResponse()
