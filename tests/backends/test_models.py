"""Real V4 models in transformers, tiny and random: variants load, scores are measured, a local model is evaluated.

Needs torch and transformers, and is skipped without them.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")

from backends.checkpoint import Wish, convert, revert  # noqa: E402
from backends.evals.__main__ import EXTRA, arguments, opened  # noqa: E402
from backends.evals.local import Local  # noqa: E402
from backends.scores import measured  # noqa: E402
from backends.shards import numbers, write  # noqa: E402
from backends.v4 import read  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["the cat sat on the mat", "a dog and a cat", "the dog sat"]
WORDS = sorted({word for text in TEXTS for word in text.split()})
TOP_K = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, three of them hash-routed, in several shards, with a tokenizer of words."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("v4") / "source"
    config = transformers.DeepseekV4Config(
        vocab_size=32,
        hidden_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=16,
        n_routed_experts=16,
        num_experts_per_tok=TOP_K,
        index_n_heads=4,
        index_head_dim=16,
        index_topk=8,
        sliding_window=16,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    model = transformers.DeepseekV4ForCausalLM(config).float()
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            table.copy_(torch.stack([torch.randperm(16)[:TOP_K] for _ in range(32)]))
    model.save_pretrained(place, max_shard_size="300KB")
    words = {word: number for number, word in enumerate(["[UNK]", "[END]", *WORDS])}
    split = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    split.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=split, eos_token="[END]").save_pretrained(place)
    return place


def logits(place: Path) -> Any:
    """Of all texts, one below the other."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        return torch.cat([model.eval()(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0] for text in TEXTS])


@pytest.mark.parametrize("files", ["several files", "one file"])
@pytest.mark.parametrize("shards", ["link", "own"])
def test_transformers_loads_a_variant_that_answers_as_one_cut_by_hand(
    source: Path, tmp_path: Path, shards: Any, files: str
) -> None:
    whole = transformers.AutoModelForCausalLM.from_pretrained(source)
    if files == "one file":
        whole.save_pretrained(tmp_path / "one")
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "one")
        source = tmp_path / "one"
    convert(source, tmp_path / "four", Wish(4, shards=shards))
    told = whole.config.to_dict() | {"num_experts_per_tok": 4}
    cut = transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**told)).float()
    kept = {name: value[:, :4] if name.endswith("tid2eid") else value for name, value in whole.state_dict().items()}
    cut.load_state_dict(kept)
    cut.save_pretrained(tmp_path / "hand")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "hand")
    assert torch.equal(logits(tmp_path / "four"), logits(tmp_path / "hand"))
    assert not torch.allclose(logits(tmp_path / "four"), logits(source), atol=1e-4)
    revert(tmp_path / "four", tmp_path / "back")
    assert torch.equal(logits(tmp_path / "back"), logits(source))


def test_scores_are_gate_weight_times_norm_and_nan_for_tokens_that_never_came(source: Path, tmp_path: Path) -> None:
    found = measured(source, TEXTS)
    assert sorted(found) == [f"model.layers.{number}.ffn.gate.tid2eid.score" for number in range(3)]
    write(tmp_path / "scores", found, {})
    convert(source, tmp_path / "four", Wish(4, "calibrated", tmp_path / "scores"))
    values = torch.frombuffer(bytearray(found["model.layers.0.ffn.gate.tid2eid.score"][2]), dtype=torch.float32)
    rows = values.view(32, TOP_K)
    seen = [2 + number for number in range(len(WORDS))]
    assert [token for token in range(32) if not rows[token].isnan().any()] == seen
    shard, table = read(source).tables["model.layers.0.ffn.gate.tid2eid"]
    was = torch.tensor(numbers(source / shard, table).tolist()).view(32, TOP_K)
    shard, table = read(tmp_path / "four").tables["model.layers.0.ffn.gate.tid2eid"]
    now = torch.tensor(numbers(tmp_path / "four" / shard, table).tolist()).view(32, 4)
    for token in range(32):
        best = rows[token].argsort(descending=True)[:4] if token in seen else torch.arange(4)
        assert now[token].tolist() == was[token][best].tolist()


def test_calibrated_tables_change_answers_less_than_the_first_columns(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "scores", measured(source, TEXTS), {})
    config = json.loads((source / "config.json").read_text())
    convert(source, tmp_path / "first", Wish(3))
    convert(source, tmp_path / "best", Wish(3, "calibrated", tmp_path / "scores"))
    exact = logits(source)
    damage = {name: (logits(tmp_path / name) - exact).norm().item() for name in ("first", "best")}
    assert damage["best"] < damage["first"]
    assert config["num_experts_per_tok"] == TOP_K


def test_a_local_models_likelihood_and_answers_are_its_own(source: Path) -> None:
    local = Local(source, {})
    found = local.score(TEXTS[0])
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(source), local._tokenizer
    tokens = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model.eval()(tokens, labels=tokens).loss.item()  # the mean over all tokens after the first
    assert found.tokens == tokens.shape[1] - 1
    assert math.isclose(found.nats / found.tokens, loss, rel_tol=1e-4)
    said = local.answer("the cat", 5)
    assert (said.prompt_tokens, said.completion_tokens <= 5) == (2, True)
    assert said.cut == (said.completion_tokens == 5)


def test_a_prompt_in_a_chat_template_begins_once(source: Path) -> None:
    local = Local(source, {})
    begun = tokenizers.processors.TemplateProcessing(single="[END] $A", special_tokens=[("[END]", 1)])
    local._tokenizer.backend_tokenizer.post_processor = begun
    assert local.answer("the cat", 1).prompt_tokens == 3
    local._tokenizer.chat_template = "[END] {{ messages[0]['content'] }}"
    assert local.answer("the cat", 1).prompt_tokens == 3


@pytest.mark.parametrize(("thinking", "tokens"), [("on", 3), ("off", 2)])
def test_a_local_model_is_told_whether_to_think(source: Path, thinking: str, tokens: int) -> None:
    asked = arguments().parse_args(["run", "--local", str(source), "--out", "unused", "--thinking", thinking])
    local = opened(asked, None, asked.local, None, EXTRA[asked.thinking])
    assert isinstance(local, Local)
    local._tokenizer.chat_template = "{{ messages[0]['content'] }}{{ ' on' if thinking }}"
    assert local.answer("the cat", 1).prompt_tokens == tokens
