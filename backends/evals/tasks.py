"""What are a task's prompts, and is an answer right?   HumanEval, MMLU-Pro, GSM8K, and perplexity on texts.

Rows are read in their published forms, HumanEval (openai/human-eval, openai_humaneval), MMLU-Pro (TIGER-Lab/MMLU-Pro),
GSM8K (openai/gsm8k), as .jsonl, .jsonl.gz or .parquet. All prompts are zero-shot; an answer that has none of the known
forms is wrong, nothing is guessed.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from backends.evals.sandbox import executed

JSON = dict[str, Any]
BUNDLED = Path(__file__).parent / "data"
LETTERS = "ABCDEFGHIJ"


class DataError(ValueError):
    """Rows that cannot be read or have not the task's form, or wrong options; says which."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task. `group`: its category, "" for none; `key`: what grading needs, as the right answer."""

    id: str
    group: str
    prompt: str
    key: Any


@dataclass(frozen=True, slots=True)
class Grade:
    """`said`: the answer extracted from the completion, None when there is none; `why`: the error, for programs."""

    correct: bool
    said: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """How a row becomes an item, and how an answer is graded. `tokens`: the most of an answer."""

    item: Callable[[JSON, int], Item]
    grade: Callable[[Item, str], Grade]
    tokens: int


def rows(path: Path) -> Iterator[JSON]:
    """The rows of a file. Raises DataError, OSError."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                told = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from None
            if isinstance(told, dict):
                yield told


def _parquet(path: Path) -> list[JSON]:
    try:
        parquet = import_module("pyarrow.parquet")  # only those who have parquet files need it
    except ModuleNotFoundError:
        raise DataError(f"{path}: reading parquet needs `pip install pyarrow`") from None
    found: list[JSON] = parquet.read_table(path).to_pylist()
    return found


def items(name: str, place: Path | None, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a task: from a file, from the files in a folder that are named for the task, or the
    bundled ones.

    Raises DataError for a row that has not the task's form, equal ids, and when there are none; OSError.
    """
    found: list[Item] = []
    for path in [BUNDLED / f"{name}.jsonl"] if place is None else _paths(name, place):
        for row in rows(path):
            try:
                found.append(TASKS[name].item(row, len(found)))
            except (KeyError, IndexError, ValueError) as error:
                raise DataError(f"{path}: row {len(found) + 1} is not of {name}'s form ({error!r})") from None
    if not found:
        raise DataError(f"{place}: no rows of {name}")
    if len({item.id for item in found}) < len(found):
        raise DataError(f"{place}: two rows of {name} have the same id")
    return found[:limit]


OTHERS = re.compile(r"train|valid|(^|[-_/])dev|socratic", re.IGNORECASE)  # other splits than the test split


def _paths(name: str, place: Path) -> Sequence[Path]:
    """A file itself; in a folder, the files named for the task, else test splits in subfolders named for it."""
    if place.is_file():
        return [place]
    own = re.compile(name.replace("_", "[-_]?"), re.IGNORECASE)
    files = [path for path in sorted(place.rglob("*")) if path.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))]
    files = [path for path in files if not OTHERS.search(str(path.relative_to(place)))]
    named = [path for path in files if own.search(path.name)]
    return named or [path for path in files if path.name.startswith("test") and own.search(str(path.parent))]


def _code_item(row: JSON, number: int) -> Item:
    prompt = (
        "Complete this Python function. Answer with the whole function, its imports included, in one code block.\n\n"
        f"```python\n{row['prompt'].strip()}\n```"
    )
    key = {"prompt": row["prompt"], "test": row["test"], "entry_point": row["entry_point"]}
    return Item(str(row["task_id"]), "", prompt, key)


