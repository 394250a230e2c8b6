import asyncio
import re
import secrets
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.app import NoKeys, open_to_everyone
from gateway.cli import app
from gateway.cli.written import Written
from gateway.dialects import DIALECTS
from gateway.keyfile import KeyFile
from gateway.keys import new_admin_key, new_key
from gateway.settings import Settings
from gateway.store import MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, body, eventually, gateway
from tests.tiers import policy_for

KEY = "a-key-that-is-long-enough"
OWN = ["/health", "/ready", "/metrics", "/v1/models", "/openapi.json", "/docs"]


def test_every_other_path_is_a_404_error_object(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
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

    asyncio.run(main())


@pytest.mark.parametrize("path", OWN)
def test_own_paths_take_get_and_head_and_nothing_else(flash: Sim, pro: Sim, path: str) -> None:
    async def main() -> None:
        async with gateway(policy_for(flash, pro)) as gate:
            got, head = await gate.get(path), await gate.get(path, "HEAD")
            assert (got.status, head.status, head.data) == (200, 200, b"")
            assert head.headers["content-type"] == got.headers["content-type"]
            refused = await gate.get(path, "DELETE")
            assert (refused.status, refused.json()["error"]["code"]) == (405, "method_not_allowed")
            assert "GET" in refused.headers["allow"]

    asyncio.run(main())


def test_models_are_listed_for_who_has_a_key(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        async with gateway(policy_for(flash, pro), everyone=False, api_key=KEY) as gate:
            for path in ("/v1/models", "/v1/models/flash"):
                refused = await gate.get(path)
                assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            known = {"authorization": f"Bearer {KEY}"}
            listed = (await gate.get("/v1/models", **known)).json()
            assert [model["id"] for model in listed["data"]] == ["auto", "flash", "pro"]
            assert (await gate.get("/v1/models/pro", **known)).json()["root"] == "pro-model"
            missing = await gate.get("/v1/models/" + "x" * 500, **known)
            assert (missing.status, missing.json()["error"]["param"]) == (404, "model")
            assert (await gate.get("/health")).status == 200

    asyncio.run(main())


def test_ready_and_metrics_tell_the_policy_and_the_store(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        async with gateway(policy_for(flash, pro)) as gate:
            await gate.ask(body())
            await eventually(lambda: not any(gate.upstream.load().values()))
            ready = (await gate.get("/ready")).json()
            assert (ready["store"], ready["policy"]["name"], ready["load"]["flash"]) == ("memory", "test", 0)
            assert ready["tiers"]["pro"] == {"inflight": 0, "queued": 0, "up": [True], "places": 256}
            assert b'gateway_requests_total{status="200",tier="flash"} 1.0' in (await gate.get("/metrics")).data

    asyncio.run(main())


def test_the_openapi_document_has_the_completion_paths_and_their_headers(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        async with gateway(policy_for(flash, pro)) as gate:
            for _ in range(2):
                told = (await gate.get("/openapi.json")).json()
                chat = told["paths"]["/v1/chat/completions"]["post"]
                answer = await gate.ask(body(priority=1))
                ours = {name for name in answer.headers if re.match("x-(?!ratelimit-re)", name)}
                assert ours | {"x-route-stripped", "x-budget"} <= chat["responses"]["200"]["headers"].keys()
                assert {"x-route-shadow", "x-session-id"} < {one["name"] for one in chat["parameters"]}
                assert told["paths"].keys() >= {"/v1/models", "/health"} | DIALECTS.keys()
                assert "422" not in str(told)

    asyncio.run(main())


def test_a_bug_in_another_path_is_a_500_error_object(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        async with gateway(policy_for(flash, pro)) as gate:
            gate.front.doors.policy = None  # type: ignore[assignment]
            answer = await gate.get("/ready")
            assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
            gate.front.doors.policy = policy_for(flash, pro)
            gate.front.doors.keys = None  # type: ignore[assignment]
            answer = await gate.ask(body())
            assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
            assert "NoneType" not in answer.data.decode()

    asyncio.run(main())


def test_others_are_served_only_with_a_callers_key_and_an_admin_key(tmp_path: Path) -> None:
    async def main() -> None:
        store, here, everywhere = MemoryStore(), Settings(host="127.0.0.1"), Settings(host="0.0.0.0")
        assert await open_to_everyone(here, store)
        with pytest.raises(NoKeys, match=r"no API key .* listen on 0\.0\.0\.0"):
            await open_to_everyone(everywhere, store)
        with pytest.raises(NoKeys, match=r"no admin key .* listen on 0\.0\.0\.0"):
            await open_to_everyone(Settings(host="0.0.0.0", api_key=KEY), store)
        assert not await open_to_everyone(Settings(host="0.0.0.0", api_key=KEY, admin_key=secrets.token_hex(32)), store)
        await store.put_key(new_admin_key(b"")[1])
        assert await open_to_everyone(here, store), "the admin key is nobody's who calls"
        with pytest.raises(NoKeys, match="no API key"):
            await open_to_everyone(everywhere, store)
        await store.put_key(new_key(b"", "ann")[1])
        assert not await open_to_everyone(everywhere, store)
        file = tmp_path / "keys.json"
        await Written(file).secret()
        assert not await open_to_everyone(here, MemoryStore(), KeyFile(file)), "a file without keys serves nobody"
        with pytest.raises(NoKeys, match="no admin key"):
            await open_to_everyone(everywhere, MemoryStore(), KeyFile(file))
        await Written(file).put_key(new_admin_key(b"")[1])
        assert not await open_to_everyone(everywhere, MemoryStore(), KeyFile(file))
        await store.revoke_key("admin")
        with pytest.raises(NoKeys, match="no admin key"):
            await open_to_everyone(everywhere, store)

    asyncio.run(main())


def test_pages_of_listed_origins_only_may_ask_and_read_the_headers(flash: Sim, pro: Sim) -> None:
    async def main() -> None:
        asks = {
            "access_control_request_method": "POST",
            "access_control_request_headers": "authorization,x-stainless-os",
        }
        async with gateway(policy_for(flash, pro), cors_origins="https://app.example") as gate:
            allowed = await gate.get(CHAT, "OPTIONS", origin="https://app.example", **asks)
            assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
            assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
            answer = await gate.ask(body(), origin="https://app.example")
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert answer.headers["access-control-expose-headers"] == "*"
            assert "access-control-allow-credentials" not in answer.headers
            for foreign in (
                await gate.get(CHAT, "OPTIONS", origin="https://evil.example", **asks),
                await gate.ask(body(), origin="https://evil.example"),
            ):
                assert "access-control-allow-origin" not in foreign.headers
        async with gateway(policy_for(flash, pro)) as gate:
            refused = await gate.get(CHAT, "OPTIONS", origin="https://app.example", **asks)
            assert (refused.status, "access-control-allow-origin" in refused.headers) == (405, False)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("flags", "env", "told"),
    [
        ([], {"GATEWAY_ADMIN_KEY": "changeme"}, "GATEWAY_ADMIN_KEY: "),
        (["--host", "0.0.0.0"], {"GATEWAY_API_KEY": KEY}, "no admin key is configured"),
        (["--host", "0.0.0.0"], {"GATEWAY_ADMIN_KEY": "0123abcd" * 8}, "GATEWAY_ADMIN_KEY: "),
    ],
)
def test_serve_refuses_to_start_without_a_strong_admin_key(flags: list[str], env: dict[str, str], told: str) -> None:
    done = CliRunner().invoke(app, ["serve", *flags], env=env)
    assert done.exit_code == 1
    assert told in done.stderr
    assert "openssl rand -hex 32" in done.stderr
    assert not any(key in done.stderr for key in env.values())
