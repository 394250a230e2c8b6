"""Variants of a checkpoint: what is cut, what is left alone, what is refused, and what a kill leaves behind."""

import contextlib
import hashlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.checkpoint import MANIFEST, Wish, convert, revert
from backends.shards import ShardError, header, numbers, write
from backends.v4 import INDEX, SINGLE, Checkpoint, CheckpointError, read

ROOT = Path(__file__).parents[2]
VOCABULARY, EXPERTS, TOP_K = 1024, 16, 6  # 1024 ids of 4 bytes fill blocks, as V4's 129,280 do
CONFIG = {
    "model_type": "deepseek_v4",
    "vocab_size": VOCABULARY,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_hash_layers": 3,
}
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def table(layer: int, dtype: str = "I64") -> tuple[str, tuple[int, ...], bytes]:
    """Row t of layer l holds the ids t + l, t + l + 1, ... modulo the experts."""
    rows = ((token + layer + column) % EXPERTS for token in range(VOCABULARY) for column in range(TOP_K))
    return dtype, (VOCABULARY, TOP_K), array("q" if dtype == "I64" else "i", rows).tobytes()


def checkpoint(place: Path, dtype: str = "I64", **config: Any) -> Path:
    """Three shards: a table in each of the first two, one in the last between other tensors."""
    place.mkdir()
    shards: list[Tensors] = [
        {"embed.weight": ("BF16", (8, 4), bytes(range(64))), "layers.0.ffn.gate.tid2eid": table(0, dtype)},
        {
            "layers.1.ffn.gate.tid2eid": table(1, dtype),
            "layers.1.ffn.experts.0.w1.weight": ("I8", (3, 5), b"fifteen bytes.!"),
        },
        {
            "layers.2.ffn.experts.0.w1.scale": ("F8_E8M0", (6000,), bytes(6000)),
            "layers.2.ffn.gate.tid2eid": table(2, dtype),
            "layers.3.ffn.gate.bias": ("F32", (EXPERTS,), array("f", range(EXPERTS)).tobytes()),
            "mtp.0.ffn.gate.bias": ("F32", (EXPERTS,), array("f", range(EXPERTS)).tobytes()),
        },
    ]
    homes: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-00003.safetensors"
        write(place / name, tensors, {"format": "pt"})
        homes |= dict.fromkeys(tensors, name)
    (place / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))
    (place / "config.json").write_text(json.dumps(CONFIG | config))
    (place / "tokenizer.json").write_text("{}")
    (place / "inference").mkdir()
    (place / "inference" / "config.json").write_text('{"n_activated_experts": 6, "dim": 8}')
    (place / ".cache").mkdir()
    (place / ".cache" / "lock").write_text("")
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "source")


def ids(found: Checkpoint, layer: int) -> list[list[int]]:
    shard, tensor = found.tables[f"layers.{layer}.ffn.gate.tid2eid"]
    flat = numbers(found.place / shard, tensor).tolist()
    width = tensor.shape[1]
    return [[int(one) for one in flat[at : at + width]] for at in range(0, len(flat), width)]


def tree(place: Path) -> dict[str, str]:
    """Every file's digest, links followed."""
    files = (path for path in sorted(place.rglob("*")) if path.is_file())
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tensor_bytes(found: Checkpoint) -> dict[str, bytes]:
    """What a loader that goes by the index reads."""
    loaded = {}
    for name, shard in found.index["weight_map"].items():
        tensor = found.headers[shard].tensors[name]
        loaded[name] = (found.place / shard).read_bytes()[tensor.start : tensor.end]
    return loaded


@pytest.mark.parametrize("shards", ["link", "own"])
@pytest.mark.parametrize("dtype", ["I64", "I32"])
def test_only_tables_configuration_and_index_differ(tmp_path: Path, shards: Any, dtype: str) -> None:
    source, target = checkpoint(tmp_path / "source", dtype), tmp_path / "target"
    before = tree(source)
    convert(source, target, Wish(4, shards=shards))
    assert tree(source) == before
    old, new = read(source), read(target)
    assert (old.top_k, new.top_k) == (6, 4)
    for layer in range(3):
        assert ids(new, layer) == [row[:4] for row in ids(old, layer)]
    was, now = tensor_bytes(old), tensor_bytes(new)
    assert was.keys() == now.keys()
    assert {name for name in was if was[name] != now[name]} == old.tables.keys()
    assert json.loads((target / "config.json").read_text()) == CONFIG | {"num_experts_per_tok": 4}
    assert json.loads((target / "inference" / "config.json").read_text()) == {"n_activated_experts": 4, "dim": 8}
    assert (target / "tokenizer.json").is_symlink()
    assert not (target / ".cache").exists()


