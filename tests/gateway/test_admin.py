import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gateway.admin import Guard
from gateway.cli.keyfile import KeyFileStore
from gateway.errors import Refusal
from gateway.key_records import new_admin_key, new_key
from gateway.keyfile import KeyFile
from gateway.keys import Keys
from gateway.store import KeyRecord, Limits, Line, MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import Gateway, body, eventually, gateway
from tests.gateway.test_recorded import read
from tests.tiers import policy_for

ADMIN_KEY = secrets.token_hex(32)
RIGHT = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
ROUTES = [("GET", "/admin/usage"), ("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/x"),
          ("PATCH", "/admin/keys/x"), ("POST", "/admin/keys/x/rotate"),
          ("POST", "/admin/cache/purge"), ("GET", "/admin/records"), ("GET", "/admin/tiers")]  # fmt: skip


@asynccontextmanager
async def administered(flash: Sim, pro: Sim, store: MemoryStore | None = None, **more: Any) -> AsyncIterator[Gateway]:
    more = {"admin_key": ADMIN_KEY, "everyone": False, **more}
    async with gateway(policy_for(flash, pro), store, **more) as gate:
        yield gate


def named(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_without_an_admin_key_admin_says_how_to_turn_it_on(flash: Sim, pro: Sim, host: str) -> None:
    async with administered(flash, pro, admin_key=None, everyone=True, host=host) as gate:
        for (method, path), headers in product(ROUTES, ({}, RIGHT, named(""))):
            answer = await gate.ask({"name": "ann"}, path, method, **headers)
            assert (answer.status, answer.json()["error"]["code"]) == (403, "admin_disabled")
            assert "GATEWAY_ADMIN_KEY" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_only_the_admin_key_opens_a_route(flash: Sim, pro: Sim, method: str, path: str) -> None:
    caller = "a-caller's-key-from-the-environment"
    async with administered(flash, pro, api_key=caller) as gate:
        wrong = [{}, named(ADMIN_KEY[:-1]), named(ADMIN_KEY + "0"), named(caller), {"authorization": ADMIN_KEY}]
        for headers in wrong:
            answer = await gate.ask(b"[" * 100_000, path, method, **headers)
            assert (answer.status, answer.json()["error"]["type"]) == (401, "authentication_error")
            assert not answer.json()["error"]["message"].count(ADMIN_KEY)
        assert (await gate.ask({"name": "ann"}, path, method, **RIGHT)).status in {200, 201, 204, 404}
        assert (await gate.ask(body(), **RIGHT)).status == 401, "it is no caller's key"


async def test_a_made_admin_key_counts_unless_one_is_given(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    made, record = new_admin_key(await store.secret())
    await store.put_key(record)
    async with administered(flash, pro, store, admin_key=None) as gate:
        assert (await gate.get("/admin/keys", **named(made))).data == b"[]"
        assert (await gate.get("/admin/keys", "DELETE", **named(made))).status == 405
        assert (await gate.get("/admin/keys/admin", "DELETE", **named(made))).status == 404
    async with administered(flash, pro, store) as gate:
        assert (await gate.get("/admin/keys", **named(made))).status == 401
    await store.put_key(replace(record, expires=record.created))
    async with administered(flash, pro, store, admin_key=None) as gate:
        assert (await gate.get("/admin/keys", **named(made))).status == 403


def test_wrong_keys_are_logged_without_the_key_until_they_are_too_many_and_the_right_one_always_passes(
    flash: Sim, pro: Sim, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with administered(flash, pro) as gate:
            found = [await gate.get("/admin/usage", **named(f"canary-{n}")) for n in range(15)]
            assert [answer.status for answer in found] == [401] * 10 + [429] * 5
            assert 0 < int(found[-1].headers["retry-after"]) <= 6
            assert (await gate.get("/admin/usage", **RIGHT)).status == 200

    with caplog.at_level(logging.WARNING, "gateway"):
        asyncio.run(main())
    assert caplog.text.count("127.0.0.1") == 10
    assert "canary" not in caplog.text


async def test_wrong_admin_keys_are_answered_ten_at_once_and_then_one_every_six_seconds() -> None:
    now = 0.0
    guard = Guard(Keys(MemoryStore()), ADMIN_KEY, lambda: now)

    async def refusals(count: int) -> list[tuple[int, float | None]]:
        found = []
        for _ in range(count):
            with pytest.raises(Refusal) as refusal:
                await guard.check("Bearer wrong", "a peer")
            found.append((refusal.value.status, refusal.value.retry_after))
        return found

    wrong = (401, None)
    assert await refusals(11) == [*[wrong] * 10, (429, 6.0)]
    now += 4.5
    assert await refusals(1) == [(429, 1.5)]
    now += 1.5
    assert await refusals(2) == [wrong, (429, 6.0)]
    now += 86_400.0
    assert await refusals(11) == [*[wrong] * 10, (429, 6.0)], "no more are saved up"


async def test_a_key_is_made_listed_used_changed_rotated_and_revoked(
    flash: Sim, pro: Sim, caplog: pytest.LogCaptureFixture
) -> None:
    async with administered(flash, pro) as gate:
        wanted = {"name": "ann", "plan": "usual", "expires": "30d", "usd": 2.5, "window": "7d", "may": ["pro"]}
        answer = await gate.ask(wanted, "/admin/keys", **RIGHT)
        made = answer.json()
        assert answer.status == 201
        assert made.items() >= {"name": "ann", "usd": 2.5, "window": "7d", "may": ["pro"], "revoked": None}.items()
        assert made["expires"] - made["created"] == pytest.approx(30 * 86_400, abs=5)
        assert (await gate.ask(body(), **named(made["key"]))).status == 200
        listed = await gate.get("/admin/keys", **RIGHT)
        assert json.loads(listed.data) == [{name: value for name, value in made.items() if name != "key"}]
        assert "hash" not in made
        at = f"/admin/keys/{made['id']}"
        changed = await gate.ask({"usd": None, "name": "eve", "requests_per_minute": 7}, at, "PATCH", **RIGHT)
        told = {**json.loads(listed.data)[0], "usd": None, "window": None, "name": "eve", "requests_per_minute": 7}
        assert (changed.status, changed.json()) == (200, told)
        key = (await gate.ask(None, f"{at}/rotate", **RIGHT)).json()["key"]
        await asyncio.sleep(1.01)
        assert (await gate.ask(body(), **named(made["key"]))).status == 401
        assert (await gate.ask(body(), **named(key))).headers["x-ratelimit-limit-requests"] == "7"
        revoked = await gate.get(f"/admin/keys/{made['id']}", "DELETE", **RIGHT)
        assert (revoked.status, revoked.data) == (204, b"")
        assert json.loads((await gate.get("/admin/keys", **RIGHT)).data)[0]["revoked"]
        dones = ("created", "changed", "rotated", "revoked")
        assert caplog.messages == [f"admin: {done} key {made['id']}" for done in dones]
        for method, path in (("PATCH", at), ("POST", f"{at}/rotate"), ("PATCH", "/admin/keys/admin")):
            assert (await gate.ask({}, path, method, **RIGHT)).status == 404, "it is revoked, or no caller's"


async def test_what_is_shown_of_a_key_is_all_but_its_hash(flash: Sim, pro: Sim) -> None:
    async with administered(flash, pro) as gate:
        made = (await gate.ask({"name": "ann"}, "/admin/keys", **RIGHT)).json()
        assert made.keys() - {"key"} == set(KeyRecord.__dataclass_fields__) - {"hash", "old_hash"} | {"source"}


async def test_keys_of_the_file_are_listed_and_revoked_there_only(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    written = KeyFileStore(tmp_path / "keys.json")
    _, record = new_key(await written.secret(), "ann")
    admin, its = new_admin_key(await written.secret())
    for one in (record, its):
        await written.put_key(one)
    file = KeyFile(tmp_path / "keys.json")
    async with administered(flash, pro, admin_key=None, file=file) as gate:
        headers = {**RIGHT, **named(admin)}
        bob = (await gate.ask({"name": "bob"}, "/admin/keys", **headers)).json()
        assert bob["source"] == "store"
        listed = json.loads((await gate.get("/admin/keys", **headers)).data)
        assert [(key["name"], key["source"]) for key in listed] == [("ann", "file"), ("bob", "store")]
        for method, path in (("DELETE", ""), ("PATCH", ""), ("POST", "/rotate")):
            refused = await gate.ask({}, f"/admin/keys/{record.id}{path}", method, **headers)
            assert (refused.status, refused.json()["error"]["code"]) == (400, "key_in_file")
        assert (await gate.get("/admin/keys/admin", "DELETE", **headers)).status == 404, "as where the store has it"
        assert (await gate.get(f"/admin/keys/{bob['id']}", "DELETE", **headers)).status == 204
        assert (await gate.get("/ready")).json()["keys_file"] == "ok"


NO_KEYS: list[tuple[Any, str]] = [
    ({"name": "ann", "plan": "platinum"}, "usual"), ({"name": "ann", "may": ["gold"]}, "flash, pro"),
    ({"name": ""}, "printable"), ({"name": "a\nb"}, "printable"), ({"name": "ann", "expires": "soon"}, "duration"),
    ({"name": "ann", "expires": "0s"}, "at least 1ms"), ({"name": "ann", "window": "day"}, "or month"),
    ({"name": "ann", "usd": -1}, "greater"), ({"name": "ann", "admin": True}, "Extra"), ({}, "required"),
    ([], "valid"), (b"{", "JSON"), (b"\xff", "pars"),
]  # fmt: skip


async def test_a_key_that_cannot_be_made_is_a_400_error_object(flash: Sim, pro: Sim) -> None:
    async with administered(flash, pro) as gate:
        for wanted, told in NO_KEYS:
            answer = await gate.ask(wanted, "/admin/keys", **RIGHT)
            assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error"), wanted
            assert told in answer.json()["error"]["message"]
            assert (await gate.get("/admin/keys", **RIGHT)).data == b"[]", wanted
        at = f"/admin/keys/{(await gate.ask({'name': 'ann'}, '/admin/keys', **RIGHT)).json()['id']}"
        for changed, told in [*NO_KEYS[:9], ({"name": None}, "string")]:
            answer = await gate.ask(changed, at, "PATCH", **RIGHT)
            assert (answer.status, told in answer.json()["error"]["message"]) == (400, True), changed
        assert (await gate.ask(None, f"{at}/rotate?keep=soon", **RIGHT)).json()["error"]["param"] == "keep"
        for kind in ("application/x-www-form-urlencoded", ""):  # what `curl -d` says, and what some programs do not
            answer = await gate.ask({"name": "ann"}, "/admin/keys", **RIGHT | {"content-type": kind})
            assert answer.status == 400
            assert f"content-type: application/json, not {kind or 'none'}." in answer.json()["error"]["message"]


async def test_usage_is_that_of_the_command_with_its_filters(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    for caller, kind in (("ann", "answer"), ("ann", "triage"), ("bob", "answer")):
        held = await store.admit(caller, Limits(9, 9, 60.0), None)
        await store.settle(caller, held.lease or "", [Line("pro", kind, False, 10, 0, 5, 2_000_000)])  # type: ignore[arg-type]
    async with administered(flash, pro, store) as gate:
        whole = (await gate.get("/admin/usage", **RIGHT)).json()
        assert (whole["answers"]["usd"], whole["overhead"]["usd"]) == (0.004, 0.002)
        ann = (await gate.get("/admin/usage?caller=ann&by=kind&by=tier", **RIGHT)).json()["rows"]
        assert [(row["kind"], row["tier"], row["day"], row["usd"]) for row in ann] == [
            ("answer", "pro", None, 0.002), ("triage", "pro", None, 0.002),
        ]  # fmt: skip
        assert (await gate.get("/admin/usage?to=1999-01-01", **RIGHT)).json()["rows"] == []
        for wrong, param in (("from=yesterday", "from"), ("by=week", "by.0")):
            refused = await gate.get(f"/admin/usage?{wrong}", **RIGHT)
            assert (refused.status, refused.json()["error"]["param"]) == (400, param)


async def test_a_purge_forgets_one_callers_answers_or_all(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    for caller in ("ann", "bob", "eve"):
        await store.remember(caller, b"key", b"answer", 60.0)
    async with administered(flash, pro, store) as gate:
        one = await gate.ask(None, "/admin/cache/purge?caller=ann", **RIGHT)
        assert one.json() == {"caller": "ann", "purged": 1}
        assert await store.recall("bob", b"key")
        assert (await gate.ask(None, "/admin/cache/purge", **RIGHT)).json()["purged"] == 2


async def test_the_openapi_document_has_the_admin_routes_behind_the_admin_key(flash: Sim, pro: Sim) -> None:
    async with administered(flash, pro) as gate:
        told = (await gate.get("/openapi.json")).json()
        for method, path in ROUTES:
            operation = told["paths"][path.replace("/x", "/{key_id}")][method.lower()]
            assert (operation["tags"], operation["security"]) == (["admin"], [{"admin": []}])
            assert operation["responses"]["default"]["description"] == "An OpenAI error object"
        assert told["components"]["securitySchemes"]["admin"]["scheme"] == "bearer"
        assert ADMIN_KEY not in json.dumps(told)


async def test_a_key_may_ask_for_explanations_or_not_whatever_its_plan_says(flash: Sim, pro: Sim) -> None:
    async with administered(flash, pro) as gate:
        for explain, status in ((False, 403), (True, 200), (None, 200)):
            made = await gate.ask({"name": "ann", "explain": explain}, "/admin/keys", **RIGHT)
            answer = await gate.ask(body(), x_route_explain="1", **named(made.json()["key"]))
            assert answer.status == status
            assert ("route" in answer.json()) is (status == 200)


async def test_the_newest_decisions_are_json_lines_that_a_replay_can_read(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    caller = "a-caller's-key-from-the-environment"
    async with administered(flash, pro, api_key=caller) as gate:
        for name in ("one", "two", "three"):
            await gate.ask(body(), x_request_id=name, **named(caller))
        await eventually(lambda: len(gate.front.doors.records.recent(9)) == 3)
        answer = await gate.get("/admin/records?limit=2", **RIGHT)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/jsonl")
        file = tmp_path / "records"
        file.write_bytes(answer.data)
        assert [one.id for one in read([file])] == ["two", "three"]
        assert (await gate.get("/admin/records?limit=0", **RIGHT)).status == 400
        (line,) = (await gate.get("/admin/records?limit=1&id=one", **RIGHT)).data.splitlines()
        assert json.loads(line)["id"] == "one", "however many came since"
        assert (await gate.get("/admin/records?id=on", **RIGHT)).data == b""
        ends = [json.loads(line)["at"] for line in (await gate.get("/admin/records", **RIGHT)).data.splitlines()]
        for after in (0, *ends):
            later = await gate.get(f"/admin/records?after={after}", **RIGHT)
            assert len(later.data.splitlines()) == sum(end > after for end in ends)
