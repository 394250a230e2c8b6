"""A sentinel names another primary; the store asks and follows."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.store import Limits, Store, open_store
from loadtest.clusters import Node, free_ports, until

ONE = Limits(1, 100, 60.0)
PLENTY = Limits(1_000_000, 100_000, 60.0)
OPTIONS = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
WATCH = """
bind 127.0.0.1
port {port}
dir {place}
sentinel monitor main 127.0.0.1 {primary} 1
sentinel down-after-milliseconds main 300
sentinel failover-timeout main 2000
"""


@contextmanager
def watched() -> Iterator[tuple[Node, Node, Node]]:
    """A primary, its replica, and the sentinel that watches them."""
    with tempfile.TemporaryDirectory(prefix="tiergate-") as name:
        place = Path(name)
        one, other, eye = free_ports(3)
        nodes = (Node(one, place, OPTIONS), Node(other, place, OPTIONS), Node(eye, place, []))
        conf = place / "sentinel.conf"
        conf.write_text(WATCH.format(port=eye, place=place, primary=one))
        nodes[2].command = [nodes[0].command[0], str(conf), "--sentinel"]
        try:
            nodes[0].start()
            nodes[1].start()
            nodes[1].ask("REPLICAOF", "127.0.0.1", one)
            until(lambda: bool(nodes[0].ask("ROLE")[2]))
            nodes[2].start()
            until(lambda: len(nodes[2].ask("SENTINEL", "REPLICAS", "main")) == 1)
            yield nodes
        finally:
            for node in nodes:
                node.close()


def url(eye: Node) -> str:
    """The first of the sentinels is gone."""
    return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{eye.port}/main/0"


async def spend(store: Store) -> bool:
    return (await store.admit("ann", ONE, None)).allowed


async def shared_again(store: Store) -> float:
    """Seconds until the servers decide. Raises AssertionError after ten."""
    started = time.monotonic()
    while store.state != "ok" or not await store.ping():
        await store.admit("bob", PLENTY, None)
        assert time.monotonic() - started < 10.0
        await asyncio.sleep(0.02)
    return time.monotonic() - started


def test_a_killed_primary_is_followed_by_the_one_that_the_sentinel_promotes() -> None:
    async def main(primary: Node, replica: Node, eye: Node) -> None:
        store = open_store(url(eye))
        assert await store.ping()
        assert [await spend(store), await spend(store)] == [True, False]
        assert await asyncio.to_thread(primary.replicated)
        primary.kill()
        started = time.perf_counter()
        assert (await store.admit("bob", PLENTY, None)).allowed
        assert time.perf_counter() - started <= 0.25
        assert store.state == "down"
        print(f"decided locally for {await shared_again(store):.2f} s")
        assert not await spend(store)
        assert replica.ask("ROLE")[0] == b"master"
        await store.close()

    with watched() as (primary, replica, eye):
        asyncio.run(main(primary, replica, eye))


def test_a_primary_that_answers_as_a_replica_makes_the_store_ask_again() -> None:
    async def main(primary: Node, replica: Node, eye: Node) -> None:
        store = open_store(url(eye))
        assert await store.ping()
        eye.ask("SENTINEL", "REMOVE", "main")
        replica.ask("REPLICAOF", "NO", "ONE")
        primary.ask("REPLICAOF", "127.0.0.1", replica.port)
        eye.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", replica.port, 1)
        assert (await store.admit("bob", PLENTY, None)).allowed
        assert store.state == "down"
        await shared_again(store)
        await store.remember("ann", b"key", b"there", 60.0)
        assert replica.ask("DBSIZE") >= 1
        assert await store.recall("ann", b"key") == b"there"
        await store.close()

    with watched() as (primary, replica, eye):
        asyncio.run(main(primary, replica, eye))


def test_sentinels_that_are_gone_cost_no_request() -> None:
    async def main() -> None:
        store = open_store("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main")
        started = time.perf_counter()
        assert (await store.admit("ann", PLENTY, None)).allowed
        assert time.perf_counter() - started <= 0.25
        assert store.state == "down"
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("rest", ["127.0.0.1:1", "127.0.0.1:1/", "127.0.0.1:1//0"])
def test_an_address_without_a_service_is_refused(rest: str) -> None:
    with pytest.raises(ValueError, match="service"):
        open_store(f"redis+sentinel://{rest}")