def test_the_last_shard_that_has_a_table_has_the_new_one(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "target", Wish(4))
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in sorted((tmp_path / "target").glob("*.safetensors")):  # the order in which transformers reads
        shapes |= {name: tensor.shape for name, tensor in header(shard).tensors.items()}
    assert shapes["layers.2.ffn.gate.tid2eid"] == (VOCABULARY, 4)


def test_shards_of_its_own_leave_no_old_table_to_a_server_that_loads_every_tensor(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "linked", Wish(4))
    convert(source, tmp_path / "own", Wish(4, shards="own"))

    def tables(place: Path) -> list[tuple[int, ...]]:
        found = (header(shard) for shard in place.glob("*.safetensors"))
        return [one.shape for each in found for name, one in each.tensors.items() if name.endswith("tid2eid")]

    assert sorted(tables(tmp_path / "own")) == [(VOCABULARY, 4)] * 3
    assert (VOCABULARY, 6) in tables(tmp_path / "linked")
    # what stands before and behind the dropped table keeps its place in a block
    old = header(source / "model-00003-of-00003.safetensors").tensors
    new = header(tmp_path / "own" / "model-00003-of-00003.safetensors").tensors
    assert all((old[name].start - new[name].start) % 4096 == 0 for name in new)


def test_links_hold_when_both_folders_are_moved_together(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "target", Wish(4))
    (tmp_path / "elsewhere").mkdir()
    for name in ("source", "target"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert read(tmp_path / "elsewhere" / "target").top_k == 4


def test_calibrated_keeps_what_scores_highest_and_leaves_unseen_tokens_alone(source: Path, tmp_path: Path) -> None:
    scores = array("f", [0.1, 0.6, 0.2, 0.5, 0.4, 0.3] * VOCABULARY)
    scores[6:12] = array("f", [0.1, 0.6, float("nan"), 0.5, 0.4, 0.3])
    told = {f"layers.{n}.ffn.gate.tid2eid.score": ("F32", (VOCABULARY, TOP_K), scores.tobytes()) for n in range(3)}
    write(tmp_path / "scores", told, {})
    convert(source, tmp_path / "target", Wish(4, "calibrated", tmp_path / "scores"))
    old, new = ids(read(source), 1), ids(read(tmp_path / "target"), 1)
    assert new[0] == [old[0][column] for column in (1, 3, 4, 5)]
    assert new[1] == old[1][:4]
    assert new[2] == [old[2][column] for column in (1, 3, 4, 5)]


@pytest.mark.parametrize("shards", ["link", "own"])
def test_a_conversion_can_be_undone(source: Path, tmp_path: Path, shards: Any) -> None:
    convert(source, tmp_path / "target", Wish(4, shards=shards))
    revert(tmp_path / "target", tmp_path / "again")
    was, now = tree(source), tree(tmp_path / "again")
    assert now == {name: was[name] for name in was if name != ".cache/lock"}


def test_a_source_that_changed_cannot_be_gone_back_to(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "target", Wish(4))
    shard = source / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8] + bytes(8))  # the last id of the first table
    with pytest.raises(CheckpointError, match=r"the tables in .*source have changed since"):
        revert(tmp_path / "target", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(CheckpointError, match="lie in each other"):
        revert(tmp_path / "target", source / "inside")


def test_names_that_lead_out_of_the_folder_are_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "target", Wish(4))
    manifest = tmp_path / "target" / MANIFEST
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"homes": dict.fromkeys(told["homes"], "../out.safetensors")}))
    with pytest.raises(CheckpointError, match=r"'../out.safetensors' is no shard"):
        revert(tmp_path / "target", tmp_path / "again")
    manifest.write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not such a manifest \(KeyError\('source'\)\)"):
        revert(tmp_path / "target", tmp_path / "again")
    index = json.loads((source / INDEX).read_text())
    (source / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(index["weight_map"], "/etc/passwd")}))
    refused(source, tmp_path / "elsewhere", Wish(4), "'/etc/passwd' is no shard")
    (source / INDEX).write_text("{}")
    refused(source, tmp_path / "elsewhere", Wish(4), "names no shards")


def test_a_variant_can_be_cut_again(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "four", Wish(4))
    convert(tmp_path / "four", tmp_path / "three", Wish(3))
    assert ids(read(tmp_path / "three"), 0)[5] == [5, 6, 7]
    assert not (tmp_path / "three" / "model_top4.safetensors").exists()


