"""What do supervisor and workers say to each other?

Messages on a unix stream: one line `word number length`, then `length` bytes. A line that ends is a process that ended.

    worker -> supervisor    serving 0        callers are served here
                            ask ID           what do the metrics of us all come to?
                            ask ID + "N T"   what are the N newest records since T of each of us?
                            told ID          my own metrics, for the question ID
                            listed ID        my own records
    supervisor -> worker    tell ID          say your metrics, or with "N T" your records
                            all ID           what all of us said
                            alive COUNT      so many of us serve
                            reload 0         look at the policy's file
                            leave 0          begin to leave; again: end at once
"""

import asyncio
from typing import NamedTuple


class Message(NamedTuple):
    word: str
    number: int
    data: bytes = b""


def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Both ends read all the time, so nothing piles up; who has ended hears nothing."""
    word, number, data = message
    writer.write(f"{word} {number} {len(data)}\n".encode() + data)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the other end is gone."""
    try:
        word, number, length = (await reader.readuntil(b"\n")).split()
        return Message(word.decode(), int(number), await reader.readexactly(int(length)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
