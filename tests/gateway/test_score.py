"""The local score: what it says of prompts in many languages, and what it does not look at."""

import itertools
import math
import re
import string
import unicodedata

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fields import Fields
from gateway.score import LOOKS, MEASURES, WEIGHTS, reasons, score, score_text, surface, words
from gateway.score.question import split
from gateway.score.remembered import LONGEST, WORDS
from gateway.score.surface import measures

QUESTION = "A tank holds 120 litres and loses 7 litres an hour. After how many hours are 50 litres left?"
PROOF = "Prove step by step that there are infinitely many primes of the form 4k+3."
SHORT = "Write a Python function that sorts a list, in short."
EXAMPLE = "Q: What is the colour of the sky on a clear day, as seen from the ground?\nA: blue\n\n"


def asked(**told: object) -> Fields:
    return msgspec.convert(told, Fields)


def said(*turns: str) -> Fields:
    return asked(messages=[{"role": "user", "content": turn} for turn in turns])


@pytest.mark.parametrize(
    ("simple", "hard"),
    [
        ("What time is it?", "Prove that every bounded monotone sequence converges, and derive the limit's bound."),
        ("Wie heißt du?", "Untersuche, warum die Warteschlange unter Last wächst, und begründe deinen Entwurf."),
        ("Où est la gare ?", "Conçois un protocole de réplication, compare deux variantes et justifie ton choix."),
        ("¿Quién eres?", "Diseña un esquema de particiones y analiza paso a paso qué ocurre cuando falla un nodo."),
        ("Chi sei?", "Dimostra che l'algoritmo termina e calcola la sua complessità nel caso peggiore."),
        ("Кто ты?", "Докажи, что алгоритм завершается, и сравни его сложность с двумя другими подходами."),
        ("Saat kaç?", "Bu sistemin neden yavaşladığını araştır, iki tasarımı karşılaştır ve gerekçelendir."),
        ("今天星期几？", "请设计一个分布式锁,证明它的安全性,并分析网络分区时的行为。"),
        ("今日は何曜日？", "分散ロックを設計し、その安全性を証明し、障害時の挙動を分析してください。"),
        ("오늘 무슨 요일이야?", "분산 잠금을 설계하고 안전성을 증명한 뒤 장애 상황을 단계별로 분석하세요."),
        ("من أنت؟", "صمم خوارزمية لتوزيع المهام وقارن بين طريقتين ثم برهن على صحة الحل."),
        ("आप कौन हैं?", "इस प्रणाली का विश्लेषण करें, दो विकल्पों की तुलना करें और परिणाम सिद्ध करें।"),
    ],
)
def test_a_request_for_depth_scores_above_small_talk_in_any_language(simple: str, hard: str) -> None:
    assert score_text(simple).value < 0.25
    assert score_text(hard).value > score_text(simple).value + 0.1


@pytest.mark.parametrize(
    ("text", "turns", "tools", "value"),
    [("Who are you?", 1, 0, 0.0242), (PROOF, 1, 0, 0.8081), (PROOF, 9, 5, 0.8895), (SHORT, 1, 0, 0.5638)],
)
def test_a_score_is_the_same_in_each_version_as_policies_and_calibrations_name_its_values(
    text: str, turns: int, tools: int, value: float
) -> None:
    assert score_text(text, turns, tools).value == pytest.approx(value, abs=1e-4)


def test_maths_and_code_score_above_prose_of_their_length() -> None:
    prose = "Tell me a little about the town where you would like to live when you are old."
    assert score_text(prose).value < score_text("Solve $x^2 - 5x + 6 = 0$ and then $\\int_0^1 x^3 dx$ by hand.").value
    assert (
        score_text(prose).value < score_text("def f(xs):\n    return sorted(xs)[len(xs) // 2]  # f([3, 1]) == ?").value
    )


def test_a_wish_for_a_short_answer_lowers_the_score() -> None:
    assert score_text(f"{QUESTION} Answer briefly.").value < score_text(QUESTION).value


