"""What does a policy file say, and why does it send a request where it does?   `tiergate policy ...`"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.output import Json, encoded, visible
from gateway.errors import Refusal
from gateway.explain import Explanation, Instead, ToldRule, Way
from gateway.explain import explain as explained
from gateway.policy import (
    LOCAL,
    Document,
    Expect,
    Policy,
    PolicyError,
    PolicyTest,
    Problem,
    StubVerdict,
    TestCaller,
    open_policy,
    packaged,
)
from gateway.policy import schema as json_schema
from gateway.verify import Trial, checked, facts_of, parsed_verdict, stub, trials

app = typer.Typer(
    no_args_is_help=True, help="Check, explain and compare policy files, put them in force, learn from records."
)


class Format(StrEnum):
    text = "text"
    json = "json"
    github = "github"


How = Annotated[Format, typer.Option("--format", help="How problems are printed.")]
File = Annotated[
    Path | None, typer.Argument(help="Policy file; the packaged default when left out.", show_default=False)
]


@app.command()
def check(
    file: File = None,
    how: How = Format.text,
    as_json: Json = False,
) -> None:
    """Check a policy file: keys, names, rules, and its own tests. Exit status 1 when something is wrong."""
    path, how = file or packaged(), Format.json if as_json else how
    try:
        policy = checked(path)
    except PolicyError as error:
        tell(path, error.problems, how)
        raise typer.Exit(1) from None
    if how is Format.json:
        print(json.dumps({"file": str(path), "ok": True, "digest": policy.digest, "problems": []}))
    else:
        print(f"{path}: right. {summary(policy)}")


@app.command("test")
def run_tests(file: File = None, how: How = Format.text, as_json: Json = False) -> None:
    """Run a policy file's own tests, and those of its candidate, one by one. Exit status 1 when one fails."""
    path, how = file or packaged(), Format.json if as_json else how
    found = trials(*opened(path, how))
    problems = [problem for trial in found for problem in trial.problems]
    if how is Format.json:
        print(encoded({"file": str(path), "ok": not problems, "tests": found}))
    elif how is Format.text:
        for trial in found:
            print(f"{'fails' if trial.problems else 'passes':<6}  {visible(trial.name)}{came(trial)}")
    if problems and how is not Format.json:
        tell(path, problems, how)
    raise typer.Exit(int(bool(problems)))


def came(trial: Trial) -> str:
    if trial.got is None:
        return ""
    reason = f": {trial.got['reason']}" if trial.got["reason"] else ""
    return f"  ->  {trial.got['tier'] or 'triage'} ({trial.got['rule']}{reason})"


def summary(policy: Policy) -> str:
    """What was checked, counted."""
    counts = {
        "tiers": len(policy.tiers),
        "rules": len(policy.rules),
        "signals": len(policy.signals),
        "plans": len(policy.callers.plans),
        "aliases": len(policy.aliases),
        "tests passed": len(policy.tests),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items()) + f"; digest {policy.digest}"


def opened(path: Path, how: Format = Format.text, status: int = 1) -> tuple[Policy, Document]:
    """The policy in a file, and its document. Exits with `status` when the file is wrong."""
    try:
        return open_policy(path)
    except PolicyError as error:
        tell(path, error.problems, how)
        raise typer.Exit(status) from None


def tell(path: Path, problems: Sequence[Problem], how: Format) -> None:
    """Problems for people (stderr), for programs (stdout), or for GitHub's annotations (stdout)."""
    if how is Format.json:
        found = [asdict(problem) for problem in problems]
        print(json.dumps({"file": str(path), "ok": False, "digest": None, "problems": found}))
        return
    for problem in problems:
        if how is Format.github:
            name = escaped(problem.file).replace(":", "%3A").replace(",", "%2C")
            told = f"{problem.path}: {problem.message}" if problem.path else problem.message
            print(f"::error file={name},line={problem.line},col={problem.column}::{escaped(told)}")
        else:
            print(visible(str(problem)), file=sys.stderr)
    if how is Format.text:
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", file=sys.stderr)


