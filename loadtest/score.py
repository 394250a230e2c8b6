"""What is the local score worth, what do 300 outcomes add, and what does it cost?

    python -m loadtest.score DATA [--repeats 20] [--predictions FILE] [--embeddings FOLDER] [--pairs N] [--answers 1]

DATA: a folder of labelled prompts (backends/evals/prompts.py). No server is asked. --predictions writes {"id", "score",
"latency_ms"} per prompt, for scorers of others. --embeddings: as `triage.embeddings` in a policy. --pairs N: only what
outcomes add for so many pairs of models of each set, whose rows have `scores` by model. --answers 1: an
outcome tells of Flash's answer alone, as it does where nobody asks Pro as well; by default of both.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from backends.evals.metrics import Pair, auroc_interval, bootstrap, mean_skill, percentile, skill
from backends.evals.prompts import Row, sets
from gateway.calibrate import GOOD, Example, calibrate, fit, parse, told
from gateway.score import WEIGHTS, Axes, Score, Table, read_table, score_text

LABELS = 300
TRAFFIC = 2000  # records a calibration sees, LABELS of them with an outcome
SHARE = 0.25
BOTH = 2  # answers to a prompt
GAP = 0.04  # by which the strong model of another pair is better
EACH = 800  # rows of each other set that weights are fitted to
TEXT = [name for name in WEIGHTS if name not in ("turns", "tools")]  # what the score weighs of single prompts
LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
WORST = ("a_", "$a", "分析", "x ", "A. x\n", "( ", " \n", "1,")

Scored = tuple[Row, Score]


def timed(rows: Sequence[Row], table: Table | Axes | None) -> tuple[list[Scored], list[float]]:
    """Every row's score, and the milliseconds that each took."""
    found, times = [], []
    for row in rows:
        started = time.perf_counter()
        found.append((row, score_text(row.prompt, table=table)))
        times.append((time.perf_counter() - started) * 1000)
    return found, times


def gains(scored: Sequence[Scored]) -> list[Pair]:
    return [(score.value, row.gain) for row, score in scored if row.gain is not None]


def by_set(data: dict[str, list[Scored]]) -> Iterator[str]:
    """Skill by set: of the score, of prompt length, and of two ways to learn from the other sets."""
    ways_told = "score | length of the prompt | of the question | measures that hold elsewhere | fitted elsewhere"
    yield f"\n| set | prompts | {ways_told} |\n|" + "---|" * 7
    columns: list[list[list[Pair]]] = [[], [], [], [], []]
    for name, scored in data.items():
        others = [rows for other, rows in data.items() if other != name]
        held = [measure for measure in TEXT if holds(measure, others)]
        alone = by_measures(scored, ["length"])
        ways = [gains(scored), by_length(scored), alone, by_measures(scored, held), by_fit(scored, others)]
        for column, way in zip(columns, ways, strict=True):
            column.append(way)
        told_ways = " | ".join(str(bootstrap(way, skill)) for way in ways)
        left = ", ".join(measure for measure in TEXT if measure not in held)
        yield f"| {name} (without {left}) | {len(scored)} | {told_ways} |"
    yield f"| mean of {len(data)} | | {' | '.join(str(mean_skill(column)) for column in columns)} |"


def by_fit(scored: Sequence[Scored], others: Sequence[Sequence[Scored]]) -> list[Pair]:
    """A logistic layer over the measures, fitted to equally many outcomes of each of the other sets."""
    rows = [one for other in others for one in random.Random(1).sample(list(other), min(len(other), EACH))]
    records = [recorded(row, score, BOTH) for row, score in rows]
    layer = fit([one.measures for one in records], [one.needed for one in records], dict.fromkeys(TEXT, (0.0, 30.0)))
    return [(layer.p(score.measures), row.gain) for row, score in scored if row.gain is not None]


def by_length(scored: Sequence[Scored]) -> list[Pair]:
    return [(float(len(row.prompt)), row.gain) for row, _ in scored if row.gain is not None]


def by_measures(scored: Sequence[Scored], names: Sequence[str]) -> list[Pair]:
    return [
        (sum(WEIGHTS[name] * score.measures[name] for name in names), row.gain)
        for row, score in scored
        if row.gain is not None
    ]


def holds(measure: str, others: Sequence[Sequence[Scored]]) -> bool:
    """Whether a measure by itself, in the direction of its weight, is better than chance on those sets together."""
    return sum(skill(by_measures(scored, [measure])) for scored in others) > 0


