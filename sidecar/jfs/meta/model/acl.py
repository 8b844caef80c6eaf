"""POSIX ACL rules (format §3.10): the record, its arithmetic, and the forms it takes in the database and in extended attributes.

A rule is immutable and stored once under a number that attributes refer to (0: none). Permissions are 0 to 7, `ABSENT` where a
rule has no such entry. The group bits of a mode show the mask of an extended rule. Pure.
"""

import errno
import struct
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from jfs.errors import CorruptRecord, FsError

ABSENT: Final = 0xFFFF
ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
ACL_NAMES: Final = frozenset({ACCESS, DEFAULT})

_HEAD: Final = struct.Struct(">HHHH")
_COUNT: Final = struct.Struct(">I")
_NAMED: Final = struct.Struct(">IH")
_VERSION: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 0x10, 0x20
_UNDEFINED: Final = 0xFFFFFFFF

Named = tuple[tuple[int, int], ...]


class Rule(NamedTuple):
    """Permissions of the owner, the owning group, the mask and all others; *users* and *groups* are (id, permissions)."""

    owner: int = ABSENT
    group: int = ABSENT
    mask: int = ABSENT
    other: int = ABSENT
    users: Named = ()
    groups: Named = ()

    @property
    def is_minimal(self) -> bool:
        """Whether the rule says no more than a mode does."""
        return self.mask == ABSENT and not self.users and not self.groups

    @property
    def is_empty(self) -> bool:
        """Whether the rule says nothing: it stands for the removal of an ACL."""
        return self.is_minimal and self.owner & self.group & self.other == ABSENT

    @property
    def mode(self) -> int:
        """The nine permission bits that show the rule."""
        middle = self.group if self.is_minimal else self.mask
        return (self.owner & 7) << 6 | (middle & 7) << 3 | self.other & 7

    def with_mode(self, mode: int) -> "Rule":
        """The rule after a chmod to *mode*: its group bits go to the mask when the rule is extended."""
        changed = self._replace(owner=mode >> 6 & 7, other=mode & 7)
        if self.is_minimal:
            return changed._replace(group=mode >> 3 & 7)
        return changed._replace(mask=mode >> 3 & 7)

    def completed(self, mode: int) -> "Rule":
        """The rule with the bits of *mode* for what it lacks of owner, group and others."""
        return self._replace(
            owner=mode >> 6 & 7 if self.owner == ABSENT else self.owner,
            group=mode >> 3 & 7 if self.group == ABSENT else self.group,
            other=mode & 7 if self.other == ABSENT else self.other,
        )

    def for_child(self, mode: int) -> "Rule":
        """The access rule of what is made with *mode* in a directory that has this extended default rule."""
        return self._replace(
            owner=mode >> 6 & 7 & self.owner, mask=mode >> 3 & 7 & self.mask, other=mode & 7 & self.other
        )

    def pack(self) -> bytes:
        """The stored form of Redis and TKV."""
        users, groups = pack_named(self.users), pack_named(self.groups)
        head = _HEAD.pack(self.owner, self.group, self.mask, self.other)
        return head + _COUNT.pack(len(self.users)) + users + _COUNT.pack(len(self.groups)) + groups


class AclKey(NamedTuple):
    """The rule with number *id*; it never changes. Numbers are taken from the counter aclMaxId, the last one given out, which SQL
    engines derive from the rules: read it, put the next one and the rule in one transaction."""

    id: int
    kind: Literal["acl"] = "acl"

    @property
    def record(self) -> type[Rule]:
        return Rule


def pack_named(named: Named) -> bytes:
    """Named entries as SQL engines store them, without a count."""
    return b"".join(_NAMED.pack(*entry) for entry in named)


def unpack_named(raw: bytes) -> Named:
    """The reverse of `pack_named`; CorruptRecord."""
    if len(raw) % _NAMED.size:
        raise CorruptRecord(f"the named entries of an ACL have {len(raw)} bytes, no multiple of {_NAMED.size}")
    return tuple((id, permissions) for id, permissions in _NAMED.iter_unpack(raw))


def unpack_rule(raw: bytes) -> Rule:
    """The reverse of `Rule.pack`; CorruptRecord."""
    try:
        users, at = _counted(raw, _HEAD.size)
        groups, at = _counted(raw, at)
        if at != len(raw):
            raise CorruptRecord(f"an ACL has {len(raw)} bytes where {at} are expected")
        owner, group, mask, other = _HEAD.unpack_from(raw)
        return Rule(owner, group, mask, other, users, groups)
    except struct.error as error:
        raise CorruptRecord(f"an ACL of {len(raw)} bytes is cut off") from error


def _counted(raw: bytes, at: int) -> tuple[Named, int]:
    (count,) = _COUNT.unpack_from(raw, at)
    end = at + _COUNT.size + count * _NAMED.size
    if end > len(raw):
        raise CorruptRecord(f"an ACL of {len(raw)} bytes is cut off")
    return unpack_named(raw[at + _COUNT.size : end]), end


def to_xattr(rule: Rule) -> bytes:
    """The value of the extended attribute, Linux' version 2."""
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in _entries(rule))


def _entries(rule: Rule) -> Iterable[tuple[int, int, int]]:
    yield _USER_OBJ, rule.owner & 7, _UNDEFINED
    for id, permissions in rule.users:
        yield _USER, permissions & 7, id
    yield _GROUP_OBJ, rule.group & 7, _UNDEFINED
    for id, permissions in rule.groups:
        yield _GROUP, permissions & 7, id
    if rule.mask != ABSENT:
        yield _MASK, rule.mask & 7, _UNDEFINED
    yield _OTHER, rule.other & 7, _UNDEFINED


def from_xattr(value: bytes) -> Rule:
    """The rule of an extended attribute's value; an empty one stands for no ACL. FsError(EINVAL), FsError(ENOTSUP) for another
    version."""
    if not value:
        return Rule()
    if len(value) % _ENTRY.size != _VERSION.size:
        raise FsError(errno.EINVAL)
    if _VERSION.unpack_from(value)[0] != 2:
        raise FsError(errno.ENOTSUP)
    single: dict[int, int] = {}
    users: list[tuple[int, int]] = []
    groups: list[tuple[int, int]] = []
    for tag, permissions, id in _ENTRY.iter_unpack(value[_VERSION.size :]):
        if permissions > 7:
            raise FsError(errno.EINVAL)
        if tag == _USER:
            users.append((id, permissions))
        elif tag == _GROUP:
            groups.append((id, permissions))
        elif tag in (_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER) and tag not in single:
            single[tag] = permissions
        else:
            raise FsError(errno.EINVAL)
    if single and not {_USER_OBJ, _GROUP_OBJ, _OTHER} <= single.keys():
        raise FsError(errno.EINVAL)
    if (users or groups) and _MASK not in single:
        raise FsError(errno.EINVAL)
    owner, group, mask, other = (single.get(tag, ABSENT) for tag in (_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER))
    return Rule(owner, group, mask, other, tuple(users), tuple(groups))
