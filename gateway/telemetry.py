"""What happened?   Metrics, and one log line per exchange."""

import asyncio
import atexit
import logging
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.policy import Callers, Policy
from gateway.standing import LIMITS, MODES, kept
from gateway.store import NANO, State
from gateway.types import Decision, Record, TierState, Usage, Verdict

# Buckets of the GenAI conventions' server metrics; TTFT is continued to a minute, for long prompts.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
OVERHEAD = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
GENAI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_original_model", "gen_ai_response_model"]
METRICS = CONTENT_TYPE_LATEST
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
# vLLM >= 0.28 thinks unless told not to.
THINKS = (
    "triage: answers have no content, the model thinks first. Set chat_template_kwargs {thinking: false, "
    "enable_thinking: false} on the tier (engine: vllm sends it by itself), or in the server's own "
    "--default-chat-template-kwargs"
)
log = logging.getLogger("gateway")
States = Callable[[], Mapping[str, TierState]]
PROVIDER = "deepseek"  # the format's flavour, as the GenAI conventions name it


class Telemetry:
    """The process's metrics and its exchange log."""

    def __init__(self, log: bool) -> None:
        self._thinks = False
        self._names: frozenset[str] = frozenset()
        self._models: Mapping[str, str] = {}
        self._registry = registry = CollectorRegistry()
        self._log = Lines() if log else None
        count, spread, gauge = partial(Counts, registry), partial(Spreads, registry), partial(Gauge, registry=registry)
        self.requests = count("gateway_requests", "Exchanges ended.", ["status", "tier"])
        self.decisions = count("gateway_decisions", "Routes chosen.", ["rule", "tier", "reason"])
        self.verdicts = count("gateway_verdicts", "Classifications.", ["outcome", "source"])
        self.drafts = count("gateway_drafts", "Drafts started.", ["outcome"])
        self.draft_tokens = count("gateway_draft_tokens", "Tokens that drafts made; wasted ones about.", ["outcome"])
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

    def record(self, record: Record) -> None:
        """Count one exchange and write its line."""
        self.requests.add(str(record.status), record.tier or "none")
        if record.overhead is not None:
            self.overhead.add(record.overhead)
        if record.error:
            self.refusals.add(record.error)
        if record.limited:
            self.limited.add(record.limited)
        for cost in record.costs:
            self.cost.add(cost.tier, cost.kind, amount=cost.money / NANO)
        if record.tier:
            self._answered(record, record.tier)
        if record.decision and record.cache != "coalesced":  # else the one who was first has counted it
            self._judged(record.decision, record.usage)
        if self._log:
            self._log.write(msgspec.json.encode(line(record, self._known(record))))

    def _known(self, record: Record) -> str | None:
        """The model name that the caller wrote if the policy has it: no other text of a caller's goes anywhere."""
        if record.model is None:
            return None
        return record.model.lower() if record.model.lower() in self._names else "other"

    def _answered(self, record: Record, tier: str) -> None:
        operation = OPERATIONS.get(record.path, "other")
        labels = (operation, PROVIDER, self._known(record) or "other", self._models.get(tier, "other"))
        self.caching.add(record.cache)
        self.duration.add(record.seconds, *labels)
        if record.ttft is not None:
            self.ttft.add(record.ttft, *labels)
        if record.route:
            self.decisions.add(record.route.rule, tier, record.route.reason)
        if record.usage and record.cache != "coalesced":
            self._used(record.usage, labels)

    def _used(self, usage: Usage, labels: tuple[str, ...]) -> None:
        if usage.prompt is not None:
            self.tokens.add(usage.prompt, *labels, "input")
        if usage.completion is not None:
            self.tokens.add(usage.completion, *labels, "output")

    def _judged(self, decision: Decision, usage: Usage | None) -> None:
        if decision.draft != "none":
            made = usage.completion or usage.events if usage and decision.draft == "kept" else 0
            self.drafts.add(decision.draft)
            self.draft_tokens.add(decision.draft, amount=made or decision.wasted)
        if decision.verdict:
            verdict = decision.verdict
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
        """Write the lines that wait to be written."""
        if self._log:
            self._log.flush()

    def render(self) -> bytes:
        """The metrics as Prometheus' text, of the type METRICS."""
        return generate_latest(self._registry)


