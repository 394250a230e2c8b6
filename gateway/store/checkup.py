"""How are the servers of a store set up?"""

import time

from gateway.store.address import checked, open_door
from gateway.store.circuit import Circuit
from gateway.store.contract import ServerSetup
from gateway.store.outage import unavailable
from gateway.store.pipeline import FAULTS


async def asked(url: str) -> list[ServerSetup]:
    """See gateway.store.setups."""
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
        refuses=await _refusal(server),
    )


async def _refusal(server: Circuit) -> str | None:
    """Asked last: a server that refuses is left alone."""
    try:
        await server.probe()
    except FAULTS as error:
        return str(error).rstrip(".")
    return None
