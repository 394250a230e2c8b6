"""How much memory may the gateway take?"""

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Where the kernel tells a container's limit, by version of cgroups.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
LARGE = 128 * 1024  # bytes: bodies, and a TLS connection's buffer
_THRESHOLDS = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h; both begin at LARGE


def allowed(limits: Iterable[Path] = LIMITS) -> int:
    """Bytes: what the machine has, or the container's limit where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in limits:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            found.append(int(limit.read_text()))
    return min(found)


def give_back_large() -> None:
    """From here on large pieces go back to the system when they are freed. glibc does so until the first one is freed;
    then it keeps room for the next, with whatever small has come to lie between."""
    for threshold in _THRESHOLDS:
        with suppress(AttributeError):  # another libc
            ctypes.CDLL(None).mallopt(threshold, LARGE)
