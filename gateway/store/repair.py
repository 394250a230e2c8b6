"""What happens to a key of ours that holds a value of the wrong type?"""

import logging
from typing import Any, Final

from gateway.store.address import Door
from gateway.store.opening import Word
from gateway.store.refusals import ResponseError
from gateway.store.words import names_in

# The type that each of our keys holds, by the part of its name after the caller's.
TYPES = {
    b"account": b"hash",
    b"leases": b"zset",
    b"ledger": b"hash",
    b"pushed": b"string",
    b"entry": b"string",
    b"keys": b"hash",
    b"secret": b"string",
    b"kept": b"string",
    b"processes": b"zset",
    b"records": b"stream",
}
# KEYS  names in one slot; ARGV  the type of each. -> the names whose keys held another type and were deleted
REPAIR: Final = b"""
local deleted = {}
for i, name in ipairs(KEYS) do
  local found = redis.call('TYPE', name).ok
  if found ~= 'none' and found ~= ARGV[i] then
    redis.call('DEL', name)
    deleted[#deleted + 1] = name
  end
end
return deleted
"""

log = logging.getLogger(__name__)


async def asked(door: Door, *command: Word) -> Any:
    """The reply to a command; where its keys hold a wrong type, they are deleted and it is repeated once."""
    try:
        return await door.put(*command)
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
    await _repair(door, names_in(command))
    return await door.put(*command)


async def _repair(door: Door, names: list[bytes]) -> None:
    types = {name: TYPES[kind] for name in names if (kind := _kind(name)) in TYPES}
    if not types:
        return
    for name in await door.put(b"EVAL", REPAIR, len(types), *types, *types.values()):
        log.warning("store repaired: a key held a wrong type and was deleted: %r", name)


def _kind(name: bytes) -> bytes:
    """`leases` of `tg5:{caller}:leases`, `keys` of `tg1:keys`."""
    _, _, rest = name.partition(b":")
    return (rest.partition(b"}:")[2] or rest).partition(b":")[0]