def by_label(scored: Sequence[Scored]) -> Iterator[str]:
    """AUROC of labels, by language."""
    yield "\n| prompts | label AUROC |\n|---|---|"
    for name, wanted in (("English", (True,)), ("other languages", (False,)), ("all", (True, False))):
        pairs = [(score.value, float(row.label or 0)) for row, score in scored if (row.language == "en") in wanted]
        yield f"| {name}, {len(pairs)} | {auroc_interval(pairs)} |"


def recorded(row: Row, score: Score, answers: int) -> Example:
    """A row as a gateway would have recorded it. `answers`: how many somebody judged, 1: the weak model's."""
    weak = (row.weak or 0) >= GOOD if answers else None
    strong = (row.strong or 0) >= GOOD if answers == BOTH else None
    return Example(id=row.id, score=score.value, measures=dict(score.measures), flash_ok=weak, pro_ok=strong)


def with_labels(data: dict[str, list[Scored]], repeats: int, answers: int) -> Iterator[str]:
    """What `policy calibrate` makes of LABELS outcomes, on the rows that it did not see."""
    yield (
        f"\n{LABELS} outcomes among at most {TRAFFIC} records of the set; mean of {repeats} draws, on the rest\n\n"
        "| set | skill, label-free | skill, calibrated | share realised: mean, worst, within 3 points | proven |\n|"
        + "---|"
        * 5
    )
    means = []
    for name, scored in data.items():
        drawn = [one_draw(scored, seed, answers) for seed in range(repeats)]
        free, fitted, shares, proven = (list(column) for column in zip(*drawn, strict=True))
        worst = max(shares, key=lambda share: abs(share - SHARE))
        near = sum(abs(share - SHARE) <= 0.03 for share in shares)
        means.append((sum(free) / repeats, sum(fitted) / repeats))
        share = f"{sum(shares) / repeats:.3f}, {worst:.3f}, {near} of {repeats}"
        yield f"| {name} | {means[-1][0]:+.3f} | {means[-1][1]:+.3f} | {share} | {sum(proven)} of {repeats} |"
    free, fitted = (sum(column) / len(means) for column in zip(*means, strict=True))
    yield f"| mean of {len(means)} | {free:+.3f} | {fitted:+.3f} | | |"


