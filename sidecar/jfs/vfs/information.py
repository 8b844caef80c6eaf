"""The answer to `info` (InfoV2 of format §8.3): totals below an inode, its paths, and where its data lies."""

from typing import Any

from jfs.format.constants import CHUNK, DIRECTORY, FILE, align4k
from jfs.format.slices import view
from jfs.meta.model.attr import Attr
from jfs.meta.volume import SUPERUSER, Meta


class Informant:
    """Answers for one mount; *block_size* in bytes, *prefix* is the volume's (`<name>/`)."""

    def __init__(self, meta: Meta, *, name: str, block_size: int, hash_prefix: bool) -> None:
        self._meta = meta
        self._name = name
        self._block_size = block_size
        self._hash_prefix = hash_prefix

    async def ask(self, ino: int, recursive: bool, raw: bool, strict: bool) -> dict[str, Any]:
        """The members of the JSON answer. FsError(ENOENT) for an inode that is none."""
        attr = await self._meta.getattr(ino)
        real = self._meta.root if ino == 1 else ino
        summary = await self._summary(real, attr, recursive)
        answer: dict[str, Any] = {
            "Ino": ino,
            "Failed": False,
            "Reason": "",
            "Summary": summary,
            "Paths": [path.decode("utf-8", "backslashreplace") for path in await self._meta.path_of(real)],
            "Chunks": [],
            "Objects": [],
            "FLocks": [],
            "PLocks": [],
        }
        if attr.kind == FILE:
            if raw:
                answer["Chunks"] = await self._chunks(real)
            else:
                answer["Objects"] = await self._objects(real, attr.length)
        return answer

    async def _summary(self, ino: int, attr: Attr, recursive: bool) -> dict[str, int]:
        """Length, size (rounded up), files and directories: of one inode, of a directory's entries, or of all below."""
        total = {"Length": attr.length, "Size": align4k(attr.length), "Files": 1, "Dirs": 0}
        if attr.kind != DIRECTORY:
            return total
        total = {"Length": 0, "Size": 4096, "Files": 0, "Dirs": 1}
        waiting = [ino]
        while waiting:
            async for page in self._meta.list_directory(SUPERUSER, waiting.pop(), plus=True):
                for entry, child in zip(page.entries, page.attrs or (), strict=True):
                    if entry.kind == DIRECTORY:
                        total["Dirs"] += 1
                        total["Size"] += 4096
                        if recursive:
                            waiting.append(entry.ino)
                    else:
                        total["Files"] += 1
                        length = child.length if child is not None else 0
                        total["Size"] += align4k(length)
                        if entry.kind == FILE:
                            total["Length"] += length
        return total

    async def _chunks(self, ino: int) -> list[dict[str, Any]]:
        return [
            {"ChunkIndex": indx, "Id": piece.id, "Size": piece.size, "Off": piece.off, "Len": piece.len}
            for indx, records in await self._meta.file_chunks(ino)
            for piece in view(records)
        ]

    async def _objects(self, ino: int, length: int) -> list[dict[str, Any]]:
        from jfs.chunk.naming import block_key

        found = []
        block = self._block_size
        for indx, records in await self._meta.file_chunks(ino):
            for piece in view(records):
                if indx * CHUNK + piece.pos >= length:
                    continue
                if not piece.id:
                    found.append(_object(indx, "", piece.size, piece.off, piece.len))
                    continue
                at, end = piece.off, piece.off + piece.len
                while at < end:
                    number = at // block
                    size = min(block, piece.size - number * block)
                    part = min(end, (number + 1) * block) - at
                    key = block_key(piece.id, number, size, hash_prefix=self._hash_prefix)
                    found.append(_object(indx, f"{self._name}/{key}", size, at - number * block, part))
                    at += part
        return found


def _object(indx: int, key: str, size: int, off: int, length: int) -> dict[str, Any]:
    return {"ChunkIndex": indx, "Key": key, "Size": size, "Off": off, "Len": length}


def legacy_text(answer: dict[str, Any], *, raw: bool) -> str:
    """The answer as LegacyInfo has it, which clients before 1.1 print as it is."""
    summary, paths = answer["Summary"], answer["Paths"]
    lines = [f"  inode: {answer['Ino']}", f"  files: {summary['Files']}", f"   dirs: {summary['Dirs']}"]
    lines += [f" length: {_human(summary['Length'])}", f"   size: {_human(summary['Size'])}"]
    if len(paths) == 1:
        lines.append(f"   path: {paths[0]}")
    elif paths:
        lines += ["  paths:", *(f"\t{path}" for path in paths)]
    if raw and answer["Chunks"]:
        lines.append(" chunks:")
        lines += [f"\t{c['ChunkIndex']}:\t{c['Id']}\t{c['Size']}\t{c['Off']}\t{c['Len']}" for c in answer["Chunks"]]
    elif answer["Objects"]:
        lines.append("objects:")
        lines += [f"\t{o['ChunkIndex']}:\t{o['Key']}\t{o['Size']}\t{o['Off']}\t{o['Len']}" for o in answer["Objects"]]
    return "\n".join(lines) + "\n"


def _human(number: int) -> str:
    value, units = float(number), ["Bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{number} Bytes" if number < 1024 else f"{value:.2f} {units[0]} ({number} Bytes)"
