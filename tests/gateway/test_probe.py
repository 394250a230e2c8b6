"""What the start finds out about real servers of several engines."""

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.http1 import Client, Limits
from gateway.policy import Policy
from gateway.probe import Probe
from gateway.upstream import Upstream
from loadtest.servers import Sim, free_port, pid_of, program, sim
from tests.gateway.serving import COMPLEX, SIMPLE, body, eventually, gateway, plain, quiet, scripted, watched
from tests.tiers import JSON, policy_for

PRO = Sim("http://127.0.0.1:2", "pro-model")
FAST = ("--speed", "0")
DECLARED = {"transformers": "openai", "llama.cpp": "openai"}  # as a policy has to
FLAGS = ("--tier", "flash", *FAST, "--served-model-name", "flash-model")


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Sim]]:
    others = ("llama.cpp", "llama-cpp-python", "transformers")
    flags = {"decisions": ("--decisions",), **{name: ("--engine", name) for name in others}}
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(sim("flash", *FAST, *more, model="flash-model")) for name, more in flags.items()
        }


def auto(*servers: Sim, engine: str = "vllm", **triage: object) -> Policy:
    flash = {"replicas": [server.url for server in servers], "engine": engine}
    return policy_for(servers[0], PRO, tiers={"flash": flash}, triage={"strategy": "auto", **triage})


@asynccontextmanager
async def probing(policy: Policy, pause: float = 0.05) -> AsyncIterator[tuple[Probe, Upstream]]:
    client, troubles = Client(), watched()
    door = Upstream(client)
    probe = Probe(client, door, lambda: policy, pause=pause)
    async with probe.running():
        yield probe, door
    client.close()
    await quiet(door, troubles)


async def found(policy: Policy) -> JSON:
    async with probing(policy) as (probe, _):
        return probe.told()


async def test_vllm_is_asked_by_choice(flash: Sim) -> None:
    told = await found(auto(flash))
    assert (told["tier"], told["strategy"]) == ("flash", "choice")
    assert told["replicas"] == [{"choice": "ok", "decisions": "error", "json_logprobs": "ok", "json": "ok"}]


async def test_engines_are_told_apart(engines: dict[str, Sim]) -> None:
    told = {name: await found(auto(server, engine=DECLARED.get(name, "vllm"))) for name, server in engines.items()}
    assert {name: one["strategy"] for name, one in told.items()} == {
        "decisions": "choice", "llama.cpp": "json_logprobs", "llama-cpp-python": "json", "transformers": "json",
    }  # fmt: skip
    refused, ignored = told["llama-cpp-python"]["replicas"][0], told["transformers"]["replicas"][0]
    assert told["decisions"]["replicas"][0]["decisions"] == "ok"
    assert (refused["json_logprobs"], ignored["json_logprobs"]) == ("error", "no_logprobs")
    foreign = (await found(auto(engines["transformers"])))["replicas"]
    assert set(foreign[0].values()) == {"error"}, "it refuses vLLM's own fields"
    assert "choice" not in {name for one in (refused, ignored) for name, what in one.items() if what == "ok"}


async def test_a_server_that_refuses_schemas_still_gives_a_probability_when_the_policy_says_so(
    engines: dict[str, Sim],
) -> None:
    policy = policy_for(
        engines["llama-cpp-python"], PRO, tiers={"flash": {"can": {"json_schema": False}}}, triage={"strategy": "auto"}
    )
    assert (await found(policy))["strategy"] == "json_logprobs"


async def test_a_server_that_streams_no_log_probabilities_beside_tools_gives_a_verdict_with_one(
    engines: dict[str, Sim], pro: Sim
) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    policy = policy_for(engines["llama.cpp"], pro, tiers={"flash": {"engine": "openai"}})
    async with gateway(policy) as gate:
        told: JSON = (await gate.ask(body(COMPLEX, tools=tools), "/v1/route")).json()["verdict"]
        verdict = told
    assert (verdict["label"], verdict["reason"], verdict["p_complex"] > 0.5) == ("complex", "ok", True)


def said(content: str) -> bytes:
    tokens = [{"token": content, "logprob": -0.1, "top_logprobs": []}]
    choice = {"message": {"content": content}, "finish_reason": "stop", "logprobs": {"content": tokens}}
    return plain(json.dumps({"choices": [choice]}).encode())


async def test_a_server_that_only_does_as_it_is_told_is_no_server_that_binds_its_answers() -> None:
    label, hello = '{"complexity":"simple"}', said("Hello! How can I help?")
    answers = [plain(b""), said("simple"), hello, plain(b"{}", "404 Not Found"), said(label), hello, said(label)]
    async with (
        scripted(*answers) as (url, _),
        probing(auto(Sim(url, "flash-model")), pause=9.0) as (probe, _),
    ):
        told = probe.told()
    outcomes = {"choice": "unbound", "decisions": "error", "json_logprobs": "unbound", "json": "ok"}
    assert (told["strategy"], told["replicas"]) == ("json", [outcomes])


async def test_a_tier_can_do_what_each_of_its_servers_can(flash: Sim, engines: dict[str, Sim]) -> None:
    assert (await found(auto(flash, engines["llama-cpp-python"])))["strategy"] == "json"
    assert (await found(auto(flash, engines["decisions"])))["strategy"] == "choice"