@pytest.mark.parametrize("shards", ["link", "own"])
@pytest.mark.parametrize("index", [{}, {"weight_map": {"lm_head.weight": SINGLE}}], ids=["no index", "an index"])
def test_a_checkpoint_of_one_file_leaves_none_that_loaders_take_before_the_index(
    tmp_path: Path, shards: Any, index: dict[str, dict[str, str]]
) -> None:
    single = tmp_path / "single"
    single.mkdir()
    tables = {f"model.layers.{n}.mlp.gate.tid2eid": table(n) for n in range(3)}
    write(single / SINGLE, {**tables, "lm_head.weight": ("BF16", (2,), b"abcd")}, {})
    (single / "config.json").write_text(json.dumps(CONFIG))
    if index:
        (single / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | dict.fromkeys(tables, SINGLE)}))
    convert(single, tmp_path / "cut", Wish(3, shards=shards))
    assert not (tmp_path / "cut" / SINGLE).exists()
    assert (read(tmp_path / "cut").top_k, tensor_bytes(read(tmp_path / "cut"))["lm_head.weight"]) == (3, b"abcd")
    convert(tmp_path / "cut", tmp_path / "again", Wish(2, shards=shards))
    revert(tmp_path / "again", tmp_path / "uncut")
    assert tensor_bytes(read(tmp_path / "uncut")) == tensor_bytes(read(tmp_path / "cut"))
    revert(tmp_path / "cut", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(single)


def refused(source: Path, tmp_path: Path, wish: Wish, said: str) -> None:
    tmp_path.mkdir(exist_ok=True)
    before = tree(source) if source.is_dir() else {}
    with pytest.raises((CheckpointError, ShardError), match=said):
        convert(source, tmp_path / "target", wish)
    assert not [path.name for path in tmp_path.iterdir() if "target" in path.name]
    assert before == (tree(source) if source.is_dir() else {})


@pytest.mark.parametrize(
    ("config", "wish", "said"),
    [
        ({}, Wish(6), "top_k 6 is not from 1 to 5"),
        ({}, Wish(0), "top_k 0 is not from 1 to 5"),
        ({}, Wish(4, "calibrated"), "needs a file of scores"),
        ({"model_type": "deepseek_v41"}, Wish(4), "model_type is 'deepseek_v41'"),
        ({"num_hash_layers": 2}, Wish(4), r"3 tables \*.gate.tid2eid for 2 hash-routed layers"),
        ({"mlp_layer_types": ["hash_moe", "moe"]}, Wish(4), "for 1 hash-routed layers"),
        ({"num_experts_per_tok": None}, Wish(4), "the configuration's num_experts_per_tok is None"),
        ({"vocab_size": 50}, Wish(4), r"is I64 \[1024, 6\], not I32 or I64 \[50, 6\]"),
        ({"n_routed_experts": 15}, Wish(4), "has ids from 0 to 15; there are 15 experts"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, config: dict[str, Any], wish: Wish, said: str) -> None:
    refused(checkpoint(tmp_path / "source", **config), tmp_path, wish, said)


def test_a_damaged_source_is_refused(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    refused(source, tmp_path, Wish(4), "its header speaks of")
    shard.write_bytes(b"\x08" + bytes(7) + b"nonsense")
    refused(source, tmp_path, Wish(4), "a header that cannot be read")
    shard.write_bytes(whole.replace(b"[0,49152]", b"[8,49160]"))
    refused(source, tmp_path, Wish(4), "not where they should be")
    shard.write_bytes(whole.replace(b"layers.1.ffn.experts", b"layers.9.ffn.experts"))
    refused(source, tmp_path, Wish(4), "the index names layers.1.ffn.experts.0.w1.weight")
    (source / "config.json").unlink()
    refused(source, tmp_path, Wish(4), "config.json is missing")


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.sampled_from(["I32", "F32", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "t"]), inner, max_size=4)
    ),
    max_leaves=9,
)


@given(anything, st.integers(0, 40))
@example({"t": {"dtype": "I32", "shape": ["x"], "data_offsets": [0, 4]}}, 4)
@example({"t": {"dtype": "I32", "shape": [-1, -1], "data_offsets": [0, 4]}}, 4)
@example({"__metadata__": 3}, 0)
def test_a_header_of_any_kind_is_read_or_refused(told: Any, size: int) -> None:
    raw = json.dumps(told).encode()
    with tempfile.TemporaryDirectory() as place:
        shard = Path(place) / "shard"
        shard.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))
        with contextlib.suppress(ShardError):
            header(shard)


def test_scores_that_do_not_fit_are_refused(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "scores", {"layers.0.ffn.gate.tid2eid.score": ("F32", (1, 6), bytes(24))}, {})
    refused(source, tmp_path, Wish(4, "calibrated", tmp_path / "scores"), r"no F32 \[1024, 6\] under layers.0")


