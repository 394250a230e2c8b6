"""A broken set-up is told with its repairs, and a good one is called good."""

import asyncio
import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from valkey import Valkey

from gateway.app import create_app
from gateway.cli import app
from gateway.cli.keyfile import KeyFileStore
from gateway.doctor.clock import MOST, clock
from gateway.doctor.keys import keys
from gateway.doctor.process import certificate, files, port
from gateway.doctor.store import store
from gateway.doctor.tiers import METRICS, SGLANG, Replied, tier_findings
from gateway.key_records import new_admin_key, new_key
from gateway.keys import Keys
from gateway.policy import load_policy
from gateway.server import Server
from gateway.settings import Settings
from gateway.store import MemoryStore, open_store
from loadtest.servers import Sim, free_port, sim
from tests.gateway.identity import CERTIFICATE, KEY, ending, pem
from tests.gateway.serving import eventually, gateway
from tests.tiers import JSON, policy_for, policy_text

Told = list[dict[str, str]]
GOOD = {"GATEWAY_API_KEY": secrets.token_hex(16), "GATEWAY_ADMIN_KEY": secrets.token_hex(32)}


def look(policy: Path, *more: str, **env: str) -> tuple[int, Told]:
    """Exit status and findings; `env` without GATEWAY_."""
    named = {"GATEWAY_PORT": str(free_port()), **{f"GATEWAY_{name}": value for name, value in env.items()}}
    found = CliRunner().invoke(app, ["doctor", "--policy", str(policy), "--json", *more], env=named)
    return found.exit_code, json.loads(found.stdout)


def said(found: Told, level: str) -> str:
    return "\n".join(f"{one['about']}: {one['told']} -> {one['fix']}" for one in found if one["level"] == level)


@pytest.fixture
def good(tmp_path: Path, flash: Sim, pro: Sim) -> Path:
    """A policy whose servers are there."""
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text(flash, pro))
    return path


def test_a_server_that_is_no_vllm_need_not_list_what_it_serves(tmp_path: Path, flash: Sim, pro: Sim) -> None:
    policy = tmp_path / "policy.yaml"
    for engine, level in (("vllm", "error"), ("openai", "warning")):
        policy.write_text(policy_text(flash, pro, tiers={"flash": {"model": "unlisted", "engine": engine}}))
        _, found = look(policy)
        assert "unlisted" in said(found, level), engine


def test_a_variable_that_is_nearly_a_setting_is_told_and_what_is_kubernetes_own_is_not(good: Path) -> None:
    others = {"SERVICE_PORT": "1", "PORT_8080_TCP": "x", "URL": "http://h", "log_exchanges": "1"}
    _, found = look(good, REDIS="redis://h", ADMIN_KY="k", log_exchangs="1", **others)
    told = said(found, "warning")
    assert "settings: GATEWAY_REDIS is no setting -> GATEWAY_REDIS_URL, if that is meant" in told
    assert "GATEWAY_ADMIN_KY is no setting -> GATEWAY_ADMIN_KEY" in told
    assert "GATEWAY_log_exchangs is no setting -> GATEWAY_LOG_EXCHANGES" in told, "case does not count"
    assert told.count("is no setting") == 3


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def test_a_good_set_up_has_no_error_and_exits_with_0(good: Path, valkey: str) -> None:
    status, found = look(good, REDIS_URL=valkey, **{name[8:]: value for name, value in GOOD.items()})
    assert (status, said(found, "error")) == (0, "")
    assert {one["about"] for one in found} >= {"policy", "tier flash", "tier pro", "store", "clock", "keys", "port"}
    assert "appendonly" in said(found, "warning"), "the tests' Valkey keeps nothing"


