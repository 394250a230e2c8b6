"""What must change in a caller's body before a model server sees it?

Every change is one whole top-level member: the model's served name, the tier's request defaults, the privileged fields,
and the usage chunk that we need for our books.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from gateway.body import Body
from gateway.dialects import CHAT, DIALECTS, LENGTHS
from gateway.errors import BadRequest
from gateway.fields import Fields, Part
from gateway.policy import Holdback, Plan, Policy, Tier
from gateway.types import Caller, ChatRequest

# Fields that reach past a caller's own request: its queue, other callers' KV blocks, a server's memory and time between
# two tokens, templates, addresses, code, adapters, metrics, another model or price of a hosted API, or what that keeps;
# and what makes the work or the events of a stream other than we count. Of vLLM and SGLang, then of the others. `echo`
# is prompt_logprobs; `input_ids` are read in place of the messages that we judge and count. Grammars, and schemas by
# other names than OpenAI's, as an engine's compiler has no bound: 60,000 nested groups in a `grammar` ended llama.cpp's
# server, a `json_schema` of 138 bytes held it up for good (2026-11-24).
PRIVILEGED = (
    "priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params", "chat_template",
    "media_io_kwargs", "mm_processor_kwargs", "vllm_xargs", "prompt_embeds", "ignore_eos", "min_tokens",
    "use_beam_search", "prompt_logprobs", "best_of", "stream_interval", "bootstrap_host", "bootstrap_port",
    "bootstrap_room", "custom_labels", "custom_logit_processor", "custom_params", "data_parallel_rank",
    "disagg_prefill_dp_rank", "lora_path", "return_hidden_states", "rid", "routed_dp_rank", "session_params",
    "echo", "include_reasoning", "stream_reasoning", "repetition_detection", "stop_regex", "input_ids",
    "embed_overrides", "embed_override_token_id", "images_config", "video_config",
    "n_predict", "n_cmpl", "id_slot", "lora", "grammar_triggers", "repeat_last_n", "generation_config", "processor",
    "grammar", "json_schema", "ebnf", "regex", "structural_tag", "guided_grammar", "guided_json", "guided_regex",
    "service_tier", "web_search_options", "enable_search", "search_options", "search_parameters",
    "models", "fallbacks", "preset", "provider", "plugins", "store",
)  # fmt: skip
_PRIVILEGED = frozenset(PRIVILEGED)
STRIPPED = _PRIVILEGED.union(("chat_template_kwargs",), *(dialect.always for dialect in DIALECTS.values()))
TEMPLATE_KWARGS = frozenset({"thinking", "enable_thinking", "reasoning_effort"})

COUNTED = (b'{"include_usage":true}', b'{"include_usage": true}')  # asks for its usage itself, once

_encode = msgspec.json.encode

NOTHING = Body(b"{}")
Changes = dict[str, bytes | None]


class Plain(msgspec.Struct, frozen=True):
    """The edits that are the same for all requests of one kind, those that name a model and have none of the members
    `names`: another `model`, and `added`, the text of members that are new.
    """

    names: frozenset[str]
    model: bytes
    added: bytes


def body_for(request: ChatRequest, name: str, policy: Policy) -> bytes:
    """The body as the servers of the tier `name` get it. Raises BadRequest as `changes` does."""
    asks, found = extra_logprobs(request, name, policy) if policy.holdback else {}, plain(request, name, policy)
    if found is None or asks:
        tier, plan = policy.tiers[name], policy.callers.plans[request.caller.plan]
        return request.body.edit(changes(request, tier, plan) | asks)
    return request.body.edit({"model": found.model}, found.added)


def plain(request: ChatRequest, name: str, policy: Policy) -> Plain | None:
    """The edits of the request, worked out once for its kind; None: it has members that must be looked at."""
    fields, members = request.fields, request.body.members
    said = fields.stream is True and uncounted(request), fields.reasoning_effort is not None
    caller = request.caller
    found = policy.once(_plain, name, (caller.plan, caller.salt), request.path, said)
    return found if "model" in members and found.names.isdisjoint(members) else None


def _plain(name: str, whose: tuple[str, str], path: str, said: tuple[bool, bool], policy: Policy) -> Plain:
    """`whose`: the caller's plan and salt. `said`: the answer is a stream that has to be asked for its usage, and the
    caller says how much to think."""
    (plan, own), tier = whose, policy.tiers[name]
    fields = Fields(stream=said[0], reasoning_effort="" if said[1] else None)
    request = ChatRequest("", Caller("", "", plan, own), path, NOTHING, fields, {}, 0.0)
    found = changes(request, tier, policy.callers.plans[plan])
    alike = () if found.keys().isdisjoint(LENGTHS) else LENGTHS
    names = _PRIVILEGED.difference(policy.callers.plans[plan].fields).union(("chat_template_kwargs",), found, alike)
    new = [b"%b:%b," % (_encode(key), value) for key, value in found.items() if value is not None and key != "model"]
    return Plain(names - {"model"}, _encode(tier.model), b"".join(new))


def changes(request: ChatRequest, tier: Tier, plan: Plan) -> Changes:
    """Members to replace (bytes) or drop (None) so that `tier` can answer `request`.

    Raises BadRequest when a member that is edited inside has a key twice.
    """
    dialect = request.dialect
    found: Changes = dict.fromkeys(_withheld(request, plan))
    for name, default in tier.set.items() if dialect.work == "answer" else ():
        if name != "chat_template_kwargs":
            key = dialect.names.get(name, name)
            found |= _default(request, key, default, withheld=key in found)
    if tier.engine != "openai":
        found["cache_salt"] = _encode(salt(request.caller, request.fields.cache_salt))
    found |= _template_kwargs(request, tier, plan)
    if request.fields.stream and dialect.answers.usage_on_request:
        found["stream_options"] = _members(request, "stream_options").edit({"include_usage": b"true"})
    found["model"] = _encode(tier.model)
    return {**found, **dialect.always}


def uncounted(request: ChatRequest) -> bool:
    """Whether a stream tells its usage to who asks, and nobody asked."""
    return request.dialect.answers.usage_on_request and request.body.raw("stream_options") not in COUNTED


def holdback_of(request: ChatRequest, name: str, policy: Policy) -> Holdback | None:
    """The rules by which the start of this tier's answer to the request is held back; None: it is not, nor where the
    caller may not reach the other tier."""
    rules = policy.holdback
    if rules is None or name not in rules.tiers or not lets(request, "holdback"):
        return None
    return rules if rules.to in policy.reach(request.caller.plan, request.caller.own.may) else None


def lets(request: ChatRequest, what: Literal["holdback", "shadow"]) -> bool:
    """Whether this may be done with the answer: it is one answer of chat, and its caller does not opt out by
    `x-route-WHAT: off` or `metadata.WHAT: "off"`."""
    fields = request.fields
    if request.dialect.api != "chat" or (fields.n or 1) > 1 or isinstance(fields.prompt, list):
        return False
    return "off" not in (request.headers.get(f"x-route-{what}"), (fields.metadata or {}).get(what))


def extra_logprobs(request: ChatRequest, name: str, policy: Policy) -> Changes:
    """The members that ask the tier for log-probabilities, where hold-back needs them and the caller did not ask.

    {} otherwise: log-probabilities that the caller asked for are used as they come.
    """
    rules, body = holdback_of(request, name, policy), request.body
    if rules is None or not rules.escalate_when.figures or "logprobs" in policy.tiers[name].set:
        return {}
    if body.raw("logprobs") not in (None, b"false") or any(body.raw(key) for key in ("top_logprobs", "echo")):
        return {}
    return {"logprobs": b"true", "top_logprobs": b"2"} if request.path == CHAT else {"logprobs": b"2"}


def stripped(request: ChatRequest, plan: Plan) -> list[str]:
    """Names of the members that no model server gets to see as they were sent, to be told to the caller."""
    fields = _withheld(request, plan)
    if _foreign(request.fields.chat_template_kwargs or (), plan):
        fields.append("chat_template_kwargs")
    always = request.dialect.always
    return fields + [name for name, value in always.items() if request.body.raw(name) not in (None, value)]


def salt(caller: Caller, own: str | None) -> str:
    """The cache_salt that keeps a caller's KV blocks apart; the caller's own salt divides them further."""
    if own is None:
        return caller.salt
    digest = hmac.digest(caller.salt.encode(), own.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def refuse_links(request: ChatRequest) -> None:
    """Raises BadRequest for media by URL (`data:` URLs pass): a model server would fetch it from inside the network; by
    uuid: it would take other callers' media for it, or this caller's for theirs; for what is PRIVILEGED; and for
    tools in a message, which nobody looks at here.
    """
    for i, message in enumerate(request.fields.messages or ()):
        if message.tools:
            raise BadRequest("A message has no tools here: send them in 'tools'.", param=f"messages[{i}].tools")
        if isinstance(message.content, list) and (j := _linked(message.content)) is not None:
            told = "Media must be sent inline, as a data: URL or a base64 source; no link, uuid, hash or prompt_embeds."
            place = f"messages[{i}].content[{j}]" if request.path == CHAT else request.dialect.prompt[-1]
            raise BadRequest(told, param=place)


def _linked(parts: Sequence[Part]) -> int | None:
    """Which of a message's pieces is refused, if one is."""
    for j, part in enumerate(parts):
        if part.uuid is not None or part.type in _PRIVILEGED or any(not url.startswith("data:") for url in part.urls()):
            return j
    return None


