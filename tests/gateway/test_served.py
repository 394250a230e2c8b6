"""What the gateway finds out about the models that servers have."""

import json
import logging
from typing import Any

import pytest

from gateway.http1.fetch import LARGEST
from gateway.policy import Policy
from gateway.served import Served, models
from loadtest.servers import Sim
from tests.gateway.loopback import Peer, serving
from tests.gateway.serving import eventually, gateway, plain
from tests.tiers import policy_for

NOWHERE = "http://127.0.0.1:1"


def listed(*names: str, **more: Any) -> bytes:
    return plain(json.dumps({"object": "list", "data": [{"id": name, **more} for name in names]}).encode())


async def test_a_gateway_says_which_servers_do_not_have_their_tiers_model(
    flash: Sim, pro: Sim, caplog: pytest.LogCaptureFixture
) -> None:
    tiers = {"flash": {"model": "flsah-model", "replicas": [flash.url, NOWHERE]}, "pro": {"engine": "vllm"}}
    with caplog.at_level(logging.WARNING, "gateway"):
        async with gateway(policy_for(flash, pro, tiers=tiers)) as gate:
            await eventually(lambda: "does not have" in caplog.text)
            assert (await gate.get("/ready")).json()["models"] == {"flash": ["missing", None], "pro": ["ok"]}
    where = flash.url.removeprefix("http://")
    assert [line.split(",")[0] for line in caplog.messages] == [f"tier flash: {where} does not have flsah-model"]


async def test_each_change_is_told_once_and_what_is_no_list_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    answers = [
        (listed("other", "m"), "ok"),
        (listed("other"), "missing"),
        (plain(b"{}", "503 Busy"), "missing"),
        (plain(b'{"status": "ok"}'), "missing"),
        (plain(b"[" * 100_000), "missing"),
        (plain(b'{"data": [{"id": 1e300}, {"id": "m"}]}'), "missing"),
        (listed("other"), "missing"),
        (plain(b"", "401 No"), "no_key"),
        (listed("m", max_model_len=4095), "short"),
        (listed("m", max_model_len=2048), "short"),
        (listed("m", max_model_len=4096), "ok"),
        (listed("m", max_model_len="1k"), "ok"),
        (listed("m", max_model_len=1e300), "ok"),
    ]
    left = [answer for answer, _ in answers]

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(left.pop(0))

    async with serving(talk) as (client, origin, _):
        served = Served(client, lambda: tier(f"http://{origin.authority}", can={"context": 4096}))
        for _, found in answers:
            await served.look()
            assert served.told()["flash"] == [found]
    told = [" ".join(line.split(" ")[3:7]) for line in caplog.messages]
    assert told == ["does not have m,", "refuses its key and", "has m with a", "has m as the"]


@pytest.mark.parametrize("one", [b'{"id":1e300},', b'{"id":"a"},'])
def test_of_a_list_that_would_hold_up_all_others_nothing_is_read(one: bytes) -> None:
    told = b'{"data":[%b{"id":"m"}]}'
    assert models(told % b"") == {"m": None}
    assert models(told % (one * (LARGEST // len(one)))) == {}


async def test_servers_are_shown_their_tiers_key_and_those_of_other_engines_are_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = []

    async def talk(peer: Peer) -> None:
        heads.append(await peer.request())
        await peer.answer(listed("m"))

    monkeypatch.setenv("FLASH_KEY", " secret\n")
    async with serving(talk) as (client, origin, _):
        await Served(client, lambda: tier(f"http://{origin.authority}", api_key_env="FLASH_KEY")).look()
        await Served(client, lambda: tier(f"http://{origin.authority}", engine="openai")).look()
    assert len(heads) == 1
    assert b"\r\nauthorization: Bearer secret\r\n" in heads[0]


def tier(url: str, **more: Any) -> Policy:
    return policy_for(Sim(url, "m"), Sim(NOWHERE, "p"), tiers={"flash": more, "pro": {"engine": "openai"}})
