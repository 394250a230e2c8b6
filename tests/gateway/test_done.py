import asyncio

from gateway.done import DONE, nothing


async def test_what_is_done_is_not_waited_for() -> None:
    turned: list[bool] = []
    asyncio.get_running_loop().call_soon(turned.append, True)
    for _ in range(2):
        await DONE
        await nothing()
    assert not turned
