"""The sidecar's programs with a trap door: a worker kills itself at a chosen step of a chosen request, once.

`python survival_faults.py sidecar --control DIR` is `jfs sidecar` whose workers come from `python survival_faults.py zygote`. A file
`<operation>@<step>` in the directory that JFS_FAULTS names arms a trap. Steps: `begun` (the request was read), `intended` (its
intention is written, the transaction is not committed), `committed` (the transaction is committed and nothing said), `replied` (the
kernel has the reply, the intention is still there).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

DIRECTORY = Path(os.environ.get("JFS_FAULTS", "/nonexistent"))


def die_at(operation: str, step: str) -> None:
    trap = DIRECTORY / f"{operation}@{step}"
    if trap.exists():
        trap.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def patch() -> None:
    from jfs.fuse.kernel.host import KernelHost
    from jfs.fuse.kernel.repeats import Repeats
    from jfs.survival.journal import Request

    judged, answer, intend, finish = Repeats.judged, KernelHost._answer, Request.intend, Request.end
    under_way = {"name": ""}

    def patched_judged(self: Any, prepared: Any, unique: int, caller: Any) -> Any:
        caller = judged(self, prepared, unique, caller)
        if caller.request is not None:
            under_way["name"] = prepared.operation.name
            die_at(under_way["name"], "begun")
        return caller

    def patched_answer(self: Any, prepared: Any, unique: int, caller: Any, *rest: Any) -> Any:
        if caller.request is not None:
            under_way["name"] = prepared.operation.name
            die_at(under_way["name"], "committed")
        return answer(self, prepared, unique, caller, *rest)

    def patched_intend(self: Any, ino: int, other: int = 0) -> None:
        intend(self, ino, other)
        die_at(under_way["name"], "intended")

    def patched_end(self: Any) -> None:
        die_at(under_way["name"], "replied")
        finish(self)

    Repeats.judged = patched_judged  # type: ignore[method-assign]
    KernelHost._answer = patched_answer  # type: ignore[assignment,method-assign]
    Request.intend = patched_intend  # type: ignore[method-assign]
    Request.end = patched_end  # type: ignore[method-assign]


def main() -> int:
    if sys.argv[1] == "zygote":
        patch()
        from jfs.mount import zygote

        return zygote.main()
    from jfs.sidecar.supervisor import Supervisor

    me = os.path.abspath(__file__)
    worker = [sys.executable, "-m", "jfs", "worker"]
    return Supervisor(
        sys.argv[3], worker, 20.0, zygote=[sys.executable, me, "zygote"], state=os.environ["JFS_STATE"]
    ).run()


if __name__ == "__main__":
    sys.exit(main())
