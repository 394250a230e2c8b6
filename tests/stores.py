"""Scenarios on a store of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.store import Store, open_store

T = TypeVar("T")


def on(url: str | None, scenario: Callable[[Store], Awaitable[T]]) -> T:
    """What `scenario` makes of an open store, which is closed after it."""

    async def main() -> T:
        store = open_store(url)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(main())
