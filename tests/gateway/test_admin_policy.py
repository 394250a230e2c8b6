import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.admin_policy import LONGEST
from gateway.policy import load_policy, schema
from gateway.store import MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import Gateway, body, eventually, gateway
from tests.tiers import JSON, policy_text

ADMIN = secrets.token_hex(32)
RIGHT = {"authorization": f"Bearer {ADMIN}"}
HI = {"name": "hi", "request": {"messages": [{"role": "user", "content": "hi"}]}, "verdict": {"p_complex": 0.1}}
TESTS = [{**HI, "expect": {"tier": "flash"}}]
ROUTES = [("GET", ""), ("GET", "/schema"), ("GET", "/candidate"), ("GET", "/revisions/x"), ("POST", "/check"),
          ("POST", "/test"), ("POST", "/diff"), ("POST", "/explain"), ("POST", "/reload"), ("POST", "/rollback"),
          ("DELETE", "/rollback")]  # fmt: skip


@asynccontextmanager
async def steered(file: Path, text: str) -> AsyncIterator[Gateway]:
    """A gateway that follows `file`, which says `text` at first."""
    write(file, text)
    async with gateway(load_policy(text), MemoryStore(), admin_key=ADMIN, policy=file) as gate:
        yield gate


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def got(gate: Gateway, path: str = "") -> JSON:
    answer = await gate.get("/admin/policy" + path, **RIGHT)
    assert answer.status == 200, answer.data
    return answer.json()


async def put(gate: Gateway, path: str, said: JSON | str = "", method: str = "POST", status: int = 200) -> JSON:
    data = said.encode() if isinstance(said, str) else said
    sent = {"content_type": "application/yaml" if isinstance(said, str) else "application/json"}
    answer = await gate.ask(data, "/admin/policy" + path, method, **RIGHT, **sent)
    assert answer.status == status, answer.data
    return answer.json()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.yaml"


@pytest.mark.parametrize("routes", [ROUTES[:6], ROUTES[6:]])  # after ten wrong keys the answer is 429
async def test_only_the_admin_key_opens_a_route(flash: Sim, pro: Sim, routes: list[tuple[str, str]]) -> None:
    async with gateway(load_policy(policy_text(flash, pro)), admin_key=ADMIN) as gate:
        for method, path in routes:
            assert (await gate.ask(b"[" * 9, "/admin/policy" + path, method)).status == 401, path


async def test_the_policy_in_force_is_shown_with_its_text_tests_and_revisions(flash: Sim, pro: Sim, file: Path) -> None:
    text = policy_text(flash, pro, tests=TESTS)
    async with steered(file, text) as gate:
        shown = await got(gate)
        assert (shown["name"], shown["text"], shown["source"], shown["problem"]) == ("test", text, "file", None)
        assert (shown["file"], shown["candidate"], shown["rollback"]) == (str(file), None, None)
        assert [(one["name"], one["got"]["tier"], one["problems"]) for one in shown["tests"]] == [("hi", "flash", [])]
        (revision,) = shown["revisions"]
        assert (revision["digest"], revision["current"]) == (shown["digest"], True)
        assert (await got(gate, f"/revisions/{revision['digest']}"))["text"] == text
        assert (await gate.get("/admin/policy/revisions/none", **RIGHT)).status == 404
        assert await got(gate, "/schema") == schema()
        assert await got(gate, "/candidate") is None


async def test_a_text_is_checked_and_tested_without_coming_into_force(flash: Sim, pro: Sim, file: Path) -> None:
    async with steered(file, policy_text(flash, pro, tests=TESTS)) as gate:
        for path in ("/check", "/test"):
            right = await put(gate, path, policy_text(flash, pro, tests=TESTS, name="other"))
            assert (right["ok"], right["problems"], len(right["tests"])) == (True, [], 1)
            wrong = await put(gate, path, policy_text(flash, pro, tests=[{**HI, "expect": {"tier": "pro"}}]))
            assert (wrong["ok"], wrong["digest"]) == (False, None)
            assert wrong["problems"] == wrong["tests"][0]["problems"]
            assert (await put(gate, path, "schema: ["))["problems"][0]["line"] == 2
        assert len((await put(gate, "/test"))["tests"]) == 1
        assert (await got(gate))["name"] == "test"
        await put(gate, "/check", "x" * (LONGEST + 1), status=413)
        answer = await gate.ask(b"\xff", "/admin/policy/check", **RIGHT)
        assert (answer.status, answer.json()["error"]["message"]) == (400, "A policy is UTF-8 text.")


