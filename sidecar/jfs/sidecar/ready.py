"""`jfs ready --control DIR`: the sidecar's startup probe. Exit status 0 only if every volume of the pod works.

The supervisor is asked (`probe.py`), whose worker is ready when it has read the root; in restricted mode the file system lies where this
container does not see it anyway. Nothing here may wait for the mount: a stat whose answer a dead worker owes cannot be killed, the
container would not end before it, and so no other worker would ever come.
Only where there is no supervisor to ask (no state directory, so the mount dies with its worker) a volume works if a FUSE file
system lies on its directory *and* that file system answers stat of its root with inode 1: a line in mountinfo alone may be a dead
mount. Each stat runs in a child process; at the deadline the probe answers without it, and the child ends with the mount.
Started every second: standard library only, and little of it.
"""

import os
import select
import stat
import sys
import time
from collections.abc import Sequence

from jfs.sidecar.mounts import kinds_at
from jfs.sidecar.probe import served
from jfs.sidecar.state import CONFIGURED

# Below the probe's timeoutSeconds, so that the sentence comes out before the kubelet gives up on us.
DEADLINE_SECONDS = 2.5
VOLUMES = "volumes"
ROOT_INODE = 1
READY = "ready"
_USAGE = "usage: jfs ready --control DIR"
_OK, _NO_ROOT, _FAILED = b"+", b"-", b"!"


def missing(control: str, seconds: float = DEADLINE_SECONDS) -> str | None:
    """None if every volume works, else a sentence that names those that do not."""
    directory = os.path.join(os.path.realpath(control), VOLUMES)
    try:
        with os.scandir(directory) as entries:
            # The entry's type comes from the directory: no stat of the mount itself here.
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        return f"The control directory {control} is not there yet: {error.strerror}."
    if not names:
        return f"No volume is published in {directory} yet."
    problems: dict[str, str] = {}
    waiting: dict[int, str] = {}
    phases = served(CONFIGURED, seconds)
    for name in names:
        path = os.path.join(directory, name)
        if phases is not None and phases.get(name) == READY:
            continue
        if not any(kind == "fuse" or kind.startswith("fuse.") for kind in kinds_at(path)):
            problems[name] = "is not mounted"
        elif phases is not None:
            problems[name] = "does not answer"
        else:
            waiting[_ask(path)] = name
    deadline = time.monotonic() + seconds
    while waiting:
        answered = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))[0]
        if not answered:
            problems.update((name, "does not answer") for name in waiting.values())
            break
        for descriptor in answered:
            answer, name = os.read(descriptor, 1), waiting.pop(descriptor)
            os.close(descriptor)
            if answer != _OK:
                problems[name] = "is not a JuiceFS root" if answer == _NO_ROOT else "is dead"
    for descriptor in waiting:
        os.close(descriptor)
    if not problems:
        return None
    return "Not ready: " + "; ".join(f"volume {name} {problem}" for name, problem in sorted(problems.items())) + "."


def _ask(path: str) -> int:
    """Stat the root in a child; the descriptor of a pipe on which one byte comes."""
    read, write = os.pipe()
    if os.fork() != 0:
        os.close(write)
        return read
    # In the child: whatever happens it must end here, and it must not hold the probe's standard streams open.
    answer = _FAILED
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        result = os.stat(path)
        answer = _OK if result.st_ino == ROOT_INODE and stat.S_ISDIR(result.st_mode) else _NO_ROOT
    finally:
        os.write(write, answer)
        os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """`jfs ready`. Returns the exit status; the sentence goes to standard output, where the kubelet reads it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    control = None
    if len(arguments) == 2 and arguments[0] == "--control":
        control = arguments[1]
    elif len(arguments) == 1 and arguments[0].startswith("--control="):
        control = arguments[0].partition("=")[2]
    if not control:
        print(_USAGE, file=sys.stderr)
        return 2
    sentence = missing(control)
    if sentence is not None:
        print(sentence)
        return 1
    return 0
