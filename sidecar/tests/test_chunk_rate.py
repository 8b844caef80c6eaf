"""The rate limit: what passes in any time is at most what the limit says, under a clock of our own; and that mounts keep it."""

import asyncio
import os
import random
import time
from pathlib import Path

import pytest
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.rate import RateLimit
from jfs.errors import ConfigError
from jfs.mount.config import from_list
from jfs.object.memory import MemoryStorage
from mount_parts import REAL, Volume, mounted, run


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def limited(clock: Clock, megabits: float) -> RateLimit:
    return RateLimit(lambda: megabits, clock=clock, sleep=clock.sleep)


async def test_no_limit_never_waits() -> None:
    clock = Clock()
    await limited(clock, 0).take(1 << 40)
    assert not clock.slept


async def test_a_tenth_of_a_second_passes_at_once_and_no_more() -> None:
    clock = Clock()
    limit = limited(clock, 8)  # 1,000,000 bytes a second
    await limit.take(100_000)
    assert not clock.slept
    await limit.take(85_000)
    assert clock.slept == [pytest.approx(0.1)]


@pytest.mark.parametrize("seed", range(5))
async def test_what_passes_is_bounded_in_every_window(seed: int) -> None:
    chance, clock = random.Random(seed), Clock()
    limit = limited(clock, 80)
    passed: list[tuple[float, int]] = []
    for _ in range(300):
        size = chance.randrange(1, 4_000_000)
        await limit.take(size)
        passed.append((clock.now, size))
        clock.now += chance.choice((0, 0, 0.01, 1.0))
    for first in range(0, 300, 7):
        total = 0
        for at, size in passed[first + 1 :]:
            total += size
            assert total <= 1_000_000 + 8_500_000 * (at - passed[first][0]) + 1


async def test_what_did_not_pass_is_given_back() -> None:
    clock = Clock()
    limit = limited(clock, 8)
    await limit.take(100_000)
    limit.give_back(90_000)
    await limit.take(90_000)
    assert not clock.slept


async def test_a_changed_limit_holds_from_then_on() -> None:
    clock, now = Clock(), [8.0]
    limit = RateLimit(lambda: now[0], clock=clock, sleep=clock.sleep)
    await limit.take(950_000)
    assert clock.slept.pop() == pytest.approx(1.0)
    now[0] = 80.0
    await limit.take(1_850_000)
    assert clock.slept.pop() == pytest.approx(0.1)
    now[0] = 0.0
    await limit.take(1 << 40)
    assert not clock.slept


@pytest.mark.parametrize("compression", ["none", "lz4"])
async def test_blocks_pass_the_limits_with_their_stored_size(compression: str) -> None:
    up, down = Clock(), Clock()
    blocks = BlockStore(
        MemoryStorage(),
        BlockFormat(1 << 20, compression),
        BlockLimits(upload_rate=limited(up, 8), download_rate=limited(down, 8)),
    )
    content = os.urandom(1 << 19) + bytes(1 << 19)
    await asyncio.gather(*(blocks.put_block(number, 0, content) for number in range(1, 5)))
    for number in range(1, 5):
        assert bytes(await blocks.get_block(number, len(content), 0)) == content
    stored = sum(len(raw) for raw, _ in blocks.storage.objects.values())  # type: ignore[attr-defined]
    assert stored < 2_200_000 or compression == "none"
    assert sum(up.slept) >= (stored - 100_000) / 850_000 - 0.001
    # What was expected too much of the first ones comes back after it was waited for.
    assert (stored - 100_000) / 850_000 - 0.001 <= sum(down.slept) <= (stored + (1 << 20)) / 850_000
    await blocks.close()


@pytest.mark.parametrize(
    ("text", "rate"), [("100", 100.0), ("1.5G", 1500.0), ("2m", 2.0), ("10Mbps", 10.0), ("0", 0.0)]
)
def test_rates_of_the_command_line(text: str, rate: float) -> None:
    config = from_list([f"upload-limit={text}", f"download-limit={text}"])
    assert (config.upload_limit, config.download_limit) == (rate, rate)


@pytest.mark.parametrize("text", ["", "fast", "-1", "1K", "1 MB/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigError, match=r"option upload-limit: .* is not a rate"):
        from_list([f"upload-limit={text}"])


@pytest.mark.real
@pytest.mark.parametrize("by", ["flag", "setting"])
def test_a_mount_keeps_the_limit(by: str, tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()
    options = ["--upload-limit", "8"]
    if by == "setting":
        run(REAL, "config", volume.url, "--upload-limit", "8", "--yes")
        options = []
    with mounted(volume, tmp_path / "mnt", *options) as where:
        began = time.monotonic()
        (where / "f").write_bytes(os.urandom(2_000_000))
        took = time.monotonic() - began
    assert took > (2_000_000 - 100_000) / 850_000 - 0.01  # never faster, however fast the machine
