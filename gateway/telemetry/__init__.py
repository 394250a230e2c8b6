"""What happened?   Metrics, and one log line per exchange."""

import asyncio
import atexit
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from gateway.policy import Callers, Policy
from gateway.recorded import Record
from gateway.standing import LIMITS, MODES, kept
from gateway.store import NANO, State
from gateway.telemetry.counts import Cell, Counts, Spreads
from gateway.telemetry.lines import Lines, line
from gateway.trace import Trace, sampled
from gateway.types import Decision, TierState, Usage, Verdict

__all__ = ["METRICS", "Telemetry", "line"]

# Buckets of the GenAI conventions' server metrics; TTFT is continued to a minute, for long prompts.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
OVERHEAD = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
GENAI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_original_model", "gen_ai_response_model"]
METRICS = CONTENT_TYPE_LATEST
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
OPERATIONS |= {"/v1/messages": "chat", "/v1/responses": "chat"}
# vLLM >= 0.28 thinks unless told not to.
THINKS = (
    "triage: answers have no content, the model thinks first. Set chat_template_kwargs {thinking: false, "
    "enable_thinking: false} on the tier (engine: vllm sends it by itself), or in the server's own "
    "--default-chat-template-kwargs"
)
log = logging.getLogger("gateway")
States = Callable[[], Mapping[str, TierState]]
MOST_ALIKE = 1024  # combinations of labels whose counters are held ready
PROVIDER = "deepseek"  # the format's flavour, as the GenAI conventions name it


class Answered(NamedTuple):
    """What an answer of a tier counts in."""

    caching: Cell
    decisions: Cell
    duration: Cell
    ttft: Cell
    prompt: Cell
    completion: Cell


class Seen(NamedTuple):
    """What exchanges that are alike count in; `model` as they may be told."""

    model: str | None
    requests: Cell
    overhead: Cell
    answered: Answered | None