def program(key: JSON, answer: str) -> str | None:
    """The program of the answer's function and its tests; None when the answer has no code.

    Code before the function in the question (imports, other functions) is put before the answer's, too.
    """
    blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL | re.IGNORECASE)
    defined = re.compile(rf"^(async )?def {re.escape(key['entry_point'])}\b", re.MULTILINE)
    code = next((block for block in reversed(blocks) if defined.search(block)), None)
    if code is None and (found := defined.search(answer)):
        code = answer[found.start() :]
    if code is None and not blocks:
        return None
    head = defined.split(key["prompt"])[0] if code is not None else key["prompt"]
    body = code if code is not None else "\n".join(blocks)
    return f"{head}\n{body}\n\n{key['test']}\n\ncheck({key['entry_point']})\n"


def _code_grade(item: Item, answer: str) -> Grade:
    made = program(item.key, answer)
    if made is None:
        return Grade(False, None)
    found = executed(made)
    return Grade(found.passed, made, "" if found.passed else found.why)


def _choice_item(row: JSON, number: int) -> Item:
    options = [option for option in row["options"] if option != "N/A"]
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    if row["answer"] not in LETTERS[: len(options)]:
        raise ValueError(f"the answer {row['answer']!r} is none of {len(options)} options")
    prompt = (
        "Answer this multiple choice question. Think step by step, then finish with one line "
        f'"The answer is (X)", X being the letter of the right option.\n\n{row["question"]}\n\n{listed}'
    )
    return Item(str(row["question_id"]), str(row.get("category", "")), prompt, row["answer"])


# "I" before a lower-case word is the pronoun, not option I.
CALLED = re.compile(r"(?i:answer)\**\s*(?:(?i:is|would be)\b\s*:?|:)\s*(?i:option\s+)?[\s*\\($]*(?!I [a-z])([A-J])\b")
BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\(?([A-J])\b")
BARE = re.compile(r"\s*\(?([A-J])\)?[.:]?\s*")


def choice(answer: str) -> str | None:
    """The letter of the last statement of an answer; None without one."""
    bare = BARE.fullmatch(answer)
    found = CALLED.findall(answer) or BOXED.findall(answer) or ([bare[1]] if bare else [])
    return found[-1] if found else None


def _choice_grade(item: Item, answer: str) -> Grade:
    said = choice(answer)
    return Grade(said == item.key, said)


def _number_item(row: JSON, number: int) -> Item:
    prompt = (
        "Solve this problem. Think step by step, then finish with one line "
        f'"#### N", N being the result as a plain number.\n\n{row["question"]}'
    )
    return Item(str(row.get("id", number)), "", prompt, plain(row["answer"].rpartition("####")[2]))


NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def plain(text: str) -> str:
    """The first number in a text without commas, currency sign and trailing zeros. Raises IndexError without one."""
    found = NUMBER.findall(text)[0].replace(",", "").replace("$", "")
    whole, point, part = found.partition(".")
    part = part.rstrip("0")
    return f"{whole or '0'}{point}{part}" if part else whole or "0"


def figure(answer: str) -> str | None:
    """The number after the last "####", else in the last \\boxed, else the last number at all; None without one."""
    answer = answer.replace("{,}", ",")  # TeX's way to group digits
    marked = answer.rpartition("####")[2] if "####" in answer else ""
    for told in (marked, *re.findall(r"\\boxed\{([^}]*)\}", answer)[-1:]):
        if NUMBER.search(told):
            return plain(told)
    found = NUMBER.findall(answer)
    return plain(found[-1]) if found else None


def _number_grade(item: Item, answer: str) -> Grade:
    said = figure(answer)
    return Grade(said is not None and float(said) == float(item.key), said)


def _text_item(row: JSON, number: int) -> Item:
    return Item(str(row.get("id", number)), "", row["text"], len(row["text"].encode()))


def _ungraded(item: Item, answer: str) -> Grade:
    raise DataError("a text is scored, not answered")


TASKS = {
    "humaneval": Task(_code_item, _code_grade, 2048),
    "mmlu_pro": Task(_choice_item, _choice_grade, 4096),
    "gsm8k": Task(_number_item, _number_grade, 2048),
    "perplexity": Task(_text_item, _ungraded, 0),
}