def _withheld(request: ChatRequest, plan: Plan) -> list[str]:
    found = _PRIVILEGED.intersection(request.body.members)
    found = found.difference(plan.fields, request.dialect.always) if found else found
    return [name for name in PRIVILEGED if name in found] if found else []


def _foreign(kwargs: Iterable[str], plan: Plan) -> list[str]:
    """The template's arguments that the caller may not set."""
    free = "chat_template_kwargs" in plan.fields
    return [] if free else [key for key in kwargs if key not in TEMPLATE_KWARGS]


def _members(request: ChatRequest, key: str) -> Body:
    """The members of a member that is an object; none when it is absent or null."""
    raw = request.body.raw(key)
    if raw is None:
        return NOTHING
    try:
        return Body(raw)
    except BadRequest as error:
        raise BadRequest(f"In '{key}': {error.message}", param=f"{key}.{error.param}") from None


def _default(request: ChatRequest, key: str, default: Any, *, withheld: bool) -> Changes:
    """The tier's default under the caller's value; mappings are merged member by member."""
    alike = LENGTHS if request.path == CHAT and key in LENGTHS else (key,)
    own = None if withheld else next(filter(None, map(request.body.raw, alike)), None)
    if own is None:
        return {key: _encode(default)}
    if not isinstance(default, dict) or not own.startswith(b"{"):
        return {}
    members = _members(request, key)
    return {key: members.edit({name: _encode(value) for name, value in default.items() if name not in members.members})}


def _template_kwargs(request: ChatRequest, tier: Tier, plan: Plan) -> Changes:
    """The caller's permitted kwargs over the tier's. A caller who sets `reasoning_effort` has chosen how to think."""
    own = _members(request, "chat_template_kwargs")
    chosen = request.fields.reasoning_effort is not None
    defaults = _template_defaults(tier, chosen) if request.dialect.templated else {}
    if not own.members:
        return {"chat_template_kwargs": NOTHING.edit(defaults)} if defaults else {}
    edits: Changes = dict.fromkeys(_foreign(own.members, plan))
    kept = own.members.keys() - edits.keys()
    edits |= {key: value for key, value in defaults.items() if key not in kept}
    if not edits:
        return {}
    return {"chat_template_kwargs": own.edit(edits) if kept or any(edits.values()) else None}


def _template_defaults(tier: Tier, chosen: bool) -> dict[str, bytes]:
    free = frozenset() if not chosen else TEMPLATE_KWARGS
    told = tier.set.get("chat_template_kwargs", {})
    return {key: _encode(value) for key, value in told.items() if key not in free}
