"""Who may call, and who administers?   `tiergate keys create|list|revoke|admin|first` on a shared store or a file."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gateway.cli.keyfile import KeyFileStore
from gateway.cli.output import Json, date, encoded, stop
from gateway.cli.store import Redis, on
from gateway.keys import ADMIN, expiry, id_of, key_problem, new_admin_key, new_key, shown
from gateway.policy import PolicyError, load_policy
from gateway.store import KeyRecord, Store

keys = typer.Typer(help="API keys, kept as keyed hashes in the shared store or in a file.", no_args_is_help=True)

T = TypeVar("T")
PAUSE = 0.5  # seconds that another `keys first`, which made the caller's key, has to make the admin key, too
File = Annotated[
    Path | None, typer.Option("--file", help="A file in the store's place; made if there is none.", metavar="FILE")
]
Limit = Annotated[int | None, typer.Option(min=1, max=100_000_000, help="In place of what the plan says.")]


@keys.command()
def create(  # noqa: PLR0913, PLR0917  (typer makes each option a parameter)
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    plan: Annotated[str | None, typer.Option(help="A plan of the policy; else its default plan.")] = None,
    expires: Annotated[str | None, typer.Option(metavar="TIME", help='From now, e.g. "30d"; else never.')] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    usd: Annotated[float | None, typer.Option(min=0.000001, max=1e6, help="Of the plan's budget window.")] = None,
    may: Annotated[list[str] | None, typer.Option(help="A tier that it may reach, with all below; repeatable.")] = None,
    explain: Annotated[bool | None, typer.Option(help="May ask for the whole decision; else as the plan says.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Check plan and tiers against this policy.")] = None,
    json: Json = False,
    redis: Redis = None,
    file: File = None,
) -> None:
    """Make a key and print it. It is shown this once: only a keyed hash is kept."""
    own: dict[str, Any] = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    own |= {"usd": usd, "explain": explain, "may": tuple(may) if may else None}
    try:
        own["expires"] = expiry(expires)
        wrong = key_problem(load_policy(policy) if policy else None, name, plan, may or ())
    except (PolicyError, ValueError) as error:
        wrong = str(error)
    if wrong:
        raise stop("keys", wrong)

    async def make(store: Store | KeyFileStore) -> tuple[str, KeyRecord]:
        key, record = new_key(await store.secret(), name, plan, **own)
        await store.put_key(record)
        return key, record

    key, record = _on(file, redis, make)
    typer.echo(encoded({"key": key, **shown(record)}) if json else key)


@keys.command()
def admin(json: Json = False, redis: Redis = None, file: File = None) -> None:
    """Make the key that opens /admin and print it, this once. It takes the place of the one that was made before.

    A gateway that has GATEWAY_ADMIN_KEY takes that one only.
    """

    async def make(store: Store | KeyFileStore) -> str:
        key, record = new_admin_key(await store.secret())
        await store.put_key(record)
        return key

    key = _on(file, redis, make)
    typer.echo(encoded({"key": key}) if json else key)


@keys.command()
def first(json: Json = False, redis: Redis = None, file: File = None) -> None:
    """Make a caller's key where there is no key at all, an admin key where there is none, and print them, this once."""

    async def make(store: Store | KeyFileStore) -> dict[str, str]:
        key, record = new_key(await store.secret(), "first")
        made = {"API key": key} if await store.put_key(record, only_first=True) else {}
        if not made and not await _administered(store):
            await asyncio.sleep(PAUSE)
        if not await _administered(store):
            key, record = new_admin_key(await store.secret())
            await store.put_key(record)
            made["admin key"] = key
        return made

    made = _on(file, redis, make)
    if json:
        typer.echo(encoded({"key": made.get("API key"), "admin_key": made.get("admin key")}))
        return
    for name, key in made.items():
        typer.echo(f"{name}: {key}")


async def _administered(store: Store | KeyFileStore) -> bool:
    return any(record.id == ADMIN for record in await store.list_keys())


@keys.command("list")
def list_(json: Json = False, redis: Redis = None, file: File = None) -> None:
    """Show all keys, the oldest first; never their secrets."""
    records = _on(file, redis, lambda store: store.list_keys())
    if json:
        typer.echo(encoded([shown(record) for record in records]))
        return
    for record in records:
        state = "active" if record.revoked is None else f"revoked {date(record.revoked)}"
        if record.expires is not None and record.revoked is None:
            state = f"{'expires' if record.expires > time.time() else 'expired'} {date(record.expires)}"
        typer.echo(f"{record.id}  {record.name}  {record.plan or '(default plan)'}  {date(record.created)}  {state}")


@keys.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID", help="The id that `keys list` shows, or the key itself.")],
    json: Json = False,
    redis: Redis = None,
    file: File = None,
) -> None:
    """End a key; every gateway on the store or the file refuses it within a second."""
    key_id = id_of(which) or which
    if not _on(file, redis, lambda store: store.revoke_key(key_id)):
        raise stop("keys", f"no key has the id {key_id}")
    typer.echo(encoded({"revoked": key_id}) if json else f"revoked {key_id}")


def _on(file: Path | None, url: str | None, work: Callable[[Store | KeyFileStore], Awaitable[T]]) -> T:
    """What `work` gives on the file, else on the store. Exits with 1 when there is neither, or it cannot be used."""
    if file is None:
        return on("keys", url, work)

    async def main() -> T:
        return await work(KeyFileStore(file))

    try:
        return asyncio.run(main())
    except (OSError, PolicyError, ValueError) as error:
        raise stop("keys", str(error)) from None
