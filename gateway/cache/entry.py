"""How is an answer stored, so that it can be read back only whole, under its key and by its caller?"""

import hmac
import zlib
from functools import lru_cache
from hashlib import blake2b

import msgspec

from gateway.types import Caller

LONGEST = 2 << 20  # bytes of an answer; a longer one is not remembered
SMALL = 1024  # bytes below which compressing is not worth its time
LEVEL = 3  # 43 kB of SSE: 29 us to 1.2 kB; level 1 34 us, 6 87 us to 1.0 kB (zlib 1.2.13, 2 cores, 2026-11-22)
MARK, PLAIN, PACKED = b"3", b"p", b"z"
SEAL = 16  # bytes


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """An answer as it is remembered: its form, content type, the server's own usage object (JSON), who gave it."""

    form: bytes
    kind: bytes
    usage: bytes
    tier: str
    rule: str
    data: bytes


_ENTRY = msgspec.msgpack.Decoder(Entry)
_OVERHEAD = 64 * 1024  # bytes that an entry has beside its data at most


def packed(entry: Entry, key: bytes, caller: Caller) -> bytes:
    """The entry's bytes for the store; `unpacked` accepts them only under this key, for this caller."""
    return sealed(msgspec.msgpack.encode(entry), key, caller)


def unpacked(data: bytes, key: bytes, caller: Caller) -> Entry | None:
    """The entry; None for what was not packed under this key for this caller, or is not whole."""
    found = unsealed(data, key, caller)
    try:
        return _ENTRY.decode(found) if found is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def sealed(data: bytes, key: bytes, caller: Caller) -> bytes:
    """`data` compressed where that is worth it, behind a digest of itself, `key` and the caller's secret."""
    packed, how = (data, PLAIN) if len(data) < SMALL else (zlib.compress(data, LEVEL), PACKED)
    return MARK + how + _seal(key, caller, how, packed) + packed


def unsealed(value: bytes, key: bytes, caller: Caller) -> bytes | None:
    """What was sealed; None for anything else. What is unpacked is bounded."""
    mark, how, seal, packed = value[:1], value[1:2], value[2 : 2 + SEAL], value[2 + SEAL :]
    if mark != MARK or not hmac.compare_digest(seal, _seal(key, caller, how, packed)):
        return None
    if how == PLAIN:
        return packed
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, LONGEST + _OVERHEAD)
    except zlib.error:
        return None
    return data if unpacker.eof and not unpacker.unused_data else None


def _seal(key: bytes, caller: Caller, how: bytes, packed: bytes) -> bytes:
    return digest(caller, b"entry" + key + how, packed)[:SEAL]


def digest(caller: Caller, begin: bytes, rest: bytes) -> bytes:
    """A 32-byte hash of two parts behind each other, keyed with the caller's secret. To join long ones would take a
    copy.

    By BLAKE2b, made to be keyed: a third of the instructions that HMAC with SHA-256 takes in OpenSSL, which looks for
    its algorithm each time.
    """
    keyed = _keyed(caller.salt).copy()
    keyed.update(begin)
    keyed.update(rest)
    return keyed.digest()


@lru_cache(maxsize=4096)
def _keyed(salt: str) -> blake2b:
    return blake2b(key=salt.encode(), digest_size=32)