def test_a_shard_that_would_bring_the_old_tables_back_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    (source / "model-00003-of-00003.safetensors").rename(source / "zebra.safetensors")
    (source / INDEX).write_text((source / INDEX).read_text().replace("model-00003-of-00003", "zebra"))
    refused(source, tmp_path, Wish(4), "zebra.safetensors would be read after model_top4.safetensors")


def test_a_target_that_exists_or_lies_in_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    for target in (source, source / "inside", tmp_path, tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"exists|lie in each other"):
            convert(source, target, Wish(4))


DYING = """
import signal, sys
from backends.checkpoint import main
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills who writes more than it may
sys.argv[1:] = ["convert", *sys.argv[1:], "--top-k", "4", "--shards", "own"]
main()
"""


@pytest.mark.parametrize("most", [1_000, 40_000, 50_000])  # in the first copy, in the tables, in the index
def test_a_kill_leaves_nothing_that_loads(tmp_path: Path, most: int) -> None:
    source, target = checkpoint(tmp_path / "source"), tmp_path / "target"
    index = json.loads((source / INDEX).read_text())
    (source / INDEX).write_text(json.dumps(index | {"note": "x" * 60_000}))
    before = tree(source)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = [sys.executable, "-c", DYING, str(source), str(target)]
    killed = subprocess.run(command, cwd=ROOT, preexec_fn=limit, check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert not target.exists()
    assert not (tmp_path / ".target.partial" / "config.json").exists()
    with pytest.raises(CheckpointError, match=r"\.target\.partial exists"):
        convert(source, target, Wish(4))
    assert tree(source) == before


def test_a_full_disk_leaves_no_trace(source: Path, tmp_path: Path) -> None:
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, was[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            convert(source, tmp_path / "target", Wish(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_shows_first_and_then_does(source: Path, tmp_path: Path) -> None:
    def tiergate(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway", "backends", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    asked = ("convert", str(source), str(tmp_path / "target"), "--top-k", "4", "--tid2eid", "first")
    shown = tiergate(*asked, "--dry-run")
    assert shown.stdout.startswith("would write: 0.1 MB: model_top4.safetensors and config.json")
    assert not (tmp_path / "target").exists()
    done = tiergate(*asked)
    assert done.stdout == shown.stdout.replace("would write", "written")
    again = tiergate(*asked)
    assert (again.returncode, again.stderr) == (1, f"convert: {tmp_path / 'target'} exists; remove it first\n")
    assert tiergate("revert", str(tmp_path / "target"), str(tmp_path / "back")).returncode == 0
    assert read(tmp_path / "back").top_k == 6


def flash(place: Path) -> int:
    """Sparse files of the names, shapes and sizes of V4-Flash: 43 layers, 256 experts in FP4. Their bytes."""
    place.mkdir()
    homes: dict[str, str] = {}
    total = 0
    for layer in range(43):
        tensors = dict(layer_of_flash(layer))
        name = f"model-{layer + 2:05}-of-00046.safetensors"
        total += sparse(place / name, tensors)
        homes |= dict.fromkeys(tensors, name)
    (place / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": homes}))
    config = CONFIG | {"vocab_size": 129_280, "n_routed_experts": 256}
    (place / "config.json").write_text(json.dumps(config))
    return total


def layer_of_flash(layer: int) -> Any:
    for expert in range(256):
        for part in ("w1", "w2", "w3"):
            yield f"layers.{layer}.ffn.experts.{expert}.{part}.weight", ("I8", (2048, 2048), 2048 * 2048)
            yield f"layers.{layer}.ffn.experts.{expert}.{part}.scale", ("F8_E8M0", (2048, 128), 2048 * 128)
    if layer < 3:
        yield f"layers.{layer}.ffn.gate.tid2eid", ("I64", (129_280, 6), 129_280 * 48)


def sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> int:
    """A shard whose header is true and whose bytes are a hole."""
    told, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        told[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(told).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + at)
    return at


def test_less_than_15_mb_are_written_for_a_checkpoint_of_flashs_size(tmp_path: Path) -> None:
    assert flash(tmp_path / "flash") > 147e9
    made = convert(tmp_path / "flash", tmp_path / "target", Wish(4))
    own = [path for path in (tmp_path / "target").rglob("*") if path.is_file() and not path.is_symlink()]
    assert made.written <= sum(path.stat().st_size for path in own) < 15e6
    assert len(made.linked) == 43
    assert {path.name for path in own} == {"model_top4.safetensors", "config.json", INDEX, MANIFEST}
