"""The binary form of a dump: segments of protobuf messages, an end mark, and a footer that says where segments begin (format §9.4).

Both directions hold one segment in memory at a time. References and counters are in the meaning of SQL. A file is checked before
anything is stored: its footer, its marks and the form of its segments.
"""

import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, Any, Final

from google.protobuf.message import DecodeError

from jfs.dump.loader import Batch, References
from jfs.dump.proto import backup_pb2 as pb
from jfs.dump.reader import count_quotas, expect_blank
from jfs.dump.writer import NEXT
from jfs.errors import VolumeError
from jfs.format.setting import Setting
from jfs.format.slices import unpack
from jfs.format.usable import check_versions
from jfs.meta.model.acl import AclKey, unpack_rule
from jfs.meta.model.attr import Entry, unpack_attr
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    SettingKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaKey
from jfs.meta.store.base import Store

MARK: Final = 0x747083
VERSION: Final = 1
_HEAD: Final = struct.Struct(">IQ")
_TYPE: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">Q")
_TOGETHER: Final = 4096  # records of a segment
_LARGEST: Final = 1 << 30  # bytes of a segment that is believed
TYPES: Final = {
    1: "format",
    2: "counter",
    3: "node",
    4: "edge",
    5: "chunk",
    6: "sliceRef",
    7: "symlink",
    8: "sustained",
    9: "delFile",
    10: "xattr",
    11: "acl",
    12: "stat",
    13: "quota",
    14: "parent",
    15: "changeLog",
}
_NUMBERS: Final = {name: number for number, name in TYPES.items()}
_FIELDS: Final = {
    "counter": "counters",
    "node": "nodes",
    "edge": "edges",
    "chunk": "chunks",
    "sliceRef": "slice_refs",
    "symlink": "symlinks",
    "sustained": "sustained",
    "delFile": "delfiles",
    "xattr": "xattrs",
    "acl": "acls",
    "stat": "dirstats",
    "parent": "parents",
    "changeLog": "changelogs",
}
_QUOTAS: Final = {DIRECTORY: "quotas", USER: "user_quotas", GROUP: "group_quotas"}
_COUNTERS: Final = ("usedSpace", "totalInodes", "nextInode", "nextChunk", "nextSession", "nextTrash")
_NOT_A_DUMP: Final = "the file is no binary dump of a volume"


