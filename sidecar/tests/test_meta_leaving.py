"""Openings and removals of one file at the same time: who waits for whom."""

import asyncio

from jfs.meta.volume.leaving import Leaving, Lingering


async def test_an_opening_counts_as_a_handle() -> None:
    leaving = Leaving(lambda _: False)
    leaving.begin_opening(7)
    leaving.begin_opening(7)
    leaving.end_opening(7)
    with leaving.removal() as is_open:
        assert is_open(7)
        assert not is_open(8)
    leaving.end_opening(7)
    with leaving.removal() as is_open:
        assert not is_open(7)


async def test_an_opening_waits_for_removals_that_have_found_the_file_closed() -> None:
    leaving = Leaving(lambda _: False)
    await leaving.settled(7)
    with leaving.removal() as other:
        with leaving.removal() as is_open:
            assert not is_open(7)
            assert not is_open(7)
            assert not other(7)
            waiting = asyncio.ensure_future(leaving.settled(7))
            given_up = asyncio.ensure_future(leaving.settled(7))
            await asyncio.sleep(0)
            given_up.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        await leaving.settled(8)
    await asyncio.wait_for(waiting, 1)


async def test_what_lingers_is_let_go_once() -> None:
    gone: list[int] = []
    lingering = Lingering(gone.append)
    lingering.add(7)
    lingering.add(8)
    lingering.forgotten(9)
    lingering.forgotten(7)
    lingering.forgotten(7)
    assert gone == [7]
    assert 8 in lingering
    lingering.clear()
    assert not lingering
