"""How do recorded decisions leave the shared store?   `tiergate records`"""

import sys

from gateway.cli.store import Redis, on
from gateway.store import Store


def records(redis: Redis = None) -> None:
    """Print the decisions that `record.stream` keeps in the shared store, as JSON lines, the oldest first."""

    async def written(store: Store) -> bool:
        some = False
        async for lines in store.noted():
            sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
            some = True
        return some

    if not on("records", redis, written):
        print("tiergate records: there are none: the policy's `record.stream` says how many are kept", file=sys.stderr)
