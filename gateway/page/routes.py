"""Which routes does the page need?   Files below /ui, /docs, and two of /admin that only it uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Request, Response

from gateway.admin import Guard, guarded
from gateway.errors import BadRequest, NotFound
from gateway.explain import explain
from gateway.http1 import Client
from gateway.page.files import files
from gateway.policy import Policy
from gateway.recorded import Recorded, RecordError
from gateway.replay import Unrecorded, refuse_unrecorded
from gateway.types import Facts
from gateway.upstream import Load, loads


@dataclass(frozen=True, slots=True)
class Server:
    """One replica and its load; null: it does not answer."""

    url: str
    load: Load | None


@dataclass(frozen=True, slots=True)
class TierShown:
    """A tier of the policy in force; prices in US dollars a million tokens. `replicas` stand as in the policy."""

    name: str
    model: str
    engine: str
    balance: str
    max_inflight: int
    queue: int
    price: dict[str, float]
    replicas: list[Server]


@dataclass(frozen=True, slots=True)
class Explained:
    """`policy`: the version that decided; `same`: `explanation` (as of POST /v1/route) is by that version, else by the
    policy in force."""

    policy: str
    same: bool
    explanation: Mapping[str, Any]


def page_routes(guard: Guard, client: Client, policy: Callable[[], Policy]) -> APIRouter:
    """The routes; those of /admin ask `guard`. `policy` gives the one in force; `client` reaches its servers."""
    routes, admin = APIRouter(), guarded(guard)
    _files(routes)

    @admin.get("/tiers", summary="The tiers, and how busy their servers say they are")
    async def tiers() -> list[TierShown]:
        shown = policy().tiers
        found = await loads(client, list(dict.fromkeys(url for tier in shown.values() for url in tier.replicas)))
        return [
            TierShown(
                name,
                tier.model,
                tier.engine,
                tier.balance,
                tier.limits.max_inflight,
                tier.limits.queue,
                msgspec.to_builtins(tier.price),
                [Server(url, found[url]) for url in tier.replicas],
            )
            for name, tier in shown.items()
        ]

    @admin.post("/records/explain", summary="The whole explanation of a decision that was recorded")
    async def explained(record: Annotated[dict[str, Any], Body(description="a line of /admin/records")]) -> Explained:
        one = _read(record)
        there = _that_decided(one.policy, policy())
        return Explained(one.policy, one.policy == there.version, explain(_facts(one, there), one.verdict, there))

    routes.routes.extend(admin.routes)
    return routes


def _read(record: dict[str, Any]) -> Recorded:
    """Raises BadRequest for what is no record."""
    try:
        return msgspec.json.decode(msgspec.json.encode(record), type=Recorded)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise BadRequest(str(error)) from None


def _that_decided(name: str, policy: Policy) -> Policy:
    """The policy in force, or its candidate where that has the name."""
    candidate = policy.candidate and policy.candidate.policy
    return candidate if candidate and candidate.version == name else policy


def _facts(one: Recorded, policy: Policy) -> Facts:
    """Raises BadRequest for a record that `policy` cannot judge."""
    try:
        facts = one.read_facts()
        refuse_unrecorded(one, policy)
    except (RecordError, Unrecorded) as error:
        raise BadRequest(str(error)) from None
    return facts


def _files(routes: APIRouter) -> None:
    served = files()

    @routes.get("/ui", include_in_schema=False)
    async def there() -> Response:
        return Response(status_code=307, headers={"location": "ui/"})  # so that its files are found behind any prefix

    @routes.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(status_code=307, headers={"location": "ui/docs.html"})

    @routes.get("/ui/{path:path}", include_in_schema=False)
    async def file(path: str, request: Request) -> Response:
        found = served.get(path)
        if found is None:
            raise NotFound(f"The page has no file {path[:128]!r}.")
        if request.headers.get("if-none-match") == found.headers["etag"]:
            return Response(status_code=304, headers=dict(found.headers))
        return Response(found.body, headers=dict(found.headers))