class Writer:
    """Writes segments into a file and remembers where they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self._places: dict[str, list[int]] = {}
        self._numbers: dict[str, int] = {}

    def segment(self, name: str, message: Any, count: int) -> None:
        """Write one."""
        body = message.SerializeToString()
        self._places.setdefault(name, []).append(self._at)
        self._numbers[name] = self._numbers.get(name, 0) + count
        self._write(_HEAD.pack(_NUMBERS[name], len(body)) + body)

    def finish(self) -> None:
        """The end mark and the footer."""
        footer = pb.Footer(magic=MARK, version=VERSION)
        for name, places in self._places.items():
            footer.infos[name].offset.extend(places)
            footer.infos[name].num = self._numbers[name]
        body = footer.SerializeToString()
        self._write(_TYPE.pack(MARK) + body + _LENGTH.pack(len(body)))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)


async def write(
    store: Store, setting: Setting, file: IO[bytes], *, keep_secrets: bool, written: Callable[[int], None]
) -> None:
    """Dump the store into a file."""
    writer = Writer(file)
    shown = setting if keep_secrets else Setting(setting.redacted())
    writer.segment("format", pb.Format(data=shown.encode()), 1)
    for name, records in _records(store).items():
        count = 0
        waiting: list[Any] = []
        async for record in records:
            waiting.append(record)
            if len(waiting) == _TOGETHER:
                writer.segment(name, _batch(name, waiting), len(waiting))
                count += len(waiting)
                written(len(waiting))
                waiting = []
        if waiting or not count:
            writer.segment(name, _batch(name, waiting), len(waiting))
            written(len(waiting))
    writer.finish()


def _batch(name: str, records: Sequence[Any]) -> Any:
    """The message of a segment. Quotas have a list for each kind."""
    if name != "quota":
        return pb.Batch(**{_FIELDS[name]: records})
    message = pb.Batch()
    for one in records:
        getattr(message, _QUOTAS[one.type]).append(one)
    return message


def _records(store: Store) -> dict[str, AsyncIterator[Any]]:
    return {
        "counter": _counters(store),
        "node": _made(store, NodeKey, lambda key, attr: pb.Node(inode=key.ino, data=attr.pack())),
        "edge": _made(
            store, EdgeKey, lambda key, one: pb.Edge(parent=key.parent, inode=one.ino, name=key.name, type=one.kind)
        ),
        "chunk": _made(store, ChunkKey, lambda key, raw: pb.Chunk(inode=key.ino, index=key.indx, slices=raw)),
        "sliceRef": _made(
            store,
            SliceRefKey,
            lambda key, refs: pb.SliceRef(id=key.id, size=key.size, refs=refs) if refs > 1 else None,
        ),
        "symlink": _made(store, SymlinkKey, lambda key, target: pb.Symlink(inode=key.ino, target=target)),
        "sustained": _sustained(store),
        "delFile": _deleted(store),
        "xattr": _xattrs(store),
        "acl": _made(store, AclKey, lambda key, rule: pb.Acl(id=key.id, data=rule.pack())),
        "stat": _made(
            store,
            DirStatKey,
            lambda key, one: pb.Stat(
                inode=key.ino, data_length=one.length, used_space=one.space, used_inodes=one.inodes
            ),
        ),
        "quota": _made(
            store,
            QuotaKey,
            lambda key, one: pb.Quota(
                key=key.id,
                max_space=one.max_space,
                max_inodes=one.max_inodes,
                used_space=one.used_space,
                used_inodes=one.used_inodes,
                type=key.what,
            ),
        ),
        "parent": _made(store, ParentKey, lambda key, cnt: pb.Parent(inode=key.ino, parent=key.parent, cnt=cnt)),
    }


async def _made(store: Store, kind: type, make: Callable[[Any, Any], Any]) -> AsyncIterator[Any]:
    key: Any
    async for key, record in store.scan(kind):
        if isinstance(record, Exception):
            raise VolumeError(f"the volume is damaged and cannot be dumped: {record}; `jfs fsck` tells more")
        message = make(key, record)
        if message is not None:
            yield message


async def _counters(store: Store) -> AsyncIterator[Any]:
    further = 0 if store.initial_counters else 1
    values = await store.get(*map(CounterKey, _COUNTERS))
    for name, value in zip(_COUNTERS, values, strict=True):
        yield pb.Counter(key=name, value=(value or 0) + (further if name in NEXT else 0))


async def _sustained(store: Store) -> AsyncIterator[Any]:
    async for sid, _ in store.sessions():
        if inodes := [ino async for ino in store.sustained(sid)]:
            yield pb.Sustained(sid=sid, inodes=inodes)


async def _deleted(store: Store) -> AsyncIterator[Any]:
    async for ino, length, since in store.deleted_files():
        yield pb.DelFile(inode=ino, length=length, expire=since)


async def _xattrs(store: Store) -> AsyncIterator[Any]:
    async for key, _ in store.scan(XattrKey):
        (value,) = await store.get(key)
        if value is not None:
            yield pb.Xattr(inode=key.ino, name=key.name, value=value)


# The other way.


def footer(file: IO[bytes]) -> Any:
    """The footer of a dump. VolumeError when it is none."""
    try:
        size = file.seek(0, 2)
        file.seek(size - _LENGTH.size)
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        start = size - _LENGTH.size - length
        if start < _TYPE.size:
            raise VolumeError(f"{_NOT_A_DUMP}, or it is cut off")
        file.seek(start - _TYPE.size)
        (mark,) = _TYPE.unpack(file.read(_TYPE.size))
        found = pb.Footer.FromString(file.read(length))
    except (OSError, ValueError, struct.error, DecodeError) as error:
        raise VolumeError(f"{_NOT_A_DUMP}, or it is cut off") from error
    if mark != MARK or found.magic != MARK:
        raise VolumeError(f"{_NOT_A_DUMP}, or it is cut off")
    if found.version != VERSION:
        raise VolumeError(
            f"the binary dump has version {found.version}, this client reads version {VERSION}; use a newer one"
        )
    return found


def segments(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Names and messages of the segments. VolumeError when one is damaged."""
    file.seek(0)
    while (found := _segment(file)) is not None:
        yield found


def segment_at(file: IO[bytes], offset: int) -> tuple[str, Any]:
    """Name and message of the segment that begins at *offset* (as the footer has it). VolumeError when none does."""
    if not any(offset in info.offset for info in footer(file).infos.values()):
        raise VolumeError(f"no segment of the binary dump begins at {offset}; `--offset -1` shows where they do")
    file.seek(offset)
    found = _segment(file)
    if found is None:
        raise VolumeError(f"{_NOT_A_DUMP}, or it is cut off")
    return found