async def test_a_text_sees_no_variable_that_the_file_does_not_name(
    flash: Sim, pro: Sim, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOWN", "flash")
    monkeypatch.setenv("SECRET", "hunter2")
    async with steered(file, policy_text(flash, pro, aliases={"known": "${KNOWN}", "x": "${UNSET:-flash}"})) as gate:
        for name, ok in (("KNOWN", True), ("SECRET", False)):
            found = await put(gate, "/check", policy_text(flash, pro, name=f"${{{name}}}"))
            assert found["ok"] is ok
        asked = {"request": HI["request"], "policy": policy_text(flash, pro, name="${SECRET:-unset}")}
        assert (await put(gate, "/explain", asked))["policy"]["name"] == "unset"


async def test_a_text_reads_no_file_of_another_folder_that_the_policy_in_force_does_not(
    flash: Sim, pro: Sim, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    known, secret = (tmp_path_factory.mktemp("elsewhere") / name for name in ("known.yaml", "secret.yaml"))
    for path in (known, secret, file.with_name("beside.yaml")):
        write(path, policy_text(flash, pro, name="next"))
    async with steered(file, policy_text(flash, pro, candidate={"policy": str(known)})) as gate:
        for name in ("beside.yaml", str(known)):
            found = await put(gate, "/check", policy_text(flash, pro, candidate={"policy": name}))
            assert (name, found["ok"]) == (name, True)
        for name in (str(secret), f"../{secret.parent.name}/secret.yaml", "/dev/zero"):
            (problem,) = (await put(gate, "/check", policy_text(flash, pro, candidate={"policy": name})))["problems"]
            assert "another folder" in problem["message"]


async def test_where_no_file_is_followed_a_text_is_checked_and_not_compared(flash: Sim, pro: Sim) -> None:
    text = policy_text(flash, pro, tests=TESTS)
    async with gateway(load_policy(text), admin_key=ADMIN) as gate:
        assert (await got(gate))["file"] is None
        assert (await put(gate, "/check", text))["ok"]
        assert (await put(gate, "/diff", text, status=400))["error"]["code"] == "no_policy_file"


async def test_what_a_text_changes_and_whom_it_moves_is_told(flash: Sim, pro: Sim, file: Path) -> None:
    async with steered(file, policy_text(flash, pro)) as gate:
        assert (await gate.ask(body())).status == 200
        await eventually(lambda: len(gate.front.doors.records.recent(9)) == 1)
        found = await put(gate, "/diff", policy_text(flash, pro, rules=[{"id": "all", "route": "pro"}]))
        assert {change["path"] for change in found["changes"]} >= {"rules", "rules.all.route"}
        (move,) = found["moves"]
        assert (found["records"], move["origin"], move["to"], move["count"]) == (1, "flash", "pro", 1)
        watching = [{"id": "x", "when": {"header": {"x-a": "b"}}, "route": "pro"}, {"id": "all", "route": "pro"}]
        assert "x-a" in (await put(gate, "/diff", policy_text(flash, pro, rules=watching)))["unjudged"]
        await put(gate, "/diff", "schema: 1", status=400)


async def test_a_text_is_compared_though_a_file_that_the_policy_in_force_names_is_gone(
    flash: Sim, pro: Sim, file: Path
) -> None:
    text = policy_text(flash, pro)
    async with steered(file, text) as gate:
        write(file.with_name("next.yaml"), text)
        write(file, policy_text(flash, pro, candidate={"policy": "next.yaml"}))
        assert (await put(gate, "/reload"))["ok"]
        file.with_name("next.yaml").unlink()
        (change,) = (await put(gate, "/diff", text))["changes"]
        assert (change["path"], change["a"]) == ("candidate.policy", "next.yaml")


async def test_a_decision_is_explained_without_asking_a_model(flash: Sim, pro: Sim, file: Path) -> None:
    async with steered(file, policy_text(flash, pro)) as gate:
        flash.reset()
        for verdict, tier in ((0, "flash"), (1, "pro"), ("simple", "flash"), ("timeout", "flash")):
            found = await put(gate, "/explain", {"request": HI["request"], "verdict": verdict})
            assert found["route"]["tier"] == tier
        for said in ("maybe", 1.01, -0.01):
            wrong = await put(gate, "/explain", {"request": HI["request"], "verdict": said}, status=400)
            assert f"{said}: expected a probability from 0 to 1" in wrong["error"]["message"]
        for more in ({"plan": "none"}, {"policy": "schema: ["}, {"unknown": 1}):
            await put(gate, "/explain", {"request": HI["request"], **more}, status=400)
        await put(gate, "/explain", {"request": {"messages": [{"role": "user", "content": "\ud800"}]}}, status=400)
        assert flash.state()["requests"] == []


async def test_a_wrong_file_is_told_on_reload_in_ready_and_in_metrics_and_changes_nothing(
    flash: Sim, pro: Sim, file: Path
) -> None:
    async with steered(file, policy_text(flash, pro)) as gate:
        write(file, policy_text(flash, pro, rules=[]))
        found = await put(gate, "/reload")
        assert (found["ok"], found["problems"][0]["path"]) == (False, "rules")
        assert (await got(gate))["problem"]["problems"] == found["problems"]
        ready = (await gate.get("/ready")).json()
        assert (ready["status"], ready["policy"]["revision"]) == ("ok", "r1")
        assert f"{file}:1:" in ready["policy"]["problems"][0]
        assert (await gate.ask(body())).status == 200
        assert 'gateway_file_broken{file="policy"} 1.0' in (await gate.get("/metrics")).data.decode()
        write(file, policy_text(flash, pro, revision="r2"))
        assert (await put(gate, "/reload"))["ok"]
        assert "r2" in (await gate.ask(body())).headers["x-route-policy"]
        metrics = (await gate.get("/metrics")).data.decode()
        assert re.search('gateway_policy_reloads_total{result="rejected"} [12]', metrics)
        assert 'gateway_file_broken{file="policy"} 0.0' in metrics
        assert 'revision="r2"' in metrics


async def test_a_rollback_is_in_force_until_it_is_taken_back_or_the_file_changes(
    flash: Sim, pro: Sim, file: Path
) -> None:
    async with steered(file, policy_text(flash, pro)) as gate:
        write(file, policy_text(flash, pro, revision="r2"))
        await put(gate, "/reload")
        back = await put(gate, "/rollback", {"to": "previous"})
        assert "still says otherwise" in back["note"]
        shown = await got(gate)
        assert (shown["revision"], shown["source"], shown["rollback"]["note"]) == ("r1", "rollback", back["note"])
        assert "@r1+" in (await gate.ask(body())).headers["x-route-policy"]
        await put(gate, "/rollback", method="DELETE")
        assert (await got(gate))["revision"] == "r2"
        await put(gate, "/rollback", {"to": back["digest"]})
        write(file, policy_text(flash, pro, revision="r3"))
        await put(gate, "/reload")
        assert ((await got(gate))["revision"], (await got(gate))["source"]) == ("r3", "file")
        await put(gate, "/rollback", {"to": "none"}, status=404)


async def test_a_candidate_is_shown_with_what_it_would_have_decided(flash: Sim, pro: Sim, file: Path) -> None:
    beside = policy_text(flash, pro, name="next", rules=[{"id": "up", "route": "pro"}])
    write(file.with_name("next.yaml"), beside)
    named = {"policy": str(file.with_name("next.yaml")), "shadow": 1.0}
    async with steered(file, policy_text(flash, pro, candidate=named)) as gate:
        assert (await gate.ask(body(), x_request_id="r-1")).headers["x-route-tier"] == "flash"
        await eventually(lambda: gate.front.doors.comparison.compared.total() == 1)
        found = await got(gate, "/candidate")
        (moved,) = found["disagreements"]
        assert (found["name"], found["compared"]) == ("next", {"differs": 1})
        told = {"rule": "triaged", "tier": "flash", "candidate_rule": "up", "candidate_tier": "pro"}
        assert moved == {**told, "count": 1, "examples": ["r-1"]}
        metrics = (await gate.get("/metrics")).data.decode()
        labels = 'candidate_rule="up",candidate_tier="pro",rule="triaged",tier="flash"'
        assert f"gateway_shadow_disagreements_total{{{labels}}} 1.0" in metrics


async def test_the_document_of_the_interface_has_the_routes(flash: Sim, pro: Sim) -> None:
    async with gateway(load_policy(policy_text(flash, pro)), admin_key=ADMIN) as gate:
        told = json.loads((await gate.get("/openapi.json")).data)
        for method, path in ROUTES:
            assert told["paths"]["/admin/policy" + path.replace("/x", "/{digest}")][method.lower()]["security"]
