"""Judges inodes and entries: links, parents, usage of directories, what is reachable, what was left behind (format §3.7–3.13).

Pure functions from `Facts` to damages. What follows from records that are sound gets a fix; where two readings are possible
there is none.
"""

from collections.abc import Iterator
from typing import Final

from jfs.check import fixes
from jfs.check.damage import Damage
from jfs.check.facts import Facts, Node
from jfs.format.constants import DIRECTORY, FILE, ROOT, SYMLINK, TRASH
from jfs.meta.model.keys import DirStat, DirStatKey

_KINDS: Final = {1: "file", 2: "directory", 3: "symbolic link", 4: "FIFO", 5: "block device", 6: "device", 7: "socket"}
_NOTHING: Final = DirStat(0, 0, 0)
_LOST_NAME: Final = "its name is lost: it can be neither put back nor removed without a guess"


def judge(facts: Facts, *, directory_mode: int = 0o755) -> Iterator[Damage]:
    """Everything wrong with the tree; *directory_mode* is for directories that are made again."""
    yield from _entries(facts, directory_mode)
    for ino, node in facts.nodes.items():
        if ino in (ROOT, TRASH):
            yield from _root(facts, ino, node)
        elif node.kind == DIRECTORY:
            yield from _directory(facts, ino, node)
        else:
            yield from _file(facts, ino, node)
    if ROOT not in facts.nodes and ROOT not in facts.unreadable:
        fix = fixes.make_directory(ROOT, ROOT, 0o777, facts.subdirectories[ROOT], facts.now)
        yield Damage("attributes", ROOT, "the attributes of the root directory are missing", fix)
    yield from _loops(facts)
    yield from _usage(facts)
    yield from _sustained(facts)
    yield from _leftovers(facts)


def _entries(facts: Facts, directory_mode: int) -> Iterator[Damage]:
    for key, entry in facts.dangling:
        if entry.kind == DIRECTORY:
            fix = None
            if facts.links(entry.ino) == 1:
                subdirectories = facts.subdirectories[entry.ino]
                fix = fixes.make_directory(entry.ino, key.parent, directory_mode, subdirectories, facts.now)
            yield Damage(
                "attributes", (key.parent, key.name), "attribute of {path} is missing", fix, "several entries name it"
            )
        else:
            yield Damage(
                "dangling",
                (key.parent, key.name),
                f"{{path}} names inode {entry.ino}, whose attributes are missing",
                remedy="remove the entry with rm, or bring the attributes back from a metadata backup",
            )
    for key, entry in facts.mistyped:
        kind = _KINDS.get(facts.nodes[entry.ino].kind, "nothing known")
        text = f"{{path}} says {_KINDS.get(entry.kind, 'nothing known')}, but inode {entry.ino} is a {kind}"
        yield Damage("type", (key.parent, key.name), text, remedy="which of both is right is not known")
    for key in facts.misnamed:
        yield Damage(
            "name",
            (key.parent, key.name),
            f"the name {key.name!r} in {{path}} cannot be used",
            remedy="it needs a tool",
        )
    for parent, count in facts.homeless.items():
        node = facts.nodes.get(parent)
        if node is not None:
            text = f"{count} entries lie in {{path}}, which is a {_KINDS.get(node.kind, 'thing of unknown kind')}"
        elif parent in facts.unreadable or facts.links(parent):
            continue  # the directory's own damage says it
        elif parent == ROOT:
            continue
        else:
            text = f"{count} entries lie in directory {parent}, which does not exist"
        yield Damage("entries", parent, text, remedy="where they belong is not known")


def _root(facts: Facts, ino: int, node: Node) -> Iterator[Damage]:
    if node.kind != DIRECTORY:
        yield Damage("type", ino, f"inode {ino} must be a directory", remedy="bring it back from a metadata backup")
    elif ino == ROOT:
        yield from _directory_links(facts, ino, node)


def _directory(facts: Facts, ino: int, node: Node) -> Iterator[Damage]:
    entries = facts.links(ino)
    if entries > 1:
        yield Damage("links", ino, f"directory {ino} has {entries} entries, one of them {{path}}", remedy="remove one")
    elif not entries:
        if ino in facts.detached:
            yield Damage("detached", ino, f"directory {ino} is a clone that was not finished", note=True)
        else:
            yield Damage("orphan", ino, f"directory {ino} has no entry: nobody can reach it", remedy=_LOST_NAME)
    elif node.parent != (parent := facts.first_parent[ino]):
        text = f"the parent of directory {{path}} should be {parent}, but got {node.parent}"
        yield Damage("parent", ino, text, fixes.set_parent(ino, node.parent, parent))
    if ino < TRASH:
        yield from _directory_links(facts, ino, node)


def _directory_links(facts: Facts, ino: int, node: Node) -> Iterator[Damage]:
    right = 2 + facts.subdirectories[ino]
    if node.nlink != right:
        text = f"nlink of {{path}} should be {right}, but got {node.nlink}"
        yield Damage("nlink", ino, text, fixes.add_links(ino, right - node.nlink))


