"""How does a span look on the way to a collector?   OTLP's protobuf, put together without messages in between.

The SDK makes a message of each attribute, and copies it into one after another: five times as many instructions
(2026-11-22). Numbers of fields are those of opentelemetry-proto's trace/v1/trace.proto and common/v1/common.proto.
"""

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

REMEMBERED = 1024  # pairs
REMOTE_KNOWN, REMOTE = 0x100, 0x200  # flags: whether the parent is elsewhere is known, and so it is
_TIMES, _DOUBLE, _FLAGS = struct.Struct("<BQBQ").pack, struct.Struct("<d").pack, struct.Struct("<HI").pack
_SHORT = [bytes([number]) for number in range(128)]
_KINDS = [b"\x30" + _SHORT[kind + 1] for kind in range(5)]  # by the SDK's number, of which `.value` takes 2,000 steps
_STATUSES = [b"\x7a\x02\x18" + _SHORT[code] for code in range(3)]
_TAGS = [bytes([field << 3 | 2]) for field in range(16)]  # of fields that say how long they are


def request(resource: Resource, scope: InstrumentationScope, spans: Iterable[ReadableSpan]) -> bytes:
    """An ExportTraceServiceRequest: spans of one resource and scope."""
    named = text(1, scope.name) + text(2, scope.version or "")
    whole = block(1, named) + b"".join([block(2, span(one)) for one in spans])
    return block(1, block(1, _OF_RESOURCES.text(resource.attributes)) + block(2, whole))


def span(one: ReadableSpan) -> bytes:
    """A Span, without events and links."""
    place, parent = one.context, one.parent
    flags = REMOTE_KNOWN | (REMOTE if parent and parent.is_remote else 0)
    return b"".join(
        (
            b"\x0a\x10" + place.trace_id.to_bytes(16, "big") + b"\x12\x08" + place.span_id.to_bytes(8, "big"),
            text(3, place.trace_state.to_header()) if place.trace_state else b"",
            b"\x22\x08" + parent.span_id.to_bytes(8, "big") if parent else b"",
            text(5, one.name),
            _KINDS[one.kind._value_],
            _TIMES(0x39, one.start_time or 0, 0x41, one.end_time or 0),
            _OF_SPANS.text(one.attributes or {}),
            _STATUSES[one.status.status_code._value_],
            _FLAGS(0x0185, flags),
        )
    )


class Pairs(dict[tuple[str, Any], bytes]):
    """A cache of encoded attributes, by name and value: most come again with each span. Measured values (float) are not
    cached. All values of a name must have one type: True would be taken for 1."""

    def __init__(self, field: int) -> None:
        super().__init__()
        self._field = field

    def __missing__(self, pair: tuple[str, Any]) -> bytes:
        name, what = pair
        if isinstance(what, float):
            return _before(self._field, name) + _DOUBLE(what)
        if len(self) >= REMEMBERED:
            self.clear()
        found = self[pair] = block(self._field, text(1, name) + block(2, value(what)))
        return found

    def text(self, told: Mapping[str, Any]) -> bytes:
        """Names with a text, a number, a truth, or a tuple of those."""
        return b"".join(map(self.__getitem__, told.items()))


@lru_cache(64)
def _before(field: int, name: str) -> bytes:
    """What comes before the eight bytes of a number that was measured."""
    return block(field, text(1, name) + block(2, value(0.0)))[:-8]


_OF_SPANS, _OF_RESOURCES = Pairs(9), Pairs(1)


def value(what: Any) -> bytes:
    if isinstance(what, str):
        return text(1, what)
    if isinstance(what, bool):
        return b"\x10\x01" if what else b"\x10\x00"
    if isinstance(what, int):
        return b"\x18" + varint(what)
    if isinstance(what, float):
        return b"\x21" + _DOUBLE(what)
    return block(5, b"".join([block(1, value(one)) for one in what]))


def text(field: int, what: str) -> bytes:
    return block(field, what.encode(errors="replace"))


def block(field: int, data: bytes) -> bytes:
    """A length-delimited field."""
    count = len(data)
    return _TAGS[field] + (_SHORT[count] if count < 128 else varint(count)) + data


def varint(number: int) -> bytes:
    """A protobuf varint; a negative number is encoded as 64 bits."""
    found, number = bytearray(), number % (1 << 64)
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
