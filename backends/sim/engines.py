"""What do other servers than vLLM, and vLLM's /v1/decisions, do with a request?"""

from typing import Any

import msgspec

from backends.sim.plan import Plan
from backends.sim.protocol import DETAIL, JSON, ChatRequest, Request, RequestError, decode
from backends.sim.replies import Shape
from backends.sim.settings import Settings

VLLMS_OWN = {
    "cache_salt",
    "ignore_eos",
    "priority",
    "request_id",
    "structured_outputs",
    "thinking_token_budget",
    "top_k",
}


class Option(msgspec.Struct, forbid_unknown_fields=True):
    """One allowed answer to a question."""

    value: str
    description: str = ""


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """The type of question that triage uses."""

    type: str
    instructions: str
    choices: list[Option]
    name: str | None = None


class Decisions(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/v1/decisions`, as vLLM 0.33 reads it: one text, one question for this simulator."""

    model: str
    input: str
    questions: list[Question]
    cache_salt: str | None = None


def adapted(request: Request, engine: str, body: bytes) -> Request:
    """The request as `engine` reads it: only vLLM supports `choice`, llama.cpp's server refuses to stream logprobs
    with tools, llama-cpp-python's fails at `json_schema`, `transformers serve` ignores `response_format` and refuses
    fields of vLLM's own. Raises RequestError."""
    if engine == "vllm":
        return request
    foreign = [name for name in decode(body, JSON) if name in VLLMS_OWN]
    if engine == "transformers" and foreign:
        raise RequestError(f"Unexpected fields in the request: {set(foreign)}", status=422, kind=DETAIL)
    kind = (request.response_format or {}).get("type")
    if engine == "llama-cpp-python" and kind == "json_schema":
        raise RequestError("Internal Server Error", "response_format", status=500, kind="InternalServerError")
    tools = request.tools if isinstance(request, ChatRequest) else None
    if engine == "llama.cpp" and tools and request.stream and request.logprobs:
        raise RequestError("logprobs is not supported with tools + stream", kind="invalid_request_error")
    ignored: dict[str, Any] = {"structured_outputs": None, "guided_choice": None, "guided_json": None}
    if engine == "transformers":
        ignored["response_format"] = None
    return msgspec.structs.replace(request, **ignored)


def deciding(body: bytes, settings: Settings) -> ChatRequest:
    """The body of /v1/decisions as a chat that generates one token, constrained to the choices' labels.

    Raises RequestError: 404 for an engine without the endpoint, 501 for a model that it does not support.
    """
    if settings.engine != "vllm":
        raise RequestError("Not Found", status=404, kind=DETAIL)
    if not settings.decisions:
        raise RequestError("The model does not support decisions", status=501, kind="NotImplementedError")
    asked = decode(body, Decisions)
    if len(asked.questions) != 1 or asked.questions[0].type != "choice":
        raise RequestError("The simulator answers one choice question.", "questions")
    question = asked.questions[0]
    messages = [{"role": "system", "content": question.instructions}, {"role": "user", "content": asked.input}]
    choices = [option.value for option in question.choices]
    return ChatRequest(messages=messages, model=asked.model, max_tokens=1, structured_outputs={"choice": choices},
                       chat_template_kwargs={"thinking": False}, cache_salt=asked.cache_salt)  # fmt: skip


def decided(shaped: Shape, plan: Plan, usage: JSON, choices: list[str]) -> JSON:
    """vLLM's answer to one unnamed choice question: a probability for each label, from the first token's logprobs."""
    step = plan.steps[0]
    known = {step.text: step.p, **dict(step.others)}
    mass = {choice: sum(p for text, p in known.items() if choice.startswith(text)) for choice in choices}
    total = sum(mass.values()) or 1.0
    probabilities = [{"value": value, "probability": p / total} for value, p in mass.items()]
    best = max(mass, key=lambda value: mass[value])
    answer = {"type": "choice", "name": None, "choice": best, "probabilities": probabilities, "confidence": mass[best]}
    tokens = {"input_tokens": usage["prompt_tokens"], "output_tokens": 1, "total_tokens": usage["total_tokens"]}
    return {"model": shaped.model, "answers": [answer], "usage": tokens}