def line(record: Record, model: str | None) -> dict[str, Any]:
    """The log line of an exchange: what was decided and what it took, never what was said."""
    route, decision, usage = record.route, record.decision, record.usage
    found: dict[str, Any] = {
        "request_id": record.id,
        "path": record.path,
        "status": record.status,
        "error": record.error,
        "caller": record.caller.name if record.caller else None,
        "plan": record.caller.plan if record.caller else None,
        "model": model,
        "stream": record.stream,
        "tier": record.tier,
        "rule": route.rule if route else None,
        "reason": route.reason if route else None,
        "cache": record.cache,
        "policy": record.policy,
        "seconds": _microseconds(record.seconds),
        "ttft": _microseconds(record.ttft),
        "overhead": _microseconds(record.overhead),
        "draft": decision.draft if decision else None,
        "tokens": [usage.prompt, usage.cached, usage.completion] if usage else None,
    }
    if decision and decision.facts.budget:
        facts = decision.facts
        found["budget"] = {"used": round(facts.budget_used, 6), "then": facts.budget, "of": facts.budget_of}
    if decision and decision.verdict:
        verdict = decision.verdict
        found["verdict"] = {"label": verdict.label, "p_complex": verdict.p_complex, "reason": verdict.reason}
        found["verdict"] |= {"source": verdict.source, "seconds": _microseconds(verdict.seconds), "cut": verdict.cut}
        found["verdict"] |= {"strategy": verdict.strategy, "prompt": verdict.prompt}
    return found


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _is_kept(callers: Callers, store: Callable[[], State], limit: str, mode: str) -> float:
    return float(kept(callers, store())[limit] == mode)


def _inflight(states: States, tier: str) -> float:
    return float(states()[tier].inflight)


def _queued(states: States, tier: str) -> float:
    return float(states()[tier].queued)


def _up(states: States, tier: str, replica: int) -> float:
    return float(states()[tier].up[replica])


class Counts(Collector):
    """A counter by label values. prometheus_client shows it; counting costs a look-up, where its own costs ten."""

    def __init__(self, registry: CollectorRegistry, name: str, told: str, labels: Sequence[str]) -> None:
        self._named = (name, told)
        self._labels = labels
        self._counts: dict[tuple[str, ...], float] = defaultdict(float)
        registry.register(self)

    def add(self, *values: str, amount: float = 1.0) -> None:
        self._counts[values] += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(*self._named, labels=self._labels)
        for values, count in self._counts.copy().items():
            family.add_metric(values, count)
        yield family


class Spreads(Collector):
    """A histogram by label values; `bounds` are the buckets' upper ends. As cheap as Counts."""

    def __init__(
        self, registry: CollectorRegistry, name: str, told: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._named = (name, told)
        self._labels = labels
        self._bounds = bounds
        self._ends = [*map(floatToGoString, bounds), "+Inf"]
        self._found: dict[tuple[str, ...], list[float]] = {}  # a count for each bucket, then the sum
        if not labels:
            self._found[()] = self._empty()
        registry.register(self)

    def _empty(self) -> list[float]:
        return [0.0] * (len(self._bounds) + 2)

    def add(self, amount: float, *values: str) -> None:
        found = self._found.get(values)
        if found is None:
            found = self._found[values] = self._empty()
        found[bisect_left(self._bounds, amount)] += 1
        found[-1] += amount

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._named, labels=self._labels)
        for values, found in self._found.copy().items():
            *counts, total = found.copy()
            family.add_metric(values, list(zip(self._ends, accumulate(counts), strict=True)), total)
        yield family


class Lines:
    """Writes to what is standard output at that moment, once a turn of the event loop, and at the program's end."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        atexit.register(self.flush)

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        if len(self._waiting) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:  # outside of a loop
            self.flush()

    def flush(self) -> None:
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            sys.stdout.write(b"\n".join(lines).decode() + "\n")
            sys.stdout.flush()
        except (OSError, ValueError) as error:  # a closed pipe loses lines, not answers
            print(f"{len(lines)} exchange lines were not written: {error}", file=sys.stderr)
