"""The file is followed: what is right comes into force, what is wrong changes nothing, what was can come back."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from typer import Exit
from valkey import Valkey

from gateway.cli.serve import usable
from gateway.errors import BadRequest, NotFound, Overloaded
from gateway.policy import Policy
from gateway.revisions import Revision, Revisions
from gateway.revisions.follow import SETTLE
from gateway.revisions.kept import KEPT, REVISIONS, merged
from gateway.store import MemoryStore, Store, open_store
from gateway.verify import attempted, checked
from loadtest.servers import free_port
from tests.gateway.serving import eventually

TEXT = """\
schema: 1
name: house
revision: "{revision}"
tiers: {{flash: {{model: small, replicas: ["http://h"]}}, pro: {{model: large, replicas: ["http://h"]}}}}
rules: [{{id: all, route: {tier}}}]
tests: [{{name: t, request: {{prompt: hi}}, expect: {{tier: flash}}}}]
{more}
"""


def text(revision: str, tier: str = "flash", more: str = "") -> str:
    """A policy; one that routes to pro fails its own test."""
    return TEXT.format(revision=revision, tier=tier, more=more)


@dataclass
class House:
    """A gateway's policy without the gateway."""

    path: Path
    store: Store = field(default_factory=MemoryStore)
    used: list[str] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)

    def revisions(self) -> Revisions:
        def use(policy: Policy) -> None:
            self.used.append(policy.revision)

        return Revisions(self.path, checked(self.path, {}), self.store, use, self.counted.append)


@pytest.fixture
def house(tmp_path: Path) -> House:
    path = tmp_path / "p.yaml"
    path.write_text(text("a"))
    return House(path)


def follows(house: House, work: Callable[[Revisions], Awaitable[None]]) -> None:
    async def main() -> None:
        revisions = house.revisions()
        await revisions.look()
        await work(revisions)

    asyncio.run(main())


async def test_what_the_file_comes_to_say_is_in_force_within_a_moment(house: House) -> None:
    revisions = house.revisions()
    await revisions.look()
    running = asyncio.create_task(revisions.run())
    for revision in ("b", "c"):
        await asyncio.sleep(0.02)
        house.path.write_text(text(revision))
        await eventually(lambda revision=revision: revisions.policy.revision == revision)  # type: ignore[misc]
    running.cancel()
    await asyncio.wait([running])
    assert house.used == ["b", "c"]


async def test_a_file_that_is_still_being_written_is_read_once_it_is_whole(house: House) -> None:
    revisions = house.revisions()
    await revisions.look()
    house.path.write_text(text("b")[:60])
    asyncio.get_running_loop().call_later(SETTLE / 2, house.path.write_text, text("b"))
    assert await revisions.look()
    assert (house.used, house.counted) == (["b"], ["accepted"] * 2)


