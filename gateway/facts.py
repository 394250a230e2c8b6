"""What may the rules look at?"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.dialects import DIALECTS
from gateway.errors import BadRequest, NotFound
from gateway.fields import Fields, Message
from gateway.policy import Policy
from gateway.score import score
from gateway.types import EVEN, ChatRequest, Facts, Standing
from gateway.user_words import own, speaks

VISUAL = ("image", "input_image", "video")  # content parts of OpenAI and vLLM: image_url, image_embeds, video_url
LONGEST_MODEL = 256  # characters of a name that an alias ending in * stands for: records keep it
SCAN = 20_000  # characters of the last user turn that signals see
# DeepSeek counts 0.3 tokens for a Latin character and 0.6 for a Chinese one (api-docs.deepseek.com, "Token & Token
# Usage"). A character outside ASCII takes one to three further bytes of UTF-8, so 0.15 a byte makes up the difference.
TOKENS_PER_CHARACTER = 0.3
TOKENS_PER_FURTHER_BYTE = 0.15
EMPTY: Mapping[str, Any] = {}
Counts = Mapping[str, int]  # by tier
NONE: frozenset[str] = frozenset()


def observe(
    request: ChatRequest, policy: Policy, load: Counts, standing: Standing = EVEN, waiting: Counts = EMPTY
) -> Facts:
    """The facts of a request; no prompt text. `load`: requests in flight, `waiting`: requests in the servers' queues,
    both by tier. Raises NotFound for an unknown model name, BadRequest for a wish that names no tier."""
    fields, caller = request.fields, request.caller
    wish, wished_by = wished(request, policy)
    last, turns, context, vision, counted = conversation(fields)
    looks = score(fields, policy.table) if policy.scored and wish is None else None  # a wish goes before all rules
    # In the order of its fields: twenty-seven keywords would cost more than all of the rest.
    return Facts(
        fields.model or "auto", caller.name, caller.plan, DIALECTS[request.path].api, wish, wished_by,
        len(last[0]) if len(last) == 1 else sum(map(len, last)), turns, context,
        bool(fields.tools),
        fields.response_format is not None and fields.response_format.get("type") == "json_schema",
        vision,
        counted > 0,
        signals(last, policy) if policy.watched_signals else NONE,
        watched(request, policy) if policy.watched_headers else EMPTY,
        load, waiting,
        fields.max_completion_tokens or fields.max_tokens,
        standing.budget_used, standing.budget, standing.budget_of, standing.capped, caller.own.may,
        looks.value if looks else None, looks.measures if looks else EMPTY,
        request.chance, standing.session,
    )  # fmt: skip


def resolved(model: str, policy: Policy) -> str | None:
    """What a model name wishes for: a tier, "fast", "best", or None for auto. Raises NotFound for an unknown name."""
    name = model.lower()
    found = policy.names.get(name)
    if found is None and len(name) <= LONGEST_MODEL:
        found = next((to for start, to in policy.once(_starts) if name.startswith(start)), None)
    if found is None:
        known = ", ".join(("auto", *policy.tiers))
        raise NotFound(
            f"The model {model[:64]!r} does not exist. Known models: {known}.", param="model", code="model_not_found"
        )
    return None if found == "auto" else found


def _starts(policy: Policy) -> list[tuple[str, str]]:
    """The prefixes of aliases that end in `*`, the longest first, each with the tier or wish that it stands for."""
    found = [(name[:-1], wish) for name, wish in policy.names.items() if name.endswith("*")]
    return sorted(found, key=lambda pair: len(pair[0]), reverse=True)


def wished(request: ChatRequest, policy: Policy) -> tuple[str | None, str | None]:
    """The tier that the caller asks for (None: any) and where it does: model name, else header x-route-tier, else
    metadata.tier. Embeddings and token counts go to the first tier that serves them, as if asked for."""
    wish = resolved(request.fields.model or "auto", policy)
    if wish is not None:
        return wish, "name"
    header = request.headers.get("x-route-tier")
    if header is not None:
        return tier_named(header, policy, None, "header x-route-tier"), "header"
    told = (request.fields.metadata or {}).get("tier")
    if told is not None:
        return tier_named(told, policy, "metadata.tier", "metadata.tier"), "metadata"
    return (None, None) if DIALECTS[request.path].work == "answer" else ("fast", "path")


def tier_named(value: object, policy: Policy, param: str | None, place: str) -> str:
    """The wish that `value` spells. Raises BadRequest naming what is known."""
    name = value.strip().lower() if isinstance(value, str) else ""
    if name in policy.tiers or name in ("fast", "best"):
        return name
    known = ", ".join((*policy.tiers, "fast", "best"))
    raise BadRequest(f"Unknown tier in {place}. Known tiers: {known}.", param=param, code="unknown_tier")


def watched(request: ChatRequest, policy: Policy) -> Mapping[str, str]:
    """The request's headers that a rule names."""
    return {name: request.headers[name] for name in policy.watched_headers if name in request.headers}


def conversation(fields: Fields) -> tuple[Sequence[str], int, int, bool, int]:
    """The user's own texts in its last message, or a completion's prompt, how many messages the user wrote (a prompt is
    one), about how many tokens all of it takes (media left out, tools included), whether it holds something to see, and
    how many token ids."""
    last: Message | None = None
    turns, characters, further, counted, vision = 0, 0, 0, 0, False
    for message in fields.messages or ():
        content = message.content
        if isinstance(content, str):
            characters += len(content)
            further += 0 if content.isascii() else beyond(content)
        else:
            parts = [part.text for part in content or () if part.text]
            characters, further = characters + sum(map(len, parts)), further + sum(map(beyond, parts))
            vision = vision or any(part.type.startswith(VISUAL) for part in content or ())
        if message.role == "user" and speaks(message):
            last, turns = message, turns + 1
    said: Sequence[str] = ()
    if last:  # a text that speaks is no note
        said = (last.content,) if isinstance(last.content, str) else own(last)
    if fields.prompt is not None:
        given = fields.texts()
        characters, further = characters + sum(map(len, given)), further + sum(map(beyond, given))
        counted = ids(fields.prompt)
        said = given if last is None else said
    if fields.tools:
        characters += sum(map(len, fields.tools))
    size = TOKENS_PER_CHARACTER * characters + TOKENS_PER_FURTHER_BYTE * further + counted
    return said, turns if fields.messages else 1, int(size), vision, counted


def ids(prompt: str | list[Any]) -> int:
    """How many token ids a completion's prompt holds."""
    if isinstance(prompt, str):
        return 0
    return sum(len(part) if isinstance(part, list) else isinstance(part, int) for part in prompt)


def beyond(text: str) -> int:
    """How many bytes more than characters a text has in UTF-8."""
    return 0 if text.isascii() else len(text.encode("utf-8", "surrogatepass")) - len(text)


def signals(last: Sequence[str], policy: Policy) -> frozenset[str]:
    """The signals that some rule names and whose pattern is found in the first SCAN characters of the last user
    turn."""
    text = last[0][:SCAN] if len(last) == 1 else "\n".join(part[:SCAN] for part in last[:SCAN])[:SCAN]
    return frozenset(name for name in policy.watched_signals if policy.signals[name].search(text))
