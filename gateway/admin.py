"""What may operators see and do over HTTP?   The routes /admin/*, behind the admin key."""

import datetime
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import BadRequest, Forbidden, NotFound, RateLimited, Refusal, Unauthorized
from gateway.key_records import (
    ADMIN,
    as_revoked,
    changed,
    expired,
    expiry,
    key_hash,
    key_problem,
    new_key,
    rotation,
    shown,
)
from gateway.keys import Keys, bearer, key_matches
from gateway.policy import Policy
from gateway.store import KeyRecord, Store
from gateway.usage import WHOLE, Asked, Heading, Report, reported

TRIES = 10.0  # wrong admin keys that are answered at once ...
AGAIN = 6.0  # ... and the seconds after which there is one more
OFF = (
    "/admin is off: there is no admin key. Start the gateway with GATEWAY_ADMIN_KEY (openssl rand -hex 32), "
    "or make one with `tiergate keys admin`."
)
MOST = 1_000_000  # records in an answer
SCHEME = HTTPBearer(scheme_name="admin", description="The admin key", auto_error=False)
log = logging.getLogger("gateway")
Serve = Callable[[Request], Awaitable[Response]]
Recent = Callable[[int, float], Awaitable[list[bytes]]]


class JsonLines(Response):
    media_type = "application/jsonl"


class Own(BaseModel):
    """What a key may have. Limits, `may` and `explain` go before what the plan says."""

    model_config = ConfigDict(extra="forbid")
    plan: str | None = Field(default=None, description="a plan of the policy; else its default plan")
    expires: str | None = Field(default=None, description='from now, such as "30d"; else never')
    requests_per_minute: int | None = Field(default=None, ge=1, le=100_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=100_000_000)
    usd: float | None = Field(default=None, ge=0.000001, le=1e6, description="of each window of its budget")
    window: str | None = Field(default=None, description='of its budget: a length such as "7d", or month')
    may: tuple[str, ...] | None = Field(default=None, description="tiers that it may reach, with all below")
    explain: bool | None = Field(default=None, description="may ask for the whole decision")


class NewKey(Own):
    """What `tiergate keys create` takes."""

    name: str = Field(description="whose key it is")


class ChangedKey(Own):
    """What `tiergate keys change` takes. What is left out stays; null is nothing of its own."""

    name: str = Field(default="", description="whose key it is")


class Shown(BaseModel):
    """A caller's key without its secret; times are Unix seconds."""

    id: str
    source: Literal["store", "file"]
    name: str
    plan: str | None
    created: float
    revoked: float | None
    expires: float | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    usd: float | None
    window: str | None
    may: tuple[str, ...] | None
    explain: bool | None
    old_until: float | None = Field(description="until when the key before a rotation counts, too")


class Created(Shown):
    key: str = Field(description="the key itself; shown this once")


class Purged(BaseModel):
    caller: str | None
    purged: int = Field(description="remembered answers and verdicts that are forgotten")


