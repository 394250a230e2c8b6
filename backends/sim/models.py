"""What do vLLM's /v1/models and /tokenize answer?"""

import time

from backends.sim.prompt import chat_prompt, thinks
from backends.sim.protocol import JSON, ChatRequest, RequestError, TokenizeRequest, check_messages, decode
from backends.sim.replies import new_id
from backends.sim.settings import Settings
from backends.sim.tokens import pieces, token_id


def model_list(settings: Settings) -> JSON:
    """vLLM's `/v1/models`."""
    return {"object": "list", "data": [_card(name, settings) for name in settings.served_model_name]}


def _card(name: str, settings: Settings) -> JSON:
    permission = {"id": f"modelperm-{new_id()}", "object": "model_permission", "created": int(time.time()),
                  "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
                  "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False, "organization": "*",
                  "group": None, "is_blocking": False}  # fmt: skip
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": settings.model,
            "parent": None, "max_model_len": settings.max_model_len, "permission": [permission]}  # fmt: skip


def tokenized(body: bytes, settings: Settings) -> JSON:
    """vLLM's `/tokenize`: the tokens of a prompt, or of a chat after its template. Raises RequestError."""
    request = decode(body, TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("Exactly one of `prompt` and `messages` is needed.", "prompt")
    tokens = pieces(request.prompt) if request.prompt is not None else _chat(request, settings)
    strings = tokens if request.return_token_strs else None
    ids = [token_id(token) for token in tokens]
    return {"count": len(tokens), "max_model_len": settings.max_model_len, "tokens": ids, "token_strs": strings}


def _chat(request: TokenizeRequest, settings: Settings) -> list[str]:
    messages = request.messages or []
    check_messages(messages)
    chat = ChatRequest(messages=messages, tools=request.tools, chat_template_kwargs=request.chat_template_kwargs)
    return chat_prompt(chat, thinks(chat, settings.default_thinking))
