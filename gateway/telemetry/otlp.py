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

REMOTE_KNOWN, REMOTE = 0x100, 0x200  # flags: whether the parent is elsewhere is known, and so it is
_TIMES, _DOUBLE, _FLAGS = struct.Struct("<BQBQ").pack, struct.Struct("<d").pack, struct.Struct("<HI").pack
_SHORT = [bytes([number]) for number in range(128)]
_TAGS = [bytes([field << 3 | 2]) for field in range(16)]  # of fields that say how long they are


def request(resource: Resource, scope: InstrumentationScope, spans: Iterable[ReadableSpan]) -> bytes:
    """An ExportTraceServiceRequest: spans of one resource and scope."""
    named = text(1, scope.name) + text(2, scope.version or "")
    whole = block(1, named) + b"".join([block(2, span(one)) for one in spans])
    return block(1, block(1, attributes(1, resource.attributes)) + block(2, whole))


def span(one: ReadableSpan) -> bytes:
    """A Span, without events and links."""
    place, parent = one.context, one.parent
    flags = REMOTE_KNOWN | (REMOTE if parent and parent.is_remote else 0)
    return b"".join(
        (
            block(1, place.trace_id.to_bytes(16, "big")),
            block(2, place.span_id.to_bytes(8, "big")),
            text(3, place.trace_state.to_header()) if place.trace_state else b"",
            block(4, parent.span_id.to_bytes(8, "big")) if parent else b"",
            text(5, one.name),
            b"\x30" + _SHORT[one.kind.value + 1],
            _TIMES(0x39, one.start_time or 0, 0x41, one.end_time or 0),
            attributes(9, one.attributes or {}),
            block(15, _SHORT[0x18] + _SHORT[one.status.status_code.value]),
            _FLAGS(0x0185, flags),
        )
    )


def attributes(field: int, told: Mapping[str, Any]) -> bytes:
    """Pairs of a name and a text, a number, a truth, or a tuple of those."""
    return b"".join([(measured if type(what) is float else named)(field, name, what) for name, what in told.items()])


@lru_cache(1024, typed=True)
def named(field: int, name: str, what: Any) -> bytes:
    """A pair; most come with each span again."""
    return block(field, text(1, name) + block(2, value(what)))


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


def measured(field: int, name: str, what: float) -> bytes:
    return _before(field, name) + _DOUBLE(what)


@lru_cache(64)
def _before(field: int, name: str) -> bytes:
    """What comes before the eight bytes of a number that was measured."""
    return block(field, text(1, name) + block(2, value(0.0)))[:-8]


def text(field: int, what: str) -> bytes:
    return block(field, what.encode(errors="replace"))


def block(field: int, data: bytes) -> bytes:
    """A field that says how long it is."""
    count = len(data)
    return _TAGS[field] + (_SHORT[count] if count < 128 else varint(count)) + data


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; of what is below 0 the 64 bits."""
    found, number = bytearray(), number % (1 << 64)
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