def test_a_broken_set_up_is_told_at_each_place_with_its_repair_and_exits_with_1(
    tmp_path: Path, flash: Sim, pro: Sim, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    policy = tmp_path / "policy.yaml"
    dead = f"http://127.0.0.1:{free_port()}"
    tiers: dict[str, Any] = {
        "flash": {"model": "another-model"},
        "pro": {"replicas": [dead], "api_key_env": "NO_SUCH_KEY"},
    }
    policy.write_text(policy_text(flash, pro, tiers=tiers))
    gone = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    weak = {"API_KEY": "secret", "ADMIN_KEY": "changeme" * 5, "TLS_CERT": str(policy), "WORKERS": "many"}
    status, found = look(policy, PORT=str(taken), REDIS_URL=gone, RECORDS="/no/such/folder/records", **weak)
    errors = said(found, "error")
    for told in (
        "serves flash-model, not another-model -> vllm serve ... --served-model-name another-model",
        f"{dead} does not answer: [Errno 111]",
        "NO_SUCH_KEY is not set -> export",
        "cannot be used: [Errno 111] Connect call failed",
        "GATEWAY_API_KEY: it has 6 characters",
        "GATEWAY_ADMIN_KEY: it has 7 different characters",
        "GATEWAY_WORKERS: Input should be a valid integer, unable to parse string as an integer -> correct it",
        f"cannot listen on 127.0.0.1:{taken}",
        "a certificate without its key",
        "/no/such/folder/records cannot be written",
    ):
        assert told in errors, told
    assert status == 1
    assert caplog.records == [], "all that is to be said stands among the findings"
    assert "hunter2" not in json.dumps(found)
    assert "secret" not in json.dumps(found)


def test_a_wrong_policy_is_told_at_its_place_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("schema: 1\ntiers: {a: {model: m, replicas: [http://h]}}\nrules: [{id: x, route: b}]\n")
    status, found = look(policy, API_KEY="ab" * 12)
    assert status == 1
    assert f"{policy}:3:24" in said(found, "error")
    assert "GATEWAY_API_KEY can be guessed: it has 2 different characters" in said(found, "warning")
    assert {one["about"] for one in found} >= {"policy", "store", "keys", "port"}


def test_the_servers_of_a_candidate_are_looked_at_too(tmp_path: Path, flash: Sim, pro: Sim) -> None:
    policy, dead = tmp_path / "policy.yaml", f"http://127.0.0.1:{free_port()}"
    policy.write_text(policy_text(flash, pro, candidate={"policy": "next.yaml"}))
    (tmp_path / "next.yaml").write_text(policy_text(flash, pro, tiers={"pro": {"replicas": [dead]}}))
    status, found = look(policy)
    assert (status, said(found, "error").count(dead)) == (1, 1)
    assert said(found, "ok").count(f"{flash.url} serves") == 1, "what both have is told once"


@contextlib.contextmanager
def set_up(url: str, maxmemory: str, policy: str) -> Iterator[str]:
    """A store's version, while it is set up so."""
    with Valkey.from_url(url) as server:
        before = server.config_get("maxmemory*")
        server.config_set("maxmemory", maxmemory)
        server.config_set("maxmemory-policy", policy)
        try:
            yield server.info("server")["valkey_version"]
        finally:
            for name in ("maxmemory", "maxmemory-policy"):
                server.config_set(name, before[name])


@pytest.mark.parametrize(
    ("policy", "lost"), [("allkeys-lru", "API keys, budgets and ledgers"), ("volatile-lru", "budgets and ledgers")]
)
def test_a_store_that_may_drop_more_than_answers_is_told(good: Path, valkey: str, policy: str, lost: str) -> None:
    with set_up(valkey, "200mb", policy):
        status, found = look(good, REDIS_URL=valkey)
    assert (status, f"may evict {lost} when" in said(found, "error")) == (1, True)


def test_a_store_that_answers_and_refuses_to_work_is_told_in_its_own_words(good: Path, valkey: str) -> None:
    with set_up(valkey, "1mb", "noeviction"):
        status, found = look(good, REDIS_URL=valkey)
    told = said(found, "error")
    assert (status, "does no work of ours: OOM command not allowed" in told, "a primary" in told) == (1, True, True)


def test_a_store_without_a_limit_of_memory_drops_nothing_and_its_version_is_told(good: Path, valkey: str) -> None:
    with set_up(valkey, "0", "allkeys-lru") as version:
        _, found = look(good, REDIS_URL=valkey)
    assert ("may evict" in said(found, "error"), f"answers, version {version}" in said(found, "ok")) == (False, True)


def test_keys_are_counted_and_those_whose_plan_is_gone_are_told(good: Path, valkey: str, tmp_path: Path) -> None:
    async def make() -> None:
        store, file = open_store(valkey), KeyFileStore(tmp_path / "keys.json")
        await store.put_key(new_key(await store.secret(), "ann", "platinum")[1])
        await store.put_key(new_admin_key(await store.secret())[1])
        await file.put_key(new_key(await file.secret(), "bob")[1])
        await store.close()

    asyncio.run(make())
    (tmp_path / "keys.json").chmod(0o644)
    status, found = look(good, REDIS_URL=valkey, KEYS_FILE=str(tmp_path / "keys.json"))
    assert status == 1
    assert "(ann) has the plan platinum, which the policy lacks" in said(found, "error")
    assert "chmod 600" in said(found, "warning")
    assert "2 of callers" in said(found, "ok")
    assert "there is an admin key" in said(found, "ok")


@pytest.mark.parametrize(
    ("host", "keys", "refused"), [("127.0.0.1", {}, 0), ("0.0.0.0", {}, 2), ("0.0.0.0", {"API_KEY": "k" * 24}, 1)]
)
def test_a_gateway_that_others_can_reach_needs_both_kinds_of_keys(
    good: Path, host: str, keys: dict[str, str], refused: int
) -> None:
    status, found = look(good, "--host", host, **keys)
    assert status == bool(refused)
    assert said(found, "error").count(f"{host} can be reached: it will not start") == refused


def test_without_a_policy_the_packaged_one_is_looked_at() -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    env = {"FLASH_URL": dead, "PRO_URL": dead, "GATEWAY_PORT": str(free_port())}
    found = CliRunner().invoke(app, ["doctor"], env=env)
    assert (found.exit_code, "ok      policy: default " in found.stdout) == (1, True)
    assert f"error   tier flash, flash_think, pro: {dead} does not answer" in found.stdout
    assert found.stdout.splitlines()[-1].startswith("1 error, ")


def test_people_get_lines_and_the_sum_of_it(good: Path) -> None:
    env = {"NO_COLOR": "1", "GATEWAY_PORT": str(free_port())}
    found = CliRunner().invoke(app, ["doctor", "--policy", str(good)], env=env)
    assert found.exit_code == 0
    assert "\x1b[" not in found.stdout
    assert "ok      policy: test r1" in found.stdout
    assert "        -> tiergate keys admin" in found.stdout
    assert found.stdout.splitlines()[-1].startswith("0 errors, ")


@pytest.mark.parametrize(
    ("reply", "level", "told"),
    [
        (Replied(200, {"flash-model": None}, frozenset(METRICS), None), "ok", "serves flash-model"),
        (Replied(401, {}, frozenset(METRICS), None), "error", "refuses us (401) -> name its key's variable"),
        ("[Errno 111] Connect call failed", "error", "-> start it, or correct `replicas`"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "error", "-> SSL_CERT_FILE=FILE has its authority"),
        (Replied(404, {}, None, None), "error", "/v1/models answers 404"),
        (Replied(200, {}, None, None), "error", "serves nothing, not flash-model"),
        (Replied(200, {"flash-model": 4096}, frozenset(METRICS), None), "warning", "takes 4096 tokens"),
        (Replied(200, {"flash-model": None}, None, None), "warning", "/metrics does not answer"),
        (Replied(200, {"flash-model": None}, frozenset({*METRICS[1:], "vllm:gpu_cache_usage_perc"}), None), "warning",
         "lacks vllm:num_requests_running"),
        (Replied(200, {"flash-model": None}, frozenset(SGLANG), None), "warning", "is SGLang"),
    ],
)  # fmt: skip
def test_what_a_server_says_is_compared_with_the_policy(
    flash: Sim, pro: Sim, reply: Replied, level: str, told: str
) -> None:
    policy = load_policy(policy_text(flash, pro, tiers={"pro": {"engine": "openai"}}))
    fine = Replied(200, {pro.model: None}, None, None)
    found = tier_findings(policy, {("flash", flash.url): reply, ("pro", pro.url): fine}, {})
    assert told in said([one._asdict() for one in found], level)


@pytest.mark.parametrize(
    ("tier", "metrics"),
    [({}, METRICS), ({"engine": "sglang"}, SGLANG), ({"can": {"token_ids": True}}, SGLANG)],
)
def test_an_engine_that_tells_its_queue_leaves_nothing_to_say(
    flash: Sim, pro: Sim, tier: JSON, metrics: Sequence[str]
) -> None:
    policy = load_policy(policy_text(flash, pro, tiers={"flash": tier, "pro": tier}))
    replies = {
        (name, server.url): Replied(200, {server.model: None}, frozenset(metrics), None)
        for name, server in (("flash", flash), ("pro", pro))
    }
    assert {one.level for one in tier_findings(policy, replies, {})} == {"ok"}


def test_a_key_that_a_server_refuses_is_told_by_its_variable(flash: Sim, pro: Sim) -> None:
    policy = load_policy(policy_text(flash, pro, tiers={"pro": {"api_key_env": "PRO_KEY"}}))
    refused = Replied(401, {}, None, None)
    found = tier_findings(policy, {("flash", flash.url): refused, ("pro", pro.url): refused}, {"PRO_KEY": "old"})
    assert [one.fix for one in found] == ["name its key's variable in `api_key_env`", "correct PRO_KEY"]


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Sim]]:
    kinds = {
        "vllm": ("--decisions",),
        "python": ("--engine", "llama-cpp-python"),
        "other": ("--engine", "transformers"),
    }
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(sim("flash", "--speed", "0", *more, model="flash-model"))
            for name, more in kinds.items()
        }


