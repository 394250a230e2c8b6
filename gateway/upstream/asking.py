"""How is a model server asked a short question of ours, and who reads the rest of its answer?"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from gateway.errors import UpstreamFailed
from gateway.http1 import Response, TransportError
from gateway.stream import Noted
from gateway.types import Usage
from gateway.upstream.exchange import Exchange

Endings = set[asyncio.Task[None]]  # of answers whose rest is under way


class Asking:
    """A context manager: sends the question, and gives its answer to the block. The block may end before the answer
    does: the rest is then read in the background, so that the connection can be used again. Raises TransportError."""

    __slots__ = ("_endings", "_exchange", "_noted", "_sent", "_usage")

    def __init__(self, exchange: Exchange, sent: Coroutine[Any, Any, Response], usage: Usage, endings: Endings) -> None:
        self._exchange, self._sent, self._usage, self._endings = exchange, sent, usage, endings

    async def __aenter__(self) -> Noted:
        exchange = self._exchange
        try:
            exchange.response = response = await self._sent
        except BaseException as error:
            if isinstance(error, TransportError) and error.kind in ("connect", "closed"):
                exchange.failed(error)  # by the time alone that it took for a verdict no server is judged
            exchange.close()
            raise
        if response.status >= 500:
            exchange.failed(UpstreamFailed(f"The model server failed (status {response.status})."))
        else:
            exchange.passed()
        self._noted = Noted(response, self._usage)
        return self._noted

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind or self._noted.complete:
            self._exchange.close()
        else:
            ending = asyncio.create_task(self._let_end())
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def _let_end(self) -> None:
        try:
            await self._noted.end()
        finally:
            self._exchange.close()
