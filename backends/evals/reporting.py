"""Which figures follow from the outcomes?   As JSON data and as Markdown; all intervals are of 95 %."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from backends.evals.metrics import Estimate, Z, bootstrap, mcnemar, paired_difference, per_unit, percentile, wilson
from backends.evals.running import Outcome, Run

JSON = dict[str, Any]
CUT_SHARE = 0.01  # above this share of truncated answers the report has a note


def summed_up(run: Run) -> JSON:
    """The figures of one task, as JSON data."""
    found = run.outcomes
    common = {"items": len(found) + len(run.failed), "done": len(found), "failed": run.failed}
    if run.task == "perplexity":
        return common | _likelihood(found)
    groups = {group: [one for one in found if one.group == group] for group in sorted({one.group for one in found})}
    return common | {
        "accuracy": asdict(_accuracy(found)),
        "groups": {group: asdict(_accuracy(some)) for group, some in groups.items() if group},
        "without_answer": sum(one.said is None for one in found),
        "cut": sum(one.cut for one in found),
        "prompt_tokens": sum(one.prompt_tokens for one in found),
        "completion_tokens": sum(one.completion_tokens for one in found),
        "seconds_p50": percentile([one.seconds for one in found], 0.5) if found else 0.0,
    }


def _accuracy(found: Sequence[Outcome]) -> Estimate:
    return wilson(sum(one.correct for one in found), len(found))


def _likelihood(found: Sequence[Outcome]) -> JSON:
    nats = bootstrap([(one.nats, one.tokens) for one in found], per_unit)
    bits = bootstrap([(one.nats / math.log(2), one.bytes) for one in found], per_unit)
    perplexity = Estimate(*(math.exp(value) for value in (nats.value, nats.low, nats.high)))
    return {"perplexity": asdict(perplexity), "bits_per_byte": asdict(bits), "tokens": sum(one.tokens for one in found)}


def compared(first: Run, second: Run, margin: float) -> JSON:
    """The second run against the first on the items that both completed. `margin`: the non-inferiority margin.

    The margin is one of accuracy, for perplexity one of bits per byte, relative to the first's. Raises ValueError when
    no item was completed by both.
    """
    others = {one.id: one for one in second.outcomes}
    pairs = [(one, others[one.id]) for one in first.outcomes if one.id in others]
    if not pairs:
        raise ValueError(f"{first.task}: no item was done by both")
    if first.task == "perplexity":
        return _compared_likelihood(pairs, margin)
    changed = _changed(pairs)
    difference = Estimate(**changed["difference"])
    needed = math.ceil((changed["gained"] + changed["lost"]) / len(pairs) * (Z / margin) ** 2)
    groups = {name: [pair for pair in pairs if pair[0].group == name] for name in sorted({a.group for a, _ in pairs})}
    return changed | {
        "cut": [sum(a.cut for a, _ in pairs), sum(b.cut for _, b in pairs)],
        "verdict": verdict(difference, margin),
        "items_needed": needed,
        "groups": {name: _changed(some) for name, some in groups.items() if name},
    }


def _changed(pairs: Sequence[tuple[Outcome, Outcome]]) -> JSON:
    """Numbers of items that only the second, only the first has right, the difference of accuracy, and the p-value."""
    gained = sum(b.correct and not a.correct for a, b in pairs)
    lost = sum(a.correct and not b.correct for a, b in pairs)
    difference = asdict(paired_difference(gained, lost, len(pairs)))
    return {"items": len(pairs), "gained": gained, "lost": lost, "difference": difference, "p": mcnemar(gained, lost)}


def _compared_likelihood(pairs: Sequence[tuple[Outcome, Outcome]], margin: float) -> JSON:
    """In bits per byte, so that tokenizers may differ; a positive difference: the second model is better."""
    bits = [((a.nats - b.nats) / math.log(2), float(a.bytes)) for a, b in pairs]
    was = per_unit([(a.nats / math.log(2), float(a.bytes)) for a, _ in pairs])
    gain = bootstrap(bits, per_unit)
    part = Estimate(gain.value / was, gain.low / was, gain.high / was)
    return {"items": len(pairs), "bits_per_byte": was, "difference": asdict(part), "verdict": verdict(part, margin)}


def verdict(difference: Estimate, margin: float) -> str:
    """What the interval of the difference shows of the second model."""
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    if difference.low > -margin:
        return f"not worse by more than {margin:.3g}"
    return "nothing shown"


def in_words(settings: JSON, tasks: JSON) -> str:
    """The report on one model, in Markdown."""
    lines = [f"# {settings['model']}", "", "| task | done | score | without answer | cut | tokens in / out | s p50 |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, told in tasks.items():
        lines.append(f"| {name} | {told['done']} of {told['items']} | " + " | ".join(_cells(told)) + " |")
    notes = [_cut_note(name, told["cut"], told["done"], settings) for name, told in tasks.items() if told.get("cut")]
    notes += [f"{name}: {len(told['failed'])} items failed" for name, told in tasks.items() if told["failed"]]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes if note), *_settings(settings)]) + "\n"


def _cells(told: JSON) -> list[str]:
    if "perplexity" in told:
        shown = f"perplexity {Estimate(**told['perplexity'])}, {Estimate(**told['bits_per_byte'])} bits a byte"
        return [shown, "", "", f"{told['tokens']} / 0", ""]
    tokens = f"{told['prompt_tokens']} / {told['completion_tokens']}"
    counts = [str(told["without_answer"]), str(told["cut"]), tokens, f"{told['seconds_p50']:.2f}"]
    return [str(Estimate(**told["accuracy"])), *counts]


def _cut_note(name: str, cut: int, done: int, settings: JSON) -> str:
    if cut <= CUT_SHARE * done:
        return ""
    limit = settings["tokens"].get(name)
    return f"{name}: {cut} of {done} answers were cut at {limit} tokens; the score measures that limit, too"


def _settings(settings: JSON) -> list[str]:
    return ["", *(f"- {key}: {value}" for key, value in settings.items())]


def comparison_in_words(first: JSON, second: JSON, tasks: JSON) -> str:
    """The report on two models, in Markdown."""
    titles = "| task | items | gained | lost | difference | p | shown: the second is | items for the margin |"
    lines = [f"# {second['model']} against {first['model']}", "", titles, "|" + "---|" * 8]
    for name, told in tasks.items():
        lines.append(_row(name, told))
        lines += [_row(f"{name}: {group}", some) for group, some in told.get("groups", {}).items()]
    return "\n".join(lines) + "\n"


def _row(name: str, told: JSON) -> str:
    p = f"{told['p']:.4f}" if "p" in told else ""
    counts = [str(told.get(key, "")) for key in ("items", "gained", "lost")]
    shown = [str(told.get(key, "")) for key in ("verdict", "items_needed")]
    return "| " + " | ".join([name, *counts, str(Estimate(**told["difference"])), p, *shown]) + " |"
