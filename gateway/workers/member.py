"""How does a worker speak with its supervisor?"""

import asyncio
import itertools
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from gateway.errors import Overloaded
from gateway.workers.messages import BEAT, Message, receive, send

PATIENCE = 5.0  # seconds for the supervisor to answer


class Member:
    """A worker's connection to its supervisor; its holder closes it.

    `alive`: how many workers serve. The app sets `render()`, this worker's metrics, and `recent(most, after)`, its
    newest records, a line each; both are called in a thread.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, beat: float, patience: float
    ) -> None:
        self._reader, self._writer, self._seconds, self._patience = reader, writer, beat, patience
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._names = itertools.count()
        self._hearing: asyncio.Task[None] | None = None
        self._beating: asyncio.TimerHandle | None = None
        self.alive = 0
        self.render: Callable[[], bytes] = bytes
        self.recent: Callable[[int, float], list[bytes]] = lambda most, after: []

    @classmethod
    async def join(cls, line: socket.socket, beat: float = BEAT, patience: float = PATIENCE) -> Self:
        """Connects over `line`, the worker's end of a socket pair."""
        return cls(*await asyncio.open_connection(sock=line), beat, patience)

    def hear(self, leave: Callable[[], None], reload: Callable[[], None]) -> None:
        """Both are called when we are told to; `leave` also when the supervisor is gone."""
        self._hearing = asyncio.create_task(self._hear(leave, reload))

    def serving(self) -> None:
        """Say that callers are served here, and from here on that the loop turns."""
        send(self._writer, Message("serving", 0))
        self._beat()

    def _beat(self) -> None:
        send(self._writer, Message("here", 0))
        self._beating = asyncio.get_running_loop().call_later(self._seconds, self._beat)

    async def metrics(self) -> bytes:
        """The metrics of all workers. Raises Overloaded when they do not come in time: those of some workers alone
        would look as if counters had fallen."""
        return await self._ask(b"")

    async def records(self, most: int, after: float) -> list[bytes]:
        """The newest records of each worker, so many of each at most, in no order. Raises Overloaded."""
        return (await self._ask(f"{most} {after!r}".encode())).splitlines()

    async def _ask(self, question: bytes) -> bytes:
        name, answer = next(self._names), asyncio.get_running_loop().create_future()
        self._asked[name] = answer
        send(self._writer, Message("ask", name, question))
        try:
            async with asyncio.timeout(self._patience):
                return bytes(await answer)
        except TimeoutError:
            raise Overloaded("What all workers say does not come together.", retry_after=1.0) from None
        finally:
            del self._asked[name]

    async def aclose(self) -> None:
        self._writer.close()
        if self._beating:
            self._beating.cancel()
        if self._hearing:
            self._hearing.cancel()
            with suppress(asyncio.CancelledError):
                await self._hearing

    async def _hear(self, leave: Callable[[], None], reload: Callable[[], None]) -> None:
        while message := await receive(self._reader):
            if message.word == "tell":
                send(self._writer, await asyncio.to_thread(self._answer, message))
            elif message.word == "alive":
                self.alive = message.number
            elif message.word == "leave":
                leave()
            elif message.word == "reload":
                reload()
            elif (answer := self._asked.get(message.number)) and not answer.done():
                answer.set_result(message.data)
        leave()

    def _answer(self, asked: Message) -> Message:
        if not asked.data:
            return Message("told", asked.number, self.render())
        most, after = asked.data.split()
        return Message("listed", asked.number, b"".join(line + b"\n" for line in self.recent(int(most), float(after))))
