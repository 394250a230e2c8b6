"""Who may call, and who administers?   `tiergate keys create|list|change|rotate|revoke|...` on a store or a file."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gateway.cli.keyfile import KeyFileStore
from gateway.cli.output import Json, date, encoded, on_one_line, stop
from gateway.cli.store import Redis, on
from gateway.key_records import ADMIN, as_revoked, changed, expiry, key_problem, new_admin_key, new_key, rotation, shown
from gateway.keys import id_of
from gateway.policy import PolicyError, load_policy
from gateway.store import KeyRecord, Store

keys = typer.Typer(help="API keys, kept as keyed hashes in the shared store or in a file.", no_args_is_help=True)

T = TypeVar("T")
PAUSE = 0.5  # seconds that another `keys first`, which made the caller's key, has to make the admin key, too
File = Annotated[
    Path | None,
    typer.Option("--file", help="A file of keys, in place of the store; who makes a key makes it.", metavar="FILE"),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The id that `keys list` shows, or the key itself.")]
Plan = Annotated[str | None, typer.Option(help="A plan of the policy; a key without one has the default.")]
Expires = Annotated[
    str | None, typer.Option(metavar="TIME", help='When it ends, from now: "30d"; a key without never does.')
]
Limit = Annotated[int | None, typer.Option(min=1, max=100_000_000, help="In place of the plan's limit.")]
Usd = Annotated[float | None, typer.Option(min=0.000001, max=1e6, help="US dollars for each window of its budget.")]
Window = Annotated[
    str | None, typer.Option(metavar="TIME", help='Of its budget: "24h", "7d", or month (the calendar\'s).')
]
May = Annotated[list[str] | None, typer.Option(help="A tier that it may reach, with all below; repeatable.")]
Explain = Annotated[bool | None, typer.Option(help="May ask for the whole decision; for a key without, its plan says.")]
Checked = Annotated[Path | None, typer.Option(help="Check plan and tiers against this policy.")]
Keep = Annotated[
    str | None,
    typer.Option(metavar="TIME", help='How long the old key stays valid beside the new: "1d"; else not at all.'),
]
Own = StrEnum("Own", "plan expires requests_per_minute tokens_per_minute usd window may explain")


@keys.command()
def create(  # noqa: PLR0913, PLR0917  (typer makes each option a parameter)
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    plan: Plan = None,
    expires: Expires = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    usd: Usd = None,
    window: Window = None,
    may: May = None,
    explain: Explain = None,
    policy: Checked = None,
    json: Json = False,
    redis: Redis = None,
    file: File = None,
) -> None:
    """Make a key and print it. It is shown this once: only a keyed hash is kept."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute, "usd": usd}
    fields = _given(policy, name=name, plan=plan, expires=expires, window=window, may=may, explain=explain, **limits)

    async def make(store: Store | KeyFileStore) -> tuple[str, KeyRecord]:
        key, record = new_key(await store.secret(), **fields)
        await store.put_key(record)
        return key, record

    key, record = _on(file, redis, make)
    typer.echo(encoded({"key": key, **shown(record)}) if json else key)


@keys.command()
def change(  # noqa: PLR0913, PLR0917  (typer makes each option a parameter)
    which: Id,
    name: Annotated[str | None, typer.Option(help="Whose key it is.")] = None,
    plan: Plan = None,
    expires: Expires = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    usd: Usd = None,
    window: Window = None,
    may: May = None,
    explain: Explain = None,
    unset: Annotated[
        list[Own] | None, typer.Option(help="What it shall no longer have of its own; repeatable.")
    ] = None,
    policy: Checked = None,
    json: Json = False,
    redis: Redis = None,
    file: File = None,
) -> None:
    """Change a key's plan, limits or expiry, within a second. Its caller keeps what it used."""
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute, "usd": usd}
    fields = _given(policy, name=name, plan=plan, expires=expires, window=window, may=may, explain=explain, **limits)
    fields |= dict.fromkeys(unset or ())
    if not fields:
        raise stop("keys", "nothing is given to change")
    record = _changed(which, file, redis, lambda record: changed(record, **fields))
    typer.echo(encoded(shown(record)) if json else f"changed {record.id}")


@keys.command()
def rotate(which: Id, keep: Keep = None, json: Json = False, redis: Redis = None, file: File = None) -> None:
    """Make another key for the same caller and print it, this once. It replaces the one before."""

    async def make(store: Store | KeyFileStore) -> tuple[str, KeyRecord | None]:
        key, rotated = rotation(await store.secret(), _id(which), keep)
        return key, await store.change_key(_id(which), rotated)

    key, found = _on(file, redis, make, new=False)
    record = _there(which, found)
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
    """Show all keys, the oldest first, and what they have of their own; never their secrets."""
    records = _on(file, redis, lambda store: store.list_keys())
    if json:
        typer.echo(encoded([shown(record) for record in records]))
        return
    for record in records:
        state = "active" if record.revoked is None else f"revoked {date(record.revoked)}"
        if record.expires is not None and record.revoked is None:
            state = f"{'expires' if record.expires > time.time() else 'expired'} {date(record.expires)}"
        told = (record.id, record.name, record.plan or "(default plan)", date(record.created), state)
        typer.echo(on_one_line("  ".join((*told, *_own(record)))))


def _own(record: KeyRecord) -> Iterator[str]:
    """What a key has in place of what its plan says; until when it counts is told apart."""
    for name in ("requests_per_minute", "tokens_per_minute", "usd", "window", "may", "explain"):
        value = getattr(record, name)
        if value is not None:
            yield f"{name} {','.join(value) if isinstance(value, tuple) else value}"
    if record.old_until and record.old_until > time.time():
        yield f"the one before until {date(record.old_until)}"


@keys.command()
def revoke(which: Id, json: Json = False, redis: Redis = None, file: File = None) -> None:
    """End a key; every gateway on the store or the file refuses it within a second."""
    record = _changed(which, file, redis, as_revoked)
    typer.echo(encoded({"revoked": record.id}) if json else f"revoked {record.id}")


def _given(policy: Path | None, **own: Any) -> dict[str, Any]:
    """The fields of a record that are given. Exits with 1 when they are wrong."""
    try:
        own |= {"expires": expiry(own["expires"]), "may": tuple(own["may"] or ()) or None}
        wrong = key_problem(load_policy(policy) if policy else None, own)
    except (PolicyError, ValueError) as error:
        wrong = str(error)
    if wrong:
        raise stop("keys", wrong)
    return {name: value for name, value in own.items() if value is not None}


def _id(which: str) -> str:
    return id_of(which) or which


def _changed(which: str, file: Path | None, url: str | None, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
    return _there(which, _on(file, url, lambda store: store.change_key(_id(which), change), new=False))


def _there(which: str, record: KeyRecord | None) -> KeyRecord:
    """Exits with 1 when there is no such key."""
    if record is None:
        raise stop("keys", f"no key has the id {_id(which)}")
    return record


def _on(
    file: Path | None, url: str | None, work: Callable[[Store | KeyFileStore], Awaitable[T]], *, new: bool = True
) -> T:
    """What `work` gives on the file (`new`: it may be made), else on the store. Exits with 1 when there is neither, or
    it cannot be used."""
    if file is None and url is None:
        raise stop("keys", "keys need a place: give --redis URL (or set GATEWAY_REDIS_URL), or --file FILE")
    if file is None:
        return on("keys", url, work)

    async def main() -> T:
        return await work(KeyFileStore(file, new))

    try:
        return asyncio.run(main())
    except (OSError, PolicyError, ValueError) as error:
        raise stop("keys", str(error)) from None
