"""Which replica of a tier answers?   Pure."""

import math
import zlib
from collections.abc import Mapping, Sequence

BOUND = 1.25  # a replica takes at most this multiple of the mean load before the next one is tried
FEW = 4  # calls that crowd no replica, however idle the others are: they would fill their KV caches anew
_32 = 0xFFFFFFFF


def affinity(opening: str) -> int:
    """A hash of how a conversation began; the same for each of its turns."""
    return zlib.crc32(opening.encode("utf-8", "surrogatepass"))


def pick(replicas: Sequence[str], balance: str, load: Mapping[str, int], key: int) -> str:
    """One of `replicas` (URLs). `load` is requests in flight by replica; `key` an affinity or, for round_robin, a turn.

    prefix_affinity is rendezvous hashing with bounded loads (arXiv 1608.01350): the same conversation meets the same
    replica, and so its KV cache, unless that one is crowded. least_inflight and least_waiting (`load` is then of the
    servers' own queues) follow affinity among equals.
    """
    if len(replicas) == 1:
        return replicas[0]
    if balance == "round_robin":
        return replicas[key % len(replicas)]
    ranked = sorted(replicas, key=lambda url: _mixed(zlib.crc32(url.encode()) ^ key), reverse=True)
    if balance in ("least_inflight", "least_waiting"):
        return min(ranked, key=lambda url: load.get(url, 0))
    most = max(FEW, math.ceil(BOUND * (sum(load.get(url, 0) for url in replicas) + 1) / len(replicas)))
    return next((url for url in ranked if load.get(url, 0) < most), ranked[0])


def _mixed(value: int) -> int:
    """MurmurHash3's finalizer. CRC is linear: ranked by it alone, one of three replicas would get half of all keys."""
    value = (value ^ value >> 16) * 0x85EBCA6B & _32
    value = (value ^ value >> 13) * 0xC2B2AE35 & _32
    return value ^ value >> 16