def escaped(text: str) -> str:
    """Text in a GitHub workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


@app.command()
def explain(  # noqa: PLR0913, PLR0917  (a command's options are its parameters)
    file: File = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="What the user says.")] = None,
    request: Annotated[Path | None, typer.Option(help="A request body as JSON, in place of -m.")] = None,
    plan: Annotated[str, typer.Option(help="The caller's plan; the policy's default when left out.")] = "",
    header: Annotated[list[str] | None, typer.Option(help="A request header, name=value; repeatable.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="What the classifier says: p_complex, simple, complex, or how it fails.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show every rule, why it matched or not, the route, and what each tier would cost. No server is asked."""
    policy, _ = opened(file or packaged())
    if plan and plan not in policy.callers.plans:
        raise typer.BadParameter(f"no plan is named {plan}; known: {', '.join(policy.callers.plans)}")
    test = PolicyTest(
        name="explain",
        request=body(message, request),
        expect=Expect(),
        caller=TestCaller(plan=plan),
        headers=dict(map(pair, header or [])),
        verdict=given(verdict),
    )
    try:
        found = explained(facts_of(test, policy), stub(test, policy), policy)
    except Refusal as refusal:
        print(f"refused with status {refusal.status}: {visible(refusal.message)}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        draw(found, Console(highlight=False, soft_wrap=True))


@app.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    print(json.dumps(json_schema(), indent=2))


def body(message: str | None, request: Path | None) -> dict[str, Any]:
    """The request to explain. Raises typer.BadParameter when there is none, or two."""
    if (message is None) == (request is None):
        raise typer.BadParameter("give -m TEXT or --request FILE")
    if request is None:
        return {"messages": [{"role": "user", "content": message}]}
    try:
        found = json.loads(request.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{request}: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{request}: expected a JSON object")
    return found


def given(verdict: str | None) -> StubVerdict | None:
    try:
        return None if verdict is None else parsed_verdict(verdict)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text}: expected name=value")
    return name, value


def draw(found: Explanation, out: Console) -> None:
    """The decision for people."""
    policy, facts = found["policy"], found["facts"]
    said = {name: value for name, value in facts.items() if value not in (None, False, [], {})}
    out.print(escape(f"policy  {policy['name']} {policy['revision']} ({policy['digest']})"))
    out.print(escape("facts   " + visible(", ".join(f"{name} {value}" for name, value in said.items()))))
    if found["score"]:
        out.print(escape(f"score   {found['score']['value']:.3f}  ({', '.join(found['score']['reasons'])})"))
    out.print(rules_table(found["rules"]))
    out.print(escape(f"verdict {in_words(found)}"))
    out.print(f"route   [bold]{escape(one_way(found['route']))}[/bold]")
    for way, names in alike(found["sides"] or {}).items():
        out.print(escape(f"  {way:<22} if {', '.join(names)}"))
    if found["instead"]:
        out.print(escape(other_side(found["instead"])))
    cost = found["cost"]
    assumed = f"{cost['input_tokens']} tokens in, {cost['output_tokens']} out ({cost['output_tokens_from']})"
    prices = ", ".join(f"{tier} ${usd:.6f}" for tier, usd in cost["usd"].items())
    out.print(escape(f"cost    {prices} for {assumed}, nothing cached"))


def rules_table(rules: list[ToldRule]) -> Table:
    table = Table("rule", "", "why not", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for rule in rules:
        state = "[bold green]decides[/]" if rule["decides"] else "matches" if rule["matched"] else "[dim]no[/]"
        table.add_row(escape(rule["id"]), state, escape(rule["why"] or ""))
    return table


def in_words(found: Explanation) -> str:
    verdict = found["verdict"]
    if not found["triaged"]:
        return "not wanted: nobody is asked"
    if verdict is None:
        return "wanted; both sides follow (--verdict 0.8 stands in for the classifier)"
    if verdict["label"] is None:
        return f"failed: {verdict['reason']}"
    if verdict["p_complex"] is None:
        return f"{verdict['label']}, without a probability"
    near = f"threshold {verdict['threshold']:g}, margin {verdict['margin']:+g}"
    if verdict["source"] == LOCAL:
        return f"{verdict['side']}: by the local score, for {verdict['reason']}: {verdict['p_complex']:g}, {near}"
    raw = f" (said {verdict['raw']:g}, calibrated)" if verdict["raw"] != verdict["p_complex"] else ""
    return f"{verdict['side']}: p_complex {verdict['p_complex']:g}{raw}, {near}"


def other_side(instead: Instead) -> str:
    usd = instead["usd_more"]
    return f"instead {instead['tier']} ({instead['side']}) would cost ${abs(usd):.6f} {'less' if usd < 0 else 'more'}"


def one_way(way: Way) -> str:
    said = where(way)
    return f"{said}  (rule {way['rule']}: {way['reason']})" if "tier" in way else said


def where(way: Way) -> str:
    if "refused" in way:
        return f"refused with status {way['status']}: {way['refused']}"
    if "ask" in way:
        return f"rule {way['ask']} asks first; draft on {way['draft'] or 'no tier'}"
    after = f", then {', '.join(way['tiers'][1:])}" if way["tiers"][1:] else ""
    return f"{way['tier']}{after}"


def alike(sides: dict[str, Any]) -> dict[str, list[str]]:
    """The verdicts by where they lead, failures of the classifier last."""
    failed = sides.get("otherwise", {})
    found: dict[str, list[str]] = {}
    for name, way in [(name, way) for name, way in sides.items() if name != "otherwise"] + list(failed.items()):
        found.setdefault(where(way), []).append(name)
    return found
