"""The crash loop's own judgement: it must see what is lost, and accept what may be."""

from typing import Any

import pytest
from crash_model import Content, Found, Step, Tree, candidates, payload


def log(*steps: Step, last: Step | None = None) -> list[Step]:
    """Each step acknowledged, and *last* cut off."""
    lines: list[Step] = []
    every: list[Step] = list(steps) if last is None else [*steps, last]
    for number, step in enumerate(every, 1):
        lines.append({"n": number, **step})
        if step is not last:
            lines.append({"n": number, "errno": step.pop("told", 0)})
            lines[-2].pop("told", None)
    return lines


def found(**files: bytes) -> Found:
    return Found(files=files, inodes={name: number for number, name in enumerate(files)})


def possible(steps: list[Step], seen: Found) -> bool:
    return not all(tree.fault(seen) for tree in candidates(Tree(), steps))


CREATE: Step = {"op": "create", "path": "a", "fd": 1}
WRITE: Step = {"op": "write", "fd": 1, "at": 0, "size": 10}
SYNC: Step = {"op": "fsync", "fd": 1}
TEN = payload(2, 10)


def test_what_was_acknowledged_must_be_there() -> None:
    steps = log(CREATE, WRITE, SYNC)
    assert possible(steps, found(a=TEN))
    assert not possible(steps, found())
    assert not possible(steps, found(a=TEN[:9]))
    assert not possible(steps, found(a=TEN[:9] + b"!"))
    assert not possible(steps, found(a=TEN, b=b""))


def test_what_was_not_acknowledged_may_be_there() -> None:
    steps = log(CREATE, WRITE, SYNC, {"op": "write", "fd": 1, "at": 5, "size": 10})
    more = payload(4, 10)
    assert possible(steps, found(a=TEN))
    assert possible(steps, found(a=TEN[:5] + more))
    assert not possible(steps, found(a=TEN[:5]))
    assert not possible(steps, found(a=TEN + more))


def test_a_write_that_failed_may_be_there_until_it_is_covered() -> None:
    failed = {**WRITE, "told": 5}
    assert possible(log(CREATE, failed), found(a=b""))
    assert possible(log(CREATE, failed), found(a=TEN))
    again: Step = {"op": "write", "fd": 1, "at": 0, "size": 10}
    steps = log(CREATE, failed, again, SYNC)
    assert possible(steps, found(a=payload(3, 10)))
    assert not possible(steps, found(a=TEN))


@pytest.mark.parametrize(
    ("last", "before", "after"),
    [
        ({"op": "unlink", "path": "a"}, {"a": TEN}, {}),
        ({"op": "rename", "path": "a", "to": "b"}, {"a": TEN}, {"b": TEN}),
        ({"op": "truncate", "path": "a", "size": 3}, {"a": TEN}, {"a": TEN[:3]}),
        ({"op": "create", "path": "b", "fd": 2}, {"a": TEN}, {"a": TEN, "b": b""}),
    ],
)
def test_the_step_that_was_cut_off_has_happened_or_not(last: Step, before: Any, after: Any) -> None:
    steps = log(CREATE, WRITE, SYNC, last=last)
    assert possible(steps, found(**before))
    assert possible(steps, found(**after))
    assert not possible(steps, found(c=TEN))
    acknowledged = log(CREATE, WRITE, SYNC, last)
    assert not possible(acknowledged, found(**before))
    assert possible(acknowledged, found(**after))


def test_links_and_attributes() -> None:
    steps = log(
        CREATE, WRITE, SYNC, {"op": "link", "path": "a", "to": "b"}, {"op": "setxattr", "path": "b", "value": "v"}
    )
    seen = Found(files={"a": TEN, "b": TEN}, inodes={"a": 1, "b": 1}, xattrs={"a": "v", "b": "v"})
    assert possible(steps, seen)
    seen.inodes["b"] = 2
    assert not possible(steps, seen)
    seen.inodes["b"], seen.xattrs = 1, {"a": "v"}
    assert not possible(steps, seen)


def test_a_hole_reads_as_zeros() -> None:
    content = Content(bytearray(b"ab"), open=[(4, b"cd")])
    assert content.fault(b"ab\0\0cd") == ""
    assert content.fault(b"ab") == ""
    assert "never written" in content.fault(b"ab\0!cd")
