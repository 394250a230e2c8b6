"""How good are a model's answers, and is another model worse?

    python -m backends.evals run --url URL --model NAME --out FOLDER [--tasks humaneval,mmlu_pro,gsm8k,perplexity]
    python -m backends.evals compare --url URL --model A --against URL --against-model B --out FOLDER

The model is any server with OpenAI's API, or with --local a folder that transformers can load. Without --data the few
bundled items are used, which test the setup only; --data FILE_OR_FOLDER takes the published sets. Outcomes are kept in
FOLDER, so an interrupted command resumes; report.json and report.md are written at the end. `compare` runs both models
on the same items and tests the difference. Exit status 1: an item got no answer.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from backends.evals.asking import OFF, AskError, Endpoint, Model
from backends.evals.local import Local
from backends.evals.reporting import compared, comparison_in_words, in_words, summed_up
from backends.evals.running import Run, Running, run
from backends.evals.sandbox import executed
from backends.evals.tasks import TASKS, DataError, Item, items

JSON = dict[str, Any]
ON = {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}
EXTRA: dict[str, JSON] = {"off": OFF, "on": ON, "unset": {}}


def main() -> None:
    asked = arguments().parse_args()
    try:
        failed = one(asked) if asked.verb == "run" else both(asked)
    except (ValueError, AskError, OSError) as error:
        sys.exit(f"{asked.verb}: {error}")
    sys.exit(1 if failed else 0)


def arguments() -> argparse.ArgumentParser:
    said = argparse.ArgumentParser(
        "python -m backends.evals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = said.add_subparsers(dest="verb", required=True)
    for verb in ("run", "compare"):
        made = verbs.add_parser(verb)
        made.add_argument("--url", help="of a server with OpenAI's API")
        made.add_argument("--local", type=Path, help="a folder with a model, in place of --url")
        made.add_argument("--model", help="its name there")
        made.add_argument("--out", type=Path, required=True)
        made.add_argument("--tasks", default="humaneval,mmlu_pro,gsm8k", help=f"some of {','.join(TASKS)}")
        made.add_argument("--data", type=Path, help="a file or folder of the published sets")
        made.add_argument("--limit", type=int, help="items of each task, from its start")
        made.add_argument("--callers", type=int, default=8, help="asked at once")
        made.add_argument("--max-tokens", type=int, help="of an answer, in place of each task's own limit")
        made.add_argument("--thinking", choices=tuple(EXTRA), default="off", help="unset: leave it to the server")
        made.add_argument("--extra", type=json.loads, default={}, help="JSON laid over each request's body")
        made.add_argument("--key-from", metavar="VARIABLE", help="what holds the API key; without it none is sent")
        made.add_argument("--timeout", type=float, default=600.0, help="seconds for an answer")
    made = verbs.choices["compare"]
    made.add_argument("--against", help="the second server; --url when not given")
    made.add_argument("--against-local", type=Path, help="the second model's folder")
    made.add_argument("--against-model", help="its name there")
    made.add_argument("--margin", type=float, default=0.01, help="the loss that would not matter")
    return said


def one(asked: argparse.Namespace) -> bool:
    """Evaluates a model and writes its report. True when an item got no answer."""
    settings, runs = evaluated(asked, asked.out, asked.url, asked.local, asked.model)
    tasks = {found.task: summed_up(found) for found in runs}
    written(asked.out, {"settings": settings, "tasks": tasks}, in_words(settings, tasks))
    return any(found.failed for found in runs)


def both(asked: argparse.Namespace) -> bool:
    """Evaluates two models on the same items and writes the comparison. True when an item got no answer."""
    if not (asked.against_model or asked.against_local):
        raise DataError("compare needs --against-model or --against-local")
    if asked.margin <= 0:
        raise DataError(f"--margin {asked.margin:g}: no number of items shows that nothing at all was lost")
    first, was = evaluated(asked, asked.out / "first", asked.url, asked.local, asked.model)
    second_url = asked.against or (None if asked.against_local else asked.url)
    second, now = evaluated(asked, asked.out / "second", second_url, asked.against_local, asked.against_model)
    tasks = {a.task: compared(a, b, asked.margin) for a, b in zip(was, now, strict=True)}
    alone = [{found.task: summed_up(found) for found in runs} for runs in (was, now)]
    told = {"first": {"settings": first, "tasks": alone[0]}, "second": {"settings": second, "tasks": alone[1]}}
    text = (
        comparison_in_words(first, second, tasks) + "\n" + in_words(first, alone[0]) + "\n" + in_words(second, alone[1])
    )
    written(asked.out, {**told, "compared": tasks, "margin": asked.margin}, text)
    return any(found.failed for found in (*was, *now))


def evaluated(
    asked: argparse.Namespace, out: Path, url: str | None, local: Path | None, name: str | None
) -> tuple[JSON, list[Run]]:
    """One model's runs and the settings they were made with. Raises DataError, AskError, OSError."""
    wanted = {task: items(task, asked.data, asked.limit) for task in known(asked.tasks)}
    tokens = {task: asked.max_tokens or TASKS[task].tokens for task in wanted}
    extra = EXTRA[asked.thinking] | asked.extra
    settings: JSON = {"model": name or str(local), "url": url or "", "extra": extra, "tokens": tokens,
                      "data": {task: digest(some) for task, some in wanted.items()}}  # fmt: skip
    if "humaneval" in wanted:
        settings["sandbox"] = sandbox()
    model = opened(asked, url, local, name, extra)
    kept(out, settings)
    runs = []
    with progress() as bar:
        for task, some in wanted.items():
            shown = bar.add_task(f"{settings['model']}: {task}", total=len(some))
            how = Running(1 if local else asked.callers, tokens[task], partial(bar.advance, shown))
            runs.append(run(task, some, model, out / f"{task}.jsonl", how))
    return settings, runs


def sandbox() -> list[str]:
    """What isolates programs here (jail.py). Raises DataError where none can be run: all would count as wrong."""
    found = executed("pass")
    if not found.passed:
        raise DataError(f"programs cannot be run here: {found.why}")
    return list(found.held)


def known(tasks: str) -> list[str]:
    for task in tasks.split(","):
        if task not in TASKS:
            raise DataError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return tasks.split(",")


def opened(asked: argparse.Namespace, url: str | None, local: Path | None, name: str | None, extra: JSON) -> Model:
    """The model to evaluate. Raises DataError when none is named."""
    if local:
        try:
            return Local(local, extra.get("chat_template_kwargs", {}))
        except ModuleNotFoundError as error:
            raise DataError(f"--local needs torch and transformers ({error})") from None
    if not url or not name:
        raise DataError("a model is --url with --model, or --local")
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    key = os.environ.get(asked.key_from) if asked.key_from else None
    return Endpoint(base, name, key, asked.timeout, extra=extra)


def digest(some: Sequence[Item]) -> str:
    return hashlib.sha256(json.dumps([asdict(item) for item in some]).encode()).hexdigest()[:16]


def kept(out: Path, settings: JSON) -> None:
    """Writes the settings file. Raises DataError when the folder has outcomes from other settings."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    was = json.loads(path.read_text()) if path.exists() else settings
    for key in ("model", "url", "extra", "tokens", "data"):
        if was.get(key) != settings[key]:
            raise DataError(
                f"{out} has outcomes made with {key} {was.get(key)}, not {settings[key]}; take another --out"
            )
    path.write_text(json.dumps(settings, indent=2) + "\n")


def written(out: Path, told: JSON, text: str) -> None:
    (out / "report.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    (out / "report.md").write_text(text)
    print(text)


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


if __name__ == "__main__":
    main()
