"""`tiergate usage`: the ledger of a real Valkey, as people and programs read it."""

import csv
import gzip
import json
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.store import Bound, KeyRecord, Limits, Line, MemoryStore, Store
from gateway.usage import Asked, reported
from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, body, gateway
from tests.stores import on
from tests.tiers import JSON, policy_for


async def fill(store: Store) -> None:
    await store.put_key(KeyRecord("ann", "hash", "research", None, 1.0))
    await store.put_key(KeyRecord("bob", "hash", '=1,"a"\x1b[2J\n', None, 1.0))
    for caller, kind, money in (("ann", "answer", 2_000_000), ("ann", "triage", 1000), ("bob", "answer", 500_000)):
        held = await store.admit(caller, Limits(100, 100, 60.0), None, Bound("pro", "flash"))
        await store.settle(caller, held.lease or "", [Line("pro", kind, kind == "triage", 10, 2, 5, money)])  # type: ignore[arg-type]


def usage(*words: str) -> Result:
    return CliRunner().invoke(app, ["usage", *words])


def test_usage_shows_tokens_and_money_by_caller_and_day_answers_and_overhead_apart(valkey: str) -> None:
    on(valkey, fill)
    shown = usage("--redis", valkey).stdout
    assert "answers: 0.002500 USD" in shown
    assert "overhead: 0.000001 USD" in shown
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert [line.split() for line in shown.splitlines()[1:-2]] == [
        [today, "ann", "research", "pro", "answer", "1", "10", "2", "5", "0.002000"],
        [today, "ann", "research", "pro", "triage", "estimated", "1", "10", "2", "5", "0.000001"],
        [today, "bob", '=1,"a"\\x1b[2J\\n', "pro", "answer", "1", "10", "2", "5", "0.000500"],
    ]
    by_nothing_else = usage("--redis", valkey, "--by", "tier").stdout.splitlines()[1:-2]
    assert [line.split()[:3] for line in by_nothing_else] == [["pro", "answer", "2"], ["pro", "overhead", "estimated"]]
    report = json.loads(usage("--redis", valkey, "--caller", "ann", "--from", today, "--to", today, "--json").stdout)
    assert [(row["kind"], row["overhead"], row["estimated"], row["usd"], row["day"]) for row in report["rows"]] == [
        ("answer", False, False, 0.002, today), ("triage", True, True, 0.000001, today),
    ]  # fmt: skip
    assert report["answers"]["usd"] == 0.002
    by_tier = json.loads(usage("--redis", valkey, "--by", "tier", "--json").stdout)
    assert [(row["tier"], row["caller"], row["requests"]) for row in by_tier["rows"]] == [
        ("pro", None, 2), ("pro", None, 1),
    ]  # fmt: skip
    months = usage("--redis", valkey, "--by", "month", "--by", "caller", "--csv").stdout.splitlines()
    assert months == [
        "day,caller,name,tier,kind,estimated,requests,prompt,cached,completion,USD",
        f"{today[:7]},ann,research,,answer,,1,10,2,5,0.002000",
        f"{today[:7]},ann,research,,overhead,estimated,1,10,2,5,0.000001",
        f"""{today[:7]},bob,"'=1,""a""\\x1b[2J\\n",,answer,,1,10,2,5,0.000500""",
    ]
    assert json.loads(usage("--redis", valkey, "--to", "1999-01-01", "--json").stdout)["rows"] == []


