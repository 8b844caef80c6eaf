"""Chaos without a cluster: plans keep to what is promised, the application finds what is wrong, the report says what was seen."""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.chaos import plan, records, report, run, workload
from e2e.chaos.injector import ABSENT, DONE, Injected
from e2e.chaos.plan import Fault
from e2e.chaos.records import Records, Slow

SEEDS = range(50)


def test_a_seed_repeats_its_plan() -> None:
    assert plan.faults(7, 0, 300, 4) == plan.faults(7, 0, 300, 4)
    assert plan.faults(7, 0, 300, 4) != plan.faults(8, 0, 300, 4)
    assert plan.faults(7, 0, 300, 4) != plan.faults(7, 1, 300, 4)


def test_every_part_meets_every_fault() -> None:
    planned = {(f.part, f.action) for seed in SEEDS for f in plan.faults(seed, 0, 300, 4)}
    for kind in plan.KINDS:
        assert (kind.part, "pause" if kind.pause else "kill") in planned
    assert {part for part, action in planned if action == "delete"} == set(plan.PRODUCT)


@pytest.mark.parametrize("seed", SEEDS)
def test_plans_stay_within_what_is_promised(seed: int) -> None:
    faults = plan.faults(seed, 0, 300, 4)
    assert all(0 <= f.at <= f.at + f.seconds <= 300.01 for f in faults)
    assert [f.at for f in faults] == sorted(f.at for f in faults)
    kills = Counter(f.pod for f in faults if (f.part, f.action) == ("supervisor", "kill"))
    assert all(number <= plan.SUPERVISOR_KILLS for number in kills.values())
    for server, rest in plan.BACK_END_REST.items():
        outages = [f for f in faults if f.part == server]
        for one, other in itertools.pairwise(outages):
            assert other.at - one.at - one.seconds >= rest - 0.02
    assert not [f for f in faults if (f.part, f.action) == ("postgres", "kill")]


@pytest.mark.parametrize(
    ("release", "able"), [("6.8.12-amd64", False), ("6.9.0", True), ("5.15", False), ("7.0", True)]
)
def test_old_kernels_cannot_keep_the_promise(monkeypatch: pytest.MonkeyPatch, release: str, able: bool) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n", release, "v", "m")))
    assert (run.unable() == "") is able
    assert able or f"Linux {release} is too old" in run.unable()


def run_for(place: Path, seconds: float, meddle: Callable[[Path], None] | None = None) -> dict[str, dict[str, object]]:
    """What each of the application's processes says at its end after it has worked on plain directories."""
    out, volume = place / "out", place / "shared"
    out.mkdir()
    volume.mkdir()
    child = os.fork()
    if not child:
        try:
            workload.run(out, "1", "app-0", [volume])
        finally:
            os._exit(0)
    time.sleep(seconds)  # it works as long as it is let
    if meddle:
        meddle(volume)
    (out / "stop").touch()
    os.waitpid(child, 0)
    return {path.stem: json.loads(path.read_text().splitlines()[-1]) for path in out.glob("*.jsonl")}


def records_of(place: Path) -> Records:
    found = Records(0, "uid", place / "out")
    found.update()
    return found


def test_the_application_knows_what_it_wrote(tmp_path: Path) -> None:
    ends = run_for(tmp_path, 1.0)
    assert sorted(ends) == sorted(f"shared-{kind}" for kind in workload.KINDS)
    found = records_of(tmp_path)
    assert not found.running()
    assert not found.errors()
    tree, expected = workload.tree(tmp_path / "shared"), records.expected([found])["shared"]
    assert records.differences("shared", tree, expected) == []
    assert len(tree) > 10

    appended = tmp_path / "shared" / "app-0" / "appended"
    appended.write_bytes(appended.read_bytes() + b"x")
    (tmp_path / "shared" / "more").mkdir()
    (tmp_path / "shared" / "locks" / "flock").unlink()
    told = records.differences("shared", workload.tree(tmp_path / "shared"), expected)
    assert [text.split(":")[1].split()[0] for text in told] == ["locks/flock", "more", "app-0/appended"]


