"""Does a predictor learn what experts will say, from the command line and from where it was interrupted?"""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.flashmoe import calib, measure, predictor
from backends.flashmoe.calib import Reservoir, Sample, texts
from backends.flashmoe.experts import layers, outputs
from backends.flashmoe.predictor import Predictor
from backends.flashmoe.train_predictor import agreement, heads, judge, main, prices, samples


@pytest.fixture(scope="module")
def unseen(model: Any) -> list[Sample]:
    return samples(model, measure.held_out(16), 4096)


def test_the_predictor_that_ships_explains_most_of_the_norms_and_ranks_better_than_the_router(
    trained: Predictor, unseen: list[Sample]
) -> None:
    for head, sample in zip(trained.heads, unseen, strict=True):
        found = judge(head, sample)
        assert found.explained > 0.6
        assert found.agreement > found.router + 0.1


def test_it_knows_more_than_each_experts_usual_norm(trained: Predictor, unseen: list[Sample]) -> None:
    for head, sample in zip(trained.heads, unseen, strict=True):
        norms = sample.norms.log()
        asked = torch.bincount(sample.ids.flatten(), minlength=32).clamp_min(1)
        usual = (torch.zeros(32).index_add(0, sample.ids.flatten(), norms.flatten()) / asked)[sample.ids]
        estimate = head(sample.hidden.float()).gather(1, sample.ids)
        assert (estimate - norms).square().mean() < 0.5 * (usual - norms).square().mean()


def test_a_predictor_made_on_the_command_line_carries_its_card_and_no_layer_of_another_run(tmp_path: Path) -> None:
    kept = list(texts(measure.TINY / "calibration.jsonl.gz"))[:8]
    data, out = tmp_path / "data.jsonl", tmp_path / "predictor.safetensors"
    data.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": text}]}) for text in kept))
    out.with_suffix(".part").mkdir()
    (out.with_suffix(".part") / "layer0.pt").write_bytes(b"of another text")
    command = [sys.executable, "-m", "backends.flashmoe.train_predictor", "--steps", "60", "--data", str(data)]
    subprocess.run([*command, "--model", str(measure.TINY), "--out", str(out)], check=True, capture_output=True)
    made = predictor.load(out)
    assert made.experts == [32, 32, 32]
    assert len(made.card["layers"]) == 3
    assert list(made.card["prices"]) == ["0.02", "0.05", "0.1", "0.2"]
    assert not out.with_suffix(".part").exists()


def test_a_text_too_short_to_hold_a_part_of_it_out_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "predictor.safetensors"
    data.write_text(json.dumps({"text": "Hello. " * 300}))
    with pytest.raises(SystemExit):
        main(["--data", str(data), "--model", str(measure.TINY), "--out", str(out)])
    assert capsys.readouterr().err.endswith("data.jsonl: 8 times 256 tokens; at least 10 times are needed\n")
    assert list(tmp_path.iterdir()) == [data]


def test_an_interrupted_run_keeps_the_layers_it_has(tmp_path: Path, unseen: list[Sample]) -> None:
    first = heads(unseen, [32] * 3, 20, tmp_path)
    kept = tmp_path / "layer0.pt"
    torch.save({name: torch.zeros_like(value) for name, value in torch.load(kept).items()}, kept)
    (tmp_path / "layer2.pt").unlink()
    again = heads(unseen, [32] * 3, 20, tmp_path)
    assert all(bool((value == 0).all()) for value in again.heads[0].state_dict().values())
    for layer in (1, 2):
        before, after = (made.heads[layer].state_dict() for made in (first, again))
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_smaller_budget_has_a_lower_price(model: Any, trained: Predictor) -> None:
    found = list(prices(model, trained, measure.held_out(4)).values())
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_capture_sees_the_norms_and_changes_no_answer(model: Any) -> None:
    ids = measure.held_out(2)
    with torch.inference_mode():
        before = model(input_ids=ids, use_cache=False).logits
    with calib.capture(model, 1000) as kept:
        during = model(input_ids=ids, use_cache=False).logits
    assert (during - before).abs().max() < 1e-4
    sample = kept[1].sample()
    assert len(sample) == 512
    each = outputs(layers(model)[1], sample.hidden.float(), sample.ids)
    assert torch.allclose(each.norm(dim=2), sample.norms, rtol=0.02)  # the router's input is kept in half precision


def test_a_reservoir_is_a_uniform_sample_of_all_that_passed() -> None:
    reservoir = Reservoir(1000)
    for start in range(0, 10_000, 100):
        column = torch.arange(start, start + 100)
        reservoir.add(column, column, column, column)
    rows = reservoir.sample().ids
    assert len(rows.unique()) == 1000
    assert 4500 < rows.float().mean() < 5500


def test_texts_come_from_text_and_messages_and_other_lines_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl.gz"
    lines = [{"text": "one"}, {"messages": [{"content": "two"}, {"content": None}]}, {"prompt": "three"}]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    found = texts(file)
    assert next(found) == "one"
    assert next(found) == "two\n"
    with pytest.raises(ValueError, match=r"some\.jsonl\.gz:3: neither text nor messages"):
        next(found)


def test_agreement_is_of_pairs() -> None:
    assert agreement(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0]])) == pytest.approx(2 / 3)
