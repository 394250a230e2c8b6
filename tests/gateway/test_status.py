import secrets

import pytest

from loadtest.servers import Sim
from tests.gateway.serving import body, eventually, gateway
from tests.tiers import JSON, policy_for

KEY = "a-key-that-is-long-enough"
PRICING = {"prompt": "0.00000014", "completion": "0.000012", "input_cache_read": "0.0000000036"}  # dollars a token
OWN = ["/health", "/ready", "/metrics", "/v1/models", "/v1/key", "/openapi.json", "/docs"]


async def test_every_other_path_is_a_404_error_object(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for path in (
            "/",
            "/v1",
            "/v1/chat",
            "/v1/chat/completions/",
            "/pause",
            "/health/",
            "/v1/models/x%2f..",
            "//",
        ):
            for method in ("GET", "POST", "OPTIONS"):
                answer = await gate.get(path, method)
                assert answer.status == 404 or (method != "GET" and path.startswith("/v1/models/"))
                error = answer.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}
                assert "location" not in answer.headers
                assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", OWN)
async def test_own_paths_take_get_and_head_and_nothing_else(flash: Sim, pro: Sim, path: str) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        got, head = await gate.get(path), await gate.get(path, "HEAD")
        status = 307 if path == "/docs" else 200
        assert (got.status, head.status, head.data) == (status, status, b"")
        assert head.headers.get("content-type") == got.headers.get("content-type")
        refused = await gate.get(path, "DELETE")
        assert (refused.status, refused.json()["error"]["code"]) == (405, "method_not_allowed")
        assert refused.json()["error"]["message"] == "This path does not take DELETE."
        assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/admin/keys", "GET, HEAD, POST"),
        ("/admin/policy/rollback", "POST, DELETE"),
        ("/v1/route", "POST"),
        ("/v1/messages", "POST"),
    ],
)
async def test_who_uses_a_wrong_method_is_told_all_that_the_path_takes(
    flash: Sim, pro: Sim, path: str, methods: str
) -> None:
    async with gateway(policy_for(flash, pro), admin_key=secrets.token_hex(32)) as gate:
        refused = await gate.get(path, "PATCH")
        assert (refused.status, refused.headers["allow"]) == (405, methods)


async def test_models_are_listed_for_who_has_a_key(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, aliases={"gpt-4o": "auto"}), everyone=False, api_key=KEY) as gate:
        for path in ("/v1/models", "/v1/models/flash"):
            refused = await gate.get(path)
            assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        known = {"authorization": f"Bearer {KEY}"}
        listed = (await gate.get("/v1/models", **known)).json()
        assert [model["id"] for model in listed["data"]] == ["auto", "flash", "pro"]
        assert (await gate.get("/v1/models/pro", **known)).json()["root"] == "pro-model"
        for unlisted, tier in (("gpt-4o", None), ("auto:best", None), ("Pro-Model", "pro-model")):
            found = (await gate.get(f"/v1/models/{unlisted}", **known)).json()
            assert (found["id"], found.get("root")) == (unlisted, tier)
        missing = await gate.get("/v1/models/" + "x" * 500, **known)
        assert (missing.status, missing.json()["error"]["param"]) == (404, "model")
        assert "Known models: auto, flash, pro." in missing.json()["error"]["message"]
        assert (await gate.get("/health")).status == 200


async def test_a_caller_sees_the_models_that_answer_it_and_for_auto_the_longest_prompt_that_one_of_them_takes(
    flash: Sim, pro: Sim
) -> None:
    embed = {"model": "e", "replicas": [pro.url], "can": {"chat": False, "embeddings": True}}
    price = {"input_per_m": 0.14, "cached_input_per_m": 0.0036, "output_per_m": 12}
    told = {
        "flash": {"can": {"context": 400_000}, "price": price},
        "pro": {"price": {}},
        "embed": embed,
    }  # pro: 200,000
    for plan, seen, most in (
        ({"may": []}, ["flash"], 400_000),
        ({"may": ["pro"], "min_tier": "pro"}, ["pro"], 200_000),
        ({"may": ["embed"]}, ["flash", "pro", "embed"], 400_000),
        ({"may": ["embed"], "min_tier": "embed"}, ["embed"], None),
    ):
        callers: JSON = {"plans": {"usual": plan}}
        async with gateway(policy_for(flash, pro, tiers=told, callers=callers, aliases={"gpt-*": "auto"})) as gate:
            listed = {model["id"]: model for model in (await gate.get("/v1/models")).json()["data"]}
            assert list(listed) == ["auto", *seen]
            assert listed[seen[0]]["max_model_len"] == {"flash": 400_000, "pro": 200_000, "embed": 1_048_576}[seen[0]]
            names = [(await gate.get(f"/v1/models/{name}")).json() for name in ("auto:fast", "auto:best", "gpt-4o")]
            assert {model.get("max_model_len") for model in (listed["auto"], *names)} == {most}
            for model in (*listed.values(), *names):
                assert model.get("context_length") == model.get("max_model_len")
                assert model.get("pricing") == (PRICING if model.get("root") == flash.model else None)


async def test_who_asks_beside_a_path_is_told_of_it(flash: Sim, pro: Sim) -> None:
    meant = {
        "/chat/completions": "/v1/chat/completions",
        "/v1/chat/completions/chat/completions": "/v1/chat/completions",
        "/openai/deployments/flash/chat/completions": "/v1/chat/completions",
        "//v1/completions/": "/v1/completions",
        "/v1/v1/messages": "/v1/messages",
        "/v1/messages/v1/messages/count_tokens": "/v1/messages/count_tokens",
        "/models": "/v1/models",
        "/api/v1/key": "/v1/key",
        "/v1/images/generations": None,
    }
    async with gateway(policy_for(flash, pro)) as gate:
        for path, served in meant.items():
            told = (await gate.ask(b"{}", path)).json()["error"]["message"]
            advice = f"Did you mean {served}?" if served else "/docs tells what is served."
            assert told == f"Unknown path: POST {path}. {advice}"
        for path, form in (("/v1/messages/batches", "error"), ("/v1/responses/r1", None), ("/v1/messagesx", None)):
            assert (await gate.ask(b"{}", path)).json().get("type") == form


async def test_ready_and_metrics_tell_the_policy_and_the_store(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        await gate.ask(body())
        await eventually(lambda: not any(gate.upstream.load().values()))
        ready = (await gate.get("/ready")).json()
        assert (ready["store"], ready["policy"]["name"], ready["load"]["flash"]) == ("memory", "test", 0)
        assert (ready["status"], ready["workers"]) == ("ok", 1)
        assert ready["tiers"]["pro"] == {"inflight": 0, "queued": 0, "up": [True], "places": 256}
        assert b'gateway_requests_total{status="200",tier="flash"} 1.0' in (await gate.get("/metrics")).data


async def test_a_bug_in_another_path_is_a_500_error_object(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        gate.front.doors.policy = None  # type: ignore[assignment]
        answer = await gate.get("/ready")
        assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
        gate.front.doors.policy = policy_for(flash, pro)
        gate.front.doors.keys = None  # type: ignore[assignment]
        answer = await gate.ask(body())
        assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "NoneType" not in answer.data.decode()
