"""Bodies that have come in part: what they hold together is bounded, and who began first gives way."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.serve.http.held import REASON, HeldBodies
from tests.serve.http.front_end import FrontEnd, Wire, front_end, post, run

BODY = bytes(90_000)
SENT = 80_000
CALLERS, MOST = 7, 540_000
"""Two of so many have to give way, in however many pieces the last one comes."""
HEADS = {
    "hot": b"POST /predictions/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 90000\r\n\r\n",
    "general": b"POST /other HTTP/1.1\r\nhost: a\r\ncontent-length: 90000\r\n\r\n",
}


class Body:
    """Notes that it gave way."""

    def __init__(self) -> None:
        self.gone = False

    def give_way(self) -> None:
        self.gone = True


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=60))
def test_the_bound_holds(parts: list[tuple[int, int]]) -> None:
    """Whatever comes in whatever order: never more than the bound, and what is counted is what is held."""
    held = HeldBodies(100)
    bodies, sizes = [Body() for _ in range(10)], dict.fromkeys(range(10), 0)
    for number, size in parts:
        if bodies[number].gone:
            continue
        held.hold(bodies[number], size)
        sizes[number] += size
        assert held.bytes == sum(sizes[each] for each in sizes if not bodies[each].gone) <= 100
    for body in bodies:
        held.release(body)
    assert held.bytes == 0


def test_a_share_of_the_memory_is_the_default() -> None:
    """A quarter of what this process may have."""
    assert HeldBodies().max_bytes > 1 << 26
    assert HeldBodies(7).max_bytes == 7


async def begun(end: FrontEnd, head: bytes, *, learned: bool) -> Wire:
    """A connection with most of a body."""
    wire = await end.connect()
    if learned:  # the head was read before, and is not parsed again
        await wire.send(head + BODY)
        assert (await wire.answer())[0] == 200
    before = end.front.held.bytes
    await wire.send(head + BODY[:SENT])
    async with asyncio.timeout(5):
        while end.front.held.bytes == before:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    return wire


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_who_began_first_gives_way(kind: str, *, learned: bool) -> None:
    """The oldest unfinished requests are refused; the others, and new ones, are answered."""

    async def test() -> None:
        async with front_end() as end:
            end.front.held.max_bytes = MOST
            wires = [await begun(end, HEADS[kind], learned=learned) for _ in range(CALLERS)]
            for wire in wires[:2]:
                status, headers, body = await wire.answer()
                assert (status, headers["connection"]) == (503, "close")
                assert REASON.encode() in body
            assert end.front.held.bytes == (CALLERS - 2) * SENT
            for wire in wires[2:]:
                await wire.send(BODY[SENT:])
                assert (await wire.answer())[0] == 200
            assert end.front.held.bytes == 0
            fresh = await end.connect()
            await fresh.send(post(b"new"))
            assert (await fresh.answer())[2] == b"new"

    run(test())


@pytest.mark.parametrize("kind", HEADS)
def test_callers_who_leave_hold_nothing(kind: str) -> None:
    """What was half here is forgotten with its connection."""

    async def test() -> None:
        async with front_end() as end:
            wire = await begun(end, HEADS[kind], learned=False)
            assert end.front.held.bytes == SENT
            await wire.close()
            async with asyncio.timeout(5):
                while end.front.held.bytes:
                    await asyncio.sleep(0.01)

    run(test())
