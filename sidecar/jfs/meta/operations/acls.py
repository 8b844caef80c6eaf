"""ACLs of inodes: finding and storing rules, checking access by them, what a new inode inherits (format §3.10).

Rules never change and are never removed, so what a mount has once read stays right: `Acls` keeps them. A rule that an operation
makes is known to it only when the operation was committed, by `Acls.learn`. Pure but for that memory.
"""

from jfs.errors import CorruptRecord
from jfs.meta.model.acl import AclKey, Rule
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import CounterKey
from jfs.meta.operations.access import Caller, check_access
from jfs.meta.store.base import Tx

MAX_ID = CounterKey("aclMaxId")
Numbered = tuple[int, Rule]


class Acls:
    """The rules of a volume that a mount knows, both ways."""

    def __init__(self) -> None:
        self._rules: dict[int, Rule] = {}
        self._ids: dict[Rule, int] = {}

    def learn(self, id: int, rule: Rule) -> None:
        """A rule that is in the database."""
        self._rules[id] = rule
        self._ids.setdefault(rule, id)

    def rule(self, id: int) -> Rule | None:
        """The rule with number *id* when it is known."""
        return self._rules.get(id)

    def id(self, rule: Rule) -> int:
        """The number of an equal rule, 0 when none is known."""
        return self._ids.get(rule, 0)


def missing(id: int) -> CorruptRecord:
    """What is wrong when an inode refers to a rule that is not there."""
    return CorruptRecord(f"ACL {id} is missing, though inodes refer to it")


async def rule_of(tx: Tx, acls: Acls | None, id: int) -> Rule | None:
    """The rule with number *id*, None for 0 and on volumes without ACLs. CorruptRecord when there is none."""
    if not id or acls is None:
        return None
    rule = acls.rule(id)
    if rule is None:
        (rule,) = await tx.get(AclKey(id))
        if rule is None:
            raise missing(id)
        acls.learn(id, rule)
    return rule


async def number(tx: Tx, acls: Acls, rule: Rule) -> Numbered:
    """A number for *rule*: that of an equal one, or the next, under which it is stored now."""
    id = acls.id(rule)
    if not id:
        (last,) = await tx.get(MAX_ID)
        id = (last or 0) + 1
        tx.put(AclKey(id), rule)
        tx.put(MAX_ID, id)
    return id, rule


async def permit(tx: Tx, acls: Acls | None, caller: Caller, attr: Attr, mask: int) -> None:
    """`check_access` with the inode's ACL."""
    if caller.uid:
        check_access(caller, attr, mask, await rule_of(tx, acls, attr.access_acl))


def mode_for(mode: int, umask: int, default: Rule | None) -> tuple[int, Rule | None]:
    """Permission bits and access rule of what is made with *mode* where *default* is the directory's default rule, which takes the
    place of the umask."""
    if default is None:
        return mode & ~umask, None
    if default.is_minimal:
        return mode & (0o7000 | default.mode), None
    rule = default.for_child(mode)
    return mode & 0o7000 | rule.mode, rule
