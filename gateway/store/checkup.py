"""How are the servers of a store set up?"""

import time
from typing import NamedTuple

from gateway.store.address import checked, open_door
from gateway.store.circuit import Circuit
from gateway.store.line import FAULTS
from gateway.store.outage import unavailable


class ServerSetup(NamedTuple):
    """What a server tells of itself. `ahead`: seconds that its clock is before ours. `evicts`: the policy by which it
    drops keys when its memory is full. `saves`: what it holds outlasts its end. `took`: seconds for an answer.
    """

    version: str
    ahead: float
    evicts: str
    saves: bool
    took: float


async def setups(url: str) -> list[ServerSetup]:
    """All servers that hold keys. Raises ValueError for no address of a store, Overloaded where one does not answer."""
    door = open_door(checked(url), lambda: None)
    try:
        return [await _asked(server) for server in await door.servers()]
    except FAULTS as error:
        raise unavailable() from error
    finally:
        await door.close()


async def _asked(server: Circuit) -> ServerSetup:
    told = (await server.put(b"INFO")).decode("utf-8", "replace").splitlines()
    info = dict(line.split(":", 1) for line in told if ":" in line)
    before = time.time()
    seconds, micros = await server.put(b"TIME")
    after = time.time()
    return ServerSetup(
        version=info.get("valkey_version") or info.get("redis_version", "unknown"),
        ahead=int(seconds) + int(micros) / 1e6 - (before + after) / 2,
        evicts=info.get("maxmemory_policy", "unknown") if info.get("maxmemory", "0") != "0" else "noeviction",
        saves=info.get("aof_enabled") == "1",
        took=after - before,
    )