def of_flash(tmp_path: Path, server: Sim, pro: Sim, **changes: Any) -> str:
    """What is told of its tier beside that it is there; the server's address as URL."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(server, pro, **changes))
    status, found = look(policy)
    assert status == 0
    mine = [one for one in found if one["about"] == "tier flash"][1:]
    return "\n".join(f"{one['level']} {one['told']} -> {one['fix']}" for one in mine).replace(server.url, "URL")


def test_a_server_is_told_by_what_it_can_and_by_its_own_words_where_it_cannot(
    tmp_path: Path, engines: dict[str, Sim], pro: Sim
) -> None:
    auto = {"triage": {"strategy": "auto"}}
    assert of_flash(tmp_path, engines["vllm"], pro, **auto).splitlines() == [
        "ok URL (vllm) can be asked for a verdict by choice, decisions, json_logprobs, json -> ",
        "ok URL tells log-probabilities, and would think, but `set` tells it not to -> ",
        "ok triage asks by choice, which auto takes -> ",
    ]
    able, manner, used = of_flash(tmp_path, engines["python"], pro, **auto).splitlines()
    assert "by json; not by choice: truncated (200 " in able
    assert 'not by json_logprobs: error (500 {"error":{"message":"Internal Server Error"' in able
    assert used.startswith("warning triage asks by json, which tells no probability")
    assert "-> can: {json_schema: false}" in used
    other: Any = {"tiers": {"flash": {"engine": "openai"}}}
    able, manner, used = of_flash(tmp_path, engines["other"], pro, **auto, **other).splitlines()
    assert 'by json; not by decisions: error (404 {"detail":"Not Found"}); not by json_logprobs: no_logprobs' in able
    assert "URL tells no log-probabilities, and would think" in manner
    assert "-> another server, or verdicts without one" in used


def test_a_server_that_thinks_before_it_answers_is_told_with_what_that_does_to_verdicts(
    tmp_path: Path, engines: dict[str, Sim], pro: Sim
) -> None:
    free: Any = {"tiers": {"flash": {"engine": "openai", "set": None}}, "triage": {"strategy": "auto"}}
    able, manner, used = of_flash(tmp_path, engines["other"], pro, **free).splitlines()
    assert "by nothing; " in able
    assert '"content":null' in able
    assert "and thinks before it answers: content is null where max_tokens ends the thought" in manner
    assert "warning triage gets a verdict by no strategy" in used
    assert "-> triage: answers have no content, the model thinks first" in used


def test_the_repair_that_it_names_gives_a_probability(tmp_path: Path, engines: dict[str, Sim], pro: Sim) -> None:
    schemaless = {"tiers": {"flash": {"can": {"json_schema": False}}}, "triage": {"strategy": "auto"}}
    assert "ok triage asks by json_logprobs, which auto takes" in of_flash(
        tmp_path, engines["python"], pro, **schemaless
    )


def test_a_strategy_that_gets_no_verdict_is_a_warning_that_names_one_that_does(
    tmp_path: Path, engines: dict[str, Sim], flash: Sim, pro: Sim
) -> None:
    wrong = of_flash(tmp_path, flash, pro, triage={"strategy": "decisions"})
    assert "warning triage asks by decisions, which gets no verdict" in wrong
    assert "-> triage.strategy: auto, which takes choice" in wrong
    refused = of_flash(tmp_path, engines["other"], pro, triage={"strategy": "auto"})
    assert "warning URL does not answer a plain question: 422 " in refused
    assert "warning triage gets a verdict by no strategy" in refused
    flash.config(only="triage", verdict="null")
    assert "-> correct `engine`" in of_flash(tmp_path, flash, pro), "it says nothing, but does not think"


def test_who_wants_no_verdict_is_not_told_how_to_ask_for_one(tmp_path: Path, flash: Sim, pro: Sim) -> None:
    told = of_flash(tmp_path, flash, pro, rules=[{"id": "all", "route": "flash"}])
    assert "can be asked for a verdict" in told
    assert "triage asks" not in told


def test_one_server_of_two_tiers_is_told_of_once(flash: Sim, pro: Sim) -> None:
    policy = load_policy(policy_text(flash, pro, tiers={"more": {"extends": "flash"}}))
    found = tier_findings(policy, {(tier, url): "gone" for tier in policy.tiers for url in (flash.url, pro.url)}, {})
    assert [one.about for one in found] == ["tier flash, more", "tier pro"]


def test_clocks_that_differ_are_told_by_the_worst() -> None:
    assert clock([]) == clock([None]) == []
    assert clock([0.1, -MOST])[0].level == "ok"
    assert "this machine is 60 s behind" in clock([0.1, 60.0])[0].told
    assert "this machine is 61 s ahead of" in clock([60.0, -61.0])[0].told


async def test_a_port_where_a_tiergate_serves_is_no_error_whatever_it_listens_as(
    tmp_path: Path, flash: Sim, pro: Sim
) -> None:
    files = {"tls_cert": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    files["tls_cert"].write_text(pem("CERTIFICATE", CERTIFICATE))
    files["tls_key"].write_text(pem("PRIVATE KEY", KEY))
    policy = load_policy(policy_text(flash, pro))

    async def told(**more: Any) -> str:
        settings = Settings(port=free_port(), drain_wait=0.0, **more)
        front = create_app(settings, policy, MemoryStore(), Keys(MemoryStore(), "k" * 24))
        server = Server(front, front)
        serving = asyncio.create_task(server.serve())
        await eventually(lambda: server.started)
        (found,) = await port(settings)
        server.leave()
        await serving
        return found.told.partition(f"{settings.port}")[2]

    listens: list[dict[str, Any]] = [{}, {"hosts": "gateway.example"}, files, {"host": "0.0.0.0"}]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        listens += [{"host": "::"}]  # which can be bound as well where IPv6 is switched off, and be reached by nobody
    found = await asyncio.gather(*(told(**more) for more in listens))
    assert found == [": a Tiergate serves here"] * len(listens)


async def test_where_limits_and_keys_are_kept_is_told() -> None:
    kept = {
        None: ("warning", "this process's memory"),
        "embedded": ("ok", "a Valkey of its own"),
        "http://h": ("error", "redis://"),
    }
    for url, (level, told) in kept.items():
        ((found, *others), ahead) = await store(Settings(redis_url=url))
        assert (found.level, told in found.told, others, ahead) == (level, True, [], []), url
    ((found,), _) = await store(Settings(workers=2))
    assert (found.level, found.told) == ("error", "none, and 2 workers share one")


GONE = "redis://127.0.0.1:1"


@pytest.mark.parametrize(
    ("everyone", "url", "told"),
    [
        (False, None, "there is none, and the gateway"),
        (True, None, "callers need none"),
        (False, GONE, "those in the store are not known"),
        (True, GONE, "callers need none"),
    ],
)
async def test_without_keys_it_is_told_whether_the_gateway_that_serves_asks_for_one(
    flash: Sim, pro: Sim, everyone: bool, url: str | None, told: str
) -> None:
    async with gateway(policy_for(flash, pro), everyone=everyone) as gate:
        found, *_ = await keys(Settings(port=gate.port, redis_url=url), None)
    assert (found.level, told in found.told) == ("warning", True), found


async def test_keys_that_open_nothing_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    file = KeyFileStore(path)
    _, record = new_key(await file.secret(), "ann")
    for one in (record, replace(record, id="b", revoked=1.0), replace(record, id="c", expires=1.0)):
        await file.put_key(one)
    settings, admin = Settings(keys_file=path), ("warning", "there is no admin key: /admin and the page are off")
    assert [(one.level, one.told) for one in await keys(settings, None)] == [("ok", "1 of callers"), admin]
    await file.put_key(replace(record, revoked=1.0))
    nobody = ("error", "a key is asked for, and none is left that opens anything")
    assert [(one.level, one.told) for one in await keys(settings, None)] == [nobody, admin]
    path.write_text("{")
    wrong, *_ = await keys(settings, None)
    assert (wrong.level, "keys.json" in wrong.told) == ("error", True)


def test_a_certificate_is_looked_at_with_its_key(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_text(pem("CERTIFICATE", CERTIFICATE))
    key.write_text(pem("PRIVATE KEY", KEY))
    pairs = {"ok": (cert, key), "are they PEM": (cert, cert), "set both": (cert, None), "": (None, None)}
    for told, (one, other) in pairs.items():
        found = certificate(Settings(tls_cert=one, tls_key=other))
        assert [told in (each.level + each.fix) for each in found] == [True] * bool(told)


def test_a_certificate_that_ends_soon_is_a_warning_and_one_that_has_expired_an_error(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    key.write_text(pem("PRIVATE KEY", KEY))
    for days, of, level, told in (
        (-1, 90, "error", "has expired"),
        (3.05, 90, "warning", "ends in 3.0 days"),
        (8, 90, "ok", "tls.crt"),
        (3.05, 6.67, "ok", "tls.crt"),  # as Let's Encrypt's short-lived ones, renewed after half of it
        (1.05, 6.67, "warning", "ends in 1.0 days"),
    ):
        cert.write_text(ending(time.time() + days * 86_400, of))
        (found,) = certificate(Settings(tls_cert=cert, tls_key=key))
        assert (found.level, told in found.told) == (level, True), found


def test_records_may_go_to_a_file_or_into_a_folder_to_make_one_in_but_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for name, wrong in (("there", 0), ("records", 0), ("", 1), ("none/records", 1)):
        for workers in (1, 2):  # whose records would be written over one another's
            settings = Settings(records=tmp_path / name, workers=workers)
            found = [one for one in files(settings) if "GATEWAY_RECORDS" in one.told]
            assert len(found) == wrong + workers - 1, name
