"""How is a task run on a model?   Each outcome is written to a journal at once, so that a run can be resumed."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.evals.asking import AskError, Model
from backends.evals.tasks import TASKS, Item

GIVE_UP = 8  # a run ends after so many failed items if none succeeded


@dataclass(frozen=True, slots=True)
class Outcome:
    """One completed item: graded (`said`: the extracted answer, `why` it is wrong, `text`: the completion), or scored
    (`nats`, `tokens`, `bytes`)."""

    id: str
    group: str
    correct: bool = False
    said: str | None = None
    why: str = ""
    cut: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    text: str = ""
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A task's outcomes in the order of its items; `failed`: the reason by id of each item without an answer."""

    task: str
    outcomes: tuple[Outcome, ...]
    failed: dict[str, str]


def done(journal: Path) -> dict[str, Outcome]:
    """The outcomes in a journal by item. A last line that is incomplete is removed from the file."""
    if not journal.exists():
        return {}
    raw = journal.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        journal.write_bytes(whole)
    rows = (json.loads(line) for line in whole.splitlines())
    return {row["id"]: Outcome(**row) for row in rows}


def outcome(task: str, item: Item, model: Model, tokens: int) -> Outcome:
    """Asks and grades, or scores, one item. Raises AskError."""
    if task == "perplexity":
        found = model.score(item.prompt)
        return Outcome(item.id, item.group, nats=found.nats, tokens=found.tokens, bytes=item.key)
    said = model.answer(item.prompt, tokens)
    grade = TASKS[task].grade(item, said.text)
    counts = (said.cut, said.prompt_tokens, said.completion_tokens, said.seconds)
    return Outcome(item.id, item.group, grade.correct, grade.said, grade.why, *counts, text=said.text)


@dataclass(frozen=True, slots=True)
class Running:
    """How a task is run: concurrent requests, the most tokens of an answer, and what to call after each item."""

    callers: int
    tokens: int
    tick: Callable[[], None]


def run(task: str, items: Sequence[Item], model: Model, journal: Path, how: Running) -> Run:
    """Runs the items that are not in the journal. Items without an answer are tried again by the next run.

    Raises AskError when the model answers none of the first GIVE_UP items.
    """
    found, failed = done(journal), dict[str, str]()
    left = [item for item in items if item.id not in found]
    for _ in range(len(items) - len(left)):
        how.tick()
    with ThreadPoolExecutor(how.callers) as pool, journal.open("a") as out:
        asked = {pool.submit(outcome, task, item, model, how.tokens): item for item in left}
        try:
            for future in as_completed(asked):
                _note(future, asked[future].id, found, failed)
                if not found and len(failed) >= min(GIVE_UP, len(items)):
                    future.result()
                if future.exception() is None:
                    out.write(json.dumps(asdict(future.result())) + "\n")
                    out.flush()
                how.tick()
        finally:
            pool.shutdown(cancel_futures=True)
    return Run(task, tuple(found[item.id] for item in items if item.id in found), failed)


def _note(future: "Future[Outcome]", item: str, found: dict[str, Outcome], failed: dict[str, str]) -> None:
    """Records a finished item in `found` or `failed`."""
    try:
        found[item] = future.result()
    except AskError as error:
        failed[item] = str(error)