class Telemetry:
    """The process's metrics and its exchange log."""

    def __init__(self, log: bool, trace_ratio: float = 0.0) -> None:
        self._ratio = trace_ratio
        self._thinks = False
        self._names: frozenset[str] = frozenset()
        self._ended: list[Record] = []  # in this turn of the event loop
        self._alike: dict[tuple[object, ...], Seen] = {}
        self._models: Mapping[str, str] = {}
        self._registry = registry = CollectorRegistry()
        self._log = Lines() if log else None
        if log:
            atexit.register(self.close)
        count, spread, gauge = partial(Counts, registry), partial(Spreads, registry), partial(Gauge, registry=registry)
        self.requests = count("gateway_requests", "Exchanges ended.", ["status", "tier"])
        self.decisions = count("gateway_decisions", "Routes chosen.", ["rule", "tier", "reason"])
        self.verdicts = count("gateway_verdicts", "Classifications.", ["outcome", "source"])
        self.drafts = count("gateway_drafts", "Drafts started.", ["outcome"])
        self.draft_tokens = count("gateway_draft_tokens", "Tokens that drafts made; wasted ones about.", ["outcome"])
        self.held = count("gateway_holdback", "Starts of answers that were kept back.", ["outcome", "reason"])
        self.caching = count("gateway_cache_requests", "Requests by cache result.", ["result"])
        self.refusals = count("gateway_refusals", "Errors of ours.", ["code"])
        self.limited = count("gateway_limited", "Requests that a limit refused.", ["limit"])
        self.cost = count("gateway_cost_usd", "What calls to tiers come to, in US dollars.", ["tier", "kind"])
        self.triage = spread("gateway_triage_seconds", "Time to a verdict.", [], DURATION)
        self.overhead = spread("gateway_overhead_seconds", "Time before the first byte that is ours.", [], OVERHEAD)
        self.duration = spread("gen_ai_server_request_duration_seconds", "Whole exchange.", GENAI, DURATION)
        self.ttft = spread("gen_ai_server_time_to_first_token_seconds", "Until the first byte.", GENAI, TTFT)
        self.tokens = spread("gen_ai_client_token_usage_token", "Tokens.", [*GENAI, "gen_ai_token_type"], TOKENS)
        self.inflight = gauge("gateway_inflight_requests", "Open exchanges with servers.", ["tier"])
        self.queued = gauge("gateway_queued_requests", "Requests that wait for a tier.", ["tier"])
        up = "1 while a replica is asked, 0 while it is left alone."
        self.replicas = gauge("gateway_replica_up", up, ["tier", "replica"])
        self.empty = gauge("gateway_verdicts_empty", "Processes to which the classifier answers without content.")
        self.store = gauge("gateway_store_up", "1 while the shared store answers.")
        self.limits = gauge("gateway_limits", "1 for how each limit is kept at present.", ["limit", "kept"])
        self.policy = gauge("gateway_policy_info", "The policy in force.", ["name", "revision", "digest"])

    def use(self, policy: Policy, states: States, store: Callable[[], State]) -> None:
        """Show `policy` as the one in force; its model names may become label values. Replicas are told by their place
        in the policy: who may read metrics need not know where servers are.
        """
        self._alike.clear()
        self._names = frozenset(policy.names)
        self._models = {name: tier.model for name, tier in policy.tiers.items()}
        self.policy.clear()
        self.policy.labels(policy.name, policy.revision, policy.digest).set(1)
        for gauge in (self.inflight, self.queued, self.replicas):
            gauge.clear()
        self.store.set_function(lambda: float(store() != "down"))
        for limit in LIMITS:
            for mode in MODES:
                self.limits.labels(limit, mode).set_function(partial(_is_kept, policy.callers, store, limit, mode))
        for name, tier in policy.tiers.items():
            self.inflight.labels(name).set_function(partial(_inflight, states, name))
            self.queued.labels(name).set_function(partial(_queued, states, name))
            for at in range(len(tier.replicas)):
                self.replicas.labels(name, str(at)).set_function(partial(_up, states, name, at))

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        """The trace of a request that begins; None where it is not sampled."""
        return sampled(headers, self._ratio) if self._ratio else None

    def record(self, record: Record) -> None:
        """Count one exchange and write its line, with those of the same turn of the event loop."""
        self._ended.append(record)
        if len(self._ended) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self._count)
        except RuntimeError:  # outside of a loop
            self._count()

    def _count(self) -> None:
        ended, self._ended = self._ended, []
        told = [self._add(record) for record in ended]
        if self._log and ended:
            self._log.write([line(record, model) for record, model in zip(ended, told, strict=True)])

    def _add(self, record: Record) -> str | None:
        """Counts an exchange; its model's name as it may be told."""
        seen = self._seen(record)
        seen.requests[0] += 1
        if record.overhead is not None:
            self.overhead.put(seen.overhead, record.overhead)
        if record.error:
            self.refusals.add(record.error)
        if record.limited:
            self.limited.add(record.limited)
        for cost in record.costs:
            self.cost.add(cost.tier, cost.kind, amount=cost.money / NANO)
        if seen.answered:
            self._answered(record, seen.answered)
        if record.decision and record.cache != "coalesced":  # else the one who was first has counted it
            self._judged(record.decision, record.usage)
        return seen.model

    def _seen(self, record: Record) -> "Seen":
        """Where exchanges like this one are counted: looked up label by label once for all of them."""
        route = record.route
        told = (route.rule, route.reason) if route else None
        key = (record.status, record.tier, record.path, record.model, record.cache, told)
        found = self._alike.get(key)
        if found is None:
            if len(self._alike) >= MOST_ALIKE:
                self._alike.clear()
            found = self._alike[key] = self._place(record)
        return found

    def _place(self, record: Record) -> "Seen":
        requests = self.requests.cell(str(record.status), record.tier or "none")
        model = self._known(record)
        answered = self._answers(record, record.tier, model) if record.tier else None
        return Seen(model, requests, self.overhead.cell(), answered)

    def _answers(self, record: Record, tier: str, model: str | None) -> "Answered":
        operation, route = OPERATIONS.get(record.path, "other"), record.route
        labels = (operation, PROVIDER, model or "other", self._models.get(tier, "other"))
        return Answered(
            self.caching.cell(record.cache),
            self.decisions.cell(route.rule, tier, route.reason) if route else [0.0],
            self.duration.cell(*labels),
            self.ttft.cell(*labels),
            self.tokens.cell(*labels, "input"),
            self.tokens.cell(*labels, "output"),
        )

    def _known(self, record: Record) -> str | None:
        """The model name that the caller wrote if the policy has it: no other text of a caller's goes anywhere."""
        if record.model is None:
            return None
        return record.model.lower() if record.model.lower() in self._names else "other"

    def _answered(self, record: Record, seen: "Answered") -> None:
        seen.caching[0] += 1
        seen.decisions[0] += 1
        self.duration.put(seen.duration, record.seconds)
        if record.ttft is not None:
            self.ttft.put(seen.ttft, record.ttft)
        usage = record.usage
        if usage is None or record.cache == "coalesced":
            return
        if usage.prompt is not None:
            self.tokens.put(seen.prompt, usage.prompt)
        if usage.completion is not None:
            self.tokens.put(seen.completion, usage.completion)

    def _judged(self, decision: Decision, usage: Usage | None) -> None:
        if decision.draft != "none":
            made = usage.completion or usage.events if usage and decision.draft == "kept" else 0
            self.drafts.add(decision.draft)
            self.draft_tokens.add(decision.draft, amount=made or decision.wasted)
        if held := decision.held:
            self.held.add(held.outcome, held.reason)
        if verdict := decision.verdict:
            self.verdicts.add(verdict.label or verdict.reason, verdict.source)
            if verdict.source != "cache":
                self.triage.add(verdict.seconds)
                self._alarm(verdict)

    def _alarm(self, verdict: Verdict) -> None:
        """Tells when the classifier begins to answer without content, and when it answers again: two lines in all."""
        thinks = verdict.reason == "empty"
        if thinks == self._thinks or not (thinks or verdict.label):
            return
        self._thinks = thinks
        self.empty.set(thinks)
        log.warning(THINKS if thinks else "triage: answers have content again")

    def close(self) -> None:
        """Count, and write the lines of, what ended in this turn."""
        self._count()

    def render(self) -> bytes:
        """The metrics as Prometheus' text, of the type METRICS."""
        return generate_latest(self._registry)


def _is_kept(callers: Callers, store: Callable[[], State], limit: str, mode: str) -> float:
    return float(kept(callers, store())[limit] == mode)


def _inflight(states: States, tier: str) -> float:
    return float(states()[tier].inflight)


def _queued(states: States, tier: str) -> float:
    return float(states()[tier].queued)


def _up(states: States, tier: str, replica: int) -> float:
    return float(states()[tier].up[replica])
