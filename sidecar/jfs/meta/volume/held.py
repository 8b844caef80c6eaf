"""Attributes set on files that are still being written for the first time, held back until the file's next commit.

Unpacking an archive makes a file, writes it, sets times, owner and mode, and closes it. The creator's handle is open and
nothing was flushed yet, so close-to-open promises the values to nobody else before the close: they join the transaction that commits the
data, or one of their own on flush, fsync, release, unlock, or a tenth of a second after they were set, whichever comes first.
Invariants: this mount shows what was set at once; what another client changed meanwhile stays, field by field (`merged_onto`); data
written after a time was set win over it. Pure but for the table; one event loop, no method suspends.
"""

from jfs.meta.model.attr import Attr, unpack_attr
from jfs.survival.attributes import Set, SetAttributes


def merged_onto(before: Attr, after: Attr, base: Attr, want: Attr, *, mtime: bool) -> Attr:
    """*after* with the fields in which *want* differs from *base*, where *before*, the stored record, still is as *base*. *after* is
    *before* or what a commit is about to make of it. With *mtime* the time of the last write is set too, though it may be the same."""
    attr = after
    if want.kind_mode != base.kind_mode and before.kind_mode == base.kind_mode:
        attr = attr._replace(kind_mode=want.kind_mode)
    if want.uid != base.uid and before.uid == base.uid:
        attr = attr._replace(uid=want.uid)
    if want.gid != base.gid and before.gid == base.gid:
        attr = attr._replace(gid=want.gid)
    if (want.atime, want.atimensec) != (base.atime, base.atimensec) == (before.atime, before.atimensec):
        attr = attr._replace(atime=want.atime, atimensec=want.atimensec)
    # The time may be there already: an earlier commit, whose outcome nobody learned, has set it, and this one must not move it.
    if mtime and (before.mtime, before.mtimensec) in ((base.mtime, base.mtimensec), (want.mtime, want.mtimensec)):
        attr = attr._replace(mtime=want.mtime, mtimensec=want.mtimensec)
    return attr


class Held:
    """One young file: *base* is its record as last committed here, *want* what was set since. *mtime*: the time of the last write was
    set after the last write, so that commits of what was written before do not move it. *unknown*: commits of the record that are under
    way or have failed; until it is 0, `base` may not be the record, and what is set then could look like older than that."""

    __slots__ = ("base", "mtime", "unknown", "want")

    def __init__(self, attr: Attr) -> None:
        self.base = attr
        self.want = attr
        self.mtime = False
        self.unknown = 0

    @property
    def is_clean(self) -> bool:
        """Whether the record holds all that was set."""
        return self.want is self.base

    def onto(self, before: Attr, after: Attr) -> Attr:
        """See `merged_onto`."""
        return merged_onto(before, after, self.base, self.want, mtime=self.mtime)

    def committed(self, attr: Attr, taken: Attr) -> None:
        """A commit counted in `unknown` has made the record *attr*; it took over *taken*, which `want` was when it began."""
        self.unknown -= 1
        self.relinked(attr, taken)

    def relinked(self, attr: Attr, taken: Attr) -> None:
        """The record is *attr* now, in which *taken* is."""
        if self.want is taken:
            self.want = attr
        else:
            self.want = merged_onto(attr, attr, taken, self.want, mtime=self.mtime)
        self.base = attr


class HeldAttrs:
    """The young files of a mount by inode."""

    __slots__ = ("_young", "kept")

    def __init__(self) -> None:
        self._young: dict[int, Held] = {}
        self.kept: SetAttributes | None = None  # where what is held survives the process

    def __bool__(self) -> bool:
        return bool(self._young)

    def born(self, ino: int, attr: Attr) -> None:
        """The file was made just now, and is open."""
        self._young[ino] = Held(attr)

    def get(self, ino: int) -> Held | None:
        """The young file; None when it is none."""
        return self._young.get(ino)

    def forget(self, ino: int) -> None:
        """The file is young no more."""
        self._young.pop(ino, None)
        if self.kept is not None:
            self.kept.drop(ino)

    def changed(self, ino: int) -> None:
        """What is held of the file is to survive as it is now; before it is answered."""
        held = self._young.get(ino)
        if self.kept is None or held is None:
            return
        if held.is_clean and not held.mtime:
            self.kept.drop(ino)
        else:
            self.kept.put(Set(ino, held.base.pack(), held.want.pack(), held.mtime))

    def keep(self, kept: SetAttributes) -> bool:
        """Let it survive there, and go on with what a predecessor left; whether there is any."""
        self.kept = kept
        for one in kept.left():
            held = self._young[one.ino] = Held(unpack_attr(one.base))
            held.mtime, held.unknown = one.flag, 1
            if one.want != one.base:
                held.want = unpack_attr(one.want)
        return bool(self._young)

    def shown(self, ino: int, attr: Attr) -> Attr:
        """What this mount shows of *attr*, as the database has it."""
        held = self._young.get(ino)
        return attr if held is None or held.is_clean else held.onto(attr, attr)

    def waiting(self) -> list[int]:
        """Inodes with something to be committed."""
        return [ino for ino, held in self._young.items() if not held.is_clean]

    def clear(self) -> None:
        """Forget everything; what is not committed is left to a successor."""
        self._young.clear()