def one_draw(scored: Sequence[Scored], seed: int, answers: int) -> tuple[float, float, float, bool]:
    """Skill without and with a calibration, the realised share, and whether a gain was shown."""
    order = random.Random(seed).sample(list(scored), len(scored))
    seen = min(TRAFFIC, len(order) // 2)
    records = [recorded(row, score, answers if i < LABELS else 0) for i, (row, score) in enumerate(order[:seen])]
    found = calibrate(records, parse(f"pro_share={SHARE}"))
    rest = order[seen:]
    pairs = [(found.layer.p(told(recorded(row, score, 0))), row.gain or 0.0) for row, score in rest]
    share = sum(p >= found.edges[0] for p, _ in pairs) / len(pairs)
    return skill(gains(rest)), skill(pairs), share, found.proven


def other_pairs(scored: Sequence[Scored], most: int) -> list[list[Scored]]:
    """The same prompts with other models' outcomes: pairs drawn by chance of which one is better by more than GAP."""
    models = sorted(set.intersection(*(set(row.others) for row, _ in scored)))
    means = {model: sum(row.others[model] for row, _ in scored) / len(scored) for model in models}
    pairs = [(weak, strong) for weak in models for strong in models if means[strong] - means[weak] > GAP]
    drawn = random.Random(1).sample(pairs, min(most, len(pairs)))
    return [[(between(row, *pair), score) for row, score in scored] for pair in drawn]


def between(row: Row, weak: str, strong: str) -> Row:
    low, high = row.others[weak], row.others[strong]
    return replace(row, weak=low, strong=high, gain=high - low)


def over_pairs(data: dict[str, list[Scored]], most: int, repeats: int, answers: int) -> Iterator[str]:
    """What `policy calibrate` makes of LABELS outcomes of other pairs of models: skill, mean over pairs and draws."""
    yield "| set | pairs | skill, label-free | skill, calibrated | added |\n|---|---|---|---|---|"
    added: list[float] = []
    means = []
    for name, scored in data.items():
        draws = [[one_draw(made, seed, answers)[:2] for seed in range(repeats)] for made in other_pairs(scored, most)]
        both = [tuple(sum(column) / repeats for column in zip(*drawn, strict=True)) for drawn in draws]
        gained = [fitted - free for free, fitted in both]
        added += gained
        means.append(tuple(sum(column) / len(both) for column in zip(*both, strict=True)))
        yield f"| {name} | {len(both)} | {means[-1][0]:+.3f} | {means[-1][1]:+.3f} | {of_pairs(gained)} |"
    free, fitted = (sum(column) / len(means) for column in zip(*means, strict=True))
    yield f"| mean of {len(means)} | {len(added)} | {free:+.3f} | {fitted:+.3f} | {of_pairs(added)} |"


def of_pairs(gained: Sequence[float]) -> str:
    better = sum(one > 0 for one in gained)
    return f"{bootstrap([(one, 0.0) for one in gained], mean_of)}, more than nothing in {better} of {len(gained)}"


def mean_of(pairs: Sequence[Pair]) -> float:
    return sum(value for value, _ in pairs) / len(pairs)


def typo(text: str) -> str:
    """Every tenth word with two of its letters swapped."""
    words = text.split(" ")
    for i in range(9, len(words), 10):
        word = words[i]
        words[i] = word[:1] + word[2:3] + word[1:2] + word[3:] if len(word) > 3 else word
    return " ".join(words)


CHANGES: dict[str, Callable[[str], str]] = {
    "a polite frame": lambda text: f"Hello! Could you please help me with this?\n\n{text}\n\nThank you.",
    "lower case": str.lower,
    "line breaks lost": lambda text: " ".join(text.split()),
    "line breaks doubled": lambda text: text.replace("\n", "\n\n"),
    "no question mark at the end": lambda text: text.rstrip("? \n"),
    "typing mistakes": typo,
}


def kept(scored: Sequence[Scored]) -> Iterator[str]:
    """Decisions that stay as they were at a share of 30 %, prompts of all sets together, when the wording changes."""
    yield "\n| change | decisions kept at a 30 % share |\n|---|---|"
    threshold = percentile([score.value for _, score in scored], 0.7)
    for name, change in CHANGES.items():
        same = [
            (score.value >= threshold) == (score_text(change(row.prompt)).value >= threshold) for row, score in scored
        ]
        yield f"| {name} | {sum(same) / len(same):.3f} |"


def cost(times: Sequence[float]) -> Iterator[str]:
    """Milliseconds a prompt: over the sets, and the slowest of made-up ones by length."""
    p50, p95, p99 = (percentile(times, part) for part in (0.5, 0.95, 0.99))
    yield f"\nms a prompt over all sets: p50 {p50:.3f}, p95 {p95:.3f}, p99 {p99:.3f}"
    for length in LENGTHS:
        made = [(pattern * (length // len(pattern) + 1))[:length] for pattern in WORST]
        runs = {pattern: sorted(run(text) for _ in range(50)) for pattern, text in zip(WORST, made, strict=True)}
        name, slowest = max(runs.items(), key=lambda pair: pair[1][47])
        yield f"{length} characters, slowest of made-up texts ({name!r}): p50 {slowest[25]:.3f}, p95 {slowest[47]:.3f}"


def run(text: str) -> float:
    started = time.perf_counter()
    score_text(text)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("data", type=Path)
    said.add_argument("--repeats", type=int, default=20)
    said.add_argument("--predictions", type=Path)
    said.add_argument("--embeddings", type=Path)
    said.add_argument("--pairs", type=int)
    said.add_argument("--answers", type=int, choices=(1, BOTH), default=BOTH)
    asked = said.parse_args()
    table = read_table(asked.embeddings) if asked.embeddings else None
    print(f"python {platform.python_version()} {platform.machine()}")
    data: dict[str, list[Scored]] = {}
    times: list[float] = []
    predictions: list[str] = []
    for name, rows in sets([asked.data]):
        data[name], took = timed(rows, table)
        times += took
        lines = zip(data[name], took, strict=True)
        predictions += [json.dumps({"id": r.id, "score": s.value, "latency_ms": ms}) for (r, s), ms in lines]
    outcomes = {name: scored for name, scored in data.items() if scored[0][0].gain is not None}
    labelled = [one for scored in data.values() for one in scored if one[0].label is not None]
    some = [one for scored in outcomes.values() for one in scored[:: max(len(scored) // 500, 1)]]
    if asked.pairs:
        print(*over_pairs(outcomes, asked.pairs, asked.repeats, asked.answers), sep="\n", flush=True)
        return
    fitted = with_labels(outcomes, asked.repeats, asked.answers)
    parts = (by_set(outcomes), by_label(labelled), fitted, kept(some), cost(times))
    for part in parts:
        for line in part:
            print(line, flush=True)
    if asked.predictions:
        asked.predictions.write_text("\n".join(predictions) + "\n")


if __name__ == "__main__":
    main()
