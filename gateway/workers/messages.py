"""What do supervisor and workers say to each other?

Messages on a unix stream socket: one line `word number length`, then `length` bytes. When the stream ends, the process
at its other end is gone.

    worker -> supervisor    serving 0        I serve callers
                            here 0           my event loop turns: every BEAT seconds from then on
                            ask ID           what are the metrics of all workers, summed?
                            ask ID + "N T"   what are the N newest records since T of each worker?
                            told ID          my own metrics, for the supervisor's question ID
                            listed ID        my own records, likewise
    supervisor -> worker    tell ID          send your metrics, or with "N T" your records
                            all ID           the answer to your question ID
                            alive COUNT      so many workers serve
                            reload 0         look at the policy's file
                            leave 0          begin to drain; when it comes again: end at once
"""

import asyncio
from typing import NamedTuple

BEAT = 2.0  # seconds


class Message(NamedTuple):
    word: str
    number: int
    data: bytes = b""


def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Not awaited: both ends read all the time, so nothing piles up. To a process that is gone it does nothing."""
    word, number, data = message
    if not writer.is_closing():  # uvloop raises
        writer.write(f"{word} {number} {len(data)}\n".encode() + data)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the other end is gone."""
    try:
        word, number, length = (await reader.readuntil(b"\n")).split()
        return Message(word.decode(), int(number), await reader.readexactly(int(length)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
