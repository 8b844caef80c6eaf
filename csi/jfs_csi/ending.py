"""Is a pod over? Asked about pods in which requests wait for a sidecar that is not there.

A request that a sidecar had read and did not answer keeps its process in the kernel, killed or not, until the FUSE connection
ends. In a pod that goes on a successor answers it. In a pod that is over none comes: the kubelet starts no container there
any more, and unpublishes only when every process has ended. Somebody has to end the connection then, and only the API
server tells the two cases apart. While it cannot be asked nothing is ended: the mount of a pod that lives is worth more.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from jfs_csi.api import ApiClient, ApiError, ApiUnreachable

log = logging.getLogger(__name__)


class PodEnd:
    """`api` None: nobody can tell, no pod is over."""

    def __init__(self, api: ApiClient | None) -> None:
        self._api = api

    async def is_over(self, namespace: str, name: str, uid: str) -> bool:
        """Whether the pod is gone, or the kubelet has ended it, or its grace period has passed."""
        if self._api is None or not name or not namespace:
            return False
        try:
            pod = await self._api.request("GET", f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}")
        except ApiError as error:
            if error.status == 404:
                return True
            log.warning("Whether pod %s/%s is over cannot be told: %s", namespace, name, error)
            return False
        except ApiUnreachable as error:
            log.warning("Whether pod %s/%s is over cannot be told: %s.", namespace, name, error)
            return False
        return pod.get("metadata", {}).get("uid") != uid or says_over(pod, datetime.now(UTC))


def says_over(pod: dict[str, Any], now: datetime) -> bool:
    """Whether a pod's object says that no container of it is going to be started again."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    # API conventions: the time of deletion includes the grace period.
    deleted = pod.get("metadata", {}).get("deletionTimestamp")
    if deleted is not None and datetime.fromisoformat(deleted) <= now:
        return True
    limit, began = spec.get("activeDeadlineSeconds"), status.get("startTime")
    if limit is not None and began is not None:
        # The kubelet ends such a pod by itself and says so (phase Failed) only when all its containers have ended.
        grace = spec.get("terminationGracePeriodSeconds") or 0
        if datetime.fromisoformat(began) + timedelta(seconds=limit + grace) <= now:
            return True
    return status.get("phase") in ("Succeeded", "Failed")