def _file(facts: Facts, ino: int, node: Node) -> Iterator[Damage]:
    entries = facts.links(ino)
    if not entries:
        yield from _nameless(facts, ino, node)
        return
    if node.nlink != entries:
        text = f"nlink of {{path}} should be {entries}, but got {node.nlink}"
        yield Damage("nlink", ino, text, fixes.add_links(ino, entries - node.nlink))
    if ino in facts.queued:
        text = "{path} is in the queue of deleted files though it exists"
        yield Damage("queue", ino, text, fixes.unqueue(ino, facts.queued[ino][0]))
    if node.kind == SYMLINK and ino not in facts.symlinks:
        yield Damage("target", ino, "the target of the symbolic link {path} is missing", remedy="make the link again")
    if node.kind != FILE and facts.chunks[ino]:
        text = f"{{path}} is a {_KINDS.get(node.kind, 'thing of unknown kind')} and has {facts.chunks[ino]} chunk lists"
        yield Damage("type", ino, text, remedy="which of both is right is not known")
    parents = facts.parents(ino)
    if not node.parent:
        kept = facts.kept_parents.get(ino, {})
        if kept != parents:
            text = f"the parents of {{path}} should be {_counts(parents)}, but got {_counts(kept)}"
            yield Damage("parents", ino, text, fixes.set_parents(ino, kept, parents))
    elif entries == 1:
        if node.parent not in parents:
            (right,) = parents
            text = f"the parent of {{path}} should be {right}, but got {node.parent}"
            yield Damage("parent", ino, text, fixes.set_parent(ino, node.parent, right))
    else:
        # Clients before 1.0 kept one parent only; 1.x counts a change of such a file in that directory alone.
        text = f"{{path}} has {entries} entries, but names {node.parent} as its only parent"
        yield Damage("parents", ino, text, fixes.split_parent(ino, parents), note=node.parent in parents)


def _counts(parents: dict[int, int]) -> str:
    return ", ".join(f"{count} in {parent}" for parent, count in sorted(parents.items())) or "none"


def _nameless(facts: Facts, ino: int, node: Node) -> Iterator[Damage]:
    if node.nlink:
        if ino in facts.detached:
            yield Damage("detached", ino, f"inode {ino} is a clone that was not finished", note=True)
            return
        what = f"{_KINDS.get(node.kind, 'inode')} {ino} of {node.length} bytes"
        yield Damage("orphan", ino, f"{what} has no entry: nobody can reach it", remedy=_LOST_NAME)
    elif ino not in facts.sustained:
        text = f"inode {ino} was removed, but its records have stayed"
        yield Damage("removed", ino, text, fixes.forget_removed(ino, facts.now))


def _loops(facts: Facts) -> Iterator[Damage]:
    """Directories that lie in one another."""
    sound: set[int] = {ROOT, TRASH}
    for start, node in facts.nodes.items():
        if node.kind != DIRECTORY:
            continue
        way: dict[int, None] = {}
        at: int | None = start
        while at is not None and at not in sound and at not in way:
            way[at] = None
            at = facts.first_parent.get(at)
        if at is not None and at in way:
            members = list(way)
            loop = members[members.index(at) :]
            names = ", ".join(map(str, sorted(loop)))
            text = f"the directories {names} lie in one another: nobody can reach them"
            yield Damage("loop", min(loop), text, remedy="which entry is to go is not known")
        sound.update(way)


def _usage(facts: Facts) -> Iterator[Damage]:
    """Usage records of directories, when the volume keeps them (format §3.8)."""
    if not facts.setting.dir_stats:
        return
    unreadable = {key.ino for key, _ in facts.corrupt if isinstance(key, DirStatKey)}
    for ino, node in facts.nodes.items():
        if node.kind != DIRECTORY or ino == TRASH:
            continue
        kept = facts.kept_usage.get(ino)
        right = facts.usage.get(ino, _NOTHING)
        if kept == right:
            continue
        fix = fixes.set_usage(ino, kept, right)
        if kept is not None:
            text = f"usage stat of {{path}} should be {_stat(right)}, but got {_stat(kept)}"
            yield Damage("usage", ino, text, fix)
        elif ino in unreadable or not (node.parent > TRASH or (ino == ROOT and right == _NOTHING)):
            # Removed with a directory that goes to the trash, and not made by formatting: whoever changes it first counts it.
            yield Damage("usage", ino, "usage stat of {path} is missing or broken", fix)


def _stat(stat: DirStat) -> str:
    return f"&{{{stat.length} {stat.space} {stat.inodes}}}"


def _sustained(facts: Facts) -> Iterator[Damage]:
    for ino, sids in facts.sustained.items():
        node = facts.nodes.get(ino)
        for sid in sids:
            if ino in facts.unreadable:
                continue
            if node is None or node.nlink:
                what = "exists with a name" if node is not None else "does not exist"
                text = f"session {sid} sustains inode {ino}, which {what}"
                yield Damage("sustained", ino, text, fixes.drop_sustained(sid, ino))
            elif sid not in facts.sessions:
                text = f"inode {ino} is held open by session {sid}, which does not exist"
                yield Damage("sustained", ino, text, fixes.release(sid, ino, facts.now))
            elif facts.sessions[sid] < facts.now:
                text = f"inode {ino} is held open by session {sid}, which has expired and will be cleared by a mount"
                yield Damage("sustained", ino, text, note=True)


def _leftovers(facts: Facts) -> Iterator[Damage]:
    """Records of inodes that do not exist. Where an entry still names the inode they are part of what was lost, and stay."""
    gone: dict[int, list[str]] = {}
    for what, inodes in (
        ("a link target", facts.symlinks),
        ("extended attributes", facts.xattrs),
        ("parents", facts.kept_parents),
    ):
        for ino in inodes:
            if ino not in facts.nodes and ino not in facts.unreadable and not facts.links(ino):
                gone.setdefault(ino, []).append(what)
    for ino, left in gone.items():
        text = f"inode {ino} does not exist and has {' and '.join(left)}"
        yield Damage("leftover", ino, text, fixes.drop_leftovers(ino))
    for ino in facts.kept_usage:
        if ino not in facts.nodes and ino not in facts.unreadable and not facts.links(ino):
            text = f"directory {ino} does not exist and has a usage stat"
            yield Damage("leftover", ino, text, fixes.delete_usage(ino))
