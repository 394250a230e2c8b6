"""What is remembered?   `tiergate cache purge` on the shared store."""

from typing import Annotated

import typer

from gateway.cli.output import Json, encoded
from gateway.cli.progress import counting
from gateway.cli.store import Redis, on
from gateway.store import Store

cache = typer.Typer(no_args_is_help=True)


@cache.callback()
def main() -> None:
    """Answers and verdicts that are remembered in the shared store."""


@cache.command()
def purge(
    caller: Annotated[str | None, typer.Option(metavar="ID", help="Of this caller only: its key's id.")] = None,
    json: Json = False,
    redis: Redis = None,
) -> None:
    """Forget what is remembered, while gateways go on. Keys and limits stay."""

    async def forget(store: Store) -> int:
        total = 0
        with counting("forgotten") as tell:
            async for count in store.purge(caller):
                total += count
                tell(total)
        return total

    total = on("cache", redis, forget)
    typer.echo(encoded({"caller": caller, "purged": total}) if json else f"purged {total}")
