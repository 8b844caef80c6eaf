"""Progress lines: what is being done, and how long it took.

Used by everything in this package that a person may wait for. Lines go to standard error, so that the output of a
command (a path, a YAML document) stays clean. No state besides the nesting depth; one thread.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

_depth = 0


def say(text: str) -> None:
    """Print one line at the current depth, at once."""
    print("  " * _depth + text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, run it, print its duration in seconds; a failed step says so and the error goes on."""
    global _depth
    say(f"… {what}")
    started = time.monotonic()
    _depth += 1
    try:
        yield
    except BaseException:
        _depth -= 1
        say(f"✗ {what} failed after {time.monotonic() - started:.1f} s")
        raise
    _depth -= 1
    say(f"✓ {what} ({time.monotonic() - started:.1f} s)")
