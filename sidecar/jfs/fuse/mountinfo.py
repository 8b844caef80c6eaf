"""What is mounted where, from /proc/self/mountinfo (proc(5)); never by stat, which hangs on a dead mount."""

import os
from typing import NamedTuple


class Mounted(NamedTuple):
    """One mount: its id, `major:minor` of its device, the mountpoint, its type and its source."""

    id: int
    device: str
    mountpoint: str
    kind: str
    source: str


def _plain(field: str) -> str:
    """Undo the octal escapes of blanks and backslashes."""
    if "\\" not in field:
        return field
    return (
        field.encode("utf-8", "surrogateescape")
        .decode("unicode_escape")
        .encode("latin-1")
        .decode("utf-8", "surrogateescape")
    )


def parse(text: str) -> list[Mounted]:
    """The mounts of a mountinfo text, in its order (later ones lie on top)."""
    mounts = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, behind = head.split(" "), tail.split(" ")
        if len(fields) >= 5 and len(behind) >= 2:
            mounts.append(Mounted(int(fields[0]), fields[2], _plain(fields[4]), behind[0], _plain(behind[1])))
    return mounts


def mounts() -> list[Mounted]:
    """All mounts that this process sees."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def real(path: str) -> str:
    """*path* absolute with the links of its directory resolved; its last component is not touched, since a dead mount
    there would answer with an error."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name) if name else os.path.realpath(parent)


def find(path: str) -> Mounted | None:
    """The topmost mount on *path*, None when there is none."""
    wanted = real(path)
    return next((mounted for mounted in reversed(mounts()) if mounted.mountpoint == wanted), None)
