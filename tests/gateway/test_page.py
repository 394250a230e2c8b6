"""What the page is made of, and what only it asks for. What it shows in a browser is in tests/test_browser.py."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.page.files import PLACE, POLICY, files
from gateway.policy import Candidate, Policy
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, SIMPLE, Gateway, body, eventually, gateway
from tests.gateway.test_admin import ADMIN_KEY, RIGHT
from tests.gateway.test_upstream import NOWHERE
from tests.tiers import JSON, policy_for

UPLOT = "19c8d4c6ad88929a"  # of dist/uPlot.iife.min.js in npm's uplot 1.6.32


@asynccontextmanager
async def looked_at(policy: Policy) -> AsyncIterator[Gateway]:
    async with gateway(policy, admin_key=ADMIN_KEY) as gate:
        yield gate


async def records(gate: Gateway, count: int) -> list[JSON]:
    await eventually(lambda: len(gate.front.doors.records.recent(count)) == count)
    lines = (await gate.get("/admin/records", **RIGHT)).data.splitlines()
    return [json.loads(line) for line in lines]


async def explained(gate: Gateway, record: Any) -> Any:
    return await gate.ask(record, "/admin/records/explain", **RIGHT)


async def test_the_pages_files_come_without_a_key_and_run_nothing_but_themselves(flash: Sim, pro: Sim) -> None:
    async with looked_at(policy_for(flash, pro)) as gate:
        for path, place in (("/ui", "ui/"), ("/docs", "ui/docs.html")):
            there = await gate.get(path)
            assert (there.status, there.headers["location"]) == (307, place)
        for path, file in files().items():
            answer = await gate.get(f"/ui/{path}")
            assert (answer.status, answer.data) == (200, file.body)
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = await gate.get(f"/ui/{path}", if_none_match=answer.headers["etag"])
            assert (again.status, again.data) == (304, b"")
        for path in ("nothing", "../files.py", "uplot", "%2e%2e/files.py", "uplot/LICENSE"):
            assert (await gate.get(f"/ui/{path}")).status == 404


def test_the_page_is_small_holds_no_script_or_style_of_its_own_and_names_no_other_host() -> None:
    found = files()
    assert sum(len(file.body) for path, file in found.items() if path) < 150_000
    pages = found[""].body.decode() + found["docs.html"].body.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", pages) == []
    for path, file in found.items():
        if not path.startswith("uplot/"):
            assert re.findall(rb"https?://(?!www\.w3\.org/2000/svg)", file.body) == [], path
            assert re.findall(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", file.body) == [], path


def test_what_the_page_names_exists() -> None:
    found = files()
    text = b"\n".join(file.body for path, file in found.items() if not path.startswith("uplot/")).decode()
    named = re.findall(r'(?:src|href)="([\w./]+)"|from "\./([\w.]+)"', text)
    assert len(named) > 20
    assert {one or other for one, other in named} <= found.keys()


def test_uplot_is_as_npm_has_it_with_its_licence() -> None:
    place = PLACE / "uplot"
    assert hashlib.sha256((place / "uPlot.js").read_bytes()).hexdigest()[:16] == UPLOT
    assert b"v1.6.32" in (place / "uPlot.js").read_bytes()
    assert "MIT License" in (place / "LICENSE").read_text()


async def test_the_metrics_that_the_page_reads_exist(flash: Sim, pro: Sim) -> None:
    async with looked_at(policy_for(flash, pro)) as gate:
        await gate.ask(body())
        told = (await gate.get("/metrics")).data.decode()
    shown = re.findall(r'"((?:gateway|gen_ai)_\w+)"', files()["metrics.js"].body.decode())
    assert len(shown) > 10
    assert {name for name in shown if f" {name.removesuffix('_bucket')} " not in told} == set()


async def test_tiers_say_how_busy_their_servers_are_and_which_do_not_answer(flash: Sim, pro: Sim) -> None:
    both = {"replicas": [flash.url, NOWHERE.url]}
    async with looked_at(policy_for(flash, pro, tiers={"flash": both})) as gate:
        answer = await gate.get("/admin/tiers", **RIGHT)
        low, high = json.loads(answer.data)
        assert (low["name"], low["model"], high["name"]) == ("flash", flash.model, "pro")
        here, nowhere = low["replicas"]
        assert here["url"] == flash.url
        assert (here["load"]["running"], here["load"]["waiting"], here["load"]["kv_cache"]) == (0, 0, 0.0)
        assert nowhere == {"url": NOWHERE.url, "load": None}
        assert (await gate.get("/admin/tiers")).status == 401


async def test_a_recorded_decision_is_explained_as_it_was_when_it_was_made(flash: Sim, pro: Sim) -> None:
    async with looked_at(policy_for(flash, pro)) as gate:
        for text in (SIMPLE, COMPLEX):
            await gate.ask(body(text))
        for record, tier in zip(await records(gate, 2), ("flash", "pro"), strict=True):
            found = (await explained(gate, record)).json()
            assert found["same"]
            whole = found["explanation"]
            assert (whole["route"]["tier"], whole["route"]["rule"]) == (tier, "triaged")
            assert whole["verdict"]["p_complex"] == record["verdict"]["p_complex"]
            assert [rule["id"] for rule in whole["rules"]] == ["triaged"]
        assert (await gate.ask(record, "/admin/records/explain")).status == 401


async def test_a_record_of_another_policy_is_explained_by_the_one_in_force_or_not_at_all(flash: Sim, pro: Sim) -> None:
    async with looked_at(policy_for(flash, pro)) as gate:
        await gate.ask(body(model="pro"))
        (record,) = await records(gate, 1)
        gate.front.doors.policy = policy_for(flash, pro, revision="r2")
        found = (await explained(gate, record)).json()
        assert (found["same"], found["policy"]) == (False, record["policy"])
        phase = {"id": "phase", "when": {"header": {"x-phase": "plan"}}, "route": "pro"}
        gate.front.doors.policy = policy_for(flash, pro, rules=[phase, {"id": "all", "route": "flash"}])
        answer = await explained(gate, record)
        assert (answer.status, "header.x-phase" in answer.json()["error"]["message"]) == (400, True)
        gone: JSON = {"tiers": {"pro": None}, "rules": [{"id": "all", "route": "flash"}], "failover": None}
        gate.front.doors.policy = policy_for(flash, pro, **gone, callers={"plans": {"usual": {"may": []}}})
        answer = await explained(gate, record)
        assert (answer.status, "pro" in answer.json()["error"]["message"]) == (400, True)


async def test_what_a_candidate_decided_is_explained_by_the_candidate(flash: Sim, pro: Sim) -> None:
    trial = policy_for(flash, pro, name="trial", rules=[{"id": "all", "route": "pro"}])
    async with looked_at(replace(policy_for(flash, pro), candidate=Candidate(trial, 1.0, 0.0))) as gate:
        await gate.ask(body())
        (record,) = await records(gate, 1)
        found = (await explained(gate, record)).json()
        assert (found["same"], found["explanation"]["policy"]["name"]) == (True, "trial")
        assert found["explanation"]["route"]["rule"] == "all"


FACTS = {"model": "auto", "caller": "ann", "plan": "usual"}
HALF = {"v": 1, "id": "x", "policy": "\ud800", "route": {"tier": "flash"}, "facts": FACTS}  # of a surrogate pair


@pytest.mark.parametrize(
    "record", [{}, {"id": "x"}, {"id": "x", "route": {"tier": "flash"}, "facts": {"plan": 3}}, [], HALF]
)
async def test_what_is_no_record_is_refused(record: Any, flash: Sim, pro: Sim) -> None:
    async with looked_at(policy_for(flash, pro)) as gate:
        answer = await explained(gate, record)
        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
