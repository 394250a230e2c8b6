"""Who may call?   `tiergate keys create|list|revoke` on the shared store."""

import time
from typing import Annotated

import msgspec
import typer

from gateway.admission import new_key
from gateway.cli.shared import Json, Redis, on_store, stop
from gateway.store import KeyRecord, Store

keys = typer.Typer(help="API keys of callers, kept as keyed hashes in the shared store.", no_args_is_help=True)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    plan: Annotated[str | None, typer.Option(help="A plan of the policy; else its default plan.")] = None,
    if_none: Annotated[bool, typer.Option("--if-none", help="Only if the store has no key; else say nothing.")] = False,
    json: Json = False,
    redis: Redis = None,
) -> None:
    """Make a key and print it. It is shown this once: the store keeps only a keyed hash."""

    async def make(store: Store) -> tuple[str, KeyRecord] | None:
        key, record = new_key(await store.secret(), name, plan)
        return (key, record) if await store.put_key(record, only_first=if_none) else None

    made = on_store("keys", redis, make)
    if made is None:
        return
    key, record = made
    typer.echo(_encode({"key": key, **_shown(record)}) if json else key)


@keys.command("list")
def list_(json: Json = False, redis: Redis = None) -> None:
    """Show all keys, the oldest first; never their secrets."""
    records = on_store("keys", redis, lambda store: store.list_keys())
    if json:
        typer.echo(_encode([_shown(record) for record in records]))
        return
    for record in records:
        state = "active" if record.revoked is None else f"revoked {_date(record.revoked)}"
        typer.echo(f"{record.id}  {record.name}  {record.plan or '(default plan)'}  {_date(record.created)}  {state}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `keys list` shows.")], redis: Redis = None
) -> None:
    """End a key; every gateway on the store refuses it within a second."""
    if not on_store("keys", redis, lambda store: store.revoke_key(key_id)):
        raise stop("keys", f"no key has the id {key_id}")
    typer.echo(f"revoked {key_id}")


def _shown(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "plan": record.plan,
        "created": record.created,
        "revoked": record.revoked,
    }


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