async def test_every_swap_of_a_mounted_configmap_is_seen(tmp_path: Path) -> None:
    def mount(revision: str) -> None:
        (tmp_path / f"..{revision}").mkdir()
        (tmp_path / f"..{revision}" / "p.yaml").write_text(text(revision))
        (tmp_path / "..data_tmp").symlink_to(f"..{revision}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    mount("a")
    (tmp_path / "p.yaml").symlink_to("..data/p.yaml")
    house = House(tmp_path / "p.yaml")
    revisions = house.revisions()
    await revisions.look()
    running = asyncio.create_task(revisions.run())
    for revision in ("b", "c", "d"):
        await asyncio.sleep(0.02)
        mount(revision)
        await eventually(lambda revision=revision: revisions.policy.revision == revision)  # type: ignore[misc]
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (text("b", more="budgett: {usd: 1}"), 'p.yaml:7:1: budgett: unknown key; did you mean "budget"?'),
        (text("b", tier="pro"), 'p.yaml:6:57: tests.0.expect.tier: "t" fails: expected flash, got pro'),
        ("schema: [", "p.yaml:2:1: not YAML"),
        (None, "p.yaml:1:1: cannot be read: No such file"),
    ],
)
def test_a_file_that_turns_wrong_changes_nothing_and_says_where(
    house: House, wrong: str | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(revisions: Revisions) -> None:
        house.path.unlink() if wrong is None else house.path.write_text(wrong)
        assert await revisions.look()
        assert not await revisions.look(), "the same text is not tried twice"
        assert (revisions.policy.revision, house.used) == ("a", [])
        assert told in str(revisions.problems[0])
        assert told in str(revisions.told()["problems"])
        await revisions.look(again=True)
        assert caplog.text.count("stays in force") == 1, "nor told twice"
        house.path.write_text(text("a"))
        await revisions.look()
        assert (revisions.problems, house.used) == ((), [])
        assert house.counted == ["accepted", "rejected", "rejected", "accepted"]
        assert caplog.messages[-1] == f"policy: {revisions.policy} is in force"

    with caplog.at_level(logging.WARNING, "gateway"):
        follows(house, work)


def test_why_a_file_cannot_be_read_is_told_anew_where_the_reason_changes(house: House) -> None:
    async def work(revisions: Revisions) -> None:
        house.path.unlink()
        for change, told in (
            (bytes, "No such file or directory"),
            (house.path.mkdir, "Is a directory"),
            (house.path.rmdir, "No such file or directory"),
            (lambda: house.path.write_bytes(b"# \xe9"), "1:3: not UTF-8"),
        ):
            change()
            assert await revisions.look()
            assert told in str(revisions.problems[0])
            assert not await revisions.look(), "nothing is counted twice"
        assert house.counted == ["accepted", *["rejected"] * 4]

    follows(house, work)


def test_a_file_that_is_read_again_and_says_the_same_is_taken_over_without_a_word(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(revisions: Revisions) -> None:
        since = revisions.since
        assert await revisions.look(again=True)
        assert (revisions.since, house.used, house.counted) == (since, [], ["accepted"] * 2)

    with caplog.at_level(logging.WARNING, "gateway"):
        follows(house, work)
    assert caplog.messages == []


def test_a_file_that_is_named_in_it_is_followed_too(house: House) -> None:
    beside = house.path.parent / "next.yaml"
    beside.write_text(text("n"))
    house.path.write_text(text("a", more="candidate: {policy: next.yaml, canary: 0.5}"))

    async def work(revisions: Revisions) -> None:
        wrong = {"m": (text("m", tier="pro"), "6:57"), "o": ("schema: [", "2:1")}
        for revision, (said, place) in wrong.items():
            before = revisions.policy
            beside.write_text(said)
            await revisions.look()
            assert f"next.yaml:{place}" in str(revisions.problems[0])
            assert revisions.policy is before
            beside.write_text(text(revision))
            await revisions.look()
            assert revisions.policy.candidate
            assert revisions.policy.candidate.policy.revision == revision

    follows(house, work)


@pytest.mark.parametrize("key", ["candidate: {policy", "triage: {calibration", "triage: {embeddings"])
def test_a_file_is_followed_though_it_named_what_can_be_no_name(house: House, key: str) -> None:
    async def work(revisions: Revisions) -> None:
        house.path.write_text(text("b", more=f'{key}: "b\\0c"}}'))
        await revisions.look()
        assert "cannot be read: no file's name has a NUL" in str(revisions.problems[0])
        house.path.write_text(text("c"))
        await revisions.look()
        assert revisions.policy.revision == "c"

    follows(house, work)


def test_a_file_that_is_named_in_it_and_has_the_line_ends_of_windows_is_loaded_once(house: House) -> None:
    (house.path.parent / "next.yaml").write_bytes(text("n").replace("\n", "\r\n").encode())
    house.path.write_text(text("a", more="candidate: {policy: next.yaml, canary: 0.5}"))

    async def work(revisions: Revisions) -> None:
        assert not await revisions.look()
        assert house.counted == ["accepted"]

    follows(house, work)


def test_an_earlier_revision_comes_back_until_the_file_is_written(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(revisions: Revisions) -> None:
        for revision in "bc":
            house.path.write_text(text(revision))
            await revisions.look()
        at_first, *before = await revisions.known()
        assert [one.revision for one in (at_first, *before)] == ["c", "b", "a"]
        back = await revisions.roll_back("previous")
        assert (back.revision, revisions.policy.revision, revisions.text) == ("b", "b", back.text)
        assert revisions.told()["source"] == "rollback"
        assert "still says otherwise" in revisions.note()
        assert (await revisions.roll_back("previous")).revision == "a"
        await revisions.roll_back(at_first.digest)
        assert (revisions.policy.revision, revisions.rollback) == ("c", None), "the file says so"
        await revisions.roll_back(back.digest)
        house.path.write_text(text("c", more="# touched"))
        await revisions.look()
        assert (revisions.policy.revision, revisions.told()["source"]) == ("c", "file")

    with caplog.at_level(logging.WARNING, "gateway"):
        follows(house, work)
    told = [re.sub("policy: house (.) .* is in force", r"\1", message) for message in caplog.messages]
    assert told == [*"bc", "b, by a rollback", "a, by a rollback", "c", "b, by a rollback", "c"]


def calibration(edge: float) -> str:
    layer = {"intercept": 0.0, "weights": {"score": 1.0}, "means": {"score": 0.0}, "scales": {"score": 1.0}}
    return json.dumps({"schema": 1, "layer": layer, "edges": [edge]})


def threshold(revisions: Revisions) -> float:
    return revisions.policy.triage.threshold


def test_an_earlier_calibration_comes_back_until_one_is_written(house: House) -> None:
    beside = house.path.with_name("calibration.json")
    beside.write_text(calibration(0.5))
    house.path.write_text(text("a", more="triage: {calibration: calibration.json}"))

    async def work(revisions: Revisions) -> None:
        beside.write_text(calibration(0.9))
        await revisions.look()
        back = await revisions.roll_back("previous")
        assert (threshold(revisions), revisions.policy.digest) == (0.5, back.digest)
        assert (revisions.told()["source"], revisions.calibration) == ("rollback", calibration(0.5))
        assert not await revisions.look(), "nothing has changed"
        anew = house.revisions()
        await anew.look()
        assert threshold(anew) == 0.5
        beside.write_text("{")
        await revisions.look()
        assert (threshold(revisions), len(revisions.problems)) == (0.5, 1), "the file counts, and is wrong"
        beside.write_text(calibration(0.7))
        await revisions.look()
        assert (threshold(revisions), revisions.told()["source"]) == (0.7, "file")

    follows(house, work)


def test_a_revision_whose_calibration_was_not_kept_does_not_come_back_as_another_policy(house: House) -> None:
    beside = house.path.with_name("calibration.json")
    beside.write_text(calibration(0.5))
    house.path.write_text(text("a", more="triage: {calibration: calibration.json}"))

    async def work(revisions: Revisions) -> None:
        (kept,) = await revisions.known()
        older = msgspec.structs.replace(kept, calibration=None)  # as an older version wrote it
        await house.store.keep(f"{REVISIONS}house", msgspec.json.encode([older]))
        beside.write_text(calibration(0.9))
        anew = house.revisions()
        await anew.look()
        with pytest.raises(BadRequest, match="a calibration that was not kept"):
            await anew.roll_back("previous")
        assert threshold(anew) == 0.9
        beside.write_text(calibration(0.5))
        await anew.look()
        assert (await anew.known())[0].calibration == calibration(0.5), "what is in force again is kept whole"

    follows(house, work)


def test_a_rollback_is_taken_back_and_outlasts_a_wrong_file_that_was_there_before_it(house: House) -> None:
    async def work(revisions: Revisions) -> None:
        house.path.write_text(text("b"))
        await revisions.look()
        house.path.write_text("schema: [")
        await revisions.look()
        await revisions.roll_back("previous")
        assert (revisions.policy.revision, revisions.problems) == ("a", ())
        await revisions.roll_forward()
        assert revisions.problems, "the file counts, and it is wrong"
        assert revisions.policy.revision == "a", "the last good one stays"
        assert "is to count again, and is wrong" in revisions.note()

    follows(house, work)


async def test_a_rollback_that_a_change_of_the_file_ended_is_over_also_when_the_file_is_as_it_was(
    house: House, tmp_path: Path
) -> None:
    elsewhere = House(tmp_path / "copy.yaml", house.store)  # on another host
    elsewhere.path.write_text(text("b"))
    here, there = house.revisions(), elsewhere.revisions()
    for revision in "ab":
        house.path.write_text(text(revision))
        await here.look()
    await here.roll_back("previous")
    house.path.write_text(text("c"))
    for each in (here, there):
        await each.look()
    house.path.unlink()
    for each in (here, there):
        await each.look()
    assert [each.policy.revision for each in (here, there)] == ["c", "a"], "the other file is as it was, still"
    house.path.write_text(text("b"))
    anew = house.revisions()
    for each in (here, there, anew):
        await each.look()
    assert [each.policy.revision for each in (here, there, anew)] == ["b", "b", "b"]
    await here.roll_back("previous")
    assert here.told()["source"] == "rollback", "another one counts"


async def test_a_rollback_stays_though_the_store_loses_it_until_it_is_taken_back(valkey: str, house: House) -> None:
    house.store = open_store(valkey)
    one, other = house.revisions(), house.revisions()
    for revision in ("a", "b"):
        house.path.write_text(text(revision))
        for each in (one, other):
            await each.look()
    await one.roll_back("previous")
    await other.look()
    with Valkey.from_url(valkey) as client:
        client.flushall()
    anew = house.revisions()
    for each in (other, one, anew):
        await each.look()
    assert [each.policy.revision for each in (one, other, anew)] == ["a", "a", "a"]
    await other.roll_forward()
    for each in (one, anew):
        await each.look()
    assert [each.policy.revision for each in (one, other, anew)] == ["b", "b", "b"]
    await house.store.close()


async def test_a_rollback_that_was_taken_back_stays_so_though_the_store_forgets_it(valkey: str, house: House) -> None:
    house.store = open_store(valkey)
    one, other = house.revisions(), house.revisions()
    for revision in ("a", "b"):
        house.path.write_text(text(revision))
        for each in (one, other):
            await each.look()
    await one.roll_back("previous")
    with Valkey.from_url(valkey) as client:
        before = client.get("tg1:kept:policy.rollback.house")
        await one.roll_forward()
        assert before
        client.set("tg1:kept:policy.rollback.house", before)
    await one.look()
    await other.look()
    assert [each.policy.revision for each in (one, other)] == ["b", "b"]
    await one.roll_back("previous")
    await other.look()
    assert [each.policy.revision for each in (one, other)] == ["a", "a"], "another one counts"
    await house.store.close()


def test_an_earlier_revision_comes_back_though_the_file_is_gone_until_it_is_there_again(house: House) -> None:
    async def work(revisions: Revisions) -> None:
        house.path.write_text(text("b"))
        await revisions.look()
        house.path.unlink()
        await revisions.look()
        await revisions.roll_back("previous")
        assert (revisions.policy.revision, revisions.problems) == ("a", ())
        house.path.write_text(text("b"))
        await revisions.look()
        assert (revisions.policy.revision, revisions.rollback) == ("b", None)
        assert revisions.note() == f"{house.path} counts."

    follows(house, work)


async def test_all_processes_on_a_store_roll_back_together_and_one_that_starts_anew_too(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = house.revisions(), house.revisions()
    for revision in ("a", "b"):
        house.path.write_text(text(revision))
        for each in (one, other):
            await each.look()
    await one.roll_back("previous")
    await other.look()
    caplog.clear()
    anew = house.revisions()
    await anew.look()
    assert [each.policy.revision for each in (one, other, anew)] == ["a", "a", "a"]
    assert caplog.messages == [f"policy: {one.policy} is in force, by a rollback"], "its start told of the file's"
    await other.roll_forward()
    await one.look()
    assert one.policy.revision == "b"


async def test_a_process_that_starts_while_the_file_is_wrong_serves_what_was_in_force_last_also_by_a_rollback(
    house: House,
) -> None:
    others = house.revisions()
    for revision in "ab":
        house.path.write_text(text(revision))
        await others.look()
    await others.roll_back("previous")
    wrong = "name: 'house'  # ours\nschema: ["
    for said, serves in ((wrong, "a"), (text("c"), "c"), (wrong, "c")):
        house.path.write_text(said)
        await others.look()
        anew = await usable(house.path, house.store)
        assert (others.policy.revision, anew.revision) == (serves, serves)
        begun = Revisions(house.path, anew, house.store, print, print)
        await begun.look()
        assert (begun.text, begun.told()) == (others.text, others.told()), "as who served it before"
    await house.store.keep("policy.rollback.house", b"{")
    assert (await usable(house.path, house.store)).revision == "c"
    house.path.write_text("schema: [")
    anew = await usable(house.path, house.store, "house")
    assert anew.revision == "c", "beside workers who serve it"
    begun = Revisions(house.path, anew, house.store, print, print)
    await begun.look()
    assert (begun.text, len(begun.problems)) == (text("c"), 1), "its text is shown, and what other texts change"


@pytest.mark.parametrize(
    ("said", "lines", "told"),
    [
        ("schema: [", 1, "not YAML"),
        ("name: [house]\nschema: 2", 3, "schema"),
        ("name: other\nschema: [", 2, "No policy 'other' that was in force"),
        ("name: house\nschema: [", 2, "Put it right: tiergate policy check"),
    ],
)
async def test_a_process_does_not_start_on_a_wrong_file_where_nothing_can_take_its_place_and_says_what_to_do(
    house: House, capsys: pytest.CaptureFixture[str], said: str, lines: int, told: str
) -> None:
    older = [Revision("d", "house", "", at, text) for at, text in ((2.0, "schema: 2"), (1.0, house.path.read_text()))]
    await house.store.keep(f"{REVISIONS}house", msgspec.json.encode(older))
    house.path.write_text(said)
    with pytest.raises(Exit):
        await usable(house.path, house.store)
    stderr = capsys.readouterr().err
    assert (stderr.count("\n"), told in stderr) == (lines, True), stderr


async def test_what_was_in_force_before_a_restart_can_come_back_after_it(house: House) -> None:
    before = house.revisions()
    for revision in ("a", "b"):
        house.path.write_text(text(revision))
        await before.look()
    after = house.revisions()
    await after.look()
    assert [one.revision for one in await after.known()] == ["b", "a"]
    assert (await after.roll_back("previous")).revision == "a"


async def test_a_file_is_followed_though_what_the_store_keeps_cannot_be_read(house: House) -> None:
    revisions = house.revisions()
    await revisions.look()
    await house.store.keep("policy.revisions.house", b'[{"digest":"\xff"}]')
    await house.store.keep("policy.rollback.house", b'{"instead_of":"\xff"}')
    house.path.write_text(text("b"))
    await revisions.look()
    assert [one.revision for one in await revisions.known()] == ["b", "a"]


async def test_gateways_with_policies_of_other_names_share_nothing_on_one_store(house: House, tmp_path: Path) -> None:
    other = House(tmp_path / "other.yaml", house.store)
    other.path.write_text(text("z").replace("house", "other"))
    one, two = house.revisions(), other.revisions()
    for each in (one, two):
        await each.look()
    assert [revision.name for revision in await one.known()] == ["house"]
    with pytest.raises(NotFound):
        await two.roll_back("previous")


def test_a_rollback_to_nowhere_is_refused(house: House) -> None:
    async def work(revisions: Revisions) -> None:
        for to in ("previous", "0123456789ab"):
            with pytest.raises(NotFound):
                await revisions.roll_back(to)

    follows(house, work)


def test_an_earlier_revision_that_is_wrong_by_now_does_not_come_back_and_says_why(house: House) -> None:
    beside = house.path.parent / "next.yaml"
    beside.write_text(text("n"))
    house.path.write_text(text("a", more="candidate: {policy: next.yaml, canary: 0.5}"))

    async def work(revisions: Revisions) -> None:
        house.path.write_text(text("b"))
        await revisions.look()
        beside.unlink()
        with pytest.raises(BadRequest, match=r"is wrong by now: [^ ]+ candidate\.policy: cannot be read"):
            await revisions.roll_back("previous")
        assert not await revisions.look()
        assert (revisions.policy.revision, revisions.problems) == ("b", ())

    follows(house, work)


async def test_while_the_store_does_not_answer_the_file_is_followed_and_what_is_known_here_is_told(
    house: House,
) -> None:
    house.store = open_store(f"redis://127.0.0.1:{free_port()}")
    revisions = house.revisions()
    for revision in "ab":
        house.path.write_text(text(revision))
        assert await revisions.look()
    assert [one.revision for one in await revisions.known()] == ["b", "a"]
    with pytest.raises(Overloaded):
        await revisions.roll_back("previous")
    assert (revisions.policy.revision, revisions.told()["source"]) == ("b", "file")
    await house.store.close()


async def test_what_cannot_be_read_in_the_store_is_as_if_it_were_not_there(house: House) -> None:
    for name in (f"{REVISIONS}house", "policy.rollback.house"):
        await house.store.keep(name, b"{")
    revisions = house.revisions()
    await revisions.look()
    assert [one.revision for one in await revisions.known()] == ["a"]
    assert (revisions.policy.revision, revisions.rollback) == ("a", None)


async def test_a_process_that_has_not_read_its_file_yet_goes_back_to_the_newest_that_is_kept(house: House) -> None:
    before = house.revisions()
    for revision in "ab":
        house.path.write_text(text(revision))
        await before.look()
    house.path.write_text(text("c"))
    assert (await house.revisions().roll_back("previous")).revision == "b"


async def test_the_previous_revision_is_the_one_before_also_where_it_was_written_by_a_clock_that_is_ahead(
    house: House,
) -> None:
    other = house.revisions()
    ahead = Revision(other.policy.digest, "house", "a", time.time() + 3600, house.path.read_text())
    await house.store.keep(f"{REVISIONS}house", msgspec.json.encode([ahead]))
    revisions = house.revisions()
    for revision in "bc":
        house.path.write_text(text(revision))
        await revisions.look()
    await other.look()
    for kept in (await revisions.known(), await other.known()):
        assert [one.revision for one in kept] == ["c", "b", "a"]
    assert (await revisions.roll_back("previous")).revision == "b"


def test_where_no_file_is_followed_there_is_nothing_to_look_at_and_nothing_to_roll_back_or_forward(
    house: House,
) -> None:
    revisions = Revisions(None, checked(house.path, {}), house.store, print, print)
    assert not asyncio.run(revisions.look(again=True))
    for asked in (lambda: revisions.roll_back("previous"), revisions.roll_forward):
        with pytest.raises(BadRequest) as refusal:
            asyncio.run(asked())
        assert refusal.value.code == "no_policy_file"


def test_revisions_are_bounded_and_each_is_kept_once_where_it_came_into_force_last() -> None:
    ones = [Revision(f"d{turn}", "house", "", float(turn), "") for turn in range(KEPT + 5)]
    found = merged(ones[::2], ones[1::2])
    assert found == ones[:4:-1]
    assert merged(found, [Revision("d9", "house", "", 99.0, "")])[0].digest == "d9"
    assert merged(found, found) == found


def test_a_text_is_tried_with_the_variables_that_it_is_given(house: House) -> None:
    found = attempted(house.path, text("a", more="aliases: {x: '${TIER}'}"), {"TIER": "pro"})
    assert found.policy
    assert found.policy.aliases == {"x": "pro"}
