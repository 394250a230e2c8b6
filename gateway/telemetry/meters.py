"""What is counted of an exchange when it has ended?   Metrics, under the names that dashboards use.

Label values are the policy's words and ours. Of what callers write only model names that the policy knows are used.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from gateway.policy import Policy, Price
from gateway.pricing import cost
from gateway.recorded import PHASES, Record
from gateway.reply import NOBODY
from gateway.store import NANO, REFUSALS
from gateway.telemetry.counts import Counter, Histogram
from gateway.types import Decision, Usage, Verdict

# Buckets of the GenAI conventions' server metrics; TTFT goes on to ten minutes, as prompts of a million tokens do.
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120,
        300, 600)  # fmt: skip
TPOT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
OVERHEAD = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
PSI = (0.02, 0.05, 0.1, 0.2, 0.5, 1)
AGREEMENT = tuple(at / 10 for at in range(11))
PROVIDER = "deepseek"  # the format's flavour, as the GenAI conventions name it
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
GENAI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_original_model", "gen_ai_response_model"]
SHADOWED = ("compared", "busy", "budget", "failed", "cut", "unrecorded")
RELOADS = ("accepted", "rejected")
CACHED = ("hit", "coalesced")


class Meters:
    """The counters and histograms of a process."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self.models: Mapping[str, str] = {}
        self._prices: Mapping[str, Price] = {}
        self._last = ""
        self.requests = Counter("gateway_requests", "Exchanges ended.", ["status", "tier"])
        self.decisions = Counter("gateway_decisions", "Routes chosen.", ["rule", "tier", "reason"])
        self.verdicts = Counter("gateway_verdicts", "Classifications.", ["outcome", "source"])
        self.drafts = Counter("gateway_drafts", "Drafts started.", ["outcome"])
        self.draft_tokens = Counter("gateway_draft_tokens", "Tokens that drafts made; wasted ones about.", ["outcome"])
        self.held = Counter("gateway_holdback", "Starts of answers that were kept back.", ["outcome", "reason"])
        self.caching = Counter("gateway_cache_requests", "Requests by cache result.", ["result"])
        self.refusals = Counter("gateway_refusals", "Errors that the gateway itself gave.", ["code"])
        unread = "Requests refused before the app saw them: late, too large, ambiguous, or for another host."
        self.unread = Counter("gateway_protocol_refusals", unread, ["status"])
        retries = "Calls made for requests after one that failed before its first byte."
        self.retries = Counter("gateway_retries", retries, ["tier", "reason", "to"])
        self.limited = Counter("gateway_limited", "Requests that a limit refused.", ["limit"])
        for limit in filter(None, REFUSALS):
            self.limited.cell(limit)  # the first one is to be seen as a rise
        self.cost = Counter("gateway_cost_usd", "What calls to tiers come to, in US dollars.", ["tier", "kind"])
        saved = "What answers cost less than they would have on the last tier; cached: nothing was asked."
        self.saved = Counter("gateway_saved_usd", saved, ["tier", "how"])
        dearer = "What answers cost more than they would have on the last tier: to be taken off what was saved."
        self.dearer = Counter("gateway_dearer_usd", dearer, [])
        self.unsent = Counter("gateway_traces_dropped", "Spans that could not be sent.", [])
        self.reloads = Counter("gateway_policy_reloads", "Changed policy files by what became of them.", ["result"])
        for result in RELOADS:
            self.reloads.cell(result)
        self.canary = Counter("gateway_canary_requests", "Exchanges that a candidate decided.", ["status", "tier"])
        self.compared = Counter("gateway_shadow_decisions", "Decisions compared with a candidate's.", ["outcome"])
        sides = ["rule", "tier", "candidate_rule", "candidate_tier"]
        self.disagreements = Counter(
            "gateway_shadow_disagreements", "Decisions that a candidate makes otherwise.", sides
        )
        self._make_histograms()

    def _make_histograms(self) -> None:
        self.triage = Histogram("gateway_triage_seconds", "Time to a verdict.", [], DURATION)
        self.overhead = Histogram("gateway_overhead_seconds", "Time before the first byte that is ours.", [], OVERHEAD)
        phases = "Parts of gateway_overhead_seconds: read, decide, relay."
        self.phases = Histogram("gateway_overhead_phase_seconds", phases, ["phase"], OVERHEAD)
        labels = [*GENAI, "error_type"]
        self.duration = Histogram("gen_ai_server_request_duration_seconds", "Whole exchange.", labels, DURATION)
        self.ttft = Histogram("gen_ai_server_time_to_first_token_seconds", "Until the first byte.", GENAI, TTFT)
        tpot = "Of a stream, between two tokens."
        self.tpot = Histogram("gen_ai_server_time_per_output_token_seconds", tpot, GENAI, TPOT)
        self.tokens = Histogram("gen_ai_client_token_usage", "Tokens.", [*GENAI, "gen_ai_token_type"], TOKENS)
        self._of_phase = [self.phases.cell(phase) for phase in PHASES]
        self._of_all = self.overhead.cell()
        self._make_meters_of_deciding()

    def _make_meters_of_deciding(self) -> None:
        """What tells whether deciding pays, and goes on to."""
        won = "How much sooner the first byte came because a draft had begun."
        self.won = Histogram("gateway_draft_won_seconds", won, [], TTFT)
        self.shadows = Counter(
            "gateway_shadow_answers", "Answers drawn to be compared with another tier's.", ["outcome"]
        )
        for outcome in SHADOWED:
            self.shadows.cell(outcome)
        agreement = "How much both answers agree, from 0 to 1."
        self.agreement = Histogram("gateway_shadow_agreement", agreement, [], AGREEMENT)
        psi = "Population stability index of p, each look."
        self.drift_psi = Histogram("gateway_drift_psi", psi, [], PSI)

    def use(self, policy: Policy) -> None:
        """Count by the names and prices of this policy."""
        self._names = frozenset(policy.names)
        self.models = {name: tier.model for name, tier in policy.tiers.items()}
        self._prices = {name: tier.price for name, tier in policy.tiers.items()}
        self._last = next(reversed(policy.tiers))

    def add(self, records: Iterable[Record]) -> None:
        """Counts exchanges that have ended; those that are alike are counted at once."""
        names = self._names
        groups: dict[tuple[str | None, *tuple[object, ...]], list[Record]] = {}
        for record in records:
            model, route = record.model, record.route
            if model not in names:
                model = self.told(model)
            key = (
                model, record.path, record.stream, record.status, record.error, record.tier, record.cache,
                route and route.rule, route and route.reason,
            )  # fmt: skip
            alike = groups.get(key)
            if alike is None:
                alike = groups[key] = []
            alike.append(record)
        for (model, *_), alike in groups.items():
            self._count_alike(alike, model)

    def told(self, model: str | None) -> str | None:
        """The name that a caller wrote, if the policy has it: no other text of a caller's goes anywhere."""
        name = model.lower() if model else None
        return name if name is None or name in self._names else "other"

    @property
    def all(self) -> Iterator[Counter | Histogram]:
        """Each counter and histogram."""
        return (found for found in vars(self).values() if isinstance(found, Counter | Histogram))

    def _count_alike(self, alike: Sequence[Record], model: str | None) -> None:
        one, count = alike[0], len(alike)
        self.requests.add(str(one.status), one.tier or NOBODY, amount=count)
        if one.error:
            self._count_errors(one.error, alike)
        self._count_overhead(alike)
        self._count_costs(alike)
        if model is not None:  # they were understood, and so ask for one
            self._count_exchanges(alike, model)
        if one.cache != "coalesced":  # else the one who was first has counted it
            self._count_decisions(alike)

    def _count_errors(self, error: str, alike: Sequence[Record]) -> None:
        self.refusals.add(error, amount=len(alike))
        for record in alike:
            if record.limited:
                self.limited.add(record.limited)

    def _count_exchanges(self, alike: Sequence[Record], model: str) -> None:
        one = alike[0]
        labels = (OPERATIONS.get(one.path, "other"), PROVIDER, model, self.models.get(one.tier or "", NOBODY))
        error = one.error or (str(one.status) if one.status >= 400 else "")
        self.duration.put(self.duration.cell(*labels, error), [record.seconds for record in alike])
        if one.tier:
            self._count_answers(alike, one.tier, labels)

    def _count_overhead(self, alike: Sequence[Record]) -> None:
        self.overhead.put(self._of_all, [record.overhead for record in alike if record.overhead is not None])
        phases = zip(*[record.phases for record in alike if record.phases], strict=True)  # what was understood has them
        for cell, seconds in zip(self._of_phase, phases, strict=False):
            self.phases.put(cell, seconds)

    def _count_costs(self, alike: Iterable[Record]) -> None:
        spent: dict[tuple[str, str], int] = {}
        for record in alike:
            for line in record.costs:
                called = line.tier, line.kind
                spent[called] = spent.get(called, 0) + line.money
        for (tier, kind), money in spent.items():
            self.cost.add(tier, kind, amount=money / NANO)

    def _count_answers(self, alike: Sequence[Record], tier: str, labels: Sequence[str]) -> None:
        one, count = alike[0], len(alike)
        cached = one.cache in CACHED
        self.caching.add(one.cache, amount=count)
        if one.route:
            self.decisions.add(one.route.rule, tier, one.route.reason, amount=count)
        self.ttft.put(self.ttft.cell(*labels), [record.ttft for record in alike if record.ttft is not None])
        used = [record.usage for record in alike if record.usage]
        saved = self._saving(tier, used, cached=cached) if one.status == 200 else 0.0
        self.saved.add(tier, "cached" if cached else "routed", amount=max(saved, 0.0))
        self.dearer.add(amount=max(-saved, 0.0))  # a counter that falls looks like one that began anew
        made = [] if cached else used
        cells = [self.tokens.cell(*labels, kind) for kind in ("input", "cached_input", "output")]
        self.tokens.put(cells[0], [usage.prompt for usage in made if usage.prompt is not None])
        self.tokens.put(cells[1], [usage.cached for usage in made if usage.cached is not None])
        self.tokens.put(cells[2], [usage.completion for usage in made if usage.completion is not None])
        self.tpot.put(self.tpot.cell(*labels), _paces(alike) if one.stream and not cached else ())

    def _saving(self, tier: str, used: Iterable[Usage], *, cached: bool) -> float:
        """US dollars; below 0 where the last tier would have been the cheaper."""
        dear, own = self._prices.get(self._last), self._prices.get(tier)
        if dear is None or own is None:  # a tier of a policy that is gone
            return 0.0
        prompt = again = completion = 0
        for usage in used:
            asked, made = usage.prompt, usage.completion
            if asked is not None and made is not None:
                prompt, completion = prompt + asked, completion + made
                again += min(usage.cached, asked) if usage.cached else 0
        paid = 0 if cached else cost(own, prompt, again, completion)
        return (cost(dear, prompt, again, completion) - paid) / NANO

    def _count_decisions(self, alike: Iterable[Record]) -> None:
        for record in alike:
            decision = record.decision
            if decision is None:
                continue
            if decision.draft != "none":
                self._count_draft(decision, record.usage)
            if held := decision.held:
                self.held.add(held.outcome, held.reason)
            if verdict := decision.verdict:
                self._count_verdict(verdict)

    def _count_draft(self, decision: Decision, usage: Usage | None) -> None:
        made = usage.tokens if usage and decision.draft == "kept" else 0
        self.drafts.add(decision.draft)
        self.draft_tokens.add(decision.draft, amount=made or decision.wasted)
        if decision.draft == "kept":
            self.won.add(decision.won)

    def _count_verdict(self, verdict: Verdict) -> None:
        self.verdicts.add(verdict.label or verdict.reason, verdict.source)
        if verdict.source != "cache":
            self.triage.add(verdict.seconds)


def _paces(alike: Iterable[Record]) -> Iterator[float]:
    """Seconds a token of streams, after the first one."""
    for record in alike:
        made = record.usage.completion if record.usage else None
        if record.ttft is not None and made is not None and made > 1:
            yield (record.seconds - record.ttft) / (made - 1)
