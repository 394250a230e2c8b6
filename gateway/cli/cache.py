"""What is remembered?   `tiergate cache purge` on the shared store."""

from typing import Annotated

import typer

from gateway.cli.store import Json, Redis, encoded, on
from gateway.store import Store

cache = typer.Typer(help="Answers and verdicts that are remembered in the shared store.", no_args_is_help=True)


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
        async for count in store.purge(caller):
            total += count
            if not json:
                typer.echo(f"\r{total} forgotten", nl=False, err=True)
        return total

    total = on("cache", redis, forget)
    if json:
        typer.echo(encoded({"caller": caller, "purged": total}))
        return
    typer.echo("\r", nl=False, err=True)
    typer.echo(f"purged {total}")
