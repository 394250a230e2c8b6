"""Is what FastAPI serves there when it is asked for, and not in memory before?"""

import re
import subprocess
import sys

from gateway.dialects import DIALECTS
from loadtest.servers import Sim
from tests.gateway.serving import body, gateway
from tests.tiers import policy_for

SCRIPT = """
import asyncio, sys
from gateway.policy import packaged
from gateway.verify import checked
from tests.gateway.serving import body, gateway

async def main():
    async with gateway(checked(packaged())) as gate:
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/auto", "/", "/favicon.ico"):
            await gate.get(path)
        await gate.ask(body())
        print("fastapi" in sys.modules)
        found = await asyncio.gather(gate.get("/docs"), gate.get("/ui/"), gate.get("/admin/keys"))
        print("fastapi" in sys.modules, *[one.status for one in found])

asyncio.run(main())
"""


def test_fastapi_is_in_memory_once_somebody_asks_for_what_it_serves() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["False", "True", "307", "200", "403"]


async def test_all_paths_of_the_openapi_document_are_served_those_of_completions_with_their_headers(
    flash: Sim, pro: Sim
) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for _ in range(2):
            told = (await gate.get("/openapi.json")).json()
            chat = told["paths"]["/v1/chat/completions"]["post"]
            answer = await gate.ask(body(priority=1))
            ours = {name for name in answer.headers if re.match("x-(?!ratelimit-re)", name)}
            assert ours | {"x-route-stripped", "x-budget"} <= chat["responses"]["200"]["headers"].keys()
            assert {"x-route-shadow", "x-session-id"} < {one["name"] for one in chat["parameters"]}
            assert told["paths"].keys() >= {"/v1/models", "/health", "/admin/keys"} | DIALECTS.keys()
            assert "422" not in str(told)
            schemes = told["components"]["securitySchemes"]
            assert schemes["key"].items() >= {"type": "http", "scheme": "bearer"}.items()
            assert schemes["x-api-key"].items() >= {"type": "apiKey", "in": "header", "name": "x-api-key"}.items()
            for path in DIALECTS:
                spoken = told["paths"][path]["post"]
                asked = spoken["requestBody"]["content"]["application/json"]["schema"]
                assert DIALECTS[path].prompt[-1] in asked["required"]
                assert asked["additionalProperties"] is True
                assert spoken["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
                refused = spoken["responses"]["default"]["content"]["application/json"]["schema"]
                assert ("anyOf" in refused) == path.startswith("/v1/messages"), "Anthropic's errors, or OpenAI's"
        answers = {path: await gate.get(path) for path in told["paths"]}
        assert [path for path, answer in answers.items() if b"Unknown path" in answer.data] == []
