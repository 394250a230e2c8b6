"""For how long does a key still open the door after it was revoked?"""

import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.cli.keyfile import KeyFileStore
from gateway.http1 import Client
from gateway.key_records import as_revoked, new_key
from gateway.store import Store, open_store
from loadtest.faults.client import ask
from loadtest.servers import gateway, policy, sim, valkey

PAUSE = 0.01  # seconds between two requests to a gateway
PATIENCE = 5.0  # seconds after which a key that is still good is told as such
Keeper = Store | KeyFileStore


async def asking(client: Client, url: str, line: str, good: list[float]) -> None:
    """Ask until the key is refused; `good` gets the time.perf_counter() of each request that was answered."""
    while (outcome := await ask(client, url, headers=line)).status != 401:  # 503: the store did not answer in time
        if outcome.status == 200:
            good.append(outcome.started)
        await asyncio.sleep(PAUSE)


async def revoked(client: Client, keeper: Keeper, urls: Sequence[str], before: float) -> list[float]:
    """Seconds from the revocation of a fresh key to the last request that each gateway answered; the key has been in
    use for `before` seconds. Raises TimeoutError."""
    key, record = new_key(await keeper.secret(), "revoked")
    await keeper.put_key(record)
    await asyncio.sleep(1.0)  # a file is looked at so often
    seen: list[list[float]] = [[] for _ in urls]
    line = f"authorization: Bearer {key}"
    tasks = [asyncio.create_task(asking(client, url, line, good)) for url, good in zip(urls, seen, strict=True)]
    await asyncio.sleep(before)
    at = time.perf_counter()
    await keeper.change_key(record.id, as_revoked)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*tasks)
    return [max(0.0, good[-1] - at) for good in seen]


async def drive(store: str, file: Path, urls: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    client, door, draw = Client(), open_store(store), random.Random(4)
    keepers: dict[str, Keeper] = {"store": door, "file": KeyFileStore(file)}
    found: dict[str, list[float]] = {name: [] for name in keepers}
    try:
        for _ in range(rounds):
            before = draw.uniform(0.2, 1.2)  # wherever in the time for which a record is believed
            every = await asyncio.gather(*(revoked(client, keepers[name], urls[name], before) for name in keepers))
            for name, times in zip(keepers, every, strict=True):
                found[name] += times
    finally:
        client.close()
        await door.close()
    return found


async def first(keeper: Keeper) -> None:
    """A gateway that has no key serves everyone."""
    await keeper.put_key(new_key(await keeper.secret(), "first")[1])


async def prepare(store: str, file: Path) -> None:
    door = open_store(store)
    await first(door)
    await door.close()
    await first(KeyFileStore(file))


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds by where the keys are kept, two gateways each."""
    with contextlib.ExitStack() as stack:
        flash = stack.enter_context(sim("flash", "--speed", "0"))
        store = stack.enter_context(valkey())
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys.json"
        asyncio.run(prepare(store, file))
        started = {
            "store": [gateway(policy(), flash, flash, store) for _ in range(2)],
            "file": [gateway(policy(), flash, flash, "", GATEWAY_KEYS_FILE=str(file)) for _ in range(2)],
        }
        urls = {name: [stack.enter_context(one) for one in two] for name, two in started.items()}
        return asyncio.run(drive(store, file, urls, rounds))


def report(rounds: int) -> None:
    print(f"{rounds} keys revoked, two gateways each: seconds until the last request that was still answered")
    for name, times in measure(rounds).items():
        print(f"  keys in a {name:<6} median {statistics.median(times):.2f}  most {max(times):.2f}")
