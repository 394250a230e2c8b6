"""Where should the threshold be on this traffic?   `tiergate policy calibrate`"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.calibrate import (
    FORMS,
    GOOD,
    Calibration,
    Narrowed,
    SplitBy,
    Target,
    TargetError,
    Unproven,
    dump,
    examples,
    moved,
    parse,
)
from gateway.calibrate import calibrate as fitted
from gateway.calibration import Fitted, load
from gateway.cli.output import Json, encoded, stop, visible
from gateway.cli.progress import reading, working
from gateway.recorded import Recorded, RecordError, gather

RELIABILITY = {"ECE": "ece", "Brier": "brier", "Brier of the rate alone": "brier_of_the_rate"}


def calibrate(  # noqa: PLR0913, PLR0917  (a command's options are its parameters)
    records: Annotated[list[Path], typer.Argument(help="Recorded decisions, the lines of GATEWAY_RECORDS.")],
    target: Annotated[str, typer.Option(help=f"What is wanted: {FORMS}.")],
    out: Annotated[Path, typer.Option(help="Where the calibration is written.")] = Path("calibration.json"),
    split: Annotated[
        SplitBy, typer.Option(help="What is judged apart: later records, other callers, or any half.")
    ] = "id",
    price_ratio: Annotated[float | None, typer.Option(help="Pro's price over Flash's; for cost=...")] = None,
    agree: Annotated[float, typer.Option(min=0, max=1, help="Flash is good from this agreement with a shadow.")] = GOOD,
    without: Annotated[
        list[str] | None, typer.Option(help="A source whose outcomes are left out, such as retry; repeatable.")
    ] = None,
    explore: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="The rule's `explore`, where the records show another.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A calibration that stays: by these records its thresholds alone are set.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Write it also when it is not proven.")] = False,
    as_json: Json = False,
) -> None:
    """Fit p_complex and its thresholds to recorded outcomes, judge them on records held out, and write them down.

    Exit status 1, and nothing written, when the records do not show what was asked for. With --keep that is the share.
    """
    wanted, before = parsed(target, price_ratio), earlier(keep) if keep else None
    try:
        kept, digest = hashed(records)
        decisions = examples(kept, agree, without or ())
        kept.clear()  # beside the examples they would take their memory until the end
        with working(f"fitting to {len(decisions)} outcomes"):
            asked = (decisions, wanted, split, explore)
            found = moved(before, *asked) if before else fitted(*asked)
    except (RecordError, Unproven) as error:
        raise stop("policy calibrate", str(error)) from None
    print(as_data(found) if as_json else "\n".join(in_words(found)))
    if not (found.proven or before or anyway):
        raise stop("policy calibrate", "it is not proven; nothing is written (--anyway writes it)")
    write(out, found, digest, len(decisions))
    print(f"written to {out}", file=sys.stderr if as_json else sys.stdout)


def parsed(target: str, price_ratio: float | None) -> Target:
    """The target that is asked for."""
    try:
        return parse(target, price_ratio)
    except TargetError as error:
        raise typer.BadParameter(str(error), param_hint="--target") from None


def earlier(place: Path) -> Fitted:
    """The calibration in a file."""
    try:
        return load(place.read_text())
    except OSError as error:
        raise stop("policy calibrate", f"{place}: {error.strerror}") from None
    except ValueError as error:
        raise stop("policy calibrate", f"{place}: no calibration: {error}") from None


def hashed(records: list[Path]) -> tuple[list[Recorded], str]:
    """What the files hold, and the hash of their lines; each is read once: it may be a pipe, or grow. Raises
    RecordError."""
    digest = hashlib.sha256()
    with reading(records) as advance:

        def heard(line: bytes) -> None:
            digest.update(line)
            advance(line)

        return gather(records, Narrowed(), heard), digest.hexdigest()


def write(out: Path, found: Calibration, digest: str, decisions: int) -> None:
    """Writes the calibration's file."""
    text = dump(found, digest, decisions, time.time())
    try:
        if out.is_file():
            replaced(out.resolve(), text)
        else:
            out.write_text(text)
    except OSError as error:
        raise stop("policy calibrate", f"{out}: {error.strerror}") from None


def replaced(place: Path, text: str) -> None:
    """Puts another text in a file's place, whole: a gateway that follows it reads no half of one, and where that cannot
    be written what outcomes have taught is not lost."""
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        shutil.copymode(place, beside)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def as_data(found: Calibration) -> str:
    """The report for programs."""
    named = {"inputs": list(found.layer.weights), "thresholds": found.edges, "proven": found.proven}
    return encoded(named | {"report": found.report, "caveats": found.caveats})


def in_words(found: Calibration) -> list[str]:
    """The report for people, of the records held out."""
    report = found.report
    lines = [
        f"inputs       {', '.join(found.layer.weights) or 'none'}",
        f"thresholds   {', '.join(f'{edge:.4f}' for edge in found.edges)}",
        f"shares       {', '.join(map(interval, report['shares']))} of {report['judged']} held out{near(report)}",
    ]
    if len(found.edges) > 1:
        lines.append(
            f"bands        route: {{p_complex: {{{bands(found.edges)}}}}}: a rule has them, the file brings p alone"
        )
    if report["fixed"] or report["explore"]:
        lines.append(
            f"in them      {report['fixed']:.1%} have their tier without a verdict; of the others explore sends "
            f"{report['explore']:.1%} another way"
        )
    if report["sources"]:
        lines.append(f"sources      {', '.join(heard(*one) for one in report['sources'].items())}")
    if bound := report.get("bound"):
        lines.append(
            f"bound        at most {found.target.rate:g} of what stays on Flash fails, confidence "
            f"{found.target.confidence:g} ({bound['failures']} of {bound['kept']} did)"
        )
    if report.get("lift"):
        lines.append(f"lift         {interval(report['lift'])} of Pro's gain above chance at an equal share")
    if "outcomes" in report:
        shown = (f"{name} {report[key]:.3f}" for name, key in RELIABILITY.items())
        lines.append(
            f"reliability  {', '.join(shown)}; {report['outcomes']} outcomes, {report['effective']:.0f} effective"
        )
    if report.get("flash_failure"):
        lines.append(f"Flash fails  {interval(report['flash_failure'])} of what stays")
    return lines + [f"caveat       {text}" for text in found.caveats]


def near(report: Mapping[str, Any]) -> str:
    """How near to its target a share comes."""
    return f"; all records set them to within {report['within']:.3f} (95 %)" if "within" in report else ""


def bands(edges: Sequence[float]) -> str:
    """The bands between thresholds, as a rule's route has them."""
    tiers = [f"TIER{at}" for at in range(1, len(edges) + 1)]
    below = [f'"<{edge:.4f}": {tier}' for edge, tier in zip(edges, tiers, strict=True)]
    return ", ".join([*below, f"else: TIER{len(edges) + 1}"])


def heard(source: str, found: dict[str, float]) -> str:
    """A source of outcomes of Flash's answers."""
    return f"{visible(source)} {found['outcomes']} of Flash's answers ({found['failed']:.0%} bad)"


def interval(found: dict[str, Any]) -> str:
    """An estimate with its 95 % interval."""
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