async def test_a_named_strategy_asks_nobody_and_a_prompt_that_thinks_first_is_not_asked_for_a_word(flash: Sim) -> None:
    assert (await found(auto(flash, strategy="json")))["strategy"] == "json"
    assert flash.state()["requests"] == []
    never = policy_for(flash, PRO, triage={"strategy": "auto"}, rules=[{"id": "all", "route": "flash"}])
    assert (await found(never))["replicas"] == [None], "no rule wants a verdict"
    assert flash.state()["requests"] == []
    told = await found(auto(flash, prompt="intent.v1"))
    assert (told["strategy"], list(told["replicas"][0])) == ("json_logprobs", ["json_logprobs", "json"])


def test_a_server_that_starts_later_or_comes_back_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    late = Sim(f"http://127.0.0.1:{port}", "flash-model")

    async def main() -> None:
        async with probing(auto(late)) as (probe, door):
            assert probe.told() == {"tier": "flash", "strategy": "json_logprobs", "replicas": [None]}
            for _ in range(2):
                with program(["-m", "backends.sim", *FLAGS, "--port", str(port)], port):
                    await eventually(lambda: probe.told()["strategy"] == "choice")
                await eventually(lambda: door.strategies["flash"] == ())

    with caplog.at_level(logging.WARNING, "gateway"):
        asyncio.run(main())
    lines = [line for line in caplog.messages if line.startswith("triage asks tier flash")]
    assert lines[1].endswith("; can: choice, json_logprobs, json, cannot: decisions (error)")
    assert [line.split(";")[0] for line in lines[1:]] == [
        f"triage asks tier flash by {strategy}" for strategy in ("choice", "json_logprobs", "choice", "json_logprobs")
    ]


async def test_a_server_that_was_busy_is_asked_again_though_it_stayed(flash: Sim) -> None:
    flash.config(status=503, count=2)
    async with probing(auto(flash)) as (probe, _):
        assert probe.told()["strategy"] == "json", "what it could do then"
        await eventually(lambda: probe.told()["strategy"] == "choice")


async def test_of_a_server_that_is_too_busy_to_say_that_it_lives_nothing_is_forgotten(flash: Sim) -> None:
    client, policy, looks = Client(), auto(flash), list[Policy]()

    def looked() -> Policy:
        looks.append(policy)
        return policy

    probe = Probe(client, Upstream(client), looked, 0.01, Limits(5.0, 0.05, 0.05, 0.05))
    async with probe.running():
        await eventually(lambda: probe.told()["strategy"] == "choice")
        os.kill(pid := pid_of(flash.url), signal.SIGSTOP)
        try:
            begun = len(looks)
            await eventually(lambda: len(looks) > begun + 3)
            assert probe.told()["strategy"] == "choice"
        finally:
            os.kill(pid, signal.SIGCONT)
    client.close()


async def test_a_server_of_another_kind_is_not_sent_vllms_own_fields(flash: Sim) -> None:
    policy = policy_for(flash, PRO, tiers={"flash": {"engine": "openai"}}, triage={"strategy": "auto"})
    assert "choice" not in (await found(policy))["replicas"][0]
    assert not [entry for entry in flash.state()["requests"] if "structured_outputs" in entry["body"]]


async def test_the_start_waits_for_a_silent_server_no_longer_than_its_bound(flash: Sim) -> None:
    flash.config(stall_first=60.0)
    client = Client()
    probe = Probe(client, Upstream(client), lambda: auto(flash), pause=0.05)
    async with probe.running(wait=0.1):
        assert probe.told()["strategy"] == "json_logprobs"
    client.close()


async def test_a_gateway_starts_with_what_was_found_and_says_so(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, triage={"strategy": "auto"})) as gate:
        ready = (await gate.get("/ready")).json()
        assert ready["triage"]["strategy"] == "choice"
        verdict = (await gate.ask(body(COMPLEX), x_route_explain="1")).json()["route"]["verdict"]
        assert (verdict["label"], verdict["strategy"], verdict["prompt"]) == ("complex", "choice", "complexity.v1")
        alone = (await gate.ask(body(COMPLEX), "/v1/route")).json()["verdict"]
        assert (alone["source"], alone["strategy"]) == ("cache", "choice"), "a decision alone is asked the same way"


async def test_a_decision_routes_by_its_probabilities(engines: dict[str, Sim], pro: Sim) -> None:
    policy = policy_for(engines["decisions"], pro, triage={"strategy": "decisions"})
    async with gateway(policy) as gate:
        for text, tier in ((SIMPLE, "flash"), (COMPLEX, "pro")):
            answer = await gate.ask(body(text), x_route_explain="1")
            verdict = answer.json()["route"]["verdict"]
            assert (answer.headers["x-route-tier"], verdict["strategy"]) == (tier, "decisions")
            assert (verdict["p_complex"] >= 0.5) == (tier == "pro")


def test_a_server_that_thinks_by_itself_is_an_alarm_that_names_the_repair(
    flash: Sim, pro: Sim, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        flash.config(only="triage", verdict="null")
        async with gateway(policy_for(flash, pro)) as gate:
            for at in range(2):
                answer = await gate.ask(body(f"{COMPLEX} {at}"), x_route_explain="1")
                assert (answer.headers["x-route-tier"], answer.headers["x-route-reason"]) == ("flash", "empty")
            metrics = (await gate.get("/metrics")).data
            assert b'gateway_verdicts_total{outcome="empty",source="triage"} 2.0' in metrics
            assert b"gateway_verdicts_empty 1.0" in metrics
            flash.reset()
            await gate.ask(body(COMPLEX))
            assert b"gateway_verdicts_empty 0.0" in (await gate.get("/metrics")).data

    with caplog.at_level(logging.WARNING, "gateway"):
        asyncio.run(main())
    first, second = (line for line in caplog.messages if line.startswith("triage: "))
    assert "chat_template_kwargs {thinking: false" in first
    assert "content again" in second
