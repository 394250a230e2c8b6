"""Which decisions are written down, where, and that no prompt is among them."""

import asyncio
import json
import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner
from valkey import Valkey

from gateway import records as room
from gateway.app import create_app
from gateway.cli import app
from gateway.errors import NotFound
from gateway.keys import Keys
from gateway.policy import Policy, load_policy
from gateway.recorded import SHADOW, Outcome, Record
from gateway.records import Records
from gateway.settings import Settings
from gateway.store import MemoryStore, State, open_store
from gateway.turns import conversation
from gateway.types import Caller, Decision, Facts, Route
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, SIMPLE, asked, body, eventually, gateway
from tests.gateway.test_recorded import read
from tests.tiers import JSON, policy_for

ANN, BOB = Caller("k1", "ann", "default", ""), Caller("k2", "bob", "default", "")
GOOD = Outcome(1.0)
LOCAL = Sim("http://127.0.0.1:1", "m")


def policy(**record: Any) -> Policy:
    tiers = {"flash": {"model": "m", "replicas": ["http://h"]}}
    written = {"schema": 1, "tiers": tiers, "rules": [{"id": "all", "route": "flash"}], "record": record}
    return load_policy(json.dumps(written), {})


def ended(name: str, caller: Caller = ANN, cache: str = "bypass", **facts: Any) -> Record:
    decision = Decision(Facts("auto", "ann", "default", **facts), None, Route(("flash",), "all", "rule"))
    return Record(
        name, "/v1/chat/completions", 200, 1.0, None, "p", caller=caller, tier="flash", decision=decision, cache=cache
    )


def names(kept: Records, most: int = 1000) -> list[str]:
    return [json.loads(line)["id"] for line in kept.recent(most)]


