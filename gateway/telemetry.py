"""What happened?   Metrics, and one log line per exchange."""

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.policy import Callers, Policy
from gateway.standing import LIMITS, MODES, kept
from gateway.store import NANO, State
from gateway.types import Decision, Record, Usage, Verdict

# Buckets of the GenAI conventions' server metrics; TTFT is continued to a minute, for long prompts.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
OVERHEAD = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
GENAI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_original_model", "gen_ai_response_model"]
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
# vLLM >= 0.28 thinks unless told not to.
THINKS = (
    "triage: answers have no content, the model thinks first. Set chat_template_kwargs {thinking: false, "
    "enable_thinking: false} on the tier (engine: vllm sends it by itself), or in the server's own "
    "--default-chat-template-kwargs"
)
log = logging.getLogger("gateway")
PROVIDER = "deepseek"  # the format's flavour, as the GenAI conventions name it


class Telemetry:
    """The process's metrics and its exchange log."""

    def __init__(self, log: bool) -> None:
        self._thinks = False
        self._names: frozenset[str] = frozenset()
        self._models: Mapping[str, str] = {}
        self._registry = registry = CollectorRegistry()
        self._log = _exchange_log() if log else None
        self.requests = Counter("gateway_requests", "Exchanges ended.", ["status", "tier"], registry=registry)
        self.decisions = Counter("gateway_decisions", "Routes chosen.", ["rule", "tier", "reason"], registry=registry)
        self.verdicts = Counter("gateway_verdicts", "Classifications.", ["outcome", "source"], registry=registry)
        self.drafts = Counter("gateway_drafts", "Drafts started.", ["outcome"], registry=registry)
        self.caching = Counter("gateway_cache_requests", "Requests by cache result.", ["result"], registry=registry)
        self.refusals = Counter("gateway_refusals", "Errors of ours.", ["code"], registry=registry)
        self.limited = Counter("gateway_limited", "Requests that a limit refused.", ["limit"], registry=registry)
        self.cost = Counter(
            "gateway_cost_usd", "What calls to tiers come to, in US dollars.", ["tier", "kind"], registry=registry
        )
        self.empty = Gauge(
            "gateway_verdicts_empty", "1 while the classifier answers without content.", registry=registry
        )
        self.triage = Histogram("gateway_triage_seconds", "Time to a verdict.", buckets=DURATION, registry=registry)
        self.overhead = Histogram(
            "gateway_overhead_seconds", "Time before the first byte that is ours.", buckets=OVERHEAD, registry=registry
        )
        self.inflight = Gauge("gateway_inflight_requests", "Open exchanges with servers.", ["tier"], registry=registry)
        self.store = Gauge("gateway_store_up", "1 while the shared store answers.", registry=registry)
        self.limits = Gauge(
            "gateway_limits", "1 for how each limit is kept at present.", ["limit", "kept"], registry=registry
        )
        self.policy = Gauge(
            "gateway_policy_info", "The policy in force.", ["name", "revision", "digest"], registry=registry
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Whole exchange.", GENAI, buckets=DURATION, registry=registry
        )
        self.ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Until the first byte.", GENAI, buckets=TTFT, registry=registry
        )
        labels = [*GENAI, "gen_ai_token_type"]
        self.tokens = Histogram("gen_ai_client_token_usage_token", "Tokens.", labels, buckets=TOKENS, registry=registry)

    def use(self, policy: Policy, load: Callable[[], Mapping[str, int]], state: Callable[[], State]) -> None:
        """Show `policy` as the one in force; its model names may become label values. `load` is in flight by tier."""
        self._names = frozenset(policy.names)
        self._models = {name: tier.model for name, tier in policy.tiers.items()}
        self.policy.clear()
        self.policy.labels(policy.name, policy.revision, policy.digest).set(1)
        self.inflight.clear()
        self.store.set_function(lambda: float(state() != "down"))
        for limit in LIMITS:
            for mode in MODES:
                self.limits.labels(limit, mode).set_function(partial(_is_kept, policy.callers, state, limit, mode))
        for tier in policy.tiers:
            self.inflight.labels(tier).set_function(partial(_count, load, tier))

    def record(self, record: Record) -> None:
        """Count one exchange and write its line."""
        self.requests.labels(str(record.status), record.tier or "none").inc()
        if record.overhead is not None:
            self.overhead.observe(record.overhead)
        if record.error:
            self.refusals.labels(record.error).inc()
        if record.limited:
            self.limited.labels(record.limited).inc()
        for cost in record.costs:
            self.cost.labels(cost.tier, cost.kind).inc(cost.money / NANO)
        if record.tier:
            self._answered(record, record.tier)
        if record.decision and record.cache != "coalesced":  # else the one who was first has counted it
            self._judged(record.decision)
        if self._log:
            self._log.info(msgspec.json.encode(line(record, self._known(record))).decode())

    def _known(self, record: Record) -> str | None:
        """The model name that the caller wrote if the policy has it: no other text of a caller's goes anywhere."""
        if record.model is None:
            return None
        return record.model.lower() if record.model.lower() in self._names else "other"

    def _answered(self, record: Record, tier: str) -> None:
        operation = OPERATIONS.get(record.path, "other")
        labels = (operation, PROVIDER, self._known(record) or "other", self._models.get(tier, "other"))
        self.caching.labels(record.cache).inc()
        self.duration.labels(*labels).observe(record.seconds)
        if record.ttft is not None:
            self.ttft.labels(*labels).observe(record.ttft)
        if record.route:
            self.decisions.labels(record.route.rule, tier, record.route.reason).inc()
        if record.usage and record.cache != "coalesced":
            self._used(record.usage, labels)

    def _used(self, usage: Usage, labels: tuple[str, ...]) -> None:
        for kind, count in (("input", usage.prompt), ("output", usage.completion)):
            if count is not None:
                self.tokens.labels(*labels, kind).observe(count)

    def _judged(self, decision: Decision) -> None:
        if decision.draft != "none":
            self.drafts.labels(decision.draft).inc()
        if decision.verdict:
            verdict = decision.verdict
            self.verdicts.labels(verdict.label or verdict.reason, verdict.source).inc()
            if verdict.source != "cache":
                self.triage.observe(verdict.seconds)
                self._alarm(verdict)

    def _alarm(self, verdict: Verdict) -> None:
        """Tells when the classifier begins to answer without content, and when it answers again: two lines in all."""
        thinks = verdict.reason == "empty"
        if thinks == self._thinks or not (thinks or verdict.label):
            return
        self._thinks = thinks
        self.empty.set(thinks)
        log.warning(THINKS if thinks else "triage: answers have content again")

    def render(self) -> tuple[bytes, str]:
        """The metrics as Prometheus text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


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


def _is_kept(callers: Callers, state: Callable[[], State], limit: str, mode: str) -> float:
    return float(kept(callers, state())[limit] == mode)


def _count(load: Callable[[], Mapping[str, int]], tier: str) -> float:
    return float(load().get(tier, 0))


class _Lines(logging.Handler):
    """Writes to what is standard output at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stdout.write(record.getMessage() + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):  # a closed pipe loses the line, not the answer
            self.handleError(record)


def _exchange_log() -> logging.Logger:
    logger = logging.getLogger("gateway.exchange")
    if not logger.handlers:
        logger.addHandler(_Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
