"""How does this server skip, and what did that come to?   `GET /v1/flashmoe`, of `vllm.endpoint_plugins`.

vLLM loads it where VLLM_PLUGINS names it. Below /v1, so that vLLM's own --api-key holds for it.
"""

import os
from typing import Any

from fastapi import FastAPI

from backends.flashmoe.plugin.settings import VARIABLE, entries
from backends.flashmoe.plugin.shared import told


class Endpoint:
    """vLLM's EndpointPlugin."""

    name = "flashmoe"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_route("/v1/flashmoe", shown, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """It asks no engine: the workers tell their figures themselves."""


def shown() -> dict[str, Any]:
    """The policy as it was given, null while the plug-in is off, and what each worker tells."""
    text = os.environ.get(VARIABLE, "")
    return {"policy": entries(text), "workers": told()} if text.strip() else {"policy": None, "workers": {}}
