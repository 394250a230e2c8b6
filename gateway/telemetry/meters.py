"""What is counted of an exchange?   The metrics that end with it, under the names that dashboards ask for.

Label values are the policy's words and ours; of what callers write only names that the policy has become one.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.policy import Policy, Price
from gateway.pricing import cost
from gateway.recorded import PHASES, Record
from gateway.store import NANO
from gateway.telemetry.counts import Cell, Counts, Spreads
from gateway.telemetry.names import OPERATIONS, PROVIDER
from gateway.types import Decision, Usage

# Buckets of the GenAI conventions' server metrics; TTFT goes on to ten minutes, as prompts of a million tokens do.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120,
        300, 600)  # fmt: skip
TPOT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
OVERHEAD = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
PSI = (0.02, 0.05, 0.1, 0.2, 0.5, 1)
AGREEMENT = tuple(at / 10 for at in range(11))
GENAI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_original_model", "gen_ai_response_model"]
SHADOWED = ("compared", "busy", "budget", "failed", "cut", "unrecorded")
RELOADS = ("accepted", "rejected")
MOST_ALIKE = 1024  # combinations of labels whose counters are held ready
NOBODY = "none"  # the tier and model of an answer that no model gave


class Answered(NamedTuple):
    """What an answer of a tier counts in."""

    caching: Cell
    decisions: Cell
    ttft: Cell
    tpot: Cell
    tokens: tuple[Cell, Cell, Cell]  # of the prompt, of those the ones that were cached, of the answer
    saved: Cell
    tier: str
    cached: bool


class Seen(NamedTuple):
    """What exchanges that are alike count in; `model` as they may be told."""

    model: str | None
    requests: Cell
    duration: Cell | None
    answered: Answered | None


class Meters:
    """The counters and histograms of a process."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self.models: Mapping[str, str] = {}
        self._prices: Mapping[str, Price] = {}
        self._last = ""
        self._alike: dict[tuple[object, ...], Seen] = {}
        self.requests = Counts("gateway_requests", "Exchanges ended.", ["status", "tier"])
        self.decisions = Counts("gateway_decisions", "Routes chosen.", ["rule", "tier", "reason"])
        self.verdicts = Counts("gateway_verdicts", "Classifications.", ["outcome", "source"])
        self.drafts = Counts("gateway_drafts", "Drafts started.", ["outcome"])
        self.draft_tokens = Counts("gateway_draft_tokens", "Tokens that drafts made; wasted ones about.", ["outcome"])
        self.held = Counts("gateway_holdback", "Starts of answers that were kept back.", ["outcome", "reason"])
        self.caching = Counts("gateway_cache_requests", "Requests by cache result.", ["result"])
        self.refusals = Counts("gateway_refusals", "Errors of ours.", ["code"])
        unread = "Requests refused before the app saw them: late, too large, ambiguous, or for another host."
        self.unread = Counts("gateway_protocol_refusals", unread, ["status"])
        retries = "Calls made for requests after one that failed before its first byte."
        self.retries = Counts("gateway_retries", retries, ["tier", "reason", "to"])
        self.limited = Counts("gateway_limited", "Requests that a limit refused.", ["limit"])
        self.cost = Counts("gateway_cost_usd", "What calls to tiers come to, in US dollars.", ["tier", "kind"])
        saved = "What answers cost less than they would have on the last tier; cached: nothing was asked."
        self.saved = Counts("gateway_saved_usd", saved, ["tier", "how"])
        self.unsent = Counts("gateway_traces_dropped", "Spans that could not be sent.", [])
        self.reloads = Counts("gateway_policy_reloads", "Changed policy files by what became of them.", ["result"])
        for result in RELOADS:
            self.reloads.cell(result)  # the first one is to be seen as a rise
        self.compared = Counts("gateway_shadow_decisions", "Decisions compared with a candidate's.", ["outcome"])
        sides = ["rule", "tier", "candidate_rule", "candidate_tier"]
        self.disagreements = Counts(
            "gateway_shadow_disagreements", "Decisions that a candidate makes otherwise.", sides
        )
        self._make_spreads()

    def _make_spreads(self) -> None:
        self.triage = Spreads("gateway_triage_seconds", "Time to a verdict.", [], DURATION)
        self.overhead = Spreads("gateway_overhead_seconds", "Time before the first byte that is ours.", [], OVERHEAD)
        phases = "Parts of gateway_overhead_seconds: read, decide, relay."
        self.phases = Spreads("gateway_overhead_phase_seconds", phases, ["phase"], OVERHEAD)
        labels = [*GENAI, "error_type"]
        self.duration = Spreads("gen_ai_server_request_duration_seconds", "Whole exchange.", labels, DURATION)
        self.ttft = Spreads("gen_ai_server_time_to_first_token_seconds", "Until the first byte.", GENAI, TTFT)
        tpot = "Of a stream, between two tokens."
        self.tpot = Spreads("gen_ai_server_time_per_output_token_seconds", tpot, GENAI, TPOT)
        self.tokens = Spreads("gen_ai_client_token_usage", "Tokens.", [*GENAI, "gen_ai_token_type"], TOKENS)
        self._of_phase = [self.phases.cell(phase) for phase in PHASES]
        self._of_all = self.overhead.cell()
        self._learning()

    def _learning(self) -> None:
        """What tells whether deciding pays, and goes on to."""
        won = "How much sooner the first byte came because a draft had begun."
        self.won = Spreads("gateway_draft_won_seconds", won, [], TTFT)
        self.shadows = Counts(
            "gateway_shadow_answers", "Answers drawn to be compared with another tier's.", ["outcome"]
        )
        for outcome in SHADOWED:
            self.shadows.cell(outcome)
        agreement = "How much both answers agree, from 0 to 1."
        self.agreement = Spreads("gateway_shadow_agreement", agreement, [], AGREEMENT)
        psi = "Population stability index of p, each look."
        self.drift_psi = Spreads("gateway_drift_psi", psi, [], PSI)

    def use(self, policy: Policy) -> None:
        """Count by the names and prices of this policy."""
        self._alike.clear()
        self._names = frozenset(policy.names)
        self.models = {name: tier.model for name, tier in policy.tiers.items()}
        self._prices = {name: tier.price for name, tier in policy.tiers.items()}
        self._last = next(reversed(policy.tiers))

    def add(self, record: Record) -> str | None:
        """Counts an exchange; its model's name as it may be told."""
        seen = self._seen(record)
        seen.requests[0] += 1
        self._added(record)
        if record.error:
            self.refusals.add(record.error)
        if record.limited:
            self.limited.add(record.limited)
        for line in record.costs:
            self.cost.add(line.tier, line.kind, amount=line.money / NANO)
        if seen.duration is not None:
            self.duration.put(seen.duration, record.seconds)
        if seen.answered:
            self._answered(record, seen.answered)
        if record.decision and record.cache != "coalesced":  # else the one who was first has counted it
            self._judged(record.decision, record.usage)
        return seen.model

    def _added(self, record: Record) -> None:
        """What the gateway adds."""
        if record.overhead is None:
            return
        self.overhead.put(self._of_all, record.overhead)
        for cell, seconds in zip(self._of_phase, record.phases, strict=False):  # none of what was not understood
            self.phases.put(cell, seconds)

    def text(self) -> str:
        """All of them as Prometheus' text. Meant for a thread: it lets others run after each series."""
        parts: list[str] = []
        for metric in [found for found in vars(self).values() if isinstance(found, Counts | Spreads)]:
            for part in metric.text():
                parts.append(part)
                time.sleep(0)
        return "".join(parts)

    def _seen(self, record: Record) -> Seen:
        """Where exchanges like this one are counted: looked up label by label once for all of them."""
        route = record.route
        told = (route.rule, route.reason) if route else None
        key = (record.status, record.tier, record.path, record.model, record.cache, record.error, told)
        found = self._alike.get(key)
        if found is None:
            if len(self._alike) >= MOST_ALIKE:
                self._alike.clear()
            found = self._alike[key] = self._place(record)
        return found

    def _place(self, record: Record) -> Seen:
        """`model` is the name that the caller wrote if the policy has it: no other text of a caller's goes anywhere."""
        tier, model = record.tier, record.model.lower() if record.model else None
        told = model if model is None or model in self._names else "other"
        requests = self.requests.cell(str(record.status), tier or NOBODY)
        if told is None:
            return Seen(told, requests, None, None)
        labels = (OPERATIONS.get(record.path, "other"), PROVIDER, told, self.models.get(tier or "", NOBODY))
        error = record.error or (str(record.status) if record.status >= 400 else "")
        answered = self._answers(record, tier, labels) if tier else None
        return Seen(told, requests, self.duration.cell(*labels, error), answered)

    def _answers(self, record: Record, tier: str, labels: Sequence[str]) -> Answered:
        route, cached = record.route, record.cache in ("hit", "coalesced")
        input_, known, output = (self.tokens.cell(*labels, kind) for kind in ("input", "cached_input", "output"))
        return Answered(
            self.caching.cell(record.cache),
            self.decisions.cell(route.rule, tier, route.reason) if route else [0.0],
            self.ttft.cell(*labels),
            self.tpot.cell(*labels),
            (input_, known, output),
            self.saved.cell(tier, "cached" if cached else "routed"),
            tier,
            cached,
        )

    def _answered(self, record: Record, seen: Answered) -> None:
        seen.caching[0] += 1
        seen.decisions[0] += 1
        if record.ttft is not None:
            self.ttft.put(seen.ttft, record.ttft)
        if usage := record.usage:
            self._used(record, usage, seen)

    def _used(self, record: Record, usage: Usage, seen: Answered) -> None:
        prompt, completion = usage.prompt, usage.completion
        if prompt is not None and completion is not None and record.status == 200:
            seen.saved[0] += self._saving(seen, prompt, min(usage.cached or 0, prompt), completion)
        if seen.cached:
            return
        for cell, count in zip(seen.tokens, (prompt, usage.cached, completion), strict=True):
            if count is not None:
                self.tokens.put(cell, count)
        if record.stream and record.ttft is not None and completion is not None and completion > 1:
            self.tpot.put(seen.tpot, (record.seconds - record.ttft) / (completion - 1))

    def _saving(self, seen: Answered, prompt: int, cached: int, completion: int) -> float:
        """US dollars; below 0 where the last tier would have been the cheaper."""
        dear, own = self._prices.get(self._last), self._prices.get(seen.tier)
        if dear is None or own is None:  # a tier of a policy that is gone
            return 0.0
        paid = 0 if seen.cached else cost(own, prompt, cached, completion)
        return (cost(dear, prompt, cached, completion) - paid) / NANO

    def _judged(self, decision: Decision, usage: Usage | None) -> None:
        if decision.draft != "none":
            made = usage.completion or usage.events if usage and decision.draft == "kept" else 0
            self.drafts.add(decision.draft)
            self.draft_tokens.add(decision.draft, amount=made or decision.wasted)
        if decision.draft == "kept":
            self.won.add(decision.won)
        if held := decision.held:
            self.held.add(held.outcome, held.reason)
        if verdict := decision.verdict:
            self.verdicts.add(verdict.label or verdict.reason, verdict.source)
            if verdict.source != "cache":
                self.triage.add(verdict.seconds)
