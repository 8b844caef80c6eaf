"""Where TiKV's data is: the placement driver's leader, timestamps, regions and stores, by their gRPC services.

Requests to a store go through `Placement.send`: it finds the key's region, fills in its context, and goes on trying while regions
move, leaders change or servers are busy, for as long as `PATIENCE`. A request that may have been carried out although no answer
came raises `Lost` instead where the caller says that matters. Keys here are complete, prefix included. One event loop.
"""

import asyncio
import bisect
import errno
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from jfs.errors import CredentialsRefused, FsError, StoreAway, StoreUnavailable
from jfs.meta.engines.kv import statuses
from jfs.meta.engines.kv.calls import Servers, Stream
from jfs.meta.engines.kv.proto import tikv_pb2 as pb
from jfs.meta.engines.kv.url import KvAddress

PATIENCE: Final = 20.0  # seconds that somebody who does not answer is asked again
_GROUP: Final = 8
_DENIED: Final = (statuses.PERMISSION_DENIED, statuses.UNAUTHENTICATED)


class Lost(Exception):
    """No answer came; the request may have been carried out."""


class Place(NamedTuple):
    """A region as it was last seen: raw keys from *start* up to *end* (empty: the last one), and its leader."""

    start: bytes
    end: bytes
    region: Any
    leader: Any


def comparable(key: bytes) -> bytes:
    """The form of a key in which regions are cut: groups of eight bytes, each with how much of it counts."""
    encoded = bytearray()
    for at in range(0, len(key) + 1, _GROUP):
        group = key[at : at + _GROUP]
        padding = _GROUP - len(group)
        encoded += group + bytes(padding) + bytes((0xFF - padding,))
    return bytes(encoded)


def plain(key: bytes) -> bytes:
    """The reverse of `comparable`; empty stays empty."""
    decoded = bytearray()
    for at in range(0, len(key), _GROUP + 1):
        group = key[at : at + _GROUP + 1]
        decoded += group[: _GROUP - (0xFF - group[-1])]
    return bytes(decoded)


