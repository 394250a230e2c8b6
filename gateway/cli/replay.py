"""What would another policy have done?   `tiergate policy replay` and `tiergate policy diff`."""

import json
import operator
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.output import Json, aligned, stop, visible
from gateway.cli.policy import opened
from gateway.cli.progress import reading, working
from gateway.policy import Policy, differences
from gateway.recorded import RecordError, gather
from gateway.replay import Arm, Decided, Deciding, Move, Replay, Unrecorded, between
from gateway.replay import replay as replayed

CONDITION = re.compile(r"\s*([a-z_][a-z0-9_.-]*)\s*(>=|<=|==|!=|>|<)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*")
OPERATORS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
FAILED, UNJUDGED = 1, 2  # exit status


class Format(StrEnum):
    text = "text"
    json = "json"


How = Annotated[Format, typer.Option("--format", help="For people or for programs.")]
Files = Annotated[
    list[Path], typer.Option("--records", help="JSON lines, as in the file of GATEWAY_RECORDS; repeatable.")
]


def replay(
    policy: Annotated[Path, typer.Option(help="The candidate.")],
    records: Files,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help='A condition that fails, such as "pro_share > 0.3"; repeatable.'),
    ] = None,
    how: How = Format.text,
    as_json: Json = False,
) -> None:
    """Decide recorded requests anew under a candidate: moves, Pro share, cost, quality, and controls beside them.

    Exit status 1 when a condition holds, 2 when something cannot be judged.
    """
    conditions = [condition(text) for text in fail_if or []]
    candidate, _ = opened(policy, status=UNJUDGED)
    lines = decided(records, candidate)
    with working(f"comparing {len(lines)} requests"):
        found = replayed(lines, candidate)
    if as_json or how is Format.json:
        print(json.dumps(asdict(found) | {"figures": found.figures()}, indent=2))
    else:
        print("\n".join(in_words(found)))
    raise typer.Exit(max((held(found, *one) for one in conditions), default=0))


def diff(
    a: Annotated[Path, typer.Argument(help="A policy file.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    records: Annotated[list[Path] | None, typer.Option(help="Recorded requests; repeatable.")] = None,
    how: How = Format.text,
    as_json: Json = False,
) -> None:
    """What two policy files say differently, and which recorded requests go elsewhere under the second."""
    (old, before), (new, after) = (opened(path, status=UNJUDGED) for path in (a, b))
    changes = differences(before, after)
    lines = decided(records or [], old, new)
    moves, undecided = between(lines)
    if as_json or how is Format.json:
        told = [{"path": path, "a": one, "b": other} for path, one, other in changes]
        counts = {"records": len(lines), "undecided": undecided}
        print(json.dumps({"changes": told, **counts, "moves": [asdict(move) for move in moves]}, indent=2))
        return
    for path, one, other in changes:
        print(f"{path}: {spelled(one)} -> {spelled(other)}")
    if not changes:
        print("the files say the same")
    if lines:
        print(f"{sum(move.count for move in moves)} of {len(lines)} requests move, {undecided} undecided")
        for move in moves_in_words(moves):
            print(move)


def condition(text: str) -> tuple[str, str, float]:
    """Name, operator, number. Raises typer.BadParameter."""
    found = CONDITION.fullmatch(text)
    if not found:
        raise typer.BadParameter(f'{text}: expected a name, one of {" ".join(OPERATORS)}, and a number: "moved > 0.1"')
    return found[1], found[2], float(found[3])


def held(found: Replay, name: str, sign: str, number: float) -> int:
    """The exit status that a condition calls for; told on stderr unless it is 0."""
    figures = found.figures()
    value = figures.get(name)
    if value is None:
        known = ", ".join(figures)
        typer.echo(f"{name}: not known here" if name in figures else f"{name}: no such figure: {known}", err=True)
        return UNJUDGED
    if not OPERATORS[sign](value, number):
        return 0
    typer.echo(f"fails: {name} is {value:g}, {sign} {number:g}", err=True)
    return FAILED


def decided(files: list[Path], *policies: Policy) -> list[Decided]:
    """The recorded requests, decided anew as they are read."""
    try:
        with reading(files) as advance:
            return gather(files, Deciding(*policies), advance)
    except (Unrecorded, RecordError) as error:
        raise stop("policy", str(error), UNJUDGED) from None


def spelled(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)


def in_words(found: Replay) -> list[str]:
    """The replay for people; what is said of quality stands below the figures, as it may be long."""
    counts = (
        f"{found.records} records: {found.decided} decided, {found.undecided} undecided (nobody asked the classifier "
        f"then), {found.refused} refused, {found.outcomes} with an outcome; {found.moved} go elsewhere"
    )
    unseen = f"of {found.unseen:.0f} hold-back would judge a start that nobody saw; they count as let out"
    rows = [("", "Pro share", "cost USD", "counted", "quality")]
    for name, arm in found.arms.items():
        share = f"{arm.pro_share:.1%} ({arm.low:.1%} - {arm.high:.1%})"
        quality = arm.quality
        known = f"{quality.value:.3f} ({quality.low:.3f} - {quality.high:.3f})" if quality else "not known"
        rows.append((name, share, f"{arm.cost_usd:.6f}", f"{arm.counted:.0%}", known))
    told = [(name, of_quality(arm, name == "candidate")) for name, arm in found.arms.items()]
    moves = moves_in_words(found.moves)
    return [counts, *([unseen] if found.unseen else []), *moves, "", *aligned(rows), "", *aligned(told)]


def of_quality(arm: Arm, itself: bool) -> str:
    """How an arm's quality is known, and how much better the candidate is."""
    if not arm.quality:
        return f"quality is not known: {arm.unknown}"
    known, gain = f"quality by {arm.quality.effective:.0f} effective outcomes", arm.behind
    if itself or not gain:
        return known
    return f"{known}; the candidate is better by {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def moves_in_words(moves: tuple[Move, ...]) -> list[str]:
    told = [(f"{move.count}", f"{move.origin} -> {move.to}", move.rule, ", ".join(move.examples)) for move in moves]
    return list(aligned([tuple(map(visible, row)) for row in told]))
