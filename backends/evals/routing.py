"""How well does a gateway route?   Sends labelled prompts to its decision-only endpoint and scores the decisions.

    python -m backends.evals.routing DATA... --gateway URL [--key KEY] [--by p_complex|score|tier] [--first flash]
                                     [--repeats 3]

DATA: files or folders of JSON lines (backends/evals/prompts.py). Each prompt goes to `POST /v1/route` as a chat; the
answer is {"route": {"tier", ...}, "verdict": {"label", "p_complex", ...} or null, "score": {"value": 0..1, ...} or
null, ...}. No answer is generated.
--by: the prompts' ranking score: the verdict's p_complex (the local score where there is none), the local score alone,
or the tier alone, which also replaces a missing score. The decision that is scored is always whether the route leaves
the first tier. --repeats: how often each prompt is sent; the table has the part that got the same decision each time.
The policy must not cache verdicts then (`triage: {cache: null}`).
"""

import argparse
import http.client
import json
import math
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backends.evals.metrics import Pair, auroc_interval, bootstrap, lift, mean_skill, percentile, skill
from backends.evals.prompts import Row, sets
from backends.evals.tasks import DataError

TIMEOUT = 30.0
LOST = (OSError, ValueError, http.client.HTTPException)  # what `asked` raises
By = Literal["p_complex", "score", "tier"]


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision on one prompt. `rank`: its ranking score; `upward`: the route leaves the first tier; `failed`: the
    verdict has no label; `seconds`: of the request."""

    rank: float
    upward: bool
    failed: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Asking:
    """The gateway's URL and key, the ranking score, the name of the first tier."""

    gateway: str
    key: str | None
    by: By
    first: str


def decide(prompt: str, asking: Asking) -> Decided | None:
    """The decision on one prompt; None when the gateway refused it or cannot be reached."""
    started = time.perf_counter()
    try:
        told = asked(prompt, asking)
    except LOST:
        return None
    return decided(told, asking, time.perf_counter() - started)


def asked(prompt: str, asking: Asking) -> dict[str, Any]:
    """What /v1/route answers. Raises OSError when the gateway refuses it or cannot be reached, ValueError for another
    answer than JSON, HTTPException for another than HTTP."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {asking.key}"} if asking.key else {})
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}]}).encode()
    request = urllib.request.Request(f"{asking.gateway}/v1/route", body, headers)  # noqa: S310  (the operator's URL)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            told: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        raise
    return told


def decided(told: dict[str, Any], asking: Asking, seconds: float) -> Decided:
    """The decision in an answer of /v1/route. Raises KeyError for another form."""
    upward = told["route"]["tier"] != asking.first
    verdict, tier = told["verdict"] or {}, float(upward)
    score = told["score"]["value"] if told["score"] else tier
    p_complex = verdict.get("p_complex")
    ranks = {"tier": tier, "score": score, "p_complex": score if p_complex is None else p_complex}
    return Decided(ranks[asking.by], upward, bool(verdict) and verdict.get("label") is None, seconds)


def report(name: str, found: Sequence[tuple[Row, Sequence[Decided | None]]]) -> str:
    """One line of the table. Of repeated decisions the first is scored."""
    known = [(row, said[0]) for row, said in found if said[0]]
    if not known:
        return f"| {name} | {len(found)} | nothing was decided |"
    gains = [(said.rank, row.gain) for row, said in known if row.gain is not None]
    pays = [(rank, float(gain > 0)) for rank, gain in gains]
    moved = [(float(said.upward), row.gain) for row, said in known if row.gain is not None]
    labels = [(said.rank, float(row.label)) for row, said in known if row.label is not None]
    times = [said.seconds * 1000 for _, said in known]
    alike = [len({one and one.upward for one in said}) == 1 for _, said in found if said[0]]
    cells = [
        name,
        f"{len(known)} of {len(found)}",
        str(bootstrap(gains, skill)) if gains else "",
        f"{sum(said.upward for _, said in known) / len(known):.3f}",
        str(bootstrap(moved, lift)) if moved and any(up for up, _ in moved) else "",
        str(auroc_interval(labels)) if labels else "",
        f"{sum(said.failed for _, said in known) / len(known):.4f}",
        f"{percentile(times, 0.5):.1f} / {percentile(times, 0.95):.1f}",
        f"{sum(alike) / len(alike):.3f}" if len(found[0][1]) > 1 else "",
        str(auroc_interval(pays)) if pays else "",
    ]
    return "| " + " | ".join(cells) + " |"


COLUMNS = (
    "set", "decided", "skill", "share upward", "lift", "label AUROC", "no label", "ms p50 / p95", "alike",
    "AUROC of a gain",
)  # fmt: skip


def run(places: Sequence[Path], asking: Asking, limit: int | None, callers: int, repeats: int = 1) -> Iterator[str]:
    """The table, line by line, as sets are done; last the mean skill over sets with outcomes."""
    yield f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)
    outcomes: list[list[Pair]] = []
    with ThreadPoolExecutor(callers) as pool:
        for name, rows in sets(places):
            some = rows[:limit]
            rounds = [list(pool.map(lambda row: decide(row.prompt, asking), some)) for _ in range(repeats)]
            found = list(zip(some, zip(*rounds, strict=True), strict=True))
            yield report(name, found)
            gains = [(said.rank, row.gain) for row, (said, *_) in found if said and row.gain is not None]
            outcomes += [gains] if gains and not math.isnan(skill(gains)) else []
    if outcomes:
        yield f"| mean of {len(outcomes)} | | {mean_skill(outcomes)} |" + " |" * (len(COLUMNS) - 3)


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("data", nargs="+", type=Path)
    said.add_argument("--gateway", required=True)
    said.add_argument("--key")
    said.add_argument("--by", choices=("p_complex", "score", "tier"), default="p_complex")
    said.add_argument("--first", default="flash", help="the tier that simple prompts go to")
    said.add_argument("--limit", type=int, help="prompts of each set, from its start")
    said.add_argument("--callers", type=int, default=8)
    said.add_argument("--repeats", type=int, default=1, help="times that each prompt is asked about")
    told = said.parse_args()
    asking = Asking(told.gateway.rstrip("/"), told.key, told.by, told.first)
    try:
        asked("hi", asking)
    except LOST as error:
        sys.exit(f"{asking.gateway} decides nothing: {error}")
    try:
        for line in run(told.data, asking, told.limit, told.callers, told.repeats):
            print(line, flush=True)
    except (DataError, OSError) as error:
        sys.exit(f"routing: {error}")


if __name__ == "__main__":
    main()
