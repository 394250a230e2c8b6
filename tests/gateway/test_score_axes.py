"""The first numbers of a static embedding as measures: of a model that the test makes itself. No weights ship."""

import json
import math
import random
import struct
from pathlib import Path

import pytest

from gateway.facts import observe
from gateway.policy import PolicyError
from gateway.score import read_table, score_text
from gateway.score.axes import LEAST, STEPS
from gateway.score.pieces import tokens as tokens_of
from tests.gateway.serving import asked, body
from tests.gateway.test_replay import TEXT
from tests.gateway.test_score_table import policy
from tests.tiers import JSON

BYTES = [f"<0x{at:02X}>" for at in range(256)]
WORDS = [
    "<unk>",
    "▁",
    "▁▁",
    "▁prove",
    "▁the",
    "▁prime",
    "s",
    "▁(",
    "▁北",
    "京",
    "1",
    "7",
    "▁in",
    "fin",
    "ite",
    "ly",
    "▁a",
]
SIZE = 3
LONG = "prove the primes (prove the prime)"


def model(folder: Path, axes: object = SIZE, vocab: list[str] | None = None, **about: object) -> dict[str, list[float]]:
    """Writes a model; its vectors by token."""
    chance, tokens = random.Random(1), vocab or [*WORDS, *BYTES]
    vectors = {token: [chance.gauss(0, 1) for _ in range(SIZE + 1)] for token in tokens}
    raw = b"".join(struct.pack(f"<{SIZE + 1}f", *vectors[token]) for token in tokens)
    told = {"embedding.weight": {"dtype": "F32", "shape": [len(tokens), SIZE + 1], "data_offsets": [0, len(raw)]}}
    header = json.dumps(told).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    numbers = {token: at for at, token in enumerate(tokens)}
    cuts = {"model": {"type": "BPE", "byte_fallback": True, "vocab": numbers, "merges": [], **about}}
    (folder / "tokenizer.json").write_text(json.dumps(cuts))
    (folder / "head.json").write_text(json.dumps({"axes": axes}))
    return vectors


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("prove the primes", ["▁prove", "▁the", "▁prime", "s"]),
        ("infinitely", ["▁in", "fin", "ite", "ly"]),
        ("the  17 (", ["▁the", "▁▁", "1", "7", "▁("]),
        ("北京", ["▁", "<0xE5>", "<0x8C>", "<0x97>", "京"]),
        ("a\u00e9", ["▁a", "<0xC3>", "<0xA9>"]),
        ("a\n\ud800", ["▁a", "<0x0A>", "<0xED>", "<0xA0>", "<0x80>"]),
        ("", ["▁"]),
    ],
)  # fmt: skip
def test_a_text_is_cut_into_the_longest_tokens_and_bytes_for_the_rest(
    tmp_path: Path, text: str, tokens: list[str]
) -> None:
    model(tmp_path)
    assert list(tokens_of(read_table(tmp_path).cutter, text)) == tokens


@pytest.mark.parametrize("text", ["prove the primes the prime the prime a", "\U0001f40d" * 2400])
def test_axes_are_the_means_of_the_first_numbers_in_whole_steps(tmp_path: Path, text: str) -> None:
    vectors = model(tmp_path)
    table = read_table(tmp_path)
    first = [number for vector in vectors.values() for number in vector[:SIZE]]
    step = (sum(number * number for number in first) / len(first)) ** 0.5 / STEPS
    tokens = list(tokens_of(table.cutter, text))
    means = [sum(vectors[token][at] for token in tokens) / len(tokens) / step for at in range(SIZE)]
    told = table.measures(text)
    assert list(told) == ["axis1", "axis2", "axis3"]
    assert list(told.values()) == pytest.approx(means, abs=0.52)
    assert all(value == int(value) for value in told.values())


def test_of_a_text_of_a_few_tokens_nothing_is_told(tmp_path: Path) -> None:
    model(tmp_path)
    table = read_table(tmp_path)
    assert not table.measures("the " * (LEAST - 2) + "the")
    assert table.measures("the " * (LEAST - 1) + "the")


def test_the_facts_have_them_beside_the_surfaces_score(tmp_path: Path) -> None:
    model(tmp_path)
    facts, plain = observe(asked(body(LONG)), policy(tmp_path), {}), score_text(LONG)
    assert facts.score == plain.value
    assert facts.measures == {**plain.measures, **read_table(tmp_path).measures(LONG)}
    assert len(facts.measures) == len(plain.measures) + SIZE


def test_a_calibration_may_weigh_them_and_no_others(tmp_path: Path) -> None:
    model(tmp_path)
    text = TEXT.replace("triage: {", "triage: {calibration: c.json, ")
    for name, fine in (("axis1", True), ("axis65", False)):
        layer = {"intercept": 0.0, "weights": {name: 1.0}, "means": {name: 0.0}, "scales": {name: 1.0}}
        (tmp_path / "c.json").write_text(json.dumps({"schema": 1, "layer": layer, "edges": [0.5]}))
        if fine:
            assert policy(tmp_path, text).calibration
            continue
        with pytest.raises(PolicyError, match="what is not measured: axis65"):
            policy(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"axes": 0}, "0 axes"),
        ({"axes": SIZE + 2}, "5 axes of 4"),
        ({"axes": "all"}, "no static embedding"),
        ({"byte_fallback": False}, "not SentencePiece"),
        ({"vocab": WORDS}, "not SentencePiece"),
    ],
)
def test_what_has_no_axes_is_refused_at_its_place(tmp_path: Path, change: JSON, told: str) -> None:
    model(tmp_path, **change)
    with pytest.raises(PolicyError, match=told):
        policy(tmp_path)


@pytest.mark.parametrize("number", [0.0, math.nan, math.inf])
def test_numbers_that_are_all_0_or_not_finite_are_refused(tmp_path: Path, number: float) -> None:
    model(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    start = 8 + int(struct.unpack("<Q", data[:8])[0])
    file.write_bytes(data[:start] + struct.pack("<f", number) * ((len(data) - start) // 4))
    with pytest.raises(PolicyError, match="not finite, or all 0"):
        policy(tmp_path)
