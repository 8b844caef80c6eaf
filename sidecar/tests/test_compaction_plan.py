"""What a compaction rewrites: the visible bytes stay, settled slices are left alone, and the copied blocks hold what was visible."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs.chunk.blocks import BlockFormat, BlockStore
from jfs.chunk.compaction import SliceCopier
from jfs.format.constants import CHUNK
from jfs.format.slices import Segment, Slice, view
from jfs.meta.operations.compaction import MAX_RECORDS, SETTLED, delayed_records, plan, split_delayed
from jfs.object.memory import MemoryStorage

MIB = 1 << 20


def visible(records: list[Slice]) -> list[tuple[int, int, int, int]]:
    """(begin, end, slice, offset of the slice's byte 0 in the chunk) of what is not zero, joined where it goes on."""
    pieces: list[tuple[int, int, int, int]] = []
    for segment in view(records):
        if not segment.id:
            continue
        origin = segment.pos - segment.off
        if pieces and pieces[-1][1] == segment.pos and pieces[-1][2:] == (segment.id, origin):
            pieces[-1] = (pieces[-1][0], segment.pos + segment.len, segment.id, origin)
        else:
            pieces.append((segment.pos, segment.pos + segment.len, segment.id, origin))
    return pieces


@st.composite
def histories(draw: st.DrawFn, unit: int = 1 << 19, units: int = 24) -> list[Slice]:
    """Records as writes, truncations and copies make them, on a grid so that they often touch."""
    records = []
    for number in range(draw(st.integers(0, 14))):
        begin = draw(st.integers(0, units - 1)) * unit
        length = draw(st.integers(1, units - begin // unit)) * unit
        kind = draw(st.sampled_from(["write", "write", "zero", "part", "again"]))
        if kind == "zero":
            records.append(Slice(begin, 0, 0, 0, length))
        elif kind == "part":
            off = draw(st.integers(0, 3)) * unit
            records.append(Slice(begin, number + 1, off + length + unit, off, length))
        elif kind == "again" and records:
            records.append(draw(st.sampled_from(records)))
        else:
            records.append(Slice(begin, number + 1, length, 0, length))
    return records


@given(histories(), histories())
@settings(max_examples=150, deadline=None)
def test_the_view_is_unchanged(records: list[Slice], appended: list[Slice]) -> None:
    made = plan(records)
    if made is None:
        return
    assert sum(segment.len for segment in made.segments) == made.size
    assert len(made.skipped) + len(made.replaced) == len(records)
    # The new slice's bytes are those of its segments: put them back in its place.
    painted = []
    at = made.pos
    for segment in made.segments:
        if segment.id:
            painted.append(Slice(at, segment.id, segment.size, segment.off, segment.len))
        at += segment.len
    assert visible([*made.skipped, *painted]) == visible(records)
    assert visible([*made.skipped, *painted, *appended]) == visible([*records, *appended])
    # What becomes real zeros lies within the old view, and hides nothing that stays.
    assert made.pos + made.size <= max(record.pos + record.len for record in records)
    for record in made.skipped:
        assert record.pos + record.len <= made.pos or made.pos + made.size <= record.pos


@given(histories())
@settings(max_examples=60, deadline=None)
def test_compacting_again_gains_nothing(records: list[Slice]) -> None:
    made = plan(records)
    # One byte in place of nothing but zeros, in front of what stays, is rewritten with that the next time, as by the real client.
    if made is not None and any(segment.id for segment in made.segments):
        assert plan([*made.skipped, Slice(made.pos, 10_000, made.size, 0, made.size)]) is None


def test_large_first_slices_stay() -> None:
    settled = Slice(0, 1, 4 * MIB, 0, 4 * MIB)
    small = [Slice(8 * MIB + n, 10 + n, 1, 0, 1) for n in range(5)]
    made = plan([settled, *small])
    assert made is not None
    assert made.skipped == (settled,)
    assert (made.pos, made.size) == (8 * MIB, 5)


@pytest.mark.parametrize(
    "first",
    [
        Slice(0, 1, SETTLED - 1, 0, SETTLED - 1),  # too small
        Slice(0, 1, SETTLED, 0, SETTLED),  # less than a fifth of what would be rewritten
        Slice(4 * MIB, 1, 8 * MIB, 0, 8 * MIB),  # something lies before it
    ],
)
def test_other_first_slices_are_rewritten(first: Slice) -> None:
    made = plan([first, Slice(3 * MIB, 2, 4 * MIB, 0, 4 * MIB)])
    assert made is not None
    assert not made.skipped


def test_a_touched_first_slice_is_rewritten() -> None:
    made = plan([Slice(0, 1, 4 * MIB, 0, 4 * MIB), Slice(5, 2, 1, 0, 1)])
    assert made is not None
    assert not made.skipped
    assert [segment.id for segment in made.segments] == [1, 2, 1]


def test_a_repeated_first_slice_is_rewritten() -> None:
    record = Slice(0, 1, 4 * MIB, 0, 4 * MIB)
    made = plan([record, record])
    assert made is not None
    assert (made.skipped, made.replaced) == ((), (record, record))


def test_zeros_at_the_ends_are_holes() -> None:
    made = plan([Slice(0, 0, 0, 0, 100), Slice(50, 7, 10, 0, 10), Slice(60, 0, 0, 0, 1000)])
    assert made is not None
    assert (made.pos, made.size) == (50, 10)


def test_nothing_but_zeros_becomes_one_byte() -> None:
    made = plan([Slice(0, 3, CHUNK, 0, CHUNK), Slice(0, 0, 0, 0, CHUNK)])
    assert made is not None
    assert (made.size, [segment.id for segment in made.segments]) == (1, [0])


@pytest.mark.parametrize("records", [[], [Slice(0, 1, 10, 0, 10)], [Slice(0, 1, 2 * MIB, 0, 2 * MIB)] * 1])
def test_nothing_to_gain(records: list[Slice]) -> None:
    assert plan(records) is None


def test_only_the_beginning_of_a_very_long_list_is_taken() -> None:
    records = [Slice(n, n + 1, 1, 0, 1) for n in range(MAX_RECORDS + 200)]
    made = plan(records)
    assert made is not None
    assert made.replaced == tuple(records[:MAX_RECORDS])


def test_delayed_records() -> None:
    records = [Slice(0, 5, 10, 2, 3), Slice(0, 0, 0, 0, 3), Slice(9, 5, 10, 0, 3)]
    assert split_delayed(delayed_records(records)) == [(5, 10), (5, 10)]
    assert split_delayed(delayed_records(records) + b"torn") == [(5, 10), (5, 10)]


# -- copying ----------------------------------------------------------------------------------------------------------

BLOCK = 64 << 10


@given(histories(unit=BLOCK // 4, units=20), st.sampled_from(["none", "lz4"]))
@settings(max_examples=15, deadline=None)
def test_copied_blocks_hold_what_was_visible(records: list[Slice], compression: str) -> None:
    async def run() -> None:
        made = plan(records)
        if made is None:
            return
        blocks = BlockStore(MemoryStorage(), BlockFormat(block_size=BLOCK, compression=compression))

        def content(id: int, size: int) -> bytes:
            return bytes((id * 31 + at // 997) % 255 + 1 for at in range(size))

        for id, size in {(record.id, record.size) for record in records if record.id}:
            data = content(id, size)
            for indx in range(-(-size // BLOCK)):
                await blocks.put_block(id, indx, data[indx * BLOCK : (indx + 1) * BLOCK])
        await SliceCopier(blocks).copy(500, made.size, made.segments)
        copied = b"".join(
            [bytes(await blocks.get_block(500, made.size, indx)) for indx in range(-(-made.size // BLOCK))]
        )
        wanted = bytearray(made.size)
        at = 0
        for segment in made.segments:
            if segment.id:
                wanted[at : at + segment.len] = content(segment.id, segment.size)[segment.off :][: segment.len]
            at += segment.len
        assert copied == wanted

    asyncio.run(run())


async def test_a_copy_that_fails_leaves_no_objects() -> None:
    storage = MemoryStorage()
    blocks = BlockStore(storage, BlockFormat(block_size=BLOCK))
    await blocks.put_block(1, 0, b"x" * BLOCK)
    segments = [Segment(0, 1, BLOCK, 0, BLOCK), Segment(BLOCK, 2, 10, 0, 10)]
    with pytest.raises(Exception, match="no object"):
        await SliceCopier(blocks).copy(3, BLOCK + 10, segments)
    assert list(storage.objects) == [f"chunks/0/0/1_0_{BLOCK}"]
