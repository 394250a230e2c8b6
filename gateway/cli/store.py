"""How does a command reach the shared store?"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from gateway.cli.output import stop, unlogged
from gateway.errors import Overloaded
from gateway.store import Store, open_store, where

T = TypeVar("T")
TRIES, PAUSE = 10, 0.05  # for the store's first answer, and seconds between: a person can wait where a request cannot

Redis = Annotated[
    str | None,
    typer.Option("--redis", envvar="GATEWAY_REDIS_URL", help="The store, e.g. redis://127.0.0.1:6379/0", metavar="URL"),
]


def on(command: str, url: str | None, work: Callable[[Store], Awaitable[T]]) -> T:
    """What `work` gives on the store at `url`. Exits with 1 when there is no store, or none that answers."""
    if url is None:
        raise stop(command, "the shared store is needed: give --redis URL or set GATEWAY_REDIS_URL")
    try:
        with unlogged():
            return asyncio.run(_opened(url, work))
    except ValueError as error:
        raise stop(command, str(error)) from error
    except Overloaded as error:
        raise stop(command, f"the store at {where(url)} cannot be used: {error.__cause__ or error}") from error


async def _opened(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    store = open_store(url)
    try:
        for _ in range(TRIES):
            if await store.ping():
                break
            await asyncio.sleep(PAUSE)
        return await work(store)
    finally:
        await store.close()