async def test_logs_tell_the_ledgers_answers_and_who_asked_behind_a_key(
    flash: Sim, pro: Sim, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    users: JSON = {"plans": {"usual": {}}, "user": ["header:x-user", "user"]}
    prices: JSON = {tier: {"price": {"input_per_m": 1, "output_per_m": 2}} for tier in ("flash", "pro")}
    store, hostile = MemoryStore(), '=1,"a"\x1b[2J\n{'
    async with gateway(policy_for(flash, pro, tiers=prices, callers=users), store, log_exchanges=True) as gate:
        for who, stream, model in (("ann", True, "pro"), ("ann", False, "flash"), ("", False, "auto")):
            assert (await gate.ask(body(COMPLEX, model=model, stream=stream), x_user=who)).status == 200
        await gate.ask(body(user=hostile))
        await gate.ask(body(user="refused", model="nobody"))
    ledger = reported(await store.ledger(), Asked(by=("tier",)))
    written = tmp_path / "log"
    written.write_text("up\n" + capfd.readouterr().out + '{"at": 1}\n{"at"', encoding="utf-8")
    found = json.loads(usage("--log", str(written), "--by", "tier", "--json").stdout)
    answers = [msgspec.to_builtins(row) for row in ledger.rows if not row.overhead]
    assert found["rows"] == answers
    assert found["answers"]["usd"] == pytest.approx(ledger.answers.usd, abs=1e-12)
    whole = written.read_bytes()
    table = CliRunner().invoke(app, ["usage", "--log", "-", "--by", "user", "--csv"], input=whole).stdout
    names = [row[2] for row in csv.reader(table.splitlines())]
    assert names == ["user", "", '\'=1,"a"\\x1b[2J\\n{', "ann"]
    shown = usage("--log", str(written), "--by", "user").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["day", "answer", '=1,"a"\\x1b[2J\\n{', "ann", "answers:"]
    missing = usage("--log", str(tmp_path / "none"))
    assert (missing.exit_code, missing.stderr) == (1, f"tiergate usage: {tmp_path}/none: No such file or directory\n")


PAID = b'{"at":1795490043.0,"caller":"ann","booked":{"tier":"pro","usd":0.5,"prompt":3,"cached":0,"completion":2}}\n'
TWICE = b"\0" * 4096 + PAID + PAID.replace(b"1795490043.0", b"1e300") + b"2026-11-24T03:06:53Z store ok\n" + PAID


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(gzip.compress(TWICE), id="packed"),
        pytest.param(TWICE.replace(b"{", b"\x1b[36mgateway-1  | \x1b[0m{", 1), id="docker compose logs"),
        pytest.param(TWICE.replace(b"{", b"2026-11-24T03:06:53.123456789Z stderr F {", 1), id="Kubernetes' files"),
        pytest.param(TWICE.replace(b"{", b'2026-11-24T03:06:53Z {app="tiergate"} {', 1), id="logcli query"),
    ],
)
def test_a_log_is_read_as_rotation_and_collectors_leave_it(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "log").write_bytes(written)
    found = usage("--log", str(tmp_path / "log"), "--json")
    assert (found.exit_code, found.stderr) == (0, "")
    assert json.loads(found.stdout)["answers"] | {"estimated_usd": 0} == {
        "requests": 2, "prompt_tokens": 6, "cached_tokens": 0, "completion_tokens": 4, "usd": 1.0, "estimated_usd": 0,
    }  # fmt: skip


def test_who_reads_a_log_hears_that_it_tells_of_nothing_and_that_it_breaks_off(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for written, caller, told in (
        (b"up\n", None, "no line tells of an exchange that is paid for"),
        (PAID, "bob", "no line tells of an exchange of bob that is paid for"),
    ):
        log.write_bytes(written)
        nothing = usage("--log", str(log), *(("--caller", caller) if caller else ()))
        assert (nothing.exit_code, nothing.stderr) == (0, f"tiergate usage: {told}\n")
    log.write_bytes(gzip.compress(PAID)[:-9])
    cut = usage("--log", str(log))
    assert cut.exit_code == 1
    assert cut.stderr.startswith(f"tiergate usage: {log}: gzip: Compressed file ended")


def test_a_wrong_day_or_column_says_what_is_right() -> None:
    wrong = [("--from", "yesterday"), ("--by", "week"), ("--by", "user")]  # the ledger knows callers alone
    for words, told in zip(wrong, ("YYYY-MM-DD", "caller, tier, kind", "caller, tier, kind"), strict=True):
        done = usage("--redis", "redis://127.0.0.1:1", *words)
        assert done.exit_code == 1
        assert told in done.stderr
