"""How much memory may the gateway take?"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Where the kernel tells a container's limit, by version of cgroups.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def allowed(limits: Iterable[Path] = LIMITS) -> int:
    """Bytes: what the machine has, or the container's limit where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in limits:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            found.append(int(limit.read_text()))
    return min(found)
