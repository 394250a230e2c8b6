"""A static embedding and a head as the local score: of a model that the test makes itself. No weights ship."""

import json
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from gateway.facts import observe
from gateway.kept import seen
from gateway.policy import Policy, PolicyError, load_policy, open_policy
from gateway.replay import Unrecorded
from gateway.score import EMBEDDED, read_table
from gateway.score.pieces import tokens as tokens_of
from gateway.types import Facts, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import asked, body, gateway
from tests.gateway.test_replay import TEXT, record, replay
from tests.tiers import JSON, policy_for

WORDS = ["prove", "hello", "the", "primes", "inf", "北", "京", "+", "?", "strasse", "a", "cafe"]
PARTS = ["##in", "##ite", "##s", "##ly"]
SIZE = 4
TOKENIZER: JSON = {
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True, "strip_accents": None},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}


def model(folder: Path, form: str = "F32", head: JSON | None = None, **tokenizer: Any) -> dict[str, list[float]]:
    """Writes a model; its vectors by token. "prove" points up, "hello" down."""
    chance = random.Random(1)
    vocab = ["[UNK]", *WORDS, *PARTS]
    vectors = {token: [chance.gauss(0, 1) for _ in range(SIZE)] for token in vocab}
    vectors |= {"prove": [4.0, 0.0, 0.0, 0.0], "hello": [-4.0, 0.0, 0.0, 0.0]}
    letter = {"F32": "f", "F16": "e"}.get(form, "f")
    raw = b"".join(struct.pack(f"<{SIZE}{letter}", *vectors[token]) for token in vocab)
    told = {"embeddings": {"dtype": form, "shape": [len(vocab), SIZE], "data_offsets": [0, len(raw)]}}
    header = json.dumps({"__metadata__": {"format": "pt"}, **told}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    numbers = {token: at for at, token in enumerate(vocab)}
    words = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": numbers}
    (folder / "tokenizer.json").write_text(json.dumps({**TOKENIZER, "model": words, **tokenizer}))
    (folder / "head.json").write_text(json.dumps(head or {"weights": [1.0, 0.0, 0.0, 0.0], "bias": -0.5}))
    return vectors


def policy(folder: Path, text: str = TEXT) -> Policy:
    file = folder / "policy.yaml"
    file.write_text(text.replace("triage: {", "triage: {embeddings: ., "))
    return load_policy(file, {})


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Prove the PRIMES", ["prove", "the", "primes"]),
        ("infinitely", ["inf", "##in", "##ite", "##ly"]),
        ("infx hello", ["hello"]),
        ("hello+hello?", ["hello", "+", "hello", "?"]),
        ("北京", ["北", "京"]),
        ("Café\u0301s\u00a0a\x00\u200b\ufffd", ["cafe", "##s", "a"]),
        ("he\u00adllo he\nllo", ["hello"]),
        ("straße Strasse", ["strasse"]),
        ("a" * 101, []),
        ("", []),
    ],
)  # fmt: skip
def test_a_text_is_cut_as_berts_tokenizer_cuts_it(tmp_path: Path, text: str, tokens: list[str]) -> None:
    model(tmp_path)
    assert list(tokens_of(read_table(tmp_path).cutter, text)) == tokens


@pytest.mark.parametrize("form", ["F32", "F16"])
def test_the_value_is_the_heads_of_the_mean_vector(tmp_path: Path, form: str) -> None:
    weights = [0.5, -1.0, 2.0, 0.25]
    vectors = model(tmp_path, form, {"weights": weights, "bias": 0.3})
    mean = [sum(vectors[token][at] for token in ("the", "primes", "+")) / 3 for at in range(SIZE)]
    expected = 1 / (1 + math.exp(-0.3 - sum(map(float.__mul__, weights, mean))))
    assert read_table(tmp_path).measures("The primes + unheardof")[EMBEDDED] == pytest.approx(expected, abs=1e-3)
    assert not read_table(tmp_path).measures("unheardof")


