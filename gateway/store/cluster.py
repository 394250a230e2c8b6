"""Which server of a cluster holds a key?"""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import hiredis

from gateway.store.circuit import Circuit
from gateway.store.opening import Address, Word, opening
from gateway.store.pipeline import Waiting, ask_once
from gateway.store.refusals import AskError, MovedError, ResponseError
from gateway.store.words import names_in

BEAT = 0.2  # seconds between two looks at the map while a primary is down or slots move
TRY_AGAIN = 0.02  # seconds until a command is repeated whose keys are on their way from one server to another
HOPS = 24  # times that one command is sent on
WAIT = 3  # hops that a pause counts for; a command pauses for at most HOPS / WAIT * TRY_AGAIN seconds
ASKING = hiredis.pack_command((b"ASKING",))
SLOTS = 1 << 14


class Cluster:
    """A Circuit for each primary; a command goes to the owner of its first key, or of the slot of "" without a key.

    A primary is "down", not the cluster: callers on the others do not notice. The map of slots begins with the first
    seed for all, is corrected by each MOVED, and is read anew while slots move or a primary is down. A primary without
    slots is forgotten, so that a failover ends the outage of its callers. The other primaries serve on only with
    cluster-require-full-coverage no.

    While a slot is moved key by key, a decision whose keys are apart is tried again for a moment (HOPS, WAIT), and
    then falls to this process; the owner is not down for it.
    """

    def __init__(self, seeds: list[Address], url: Callable[[Address], str], on_change: Callable[[], None]) -> None:
        self._url = url
        self._on_change = on_change
        self._known = set(seeds)
        self._nodes: dict[Address, Circuit] = {}
        self._names: WeakKeyDictionary[Circuit, Address] = WeakKeyDictionary()
        self._owners = [self._node(seeds[0])] * SLOTS
        self._stale = False
        self._looking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def down(self) -> bool:
        """Whether a primary is down."""
        return any(node.down for node in self._nodes.values())

    def is_down(self, name: bytes) -> bool:
        return self._owners[key_slot(name)].down

    async def servers(self) -> list[Circuit]:
        """The primaries, by a map that is read anew."""
        await self._read_map()
        return list(set(self._owners))

    def put(self, *command: Word) -> asyncio.Future[Any]:
        return self._owner(next(iter(names_in(command)), b"")).put(*command)

    def push(self, waiting: Waiting, name: bytes) -> None:
        """As Circuit.push."""
        self._owner(name).push(waiting)

    def _owner(self, name: bytes) -> Circuit:
        node = self._owners[key_slot(name)]
        node.name = name
        return node

    def _node(self, address: Address) -> Circuit:
        found = self._nodes.get(address)
        if found is None:
            where = f"{address[0]}:{address[1]}: "
            found = Circuit(opening(self._url(address)), self._changed, where, self._elsewhere)
            self._nodes[address] = found
            self._names[found] = address
        return found

    def _changed(self) -> None:
        if self.down:
            self._look()
        self._on_change()

    def _elsewhere(self, asked: Circuit, error: ResponseError, waiting: Waiting) -> bool:
        packed, reply, hops = waiting
        if hops >= HOPS:
            if not reply.done():
                reply.set_exception(error)
        elif isinstance(error, AskError):
            host = error.host or self._names[asked][0]
            self._send_on(self._node((host, error.port)), error, (packed, reply, hops + 1))
        else:
            asyncio.get_running_loop().call_later(TRY_AGAIN, asked.push, (packed, reply, hops + WAIT))
        return True

    def _send_on(self, node: Circuit, error: AskError, waiting: Waiting) -> None:
        if isinstance(error, MovedError):
            self._owners[error.slot] = node
            self._look()
        else:
            node.push((ASKING, _ignored(), HOPS))
        node.push(waiting)

    def _look(self) -> None:
        """Have the map read soon, by one task, however often this is called."""
        self._stale = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        while self._stale or self.down:
            self._stale = False
            await self._read_map()
            await asyncio.sleep(BEAT)

    async def _read_map(self) -> None:
        """Ask servers that answer before those that failed: one that was away has an old map."""
        well = {address for address, node in self._nodes.items() if not node.down}
        for addresses in (well, self._known - well):
            host, found = await self._first_map(addresses)
            if found:
                self._adopt(host, found)
                return

    async def _first_map(self, addresses: Iterable[Address]) -> tuple[str, list[Any]]:
        """The map that covers the most slots, and the host that gave it."""
        servers = list(addresses)
        maps = await asyncio.gather(*(ask_once(opening(self._url(server)), b"CLUSTER", b"SLOTS") for server in servers))
        told = [(host, found or []) for (host, _), found in zip(servers, maps, strict=True)]
        return max(told, key=lambda one: _covered(one[1]), default=("", []))

    def _adopt(self, asked: str, found: list[Any]) -> None:
        owners = self._owners[:]
        for first, last, *servers in found:
            addresses = [(_text(host) or asked, port) for host, port, *_ in servers]
            owners[first : last + 1] = [self._node(addresses[0])] * (last + 1 - first)
            self._known.update(addresses)
        self._owners = owners
        for address in self._nodes.keys() - {self._names[node] for node in set(owners)}:
            self._forget(address)

    def _forget(self, address: Address) -> None:
        node = self._nodes.pop(address)
        node.well()
        closing = asyncio.create_task(node.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await asyncio.gather(*self._closing, *(node.close() for node in self._nodes.values()))


def key_slot(name: bytes) -> int:
    """The slot of a key, as the cluster computes it: of what stands in its first pair of braces, if that is not
    empty."""
    _, mark, rest = name.partition(b"{")
    tag, end, _ = rest.partition(b"}")
    return crc_hqx(tag if mark and end and tag else name, 0) % SLOTS


def _ignored() -> asyncio.Future[Any]:
    """For a reply that nobody reads."""
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    reply.add_done_callback(lambda done: done.cancelled() or done.exception())
    return reply


def _covered(found: list[Any]) -> int:
    return sum(last + 1 - first for first, last, *_ in found)


def _text(host: bytes | None) -> str:
    return (host or b"").decode()
