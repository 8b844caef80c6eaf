"""What this node service says to the cluster about its node: one JuiceFSNode, from which the operator makes volumes' statuses.

The object is this node's alone, so one apply writes all of it and nothing is read. What happens together is written together,
with a pause after each write however much happens, and a renewal when nothing does: an object that is not renewed is
of a node that is gone. A write that fails is tried again with what is true then; nobody waits for any of it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jfs_api import names
from jfs_api.attachments import RENEW_SECONDS, Attachment, of_node

from jfs_csi.api import APPLY_PATCH, ApiClient, ApiError, ApiUnreachable

log = logging.getLogger(__name__)

_GATHER = 0.5  # seconds from the first change to the write
_PAUSE = 4.0  # seconds after a write until the next
_AGAIN = 15.0  # seconds after a write that failed


class NodeReporter:
    """`attachments` gives the node's state of now. Used from the event loop only."""

    def __init__(self, api: ApiClient, namespace: str, node: str, attachments: Callable[[], list[Attachment]]) -> None:
        self._api, self._namespace, self._node, self._attachments = api, namespace, node, attachments
        self._changed = asyncio.Event()
        self._changed.set()  # the first write does not wait for a change
        self._written: list[dict[str, Any]] | None = None
        self._renew_at = 0.0  # monotonic time

    def changed(self) -> None:
        """Something may be otherwise."""
        self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._renew_at - time.monotonic())):
                    await self._changed.wait()
            await asyncio.sleep(_GATHER)
            self._changed.clear()
            entries = of_node(self._attachments())
            if entries == self._written and time.monotonic() < self._renew_at:
                continue
            try:
                await self._write(entries)
            except (ApiError, ApiUnreachable) as error:
                log.warning("The state of this node could not be written, it is tried again: %s", error)
                self._changed.set()
                await asyncio.sleep(_AGAIN)
                continue
            self._written, self._renew_at = entries, time.monotonic() + RENEW_SECONDS
            await asyncio.sleep(_PAUSE)

    async def _write(self, entries: list[dict[str, Any]]) -> None:
        version = f"{names.GROUP}/{names.VERSION}"
        path = f"/apis/{version}/namespaces/{quote(self._namespace)}/{names.NODE_PLURAL}/{quote(self._node)}"
        body = {
            "apiVersion": version,
            "kind": names.NODE_KIND,
            "metadata": {"name": self._node, "namespace": self._namespace},
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "attachments": entries,
        }
        query = f"?fieldManager={names.NODE_SERVICE}&force=true"
        await self._api.request("PATCH", path + query, body, content_type=APPLY_PATCH)
