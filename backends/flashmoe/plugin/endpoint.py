"""What is this server's policy, and how much did it skip?   `GET /v1/flashmoe`, an entry point of
`vllm.endpoint_plugins`, which vLLM loads if VLLM_PLUGINS names it. Below /v1, so that vLLM's --api-key protects it."""

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
        """Nothing to do: the figures come from the workers' files, not from the engine."""


def shown() -> dict[str, Any]:
    """The policy as it was set, null while the plug-in is off, and the figures of each worker."""
    text = os.environ.get(VARIABLE, "")
    return {"policy": entries(text), "workers": told()} if text.strip() else {"policy": None, "workers": {}}