def test_the_score_is_the_tables_and_the_surfaces_where_no_word_is_known(tmp_path: Path) -> None:
    model(tmp_path)
    made, plain = policy(tmp_path), load_policy(TEXT, {})

    def looks(text: str, rules: Policy) -> Facts:
        return observe(asked(body(text)), rules, {})

    hard, easy, unknown = (looks(text, made) for text in ("Prove!", "Hello!", "Qzx"))
    assert (hard.score or 0) > 0.9
    assert (easy.score or 1) < 0.1
    assert hard.measures[EMBEDDED] == pytest.approx(hard.score, abs=1e-4)
    assert unknown.score == looks("Qzx", plain).score
    assert EMBEDDED not in unknown.measures
    assert {name for name in hard.measures if name != EMBEDDED} == set(looks("Prove!", plain).measures)


def test_a_calibration_may_weigh_it_and_the_digest_holds_it(tmp_path: Path) -> None:
    model(tmp_path)
    layer = {"intercept": 0.0, "weights": {EMBEDDED: 1.0}, "means": {EMBEDDED: 0.5}, "scales": {EMBEDDED: 1.0}}
    (tmp_path / "c.json").write_text(json.dumps({"schema": 1, "layer": layer, "edges": [0.5]}))
    made = policy(tmp_path, TEXT.replace("triage: {", "triage: {calibration: c.json, "))
    assert made.calibration
    before = policy(tmp_path).digest
    assert str(tmp_path / "head.json") in open_policy(tmp_path / "policy.yaml")[1].files, "a changed head is followed"
    model(tmp_path, head={"weights": [2.0, 0.0, 0.0, 0.0], "bias": 0.0})
    assert policy(tmp_path).digest != before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"form": "BF16"}, "known: F32, F16"),
        ({"head": {"weights": [1.0], "bias": 0.0}}, "a head of 1"),
        ({"head": {"weights": [1.0] * SIZE}}, "bias"),
        ({"head": {"weights": [math.nan] * SIZE, "bias": 0.0}}, "not finite"),
        ({"model": {"type": "Unigram", "vocab": []}}, "not BERT's tokenizer"),
        ({"normalizer": {"type": "BertNormalizer", "lowercase": False}}, "keeps case"),
    ],
)
def test_what_is_no_static_embedding_is_refused_at_its_place(tmp_path: Path, change: JSON, told: str) -> None:
    model(tmp_path, **change)
    with pytest.raises(PolicyError, match=told):
        policy(tmp_path)


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    model(tmp_path)
    (tmp_path / "head.json").unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        policy(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        model(tmp_path)
        (tmp_path / name).write_bytes(b"\x01")
        with pytest.raises(PolicyError, match="embeddings"):
            policy(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pipe_in_a_files_place_is_refused_at_once(tmp_path: Path, name: str) -> None:
    model(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(PolicyError, match="a pipe is no file"):
        policy(tmp_path)


def test_a_rule_about_the_score_is_not_replayed_on_anothers_score(tmp_path: Path) -> None:
    model(tmp_path)
    looking = TEXT.replace("rules:\n", "rules:\n  - {id: hard, when: {score: {min: 0.8}}, route: pro}\n")
    made, plain = policy(tmp_path, looking), load_policy(looking, {})
    facts = Facts("auto", "ann", "gold", characters=50, context=100, score=0.5, measures={EMBEDDED: 0.5})
    one = record("r", facts, Verdict("simple", 0.1), made)
    assert one.seen
    assert made.table
    assert one.seen.table == seen(made).table == made.table.digest
    assert replay([one], made).decided == 1
    with pytest.raises(Unrecorded, match="hard looks at score"):
        replay([one], plain)


async def test_a_gateway_decides_by_it(flash: Sim, pro: Sim, tmp_path: Path) -> None:
    model(tmp_path)
    rules = [{"id": "hard", "when": {"score": {"min": 0.8}}, "route": "pro"}, {"id": "rest", "route": "flash"}]
    made = policy_for(flash, pro, rules=rules, triage={"embeddings": str(tmp_path)})
    async with gateway(made) as gate:
        for text, tier in (("prove", "pro"), ("hello", "flash")):
            answer = await gate.ask(body(text), x_route_explain="1")
            assert answer.headers["x-route-tier"] == tier
            assert answer.json()["route"]["score"]["reasons"] == [EMBEDDED]
