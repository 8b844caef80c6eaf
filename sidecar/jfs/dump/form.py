"""The JSON of a dump's pieces: names with bytes that JSON cannot hold, attributes, ACL rules, slices (format §9.2). Pure."""

import re
from collections.abc import Mapping
from typing import Any, Final

from jfs.errors import VolumeError
from jfs.format.constants import DIRECTORY, FILE
from jfs.format.slices import Slice
from jfs.meta.model.acl import Rule
from jfs.meta.model.attr import Attr

TYPES: Final = {
    1: "regular",
    2: "directory",
    3: "symlink",
    4: "fifo",
    5: "blockdev",
    6: "chardev",
    7: "socket",
}
KINDS: Final = {name: kind for kind, name in TYPES.items()}
DIRECTORY_LENGTH: Final = 4096
_ESCAPED: Final = re.compile(r'[\x00-\x20%"\\\udc80-\udcff]')
_CODE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def escape(raw: bytes) -> str:
    """A name, target or value as text: %XX for blanks and controls, `%`, quotes, backslashes, and bytes that are no UTF-8."""
    text = raw.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def unescape(text: str) -> bytes:
    """The reverse of `escape`."""
    return _CODE.sub(lambda found: bytes((int(found[1], 16),)), text.encode("utf-8", "surrogateescape"))


def attr_members(ino: int, attr: Attr) -> dict[str, Any]:
    """Attributes as members; zeros of optional ones are left out."""
    kind = attr.kind_mode >> 12
    members: dict[str, Any] = {"inode": ino}
    if attr.flags:
        members["flags"] = attr.flags
    members |= {"type": TYPES.get(kind, "unknown"), "mode": attr.kind_mode & 0o7777, "uid": attr.uid, "gid": attr.gid}
    members |= {"atime": attr.atime, "mtime": attr.mtime, "ctime": attr.ctime}
    for name in ("atimensec", "mtimensec", "ctimensec"):
        if value := getattr(attr, name):
            members[name] = value
    members["nlink"] = attr.nlink
    members["length"] = attr.length if kind == FILE else 0
    if attr.rdev:
        members["rdev"] = attr.rdev
    if attr.tier:
        members["tier"] = attr.tier
    return members


def attr_of(members: Mapping[str, Any], *, parent: int) -> tuple[int, Attr]:
    """Inode and attributes; VolumeError when they are not what a dump has."""
    try:
        kind = KINDS[members["type"]]
        attr = Attr(
            members.get("flags", 0),
            kind << 12 | int(members["mode"]) & 0o7777,
            members["uid"],
            members["gid"],
            members["atime"],
            members.get("atimensec", 0),
            members["mtime"],
            members.get("mtimensec", 0),
            members["ctime"],
            members.get("ctimensec", 0),
            members["nlink"],
            DIRECTORY_LENGTH if kind == DIRECTORY else members["length"],
            members.get("rdev", 0),
            parent,
        )
        attr = attr._replace(tier=members.get("tier", 0))
        return int(members["inode"]), attr
    except (KeyError, TypeError, ValueError) as error:
        raise VolumeError(
            f"the dump has an entry whose attributes are damaged ({error}); it was not made by dump"
        ) from error


def rule_members(rule: Rule) -> dict[str, Any]:
    """An ACL rule as members."""
    return {
        "owner": rule.owner,
        "group": rule.group,
        "other": rule.other,
        "mask": rule.mask,
        "users": [{"id": one, "perm": perm} for one, perm in rule.users] or None,
        "groups": [{"id": one, "perm": perm} for one, perm in rule.groups] or None,
    }


def rule_of(members: Mapping[str, Any]) -> Rule:
    """The reverse of `rule_members`."""
    users, groups = (tuple((one["id"], one["perm"]) for one in members.get(name) or ()) for name in ("users", "groups"))
    return Rule(members["owner"], members["group"], members["mask"], members["other"], users, groups)


def slice_members(record: Slice) -> dict[str, int]:
    """A slice record as members; places that are 0 are left out."""
    members = {"id": record.id, "pos": record.pos, "size": record.size, "off": record.off, "len": record.len}
    return {name: value for name, value in members.items() if value or name not in ("pos", "off")}


def slice_of(members: Mapping[str, int]) -> Slice:
    """The reverse of `slice_members`; old dumps call the id chunkid."""
    number = members.get("id", members.get("chunkid", 0))
    return Slice(members.get("pos", 0), number, members.get("size", 0), members.get("off", 0), members.get("len", 0))