async def test_an_exchange_becomes_a_line_with_what_was_decided_and_used(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    rules = [
        {"id": "phase", "when": {"header": {"x-phase": "plan"}, "signals": "proof"}, "route": "pro"},
        {"id": "triaged", "route": {"simple": "flash", "complex": "pro"}},
    ]
    made = policy_for(flash, pro, rules=rules, signals={"proof": "Prove"})
    async with gateway(made, records=path) as gate:
        for text in (SIMPLE, COMPLEX):
            await gate.ask(body(text), x_request_id=text[:4], x_phase="w" * 500)
        await gate.ask(body(model="nobody"), x_request_id="refused")
    first, second = sorted(read([path]), key=lambda one: one.id, reverse=True)
    assert [(one.id, one.tier, one.route.rule, one.status) for one in (first, second)] == [
        ("What", "flash", "triaged", 200),
        ("Prov", "pro", "triaged", 200),
    ]
    assert second.verdict
    assert (second.verdict.label, second.verdict.source, second.route.p) == ("complex", "triage", 1.0)
    assert second.used
    assert (second.used.prompt or 0) > 0
    facts = second.read_facts()
    assert facts.characters == len(COMPLEX)
    assert facts.signals == frozenset({"proof"})
    assert facts.headers == {"x-phase": "w" * 128}
    assert second.seen
    assert (second.seen.headers, second.seen.tiers) == (("x-phase",), ("flash", "pro"))
    assert "4k+3" not in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("kept", "header"), [({}, "x_session_id"), ({"sessions": {"key": ["header:x-talk", "prefix"]}}, "x_talk")]
)
async def test_turns_of_one_conversation_have_one_name_in_records_and_others_another(
    flash: Sim, pro: Sim, tmp_path: Path, kept: JSON, header: str
) -> None:
    path, turn = tmp_path / "records.jsonl", body()["messages"]
    later = [*turn, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Of Spain?"}]
    async with gateway(policy_for(flash, pro, **kept), records=path) as gate:
        for name, fields in {"a": body(), "b": body(messages=later), "c": body("Who else?")}.items():
            await gate.ask(fields, x_request_id=name)
        for name, text in {"d": "Go on.", "e": "Stop."}.items():
            await gate.ask(body(text), x_request_id=name, **{header: "7"})
        await gate.ask(body(metadata={"session": "none"}), x_request_id="f")
    names = {one.id: one.conversation for one in read([path])}
    assert names["a"] == names["b"]
    assert names["d"] == names["e"]
    assert names["f"] == ""
    assert sorted(map(len, set(names.values()))) == [0, 16, 16, 16]


def test_callers_who_begin_alike_have_conversations_of_their_own() -> None:
    ann, bob, again = (asked(body(), caller=replace(ANN, salt=salt)) for salt in ("ann", "bob", "ann"))
    names = [conversation(one, policy()) for one in (ann, bob, again)]
    assert names[0] == names[2] != names[1]


async def test_a_tier_that_skips_experts_is_named_in_the_answer_its_explanation_and_its_record(
    flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    made = policy_for(flash, pro, tiers={"flash": {"skips": "top3"}})
    async with gateway(made, records=path) as gate:
        few, all_of_them = [await gate.ask(body(text), x_route_explain="1") for text in (SIMPLE, COMPLEX)]
    told = [(answer.headers.get("x-route-skips"), answer.json()["route"]["skips"]) for answer in (few, all_of_them)]
    assert told == [("top3", "top3"), (None, None)]
    assert {one.tier: one.skips for one in read([path])} == {"flash": "top3", "pro": None}


async def test_recalled_and_coalesced_answers_are_no_decisions_of_their_own(
    flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    flash.config(only="answer", stall_first=0.1)
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"}), records=path) as gate:
        same = body(temperature=0)
        answers = [*await asyncio.gather(gate.ask(same), gate.ask(same)), await gate.ask(same)]
        assert sorted(answer.headers["x-route-cache"] for answer in answers) == ["coalesced", "hit", "miss"]
    assert len(read([path])) == 1


def test_the_newest_records_stay_in_memory() -> None:
    kept = Records(MemoryStore())
    for at in range(5):
        kept.keep(ended(f"r{at}"), policy(keep=3))
    kept.keep(ended("r3"), policy(keep=3))
    assert names(kept) == ["r2", "r4", "r3"]
    assert names(kept, 1) == ["r3"]


def test_who_asks_for_what_came_after_a_line_does_not_get_that_line_again() -> None:
    kept = Records(MemoryStore())
    for at in range(50):
        kept.keep(ended(f"r{at}"), policy(keep=50))
        time.sleep(0.0001)  # several in a millisecond
    times = [json.loads(line)["at"] for line in kept.recent(50)]
    assert len(set(times)) > 1
    for after in times:
        assert [json.loads(line)["at"] for line in kept.recent(50, after)] == [at for at in times if at > after]


def test_a_share_of_the_decisions_is_recorded() -> None:
    kept, none = Records(MemoryStore()), Records(MemoryStore())
    some, nothing = policy(decisions=0.3), policy(decisions=0.0)
    for at in range(1000):
        kept.keep(ended(f"r{at}"), some)
        none.keep(ended(f"r{at}"), nothing)
    assert 200 < len(kept.recent(1000)) < 400
    assert none.recent(1000) == []


async def test_an_outcome_is_attached_for_its_caller_alone_and_for_a_time() -> None:
    kept = Records(MemoryStore())
    kept.keep(ended("r"), policy())
    await kept.judge(ANN, "r", Outcome(0.5), policy())
    await kept.judge(ANN, "r", GOOD, policy())
    assert json.loads(kept.recent(1)[0])["outcome"] == {"quality": 1.0}
    others = [(BOB, "r", policy()), (ANN, "R", policy()), (ANN, "", policy()), (ANN, "r", policy(feedback="1ms"))]
    await asyncio.sleep(0.01)
    tried = [kept.judge(caller, name, Outcome(0.0), rules) for caller, name, rules in others]
    assert [type(one) for one in await asyncio.gather(*tried, return_exceptions=True)] == [NotFound] * 4
    assert json.loads(kept.recent(1)[0])["outcome"] == {"quality": 1.0}


async def test_where_no_process_shares_the_store_a_decision_that_is_gone_takes_no_outcome() -> None:
    kept, rules = Records(MemoryStore()), policy(keep=1, stream=100)
    for name in ("r", "s"):
        kept.keep(ended(name), rules)
    await kept.close()
    with pytest.raises(NotFound):
        await kept.judge(ANN, "r", GOOD, rules)


async def test_an_outcome_is_written_behind_its_decision(tmp_path: Path) -> None:
    kept = Records(MemoryStore(), tmp_path / "a")
    kept.keep(ended("r"), policy())
    await kept.judge(ANN, "r", GOOD, policy())
    await kept.close()
    (one,) = read([tmp_path / "a"])
    assert one.outcome == GOOD


async def test_an_agreement_never_takes_the_place_of_a_judgement(tmp_path: Path) -> None:
    kept = Records(MemoryStore(), tmp_path / "a")
    agreed, judged = Outcome(0.2, SHADOW), Outcome(0.9)
    for name, told in (("r", (judged, agreed)), ("s", (agreed, judged)), ("t", (agreed, agreed))):
        kept.keep(ended(name), policy())
        for outcome in told:
            await kept.judge(ANN, name, outcome, policy())
    await kept.close()
    expected = {"r": judged, "s": judged, "t": agreed}
    assert {one.id: one.outcome for one in read([tmp_path / "a"])} == expected
    lines = [json.loads(line) for line in kept.recent(3)]
    assert {line["id"]: line["outcome"]["quality"] for line in lines} == {"r": 0.9, "s": 0.9, "t": 0.2}


def test_a_full_file_makes_room_for_one_more(tmp_path: Path) -> None:
    path, line = tmp_path / "a", b"x" * (room.FILE_BYTES // 4)
    for _ in range(4):
        room.append(path, [line])
    assert not path.exists()
    room.append(path, [b"fresh"])
    assert path.read_bytes() == b"fresh\n"
    assert (tmp_path / "a.1").stat().st_size == 4 * (len(line) + 1)


def test_lines_that_do_not_fit_on_the_disk_leave_no_half_line_behind(tmp_path: Path) -> None:
    path, before = tmp_path / "a", resource.getrlimit(resource.RLIMIT_FSIZE)
    room.append(path, [b"first"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            room.append(path, [b"fits", b"x" * 30])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"first\n"


def test_a_pipe_that_nobody_reads_is_no_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="No such device"):
        room.append(tmp_path / "a", [b"first"])


def test_a_pipe_whose_reader_stands_still_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    reader = os.open(tmp_path / "a", os.O_RDONLY | os.O_NONBLOCK)
    room.append(tmp_path / "a", [b"first"], patience=0.0)
    with pytest.raises(TimeoutError, match="nobody reads"):
        room.append(tmp_path / "a", [b"x" * 99] * 5000, patience=0.0)
    assert os.read(reader, 6) == b"first\n"
    os.close(reader)


def test_a_pipe_whose_reader_is_slow_gets_every_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    reader, lines, come = os.open(tmp_path / "a", os.O_RDONLY | os.O_NONBLOCK), [b"x" * 99] * 5000, b""
    os.set_blocking(reader, True)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(room.append, tmp_path / "a", lines, patience=20.0)
        time.sleep(0.05)  # in which the pipe is full
        while len(come) < 100 * len(lines) and not written.done():
            come += os.read(reader, 1 << 20)
        written.result()
        come += os.read(reader, 1 << 20)
    os.close(reader)
    assert come == b"".join(line + b"\n" for line in lines)


async def test_a_file_that_cannot_be_written_loses_lines_and_nothing_else_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Records(MemoryStore(), tmp_path / "none" / "a")
    for name in ("q", "r", "s", "t"):
        kept.keep(ended(name), policy())
        await kept.close()
        assert (names(kept)[-1], kept.failing) == (name, name != "t")
        if name == "s":
            (tmp_path / "none").mkdir()
    assert kept.lost == 3
    told = [record.getMessage().partition("none/a ")[2] for record in caplog.records]
    assert told == [
        "cannot be written (No such file or directory): decisions are lost",
        "is written again; 3 lost so far",
    ]


async def test_lines_that_cannot_be_written_in_time_do_not_pile_up(tmp_path: Path) -> None:
    kept = Records(Away(), tmp_path / "a")
    rules = policy(keep=1, stream=100)
    for at in range(room.WAITING + 7):
        kept.keep(ended(f"r{at}"), rules)
    await eventually((tmp_path / "a").exists)
    for at in range(5):
        kept.keep(ended(f"s{at}"), rules)
    await eventually(lambda: kept.lost == 7 + 5)
    await asyncio.sleep(2 * room.PAUSE)
    await kept.close()
    written = (tmp_path / "a").read_bytes().count(b"\n")
    assert (kept.lost, written) == (7 + 5, room.WAITING + 5), "those for the store are in the file"


async def test_any_process_on_the_store_takes_an_outcome_and_the_stream_has_both(valkey: str) -> None:
    stores = [open_store(valkey) for _ in range(2)]
    here, there = map(Records, stores)
    shared = policy(stream=1000)
    here.keep(ended("r"), shared)
    await here.close()
    tried = there.judge(BOB, "r", GOOD, shared), there.judge(ANN, "r", GOOD, policy())
    assert [type(one) for one in await asyncio.gather(*tried, return_exceptions=True)] == [NotFound] * 2
    await there.judge(ANN, "r", GOOD, shared)
    await there.close()
    for store in stores:
        await store.close()
    with Valkey.from_url(valkey) as client:
        lines = [entry[b"line"] for _, entry in client.xrange("tg1:records")]
    assert [sorted(json.loads(line)) for line in lines][1] == ["at", "caller", "id", "outcome", "v"]
    assert json.loads(lines[0])["route"]["tier"] == "flash"


def test_what_the_stream_holds_is_printed_line_by_line_the_oldest_first(valkey: str) -> None:
    runner = CliRunner()
    empty = runner.invoke(app, ["records", "--redis", valkey])
    assert (empty.exit_code, empty.stdout, "record.stream" in empty.stderr) == (0, "", True)
    lines = [f'{{"n": {n}}}' for n in range(1200)]

    async def main() -> None:
        store = open_store(valkey)
        await store.note([line.encode() for line in lines], 5000)
        await store.close()

    asyncio.run(main())
    assert runner.invoke(app, ["records", "--redis", valkey]).stdout.splitlines() == lines


async def test_the_stream_keeps_about_as_many_as_it_is_told(valkey: str) -> None:
    store = open_store(valkey)
    kept = Records(store)
    rules = policy(stream=100)
    for at in range(1000):
        kept.keep(ended(f"r{at}"), rules)
    await kept.close()
    await store.close()
    with Valkey.from_url(valkey) as client:
        assert 100 <= client.xlen("tg1:records") < 300
        newest = client.xrevrange("tg1:records", count=1)[0][1][b"line"]
    assert msgspec.json.decode(newest)["id"] == "r999"


async def test_a_store_that_is_gone_costs_nothing_but_the_lines(tmp_path: Path) -> None:
    store = open_store(f"unix://{tmp_path}/nobody.sock")
    kept = Records(store)
    kept.keep(ended("r"), policy(stream=100))
    await kept.close()
    with pytest.raises(NotFound):
        await kept.judge(ANN, "other", GOOD, policy(stream=100))
    await store.close()
    assert names(kept) == ["r"]


class Away(MemoryStore):
    """A shared store that is down at first."""

    state: State = "down"

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []

    async def note(self, lines: Sequence[bytes], _: int) -> bool:
        self.heard += lines if self.state == "ok" else ()
        return self.state == "ok"


async def test_records_wait_for_a_store_that_is_down_and_for_none_at_the_end() -> None:
    store = Away()
    kept, rules = Records(store), policy(stream=100)
    for name in ("r", "s"):
        kept.keep(ended(name), rules)
        await asyncio.sleep(2 * room.PAUSE)
    store.state = "ok"
    await eventually(lambda: [json.loads(line)["id"] for line in store.heard] == ["r", "s"])
    assert await store.recall(ANN.id, b"record:r") == b"1"
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    store.state = "down"
    kept.keep(ended("t"), rules)
    await kept.close()


async def test_a_gateway_that_ends_writes_what_is_due(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    store = MemoryStore()
    keys = Keys(store, everyone=True)
    front = create_app(Settings(records=tmp_path / "a"), policy_for(flash, pro), store, keys)
    async with front.running():
        front.doors.records.keep(ended("r"), policy())
    assert len(read([tmp_path / "a"])) == 1