class Placement:
    """One cluster."""

    def __init__(self, address: KvAddress) -> None:
        self.where = f"TiKV at {', '.join(address.servers)}"
        self._address = address
        self._leader = ""
        self._cluster = 0
        self._servers = Servers(address)
        self._places: list[Place] = []  # sorted, apart
        self._stores: dict[int, str] = {}
        self._clock: Stream | None = None  # of timestamps
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._teller: asyncio.Task[None] | None = None

    # The placement driver.

    async def open(self) -> None:
        """Find the leader. StoreUnavailable."""
        await self._driver("GetMembers", pb.GetMembersRequest(), pb.GetMembersResponse)

    async def _find_leader(self) -> None:
        failure = ""
        for server in self._address.servers:
            try:
                answer: Any = await self._servers.ask(
                    server, "/pdpb.PD/GetMembers", pb.GetMembersRequest(), pb.GetMembersResponse
                )
            except statuses.Broken as error:
                failure = str(error)
                continue
            except statuses.Status as error:
                failure = str(error)
                if error.code in _DENIED:
                    raise CredentialsRefused(f"{self.where} refused the certificate; check ca, cert and key") from error
                continue
            self._cluster = answer.header.cluster_id
            urls = answer.leader.client_urls
            self._leader = urls[0].rpartition("//")[2] if urls else server
            return
        raise Lost(failure)

    async def _driver(self, method: str, request: Any, answer: Any) -> Any:
        """A request to the leader of the placement driver, which may change."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        pause = 0.05
        while True:
            try:
                if not self._leader:
                    await self._find_leader()
                if method != "GetMembers":
                    request.header.cluster_id = self._cluster
                reply = await self._servers.ask(self._leader, f"/pdpb.PD/{method}", request, answer)
                if not reply.header.error.type:
                    return reply
                failure = reply.header.error.message
            except (statuses.Broken, statuses.Status, Lost) as error:
                failure = str(error)
            if asyncio.get_running_loop().time() > deadline:
                raise StoreAway(
                    f"{self.where} cannot be reached ({failure}); check the address and that its placement driver runs"
                )
            self._leader = ""
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 1.0)

    async def timestamp(self) -> int:
        """A new timestamp. Tasks that ask at once share a request."""
        mine: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell(), name="timestamps")
        return await mine

    async def _tell(self) -> None:
        while self._waiting:
            served = list(self._waiting)
            self._waiting.clear()
            try:
                last = await self._last_of(len(served))
            except BaseException as error:
                for future in served:
                    if not future.done():
                        future.set_exception(
                            error if isinstance(error, Exception) else StoreUnavailable(f"{self.where}: closed")
                        )
                if not isinstance(error, Exception):
                    raise
                continue
            for position, future in enumerate(served):
                if not future.done():
                    future.set_result(last - (len(served) - 1 - position))

    async def _last_of(self, count: int) -> int:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                if not self._leader:
                    await self._driver("GetMembers", pb.GetMembersRequest(), pb.GetMembersResponse)
                if self._clock is None:
                    self._clock = await self._servers.stream(self._leader, "/pdpb.PD/Tso")
                header = pb.PdRequestHeader(cluster_id=self._cluster)
                answer = await self._clock.ask(pb.TsoRequest(header=header, count=count), pb.TsoResponse)
                if not answer.header.error.type:
                    physical, logical = answer.timestamp.physical, answer.timestamp.logical
                    return int((physical << 18) + logical)
                failure = answer.header.error.message
            except (statuses.Broken, statuses.Status, TimeoutError) as error:
                failure = str(error) or "no answer in time"
            clock, self._clock = self._clock, None
            if clock is not None:
                clock.end()
            if asyncio.get_running_loop().time() > deadline:
                raise StoreAway(f"{self.where} gives no timestamps ({failure}); check its placement driver")
            self._leader = ""
            await asyncio.sleep(0.1)

    # Regions.

    async def place(self, key: bytes) -> Place:
        """The region of a key."""
        at = bisect.bisect_right(self._places, key, key=lambda place: place.start) - 1
        if at >= 0 and (not self._places[at].end or key < self._places[at].end):
            return self._places[at]
        answer = await self._driver("GetRegion", pb.GetRegionRequest(region_key=comparable(key)), pb.GetRegionResponse)
        if not answer.region.id:
            raise Lost("the placement driver knows no region of the key")
        region = answer.region
        leader = answer.leader if answer.leader.id else (region.peers[0] if region.peers else pb.Peer())
        place = Place(plain(region.start_key), plain(region.end_key), region, leader)
        self._places = [
            other
            for other in self._places
            if (other.end and other.end <= place.start) or (place.end and place.end <= other.start)
        ]
        bisect.insort(self._places, place, key=lambda one: one.start)
        return place

    def _forget(self, place: Place) -> None:
        self._places = [other for other in self._places if other.region.id != place.region.id]

    async def _server(self, store: int) -> str:
        server = self._stores.get(store)
        if server is None:
            answer = await self._driver("GetStore", pb.GetStoreRequest(store_id=store), pb.GetStoreResponse)
            server = self._stores[store] = answer.store.address
        return server

    async def send(
        self, key: bytes, method: str, build: Callable[[Place], Any], answer: Any, *, once: bool = False
    ) -> tuple[Place, Any]:
        """The answer of the region of *key* to the request that *build* makes for it. With *once*, Lost when the request may have
        been carried out and nobody said so."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        pause = 0.01
        while True:
            try:
                place = await self.place(key)
            except Lost as error:
                failure = str(error)
            else:
                server = await self._server(place.leader.store_id)
                request = build(place)
                request.context.region_id = place.region.id
                request.context.region_epoch.CopyFrom(place.region.region_epoch)
                request.context.peer.CopyFrom(place.leader)
                try:
                    reply = await self._servers.ask(server, f"/tikvpb.Tikv/{method}", request, answer)
                except (statuses.Broken, statuses.Status) as error:
                    failure = str(error)
                    self._stores.pop(place.leader.store_id, None)
                    self._forget(place)
                    if once and (isinstance(error, statuses.Status) or error.sent):
                        raise Lost(failure) from error
                else:
                    if not reply.HasField("region_error"):
                        return place, reply
                    failure = self._moved(place, reply.region_error)
            if asyncio.get_running_loop().time() > deadline:
                raise StoreAway(f"{self.where} does not serve its data ({failure}); check its stores")
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 1.0)

    def _moved(self, place: Place, error: Any) -> str:
        """Learn from a region's error; its text. FsError(ENOSPC) when the store's disk is full."""
        if error.HasField("disk_full"):
            raise FsError(errno.ENOSPC)
        if error.HasField("not_leader") and error.not_leader.leader.id:
            self._places = [
                one._replace(leader=error.not_leader.leader) if one.region.id == place.region.id else one
                for one in self._places
            ]
        else:
            self._forget(place)
        return str(error.message or "a region moves")

    async def by_region(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """Sorted keys in groups that lie in one region each, as far as is known."""
        groups: list[list[bytes]] = []
        end: bytes | None = None
        for key in sorted(keys):
            if end is None or (end and key >= end):
                try:
                    end = (await self.place(key)).end
                except Lost as error:
                    raise StoreAway(f"{self.where}: {error}") from error
                groups.append([])
            groups[-1].append(key)
        return groups

    async def close(self) -> None:
        """Close everything."""
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.gather(self._teller, return_exceptions=True)
        self._clock = None
        await self._servers.close()