class Guard:
    """Lets the administrator in: the holder of `key`, or where that is None of the key whose record has the id ADMIN.

    The right key always passes, so that nobody can lock an operator out; it has too many bits to be guessed by trying.
    A wrong one is logged and answered with 401; once TRIES are used up, it gets 429 and is not logged, so that nobody
    can flood the log. Counted by process.
    """

    def __init__(self, keys: Keys, key: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        secret = secrets.token_bytes(32)
        self._keys = keys
        self._given = None if key is None else (KeyRecord(ADMIN, key_hash(secret, key), ADMIN, None, 0.0), secret)
        self._clock, self._tries, self._at = clock, TRIES, clock()

    async def check(self, authorization: str | None, peer: str) -> None:
        """Raises Forbidden when there is no admin key, Unauthorized or RateLimited for a wrong one, Overloaded."""
        record, secret = self._given or await self._keys.find(ADMIN)
        if record is None or expired(record):
            raise Forbidden(OFF, code="admin_disabled")
        try:
            if key_matches(bearer(authorization), record, secret):
                return
            wrong = Unauthorized("Incorrect admin key provided.")
        except Unauthorized as refusal:
            wrong = refusal
        raise self._refusal(wrong, peer)

    def _refusal(self, refusal: Refusal, peer: str) -> Refusal:
        now = self._clock()
        self._tries, self._at = min(TRIES, self._tries + (now - self._at) / AGAIN), now
        if self._tries < 1:
            return RateLimited("Too many wrong admin keys.", retry_after=(1 - self._tries) * AGAIN)
        self._tries -= 1
        log.warning("admin: a request without the right key from %.64a", peer)
        return refusal


def guarded(guard: Guard) -> APIRouter:
    """A router for /admin, empty; `guard` is asked before anything of a request's body is read."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Any:
            serve: Serve = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                peer = request.client.host if request.client else "unknown"
                await guard.check(request.headers.get("authorization"), peer)
                return await serve(request)

            return guarded

    return APIRouter(prefix="/admin", tags=["admin"], route_class=Guarded, dependencies=[Security(SCHEME)])


def admin_routes(guard: Guard, keys: Keys, policy: Callable[[], Policy], records: Recent) -> APIRouter:
    """The routes. `policy()` is the one in force. `records(most, after)` are the newest decisions of all workers as
    JSON, `most` at most, of answers that ended after that time (Unix seconds), the newest last."""
    routes = guarded(guard)
    _usage(routes, keys.store)
    _keys(routes, keys, policy)
    _changes(routes, keys, policy)
    _records(routes, records)
    return routes


def _records(routes: APIRouter, records: Recent) -> None:
    summary = "The newest decisions as JSON lines, the newest last, for `tiergate policy replay`"

    @routes.get("/records", summary=summary, response_class=JsonLines)
    async def recent(
        limit: Annotated[int, Query(ge=1, le=MOST)] = 1000,
        after: Annotated[float, Query(ge=0, description="Unix seconds: of answers that ended later")] = 0.0,
        only: Annotated[
            str | None, Query(alias="id", description="A request's: of all that are kept, this one")
        ] = None,
    ) -> Response:
        lines = await records(limit if only is None else MOST, after)
        if only is not None:
            named = b'"id":' + msgspec.json.encode(only)  # inside a string its quotes are escaped
            lines = [line for line in lines if named in line]
        return JsonLines(b"".join(line + b"\n" for line in lines))


def _usage(routes: APIRouter, store: Store) -> None:
    @routes.get("/usage", summary="Tokens and money; answers, and apart the overhead (triage, drafts thrown away)")
    async def usage(
        caller: Annotated[str | None, Query(description="The id of its key; else all")] = None,
        first: Annotated[datetime.date | None, Query(alias="from", description="A day, UTC, included")] = None,
        last: Annotated[datetime.date | None, Query(alias="to", description="A day, UTC, included")] = None,
        by: Annotated[list[Heading] | None, Query(description="What is told apart; else all but months")] = None,
    ) -> Report:
        asked = Asked(_day(first), _day(last), by or WHOLE)
        return reported(await store.ledger(caller), asked)

    @routes.post("/cache/purge", summary="Forget remembered answers and verdicts; keys and limits stay")
    async def purge(caller: Annotated[str | None, Query(description="The id of its key; else all")] = None) -> Purged:
        return Purged(caller=caller, purged=sum([count async for count in store.purge(caller)]))


def _day(date: datetime.date | None) -> str | None:
    return None if date is None else date.isoformat()


def _keys(routes: APIRouter, keys: Keys, policy: Callable[[], Policy]) -> None:
    store, file = keys.store, keys.file

    @routes.get("/keys", summary="Keys of callers, those of the file and of the store, without their secrets")
    async def listed() -> list[Shown]:
        found = [Shown(source="file", **shown(record)) for record in (file.records() if file else [])]
        found += [Shown(source="store", **shown(record)) for record in await store.list_keys()]
        return [key for key in found if key.id != ADMIN]

    @routes.post("/keys", status_code=201, summary="Make a key in the store and show it, this once")
    async def create(wanted: NewKey) -> Created:
        """Where the store is this process's memory, the key ends with the process."""
        key, record = new_key(await store.secret(), **_given(wanted, policy()))
        await store.put_key(record)
        log.warning("admin: created key %s", record.id)
        return Created(key=key, source="store", **shown(record))


def _changes(routes: APIRouter, keys: Keys, policy: Callable[[], Policy]) -> None:
    @routes.patch("/keys/{key_id}", summary="Change a key of the store, which stays the same key")
    async def change(key_id: str, wanted: ChangedKey) -> Shown:
        """Counts within a second. What was used of a limit stays used; `usd` null takes `window` along."""
        fields = _given(wanted, policy())
        record = await _changed(keys, key_id, lambda record: changed(record, **fields), "changed")
        return Shown(source="store", **shown(record))

    @routes.post("/keys/{key_id}/rotate", summary="Make another key for the same caller and show it, this once")
    async def rotate(
        key_id: str,
        keep: Annotated[str | None, Query(description='How long the old key stays valid beside the new: "1d"')] = None,
    ) -> Created:
        """Without `keep` every gateway refuses the one before within a second."""
        try:
            key, rotated = rotation(await keys.store.secret(), key_id, keep)
        except ValueError as error:
            raise BadRequest(str(error), param="keep") from None
        record = await _changed(keys, key_id, rotated, "rotated")
        return Created(key=key, source="store", **shown(record))

    @routes.delete(
        "/keys/{key_id}", status_code=204, summary="Revoke a key of the store; every gateway refuses it within a second"
    )
    async def revoke(key_id: str) -> None:
        await _changed(keys, key_id, as_revoked, "revoked")


def _given(wanted: NewKey | ChangedKey, policy: Policy) -> dict[str, Any]:
    """The fields of a record that are given. Raises BadRequest."""
    own = wanted.model_dump(exclude_unset=True)
    try:
        own |= {"expires": expiry(own["expires"])} if "expires" in own else {}
    except ValueError as error:
        raise BadRequest(str(error), param="expires") from None
    wrong = key_problem(policy, own)
    if wrong:
        raise BadRequest(wrong)
    return own


async def _changed(keys: Keys, key_id: str, change: Callable[[KeyRecord], KeyRecord], done: str) -> KeyRecord:
    """The record of a caller's key as it is kept then. Raises NotFound, BadRequest for a key of the file."""
    if key_id != ADMIN and keys.file and keys.file.find(key_id):
        raise BadRequest(f"This key stands in the file of keys: it can be {done} there only.", code="key_in_file")
    try:
        record = None if key_id == ADMIN else await keys.store.change_key(key_id, change)
    except ValueError:
        record = None
    if record is None:
        raise NotFound("No key of a caller has this id, or it is revoked.")
    log.warning("admin: %s key %s", done, key_id)
    return record
