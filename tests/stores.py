"""Scenarios on a store of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.store import ALL, Store, open_store

T = TypeVar("T")
TURNS = 50  # of the loop; a decision of this process alone takes two or three


def on(url: str | None, scenario: Callable[[Store], Awaitable[T]]) -> T:
    """What `scenario` makes of an open store, which is closed after it."""

    async def main() -> T:
        store = open_store(url)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def at_once(work: Awaitable[T]) -> T:
    """What `work` comes to without waiting: for no server that stands still, and for no clock."""
    task = asyncio.ensure_future(work)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    waits = not task.done()
    task.cancel()
    assert not waits, "it waits"
    return await task


async def scripts_known(store: Store) -> None:
    """A script that a server does not know yet comes to its turn a little later."""
    for account in ("ann", "bob", ALL):
        await store.settle(account, "")
