"""How are server-sent events parsed and written?   (WHATWG HTML, 9.2.6)"""

import re
from collections.abc import Callable

# Line ends are CR LF, LF or CR and nothing else: U+2028 and U+0085 are text.
_BLANK = re.compile(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)")
_LINE = re.compile(rb"\r\n|\n|\r")

DONE = b"[DONE]"
CR, LF = 13, 10  # `in` is faster with an int than with bytes, which it first tries to read as one


class Splitter:
    """Cuts a byte stream into whole events. Joined, the events and the rest are the stream, byte for byte."""

    __slots__ = ("_at", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._at = 0

    def __len__(self) -> int:
        """Bytes held back: an event whose end has not come."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, blank line included. How `data` is cut changes nothing in them."""
        if whole := self.plain(data):
            return split(data, whole)  # what servers send, ten times as fast
        self._rest += data
        events, start = [], 0
        for blank in _BLANK.finditer(self._rest, self._at):
            if blank.end() == len(self._rest) and self._rest.endswith(b"\r"):
                break  # a line feed may follow that belongs to this line end
            events.append(bytes(self._rest[start : blank.end()]))
            start = blank.end()
        del self._rest[:start]
        self._at = max(0, len(self._rest) - 3)  # a blank line has at most four bytes
        return events

    def plain(self, data: bytes) -> int:
        """The number of events in `data`, if it is whole events with line feeds only and nothing is held back; else
        0."""
        if self._rest or CR in data:
            return 0
        if data.partition(b"\n")[2] == b"\n":
            return 1  # of one line, as nearly all are
        return data.count(b"\n\n") if data[-2:] == b"\n\n" and data[-3:] != b"\n\n\n" else 0

    def rest(self) -> bytes:
        """What is left when the stream has ended: an event whose end was never sure."""
        return bytes(self._rest)

    def said(self, data: bytes) -> list[bytes]:
        """As `feed`, but of each event its data (`data_of`)."""
        if not self._rest and data[:6] == b"data: " and data[-2:] == b"\n\n" and CR not in data:
            found = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(found):  # then each is of one line
                return found
        return [data_of(event) for event in self.feed(data)]


def split(data: bytes, whole: int) -> list[bytes]:
    """The events of `data`, which are so many (`whole`) whole ones with line feeds only."""
    return [data] if whole == 1 else [event + b"\n\n" for event in data[:-2].split(b"\n\n")]


def events_of(data: bytes) -> list[bytes]:
    """The events of `data`, which ends with one: no line feed will follow its last carriage return."""
    splitter = Splitter()
    events = splitter.feed(data)
    return [*events, rest] if (rest := splitter.rest()) else events


def data_of(event: bytes) -> bytes:
    """The event's data, its `data:` lines joined by a line feed; b"" for a comment."""
    if event[:6] == b"data: " and event.partition(b"\n")[2] == b"\n" and CR not in event:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in _LINE.split(event) if line.startswith(b"data:")]
    return b"\n".join(lines)


def none_like(_: bytes) -> bool:
    return False


def alike(event: bytes, text: bytes) -> Callable[[bytes], bool]:
    """Returns a test whether bytes are this same event with another string after the first `text` (such as "content":")
    in it: the bytes before and behind that string are equal, and it has no line end or quote of its own.
    """
    if event.find(b"\n\n") < len(event) - 2:
        return none_like
    head, opens, rest = event.partition(text)
    _, closes, tail = rest.partition(b'"')
    if not closes:
        return none_like
    head += opens
    before, behind = slice(len(head)), slice(len(head), None)

    def like(data: bytes) -> bool:
        if data[before] != head:
            return False
        string, _, rest = data[behind].partition(b'"')
        return rest == tail and not (LF in string or CR in string)

    return like


def event(data: bytes) -> bytes:
    """One event that carries `data`, which has no line end."""
    return b"data: " + data + b"\n\n"


def named_event(name: str, data: bytes) -> bytes:
    """One event with a name."""
    return b"event: " + name.encode() + b"\n" + event(data)
