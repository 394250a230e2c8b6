"""An answer on its way out: its pieces, and what its end gives back."""

from collections.abc import AsyncGenerator

import pytest

from gateway.done import nothing
from gateway.errors import Overloaded
from gateway.reply import Reply


async def pieces(ended: list[str]) -> AsyncGenerator[bytes, None]:
    try:
        yield b"a"
        yield b"b"
    finally:
        ended.append("pieces")


async def read(reply: Reply) -> list[bytes]:
    return [piece async for piece in reply.chunks]


async def test_an_answer_comes_in_pieces_whatever_its_body_is() -> None:
    assert await read(Reply(200, [], b"whole", False, "flash", nothing)) == [b"whole"]
    assert await read(Reply(200, [], pieces([]), True, "flash", nothing)) == [b"a", b"b"]


async def test_a_refusal_breaks_an_answer_before_its_first_byte() -> None:
    reply = Reply.refused(Overloaded("full"))
    assert (reply.status, reply.tier) == (503, "")
    with pytest.raises(Overloaded, match="full"):
        await read(reply)


@pytest.mark.parametrize("fails", [False, True])
async def test_the_end_of_an_answer_is_told_once_though_what_it_held_cannot_be_given_back(fails: bool) -> None:
    ended: list[str] = []

    async def shut() -> None:
        ended.append("shut")
        if fails:
            raise OSError

    reply = Reply(200, [], pieces(ended), True, "flash", shut, closed=lambda: ended.append("closed"))
    await anext(reply.chunks)
    for _ in range(2):
        try:
            await reply.close()
        except OSError:
            assert fails
    assert ended == ["pieces", "shut", "closed", "shut"]


def test_a_whole_answer_that_holds_nothing_ends_without_a_coroutine() -> None:
    told: list[bool] = []
    Reply(200, [], b"{}", False, "flash", nothing, closed=lambda: told.append(True)).close()
    assert told == [True]
