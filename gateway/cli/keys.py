"""Who may call?   `tiergate keys create|list|revoke` on the shared store."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.callers import new_key
from gateway.cli.store import Json, Redis, date, encoded, on, stop
from gateway.policy import PolicyError, load_policy, seconds
from gateway.store import KeyRecord, Store

keys = typer.Typer(help="API keys of callers, kept as keyed hashes in the shared store.", no_args_is_help=True)

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
    policy: Annotated[Path | None, typer.Option(help="Check plan and tiers against this policy.")] = None,
    if_none: Annotated[bool, typer.Option("--if-none", help="Only if the store has no key; else say nothing.")] = False,
    json: Json = False,
    redis: Redis = None,
) -> None:
    """Make a key and print it. It is shown this once: the store keeps only a keyed hash."""
    own: dict[str, Any] = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    own |= {"usd": usd, "may": tuple(may) if may else None, "expires": _until(expires)}
    _known(policy, plan, may or [])

    async def make(store: Store) -> tuple[str, KeyRecord] | None:
        key, record = new_key(await store.secret(), name, plan)
        record = replace(record, **own)
        return (key, record) if await store.put_key(record, only_first=if_none) else None

    made = on("keys", redis, make)
    if made is None:
        return
    key, record = made
    typer.echo(encoded({"key": key, **_shown(record)}) if json else key)


def _until(expires: str | None) -> float | None:
    try:
        return None if expires is None else time.time() + seconds(expires)
    except ValueError as error:
        raise stop("keys", str(error)) from None


def _known(policy: Path | None, plan: str | None, may: list[str]) -> None:
    """Exits with 1 when the policy does not have the plan or a tier."""
    if policy is None:
        return
    try:
        found = load_policy(policy)
    except PolicyError as error:
        raise stop("keys", str(error)) from None
    if plan is not None and plan not in found.callers.plans:
        raise stop("keys", f"no plan is named {plan}: {', '.join(found.callers.plans)}")
    if wrong := [tier for tier in may if tier not in found.tiers]:
        raise stop("keys", f"no tier is named {wrong[0]}: {', '.join(found.tiers)}")


@keys.command("list")
def list_(json: Json = False, redis: Redis = None) -> None:
    """Show all keys, the oldest first; never their secrets."""
    records = on("keys", redis, lambda store: store.list_keys())
    if json:
        typer.echo(encoded([_shown(record) for record in records]))
        return
    for record in records:
        state = "active" if record.revoked is None else f"revoked {date(record.revoked)}"
        if record.expires is not None and record.revoked is None:
            state = f"{'expires' if record.expires > time.time() else 'expired'} {date(record.expires)}"
        typer.echo(f"{record.id}  {record.name}  {record.plan or '(default plan)'}  {date(record.created)}  {state}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `keys list` shows.")], redis: Redis = None
) -> None:
    """End a key; every gateway on the store refuses it within a second."""
    if not on("keys", redis, lambda store: store.revoke_key(key_id)):
        raise stop("keys", f"no key has the id {key_id}")
    typer.echo(f"revoked {key_id}")


def _shown(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "plan": record.plan,
        "created": record.created,
        "revoked": record.revoked,
        "expires": record.expires,
        "requests_per_minute": record.requests_per_minute,
        "tokens_per_minute": record.tokens_per_minute,
        "usd": record.usd,
        "may": record.may,
    }