def test_worked_examples_do_not_make_a_question_harder() -> None:
    alone, shown = measures(f"Q: {QUESTION}\nA:"), measures(3 * EXAMPLE + f"Q: {QUESTION}\nA:")
    assert shown["length"] == pytest.approx(alone["length"], abs=0.05)
    assert shown["numbers"] == alone["numbers"]


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Q: one?\nA: 1\nQ: two?\nA: 2\nQ: three?", "Q: three?", ""),
        ("问：一？\n答：一\n问：二？\n答：二\n问：三？", "问：三？", ""),
        ("Note: one.\nWhy: two?", "Note: one.\nWhy: two?", ""),
        ("Which?\n(A) x\n(B) y\n\nHow many?\n(A) 1\n(B) 2", "How many?", "(A) 1\n(B) 2"),
        ("Read this.\n\nHow many?\n(A) 1\n(B) 2", "Read this.\n\nHow many?", "(A) 1\n(B) 2"),
        ("How many?\n(A) 1", "How many?\n(A) 1", ""),
    ],
)
def test_the_question_is_what_stands_after_worked_examples_and_before_its_options(
    text: str, question: str, options: str
) -> None:
    assert split(text) == (question, options)


def test_options_to_choose_from_count_apart_from_the_question() -> None:
    options = "\nA. 4 hours\nB. 10 hours\nC. 12 hours\nD. 17 hours"
    alone, shown = measures(QUESTION), measures(QUESTION + options)
    assert [name for name in MEASURES if alone[name] != shown[name] and name not in LOOKS] == ["options"]


def test_a_long_prompt_is_read_at_its_ends_only() -> None:
    ends = ("Read the report. " * 60, " What follows from it?" * 90)
    one, other = (score_text(ends[0] + middle * 50_000 + ends[1]) for middle in ("lorem ", "x = 1; "))
    assert one == other


def test_a_short_follow_up_is_read_with_the_turn_before_it() -> None:
    hard = "Prove that the scheduler below never starves a task, and derive its worst latency."
    assert score(said(hard, "yes, do it")).value > 2 * score(said("hi", "yes, do it")).value
    long = "是的请做吧" * 8  # each character has three bytes
    assert score(said(hard, long)).value == pytest.approx(score(said("hi", long)).value, abs=0.01)
    assert score(said(hard, "What is the capital of France, and since when is it the capital?")).value < 0.5


def test_only_what_the_user_says_counts() -> None:
    user = {"role": "user", "content": "hi"}
    tool = {"role": "tool", "content": QUESTION * 50}
    assert score(asked(messages=[user, tool])) == score(asked(messages=[user]))
    tools = [msgspec.Raw(b"{}")] * 3
    assert score(asked(messages=[user, tool, user], tools=tools)) == score_text("hi\nhi", turns=2, tools=3)


def test_completions_and_prompts_of_token_ids_have_a_score() -> None:
    assert score(asked(prompt=QUESTION)) == score(said(QUESTION))
    assert score(asked(prompt=[QUESTION, "and why?"])).value > 0
    assert score(asked(prompt=[1, 2, 3])).value == score_text("").value


def test_how_a_text_looks_is_told_of_all_of_it_and_moves_no_score() -> None:
    found = measures("def f(x):\n    return A[1]\n")
    assert {name: found[name] for name in ("capitals", "digits", "marks")} == {
        "capitals": 0.038, "digits": 0.038, "marks": 0.192,
    }  # fmt: skip
    assert found["lines"] == pytest.approx(math.log(3) / math.log(64), abs=1e-4)
    assert not {*LOOKS} & {*WEIGHTS}


def test_the_reasons_name_what_moved_the_score_most() -> None:
    assert "maths" in reasons(score_text("$a^2 + b^2 = c^2$, $\\frac{a}{b} < 1$").measures)
    assert "-fact" in reasons(score_text("Who are you?").measures)
    found = {"maths": 0.2, "code": 0.5, "task": 0.0, "short": 1.0, "fact": 0.1, "lines": 1.0}
    assert reasons(found) == ("-short", "code", "maths")


