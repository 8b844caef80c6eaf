"""A volume as the JSON of `juicefs dump`, piece by piece (format §9.2).

The tree is walked depth first, a page of a directory at a time with everything that belongs to its entries in a few requests.
Invariant: what is yielded, put together, is one JSON document; secrets are the word `removed` unless they are asked for. A dump of
a volume that others write to is no snapshot.
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from jfs.dump.form import attr_members, escape, rule_members, slice_members
from jfs.format.constants import CHUNK, DIRECTORY, FILE, ROOT, SYMLINK, TRASH
from jfs.format.setting import Setting
from jfs.format.slices import unpack
from jfs.meta.model.acl import AclKey, Rule
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import ChunkKey, CounterKey, Key, NodeKey, SymlinkKey, XattrKey
from jfs.meta.model.quota import DIRECTORY as OF_DIRECTORY
from jfs.meta.model.quota import GROUP, USER, QuotaKey
from jfs.meta.store.base import Store

_SPARSE: Final = 256  # chunks of a file from which on those that have a list are asked for first
_TOGETHER: Final = 1000  # records of one request
_COUNTERS: Final = (
    ("usedSpace", "usedSpace"),
    ("usedInodes", "totalInodes"),
    ("nextInodes", "nextInode"),
    ("nextChunk", "nextChunk"),
    ("nextSession", "nextSession"),
    ("nextTrash", "nextTrash"),
)
NEXT: Final = ("nextInode", "nextChunk")  # counted one further in SQL and key-value engines than in Redis


class Dump:
    """One dump of a store."""

    def __init__(
        self, store: Store, setting: Setting, *, root: int = ROOT, keep_secrets: bool = False, skip_trash: bool = False
    ) -> None:
        self._store = store
        self._setting = setting
        self._root = root
        self._keep_secrets = keep_secrets
        self._skip_trash = skip_trash or root != ROOT
        self._rules: dict[int, Rule | None] = {}
        self._with_xattrs: set[int] = set()
        self.entries = 0  # written so far

    async def encoded(self) -> AsyncIterator[bytes]:
        """The document as it is written to a file."""
        async for piece in self.pieces():
            yield piece.encode("utf-8", "surrogateescape")

    async def pieces(self) -> AsyncIterator[str]:
        """The document."""
        async for key, _ in self._store.scan(XattrKey):
            self._with_xattrs.add(key.ino)
        setting = dict(self._setting.members) if self._keep_secrets else self._setting.redacted()
        yield '{\n  "Setting": ' + json.dumps(setting, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        yield ',\n  "Counters": ' + json.dumps(await self._counters(), indent=2).replace("\n", "\n  ")
        yield ',\n  "Sustained": ' + json.dumps(await self._sustained())
        queue = [
            {"inode": ino, "length": length, "expire": since}
            async for ino, length, since in self._store.deleted_files()
        ]
        yield ',\n  "DelFiles": ' + json.dumps(queue)
        for name, quotas in (await self._quotas()).items():
            if quotas:
                yield f',\n  "{name}": ' + json.dumps(quotas)
        yield ',\n  "FSTree": '
        async for piece in self._tree(self._root):
            yield piece
        if not self._skip_trash:
            yield ',\n  "Trash": '
            async for piece in self._tree(TRASH):
                yield piece
        yield "\n}\n"

    async def _counters(self) -> dict[str, int]:
        values = await self._store.get(*(CounterKey(name) for _, name in _COUNTERS))
        further = 0 if self._store.initial_counters else 1
        return {
            shown: (value or 0) + (further if name in NEXT else 0)
            for (shown, name), value in zip(_COUNTERS, values, strict=True)
        }

    async def _sustained(self) -> list[dict[str, Any]]:
        found = []
        async for sid, _ in self._store.sessions():
            if inodes := [ino async for ino in self._store.sustained(sid)]:
                found.append({"sid": sid, "inodes": sorted(inodes)})
        return found

    async def _quotas(self) -> dict[str, dict[str, Any]]:
        names = {OF_DIRECTORY: "Quotas", USER: "UserQuotas", GROUP: "GroupQuotas"}
        found: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
        async for key, quota in self._store.scan(QuotaKey):
            if key.what == OF_DIRECTORY or quota.is_limited:
                found[names[key.what]][str(key.id)] = {"maxSpace": quota.max_space, "maxInodes": quota.max_inodes}
        return found

    # The tree.

    async def _tree(self, root: int) -> AsyncIterator[str]:
        (attr,) = await self._store.get(NodeKey(root))
        if attr is None:  # a volume that never had a trash
            attr = Attr(0, DIRECTORY << 12 | 0o555, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4096, 0, ROOT)
        (extra,) = await self._extras([(root, attr)])
        shown = ROOT if root == self._root else root
        yield self._opened(shown, attr, extra, 1)
        stack = [(self._children(root), True)]
        while stack:
            children, first = stack[-1]
            child = await anext(children, None)
            depth = len(stack)
            if child is None:
                stack.pop()
                yield "\n" + "  " * (2 * depth) + "}\n" + "  " * (2 * depth - 1) + "}"
                continue
            stack[-1] = children, False
            name, ino, attr, extra = child
            self.entries += 1
            yield (
                ("\n" if first else ",\n")
                + "  " * (2 * depth + 1)
                + json.dumps(escape(name), ensure_ascii=False)
                + ": "
            )
            yield self._opened(ino, attr, extra, 2 * depth + 1)
            if attr.kind_mode >> 12 == DIRECTORY:
                stack.append((self._children(ino), True))
            else:
                yield "\n" + "  " * (2 * depth + 1) + "}"

    def _opened(self, ino: int, attr: Attr, extra: dict[str, Any], depth: int) -> str:
        indent = "\n" + "  " * (depth + 1)
        members: dict[str, Any] = {"attr": attr_members(ino, attr), **extra}
        text = ",".join(
            f'{indent}"{name}": ' + json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            for name, value in members.items()
        )
        return "{" + text + (f',{indent}"entries": {{' if attr.kind_mode >> 12 == DIRECTORY else "")

    async def _children(self, ino: int) -> AsyncIterator[tuple[bytes, int, Attr, dict[str, Any]]]:
        async for page in self._store.list_directory(ino, plus=True):
            present: list[tuple[bytes, Entry, Attr]] = [
                (name, entry, attr)
                for name, entry, attr in zip(page.names, page.entries, page.attrs or (), strict=True)
                if attr is not None  # an entry without an inode cannot be loaded
            ]
            extras = await self._extras([(entry.ino, attr) for _, entry, attr in present])
            for (name, entry, attr), extra in zip(present, extras, strict=True):
                yield name, entry.ino, attr, extra

    async def _extras(self, inodes: Sequence[tuple[int, Attr]]) -> list[dict[str, Any]]:
        """What entries have beside their attributes, in the order of the document."""
        extras: list[dict[str, Any]] = [{} for _ in inodes]
        wanted: list[tuple[int, Key[Any]]] = []
        for place, (ino, attr) in enumerate(inodes):
            kind = attr.kind_mode >> 12
            if kind == SYMLINK:
                wanted.append((place, SymlinkKey(ino)))
            if ino in self._with_xattrs:
                names = await self._store.run(lambda tx, ino=ino: tx.xattr_names(ino))  # type: ignore[misc]
                wanted += [(place, XattrKey(ino, name)) for name in sorted(names)]
            if kind == FILE and attr.length:
                wanted += [(place, ChunkKey(ino, indx)) for indx in await self._indexes(ino, attr.length)]
        records: list[Any] = []
        for start in range(0, len(wanted), _TOGETHER):
            records += await self._store.get(*(key for _, key in wanted[start : start + _TOGETHER]))
        for (place, key), record in zip(wanted, records, strict=True):
            if record is None:
                continue
            extra = extras[place]
            if isinstance(key, SymlinkKey):
                extra["symlink"] = escape(record)
            elif isinstance(key, XattrKey):
                extra.setdefault("xattrs", []).append({"name": escape(key.name), "value": escape(record)})
            elif isinstance(key, ChunkKey):
                slices = [slice_members(one) for one in unpack(record)]
                extra.setdefault("chunks", []).append({"index": key.indx, "slices": slices})
        for (_, attr), extra in zip(inodes, extras, strict=True):
            for name, number in (("posix_acl_access", attr.access_acl), ("posix_acl_default", attr.default_acl)):
                if number and (rule := await self._rule(number)) is not None:
                    extra[name] = rule_members(rule)
        return extras

    async def _indexes(self, ino: int, length: int) -> Sequence[int]:
        count = -(-length // CHUNK)
        if count <= _SPARSE:
            return range(count)
        return [indx for indx in await self._store.chunk_indexes(ino, length) if indx < count]

    async def _rule(self, number: int) -> Rule | None:
        if number not in self._rules:
            (self._rules[number],) = await self._store.get(AclKey(number))
        return self._rules[number]
