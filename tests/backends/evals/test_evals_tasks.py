"""Rows in their published forms, and what counts as an answer."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.evals.tasks import BUNDLED, TASKS, DataError, choice, figure, items, plain, program
from tests.backends.evals.oracle import right, wrong

GRADED = ("humaneval", "mmlu_pro", "gsm8k")


@pytest.mark.parametrize("task", GRADED)
def test_the_bundled_items_tell_right_from_wrong(task: str) -> None:
    for item in items(task, None):
        found = TASKS[task].grade(item, right(task, item))
        assert (found.correct, found.why) == (True, ""), item
        graded = TASKS[task].grade(item, wrong(task, item))
        assert (graded.correct, graded.said is None, bool(graded.why)) == (False, False, task == "humaneval"), item
        assert TASKS[task].grade(item, "I do not know.") == TASKS[task].grade(item, "")
        assert not TASKS[task].grade(item, "").correct


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Thus the answer is (C).", "C"),
        ("The answer is C", "C"),
        ("**Answer: D**", "D"),
        ("The answer is **(E)**.", "E"),
        ("First I thought the answer is (A), but the answer is (B).", "B"),
        (r"So $\boxed{\text{F}}$", "F"),
        ("G.", "G"),
        ("(H)", "H"),
        (r"The answer is \(E\).", "E"),
        ("The best answer would be option I.", "I"),
        ("The answer is I think B", None),
        ("the answer I gave", None),
        ("the answer is a hard one", None),
        ("The answer is (K)", None),
        ("A or B, who knows", None),
        ("", None),
    ],
)
def test_the_letter_is_the_last_that_is_called_the_answer(answer: str, letter: str | None) -> None:
    assert choice(answer) == letter


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### $1,350.00", "1350"),
        ("#### -0.50 euros", "-0.5"),
        (r"so \boxed{1{,}200} of 4000", "1200"),
        (r"\boxed{1} at first, then \boxed{2}", "2"),
        ("It is 17 bags, as 153 / 9 = 17.", "17"),
        ("In 2 days it is 17", "17"),
        ("#### 7 of 9", "7"),
        ("#### .50", "0.5"),
        ("#### .0", "0"),
        ("####", None),
        ("none", None),
    ],
)
def test_the_number_is_the_marked_one_or_else_the_last(answer: str, number: str | None) -> None:
    assert figure(answer) == number


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_the_same_however_it_is_written(number: int) -> None:
    forms = (f"{number}", f"{number:,}", f"{number}.00", f"{number:,}.0")
    assert {plain(f"the sum {form} euros") for form in forms} == {str(number)}


KEY = {
    "prompt": 'import math\n\ndef twice(n):\n    return 2 * n\n\ndef f(n):\n    """Doc."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4 * math.pi",
    "entry_point": "f",
}


@pytest.mark.parametrize(
    "answer",
    [
        "```python\ndef f(n):\n    return twice(n) * math.pi\n```",
        "So:\n```\ndef twice(n):\n    return 0\n```\nor:\n```py\ndef f(n):\n    return twice(n) * math.pi\n```\nDone.",
        "def f(n):\n    return twice(n) * math.pi",
        "```python\n    return twice(n) * math.pi\n```",
        "```python\ndef f(n):\n    return twice(n) * math.pi",
    ],
)
def test_code_is_run_behind_what_stands_before_its_function(answer: str) -> None:
    made = program(KEY, answer)
    assert made is not None
    exec(compile(made, "made.py", "exec"), {})


def test_prose_is_no_code() -> None:
    assert program(KEY, "I would multiply by pi.") is None


def test_sets_are_found_as_they_are_published(tmp_path: Path) -> None:
    own = {task: (BUNDLED / f"{task}.jsonl").read_bytes() for task in GRADED}
    published = {
        "HumanEval.jsonl.gz": gzip.compress(own["humaneval"]),
        "gsm8k/main/test-00000-of-00001.jsonl": own["gsm8k"],
        "gsm8k/main/train-00000-of-00001.jsonl": b"not read",
        "gsm8k/socratic/test-00000-of-00001.jsonl": b"not read",
        "MMLU-Pro/data/test-00000-of-00001.jsonl": own["mmlu_pro"],
        "MMLU-Pro/data/validation-00000-of-00001.jsonl": b"not read",
        "gsm8k/main/notes.jsonl": b"not read",
        "README.md": b"not read",
    }
    for name, raw in published.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    for task in GRADED:
        assert items(task, tmp_path) == items(task, None)
    assert len(items("gsm8k", tmp_path / "gsm8k" / "main" / "test-00000-of-00001.jsonl", limit=3)) == 3
    with pytest.raises(DataError, match="no rows of perplexity"):
        items("perplexity", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "no answer"}\n', r"row 1 is not of gsm8k's form \(KeyError"),
        ('{"question": "q", "answer": "no number"}\n', "row 1 is not of gsm8k's form"),
        ("{torn\n", "gsm8k.jsonl:1: Expecting property name"),
        ("\n", "no rows of gsm8k"),
        ('{"id": 1, "question": "q", "answer": "1"}\n' * 2, "two rows of gsm8k have the same id"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "gsm8k.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        items("gsm8k", tmp_path)


def test_a_right_option_that_is_not_there_is_refused(tmp_path: Path) -> None:
    row: dict[str, Any] = {"question_id": 1, "question": "q", "options": ["a", "b", "N/A"], "answer": "C"}
    (tmp_path / "mmlu_pro.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="none of 2 options"):
        items("mmlu_pro", tmp_path)


def test_parquet_is_read_or_the_package_that_reads_it_is_named(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "#### 3"}
    path = tmp_path / "gsm8k.parquet"
    try:
        import pyarrow  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
        import pyarrow.parquet  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    except ModuleNotFoundError:
        path.write_bytes(b"PAR1")
        with pytest.raises(DataError, match="pip install pyarrow"):
            items("gsm8k", path)
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert items("gsm8k", path)[0].key == "3"
