"""Does the pod have the sidecar? Asked once per pod at its first publish, answered from a cache afterwards.

A volume without a sidecar would never be mounted and the pod would work on an empty directory, or rather fail on it: the
target is a read-only directory without permissions. So the check is a diagnosis, not a guard, and when the API server
cannot be asked the publish goes on: a pod that *is* injected – nearly all are – must start while the control plane is
away, and one that is not shows the very same failure a moment later.
"""

import logging
from collections import OrderedDict
from typing import Any
from urllib.parse import quote

from jfs_api import names

from jfs_csi.api import ApiClient, ApiError, ApiUnreachable

log = logging.getLogger(__name__)

_REMEMBERED = 1000  # pods; a node runs far fewer


class SidecarCheck:
    """Caches by pod UID: the containers of a pod never change. Used from the event loop only."""

    def __init__(self, api: ApiClient | None) -> None:
        self._api = api
        self._known: OrderedDict[str, bool] = OrderedDict()

    async def missing(self, namespace: str, name: str, uid: str) -> str | None:
        """None if the pod has the sidecar (or nobody can tell); else the sentence that says what to do."""
        if self._api is None or not name or not namespace:
            return None
        injected = self._known.get(uid)
        if injected is None:
            try:
                pod = await self._api.request("GET", f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}")
            except ApiError as error:
                if error.status == 404:
                    return f"Pod {namespace}/{name} does not exist any more."
                log.warning("Pod %s/%s is taken as injected: reading it failed: %s", namespace, name, error)
                return None
            except ApiUnreachable as error:
                log.warning("Pod %s/%s is taken as injected: %s.", namespace, name, error)
                return None
            if pod.get("metadata", {}).get("uid") != uid:
                return f"Pod {namespace}/{name} was replaced by another of the same name."
            injected = self._known[uid] = has_sidecar(pod)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if injected:
            return None
        return (
            f"Pod {namespace}/{name} has no container {names.SIDECAR_CONTAINER}, so nothing would mount its JuiceFS"
            f" volume: label the namespace {names.INJECT_LABEL}={names.INJECT_ENABLED}, see that the webhook runs, and"
            " create the pod again."
        )


def has_sidecar(pod: dict[str, Any]) -> bool:
    """Whether a pod's specification has the injected container, as a native sidecar or an ordinary container."""
    spec = pod.get("spec", {})
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    return any(container.get("name") == names.SIDECAR_CONTAINER for container in containers)