def _segment(file: IO[bytes]) -> tuple[str, Any] | None:
    """The segment that begins here, None at the end mark."""
    head = file.read(_TYPE.size)
    if len(head) < _TYPE.size:
        raise VolumeError(f"{_NOT_A_DUMP}, or it is cut off")
    (number,) = _TYPE.unpack(head)
    if number == MARK:
        return None
    raw = file.read(_LENGTH.size)
    length = _LENGTH.unpack(raw)[0] if len(raw) == _LENGTH.size else _LARGEST + 1
    if number not in TYPES or length > _LARGEST:
        raise VolumeError(f"the binary dump has a segment of an unknown kind ({number}); use a newer client")
    body = file.read(length)
    if len(body) < length:
        raise VolumeError(f"{_NOT_A_DUMP}, or it is cut off")
    try:
        return TYPES[number], (pb.Format if number == 1 else pb.Batch).FromString(body)
    except DecodeError as error:
        raise VolumeError(f"a segment of the binary dump ({TYPES[number]}) is damaged") from error


async def load(
    store: Store, file: IO[bytes], stored: Callable[[int], None] = lambda count: None, *, together: int = 1
) -> None:
    """Load a dump into a blank database, *together* transactions at once. VolumeError when it is not blank or the file is damaged:
    then what was stored is removed."""
    footer(file)
    await expect_blank(store)
    try:
        async with Batch(store, stored, together=together) as batch:
            await _load(store, file, batch)
    except (VolumeError, ValueError) as error:
        await store.reset()
        if isinstance(error, VolumeError):
            raise
        raise VolumeError(f"the binary dump has a record that is damaged ({error}); nothing was loaded") from error


async def _load(store: Store, file: IO[bytes], batch: Batch) -> None:
    references = References(batch)
    setting: Setting | None = None
    rules = 0
    quotas = False
    for name, message in segments(file):
        quotas |= name == "quota" and bool(message.quotas or message.user_quotas or message.group_quotas)
        if name == "format":
            setting = Setting.parse(message.data)
            check_versions(setting)
        elif name == "chunk":
            for one in message.chunks:
                await batch.put(ChunkKey(one.inode, one.index), one.slices)
                for record in unpack(one.slices):
                    await references.add(record.id, record.size)
        else:
            key: Any
            for key, record in _typed(store, name, message):
                rules = max(rules, key.id if isinstance(key, AclKey) else 0)
                await batch.put(key, record)
    if setting is None:
        raise VolumeError(f"{_NOT_A_DUMP}: it has no format")
    await references.finish()
    if rules:
        await batch.put(CounterKey("aclMaxId"), rules)
    await batch.flush()
    await batch.put(SettingKey(), setting.encode())
    await batch.flush()
    if quotas:
        await count_quotas(store)


def _typed(store: Store, name: str, message: Any) -> Iterable[tuple[Any, Any]]:
    """Keys and records of a segment; how often slices are named is counted anew."""
    back = 0 if store.initial_counters else 1
    match name:
        case "counter":
            for one in message.counters:
                yield CounterKey(one.key), one.value - (back if one.key in NEXT else 0)
        case "node":
            for one in message.nodes:
                yield NodeKey(one.inode), unpack_attr(one.data)
        case "edge":
            for one in message.edges:
                yield EdgeKey(one.parent, one.name), Entry(one.type, one.inode)
        case "symlink":
            for one in message.symlinks:
                yield SymlinkKey(one.inode), one.target
        case "sustained":
            for one in message.sustained:
                for ino in one.inodes:
                    yield SustainedKey(one.sid, ino), True
        case "delFile":
            for one in message.delfiles:
                yield DeletedFileKey(one.inode, one.length), one.expire
        case "xattr":
            for one in message.xattrs:
                yield XattrKey(one.inode, one.name), one.value
        case "acl":
            for one in message.acls:
                yield AclKey(one.id), unpack_rule(one.data)
        case "stat":
            for one in message.dirstats:
                yield DirStatKey(one.inode), DirStat(one.data_length, one.used_space, one.used_inodes)
        case "quota":
            for one in chain(message.quotas, message.user_quotas, message.group_quotas):
                quota = Quota(one.max_space, one.max_inodes, one.used_space, one.used_inodes)
                yield QuotaKey(one.type, one.key), quota
        case "parent":
            for one in message.parents:
                yield ParentKey(one.inode, one.parent), one.cnt
        case _:  # sliceRef, changeLog: the first is counted, the second is the history of another database
            return
