"""Scenarios on a store of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.store import ALL, Admitted, Limits, Store, open_store

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


def limits(requests: int = 1000, concurrency: int = 1000, lease: float = 60.0) -> Limits:
    return Limits(requests, concurrency, lease)


async def burst(store: Store, count: int, what: Limits, recall: bytes | None = None) -> list[Admitted]:
    """So many admissions of one caller, all at once."""
    return list(await asyncio.gather(*(store.admit("ann", what, recall) for _ in range(count))))


def granted(answers: list[Admitted]) -> int:
    return sum(answer.allowed for answer in answers)


async def recovered(store: Store) -> None:
    """Returns when the store answers again."""
    while store.state != "ok":  # noqa: ASYNC110  a store tells by its state only
        await asyncio.sleep(0.02)
