"""Does the gateway live with `transformers serve`?   It binds nothing, tells no log-probabilities, sends no [DONE]."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from loadtest.servers import Sim, free_port, running, until
from tests.engines.conftest import PYTHON, client_of, engine, wait
from tests.engines.test_vllm import ask, decision, doctor, ready, streamed
from tests.engines.tiny import TEMPLATE, make

POLICY = """\
schema: 1
tiers:
  flash: {model: %s, replicas: ["${FLASH_URL}"], engine: %s}
  pro: {extends: flash}
triage: {tier: flash, timeout: 30s, cache: null, speculate: never}
rules: [{id: triaged, route: {simple: flash, complex: pro}}]
callers: {default: {plan: free}, plans: {free: {requests_per_minute: 100000, concurrency: 1000, may: [pro]}}}
"""


V4 = Path(__file__).parent.parent.parent / "backends" / "flashmoe" / "tiny"


def deepseek_v4(place: Path) -> Path:
    """DeepSeek-V4's own architecture with trained weights: a model of Python's sources, given a chat template."""
    shutil.copytree(V4, place)
    file = place / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return place


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v4"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    place = tmp_path_factory.mktemp("transformers")
    model = str(deepseek_v4(place / "model") if request.param == "deepseek_v4" else make(place / "model", 0))
    serve = (str(PYTHON.with_name("transformers")), "serve", model, "--device", "cpu")
    with engine(serve, free_port(), place / "log") as started:
        wait([started], 200.0)
        yield Sim(started[0], model)


@pytest.fixture(scope="module")
def client(server: Sim) -> Iterator[openai.OpenAI]:
    with client_of(POLICY % (server.model, "openai"), [server]) as made:
        yield made


def test_the_start_finds_that_nothing_is_bound(client: openai.OpenAI) -> None:
    until(lambda: ready(client)["triage"]["replicas"] != [None], 60)
    found: dict[str, Any] = ready(client)["triage"]["replicas"][0]
    assert "ok" not in found.values()
    assert found["decisions"] == "error"
    assert "choice" not in found, "nobody but vLLM is asked by vLLM's own field"


def test_a_classifier_that_says_what_it_likes_falls_back_to_flash_and_is_answered(client: openai.OpenAI) -> None:
    told = decision(client, "Tell me of cranes.")
    assert told["verdict"]["reason"] in ("parse", "truncated", "empty")
    assert (told["tier"], told["choices"][0]["message"]["role"]) == ("flash", "assistant")


def test_streams_end_as_answers_do(client: openai.OpenAI) -> None:
    chunks = streamed(client, stream_options={"include_usage": True})
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.completion_tokens > 0
    raw = ask(client, "hi", stream=True).http_response.read()
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b"error" not in raw


def test_the_doctor_warns_that_it_lists_other_models_than_it_serves_and_gets_no_verdict(
    server: Sim, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % (server.model, "openai"))
    found = doctor(policy, FLASH_URL=server.url)
    assert len(found) == 4, "\n".join(one["told"] for one in found)
    unlisted, able, manner, used = found
    assert (unlisted["level"], "does not list" in unlisted["told"]) == ("warning", True)
    assert "by nothing; not by decisions: error (404 " in able["told"]
    assert "tells no log-probabilities, and thinks only when told to" in manner["told"]
    assert (used["level"], "by no strategy" in used["told"]) == ("warning", True)


def test_a_server_that_is_called_vllm_and_is_not_says_which_fields_it_does_not_know(server: Sim) -> None:
    with (
        running(POLICY % (server.model, "vllm"), [server]) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="anything", max_retries=0) as made,
        pytest.raises(openai.UnprocessableEntityError) as caught,
    ):
        ask(made, "hi")
    assert "cache_salt" in json.dumps(caught.value.body)