def spoil(volume: Path) -> None:
    path = volume / "app-0" / "appended"
    with path.open("r+b") as file:
        file.write(bytes([path.read_bytes()[0] ^ 1]))


def hide(volume: Path) -> None:
    (volume / "app-0" / "names").rename(volume / "elsewhere")


def reset(volume: Path) -> None:
    for path in (volume / "locks").iterdir():
        path.write_bytes(b"%020d" % 1 + b"somebody".ljust(workload.LOCK_FILE - 20))
    time.sleep(0.5)


@pytest.mark.parametrize(
    ("meddle", "process", "kind"), [(spoil, "append", "wrong"), (hide, "names", "error"), (reset, "locks-1", "wrong")]
)
def test_the_application_finds_what_is_wrong(
    tmp_path: Path, meddle: Callable[[Path], None], process: str, kind: str
) -> None:
    ends = run_for(tmp_path, 0.5, meddle)
    assert kind in ends[f"shared-{process}"]
    assert [text for text in records_of(tmp_path).errors() if f"shared-{process}, {kind}: " in text]


def test_lines_that_are_not_whole_are_read_later(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "shared-append.jsonl"
    path.write_text('{"count": 3, "at": 1}\n{"slow": "wri')
    found = records_of(tmp_path)
    assert found.counts == {"shared-append": 3}
    assert not found.slow
    with path.open("a") as file:
        file.write('te", "at": 5.0, "seconds": 0.1}\n')
    found.update()
    assert found.slow == [Slow("write", 5.0, 0.1)]


def one(at: float, part: str, action: str = "kill", pod: int | None = None, seconds: float = 0.0) -> Injected:
    return Injected(Fault(at, part, action, pod, 0, seconds), at, DONE)


def test_stalls_are_those_of_operations_under_way() -> None:
    first, second = (Records(pod, str(pod), Path("none")) for pod in (0, 1))
    first.slow += [Slow("write", 99.9, 0.3), Slow("lock", 100.0, 9.0), Slow("write", 200.0, 4.0)]
    second.slow += [Slow("write", 99.0, 0.5), Slow("write", 150.0, 0.05)]
    injected = [
        one(100.0, "worker", pod=0),
        one(100.0, "worker", pod=1),
        one(149.5, "redis", "pause", seconds=0.6),
        one(199.0, "node"),
        one(200.0, "supervisor", pod=0),
        Injected(Fault(0, "s3", "kill"), 0, ABSENT),
    ]
    stalls = report.stalls(injected, [first, second])
    assert [stall.seconds for stall in stalls] == pytest.approx([0.2, 0.0, 0.05 + 0.0, 4.0, 4.0], abs=0.001)
    assert [stall.alone for stall in stalls] == [True, True, True, False, False]


def test_the_report_names_failures(tmp_path: Path) -> None:
    stalls = [report.Stall("worker", "kill", 0.03, True), report.Stall("worker", "kill", 0.5, False)]
    summary = report.Summary(5, "6.18", 2.0, rounds=1, stalls=stalls)
    assert "| worker | killed | 2 | 0.03 s (1) | 0.50 s |" in report.markdown(summary)
    assert "No operation failed" in report.markdown(summary)
    summary.failures.append("volume shared: file is missing")
    report.write(tmp_path, summary)
    assert "1 failures" in (tmp_path / "chaos.md").read_text()
    told = json.loads((tmp_path / "chaos.json").read_text())
    assert told["failures"] == ["volume shared: file is missing"]
    assert told["faults"][0] == {"part": "worker", "action": "kill", "stall_seconds": 0.03, "alone": True}


def test_a_second_holder_of_a_lock_is_found(tmp_path: Path) -> None:
    """The lock's holder is seen by a second one that was wrongly let in."""
    (tmp_path / "shared" / "locks").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    place = tmp_path / "shared" / "locks" / "flock"
    place.write_bytes(b"%020d" % 5 + b"other".ljust(workload.LOCK_FILE - 20))
    (tmp_path / "shared" / "locks" / "fcntl").write_bytes(place.read_bytes())
    assert not workload.one_process(tmp_path / "out", "1", "app", tmp_path / "shared", "locks-1")
    assert "other holds the lock that app-locks-1 was given" in records_of(tmp_path).errors()[0]