@settings(max_examples=100)
@given(st.text(max_size=400), st.integers(1, 500), st.integers(0, 500))
def test_any_text_has_measures_and_a_score_between_0_and_1(text: str, turns: int, tools: int) -> None:
    found = score_text(text, turns, tools)
    assert tuple(found.measures) == MEASURES
    assert all(0 <= value <= 1 for value in found.measures.values())
    assert 0 < found.value < 1


COUNTED = {
    "pauses": r"[.!?;:](?=\s|$)|[。！？；：、，،؟।]|,(?!\d)",
    "numbers": r"\d+(?:[.,]\d+)*",
    "identifiers": r"[A-Z(\[_](?<=[a-z][A-Z]|[^\W_][(\[_])",
}
TEX = r"\\[a-zA-Z]{2,}|[_^]\{|\$[^$\n]{1,80}\$"
OPERATOR = r"[=+*/^<>%≤≥≠≈×÷√∑∫±∈→⇒¬∧∨∀∃∂∞]"
VARIABLE = r"\b[b-zB-HJ-Z]\b(?<!'.)(?!['.)])"
PIECES = (
    *"aIxKB05,.!?;:。，？؟()[]{}_^$\\' \n\t=<∑é٣½分-", "\u3000", "\x1c", "\ud83d",
    "foo", "fooBar", "f(", "x.y", "'s", "1,000.5", "\\alpha", "$x$", "_{", "A. ", " x ", ".x", "x'", "word word",
)  # fmt: skip


def counted(text: str) -> dict[str, int]:
    """What regular expressions count in a text."""
    found = {name: len(re.findall(pattern, text)) for name, pattern in COUNTED.items()}
    signs = (factor * len(re.findall(sign, text)) for factor, sign in ((4, TEX), (2, OPERATOR), (1, VARIABLE)))
    return found | {"notation": sum(signs)}


def shaped(text: str) -> dict[str, int]:
    """What is counted in its shape."""
    seen = surface.shape(text)
    return {name: getattr(surface, name)(seen) for name in COUNTED} | {"notation": surface.notation(text, seen)}


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
def test_a_texts_shape_counts_as_regular_expressions_over_the_text_do(text: str) -> None:
    assert shaped(text) == counted(text)


def test_every_character_has_the_kind_that_regular_expressions_see() -> None:
    odd = [chr(at) for at in range(0x30000) if unicodedata.category(chr(at)) not in ("Lo", "Cn", "Co")]
    text = "".join(f"a{char} x,{char}(" for char in odd)
    assert shaped(text) == counted(text)
    for char in odd[:1000]:
        assert shaped(f"a{char} x,{char}(") == counted(f"a{char} x,{char}("), char


def test_half_a_surrogate_pair_has_a_score() -> None:
    assert 0 < score(said("first", "\ud83d")).value < 1


def test_of_a_flood_of_words_few_are_remembered_and_stems_are_found_as_before() -> None:
    letters = string.ascii_lowercase[:12]
    flood = map("".join, itertools.product(letters, repeat=4))  # 20,736
    assert words.asked(" ".join((*flood, "analyse", "analyse" * 100)))["depth"] == 1
    assert len(words._BEGUN) <= WORDS
    assert max(map(len, words._BEGUN)) <= LONGEST


SPACED = {"depth": words.DEPTH, "program": words.PROGRAM, "short": words.SHORT, "fact": words.FACT}


@pytest.mark.parametrize("kind", SPACED)
def test_no_stem_is_dead_or_of_two_scripts(kind: str) -> None:
    stems = SPACED[kind].split()
    assert len(stems) == len(set(stems))
    dead = [a for a in stems for b in stems if a != b and len(b) >= words.KEY and a.startswith(b)]
    assert dead == []
    for stem in stems:
        assert len({unicodedata.name(c).split()[0] for c in stem if c.isalpha()}) == 1, stem
        assert words.WORD.findall(stem) == [stem]
        assert words.asked(stem)[kind] == 1
