"""Is this a complete V4 checkpoint, and where are its `tid2eid` tables?   Reads configuration, index, shard headers.

V4's first layers are hash-routed: a token's experts come from the table `tid2eid` [vocabulary, top_k] of token id to
expert ids, not from the router's scores.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.shards import Header, Tensor, header, numbers

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TABLE = ".gate.tid2eid"
JSON = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint, requested variant or target folder that is not valid; says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A V4 checkpoint on disk. `headers`: by shard; `tables`: shard and tensor of each tid2eid table, by its name."""

    place: Path
    top_k: int
    experts: int
    index: JSON
    headers: dict[str, Header]
    tables: dict[str, tuple[str, Tensor]]


def read(place: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises CheckpointError or ShardError unless it is V4's and complete, OSError."""
    config = json_of(place / "config.json")
    if config.get("model_type") != "deepseek_v4":
        raise CheckpointError(f"{place}: model_type is {config.get('model_type')!r}, not 'deepseek_v4'")
    if (place / INDEX).exists():
        index = json_of(place / INDEX)
    else:
        index = {"metadata": {}, "weight_map": dict.fromkeys(header(place / SINGLE).tensors, SINGLE)}
    homes = homes_of(index.get("weight_map"), place / INDEX)
    headers = {shard: header(place / shard) for shard in sorted(set(homes.values()))}
    for name, shard in homes.items():
        if name not in headers[shard].tensors:
            raise CheckpointError(f"{place}: the index names {name}, which {shard} has not")
    tables = {name: (homes[name], headers[homes[name]].tensors[name]) for name in sorted(homes) if name.endswith(TABLE)}
    top_k, experts = _check(config, {name: tensor for name, (_, tensor) in tables.items()})
    return Checkpoint(place, top_k, experts, index, headers, tables)


def homes_of(told: Any, path: Path) -> dict[str, str]:
    """A `weight_map`, shard by tensor name, checked. Raises CheckpointError for a shard that is not a plain file name,
    and for an empty map."""
    homes: dict[str, str] = told if isinstance(told, dict) else {}
    odd = [home for home in homes.values() if not isinstance(home, str) or Path(home).name != home]
    if not homes or odd:
        raise CheckpointError(f"{path}: {odd[0]!r} is no shard" if odd else f"{path} names no shards")
    return homes


def _check(config: JSON, tables: dict[str, Tensor]) -> tuple[int, int]:
    """top_k and the number of experts. Raises CheckpointError unless number, shape and dtype of the tables fit the
    configuration."""
    counts: JSON = {key: config.get(key) for key in ("num_experts_per_tok", "n_routed_experts", "vocab_size")}
    for key, count in counts.items():
        if not isinstance(count, int):
            raise CheckpointError(f"the configuration's {key} is {count!r}")
    top_k, experts, vocabulary = map(int, counts.values())
    types = config.get("mlp_layer_types")
    hashed = types.count("hash_moe") if types else config.get("num_hash_layers", 3)
    found = sum("layers." in name for name in tables)  # a draft head may have tables of its own
    if found != hashed:
        raise CheckpointError(f"{found} tables *{TABLE} for {hashed} hash-routed layers")
    for name, table in tables.items():
        if table.shape != (vocabulary, top_k) or table.dtype not in ("I32", "I64"):
            shown = f"{table.dtype} {list(table.shape)}"
            raise CheckpointError(f"{name} is {shown}, not I32 or I64 {[vocabulary, top_k]}")
    return top_k, experts


def json_of(path: Path) -> JSON:
    """The JSON object in a file. Raises CheckpointError."""
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} is not an object")
    return told


def digests(found: Checkpoint) -> dict[str, str]:
    """SHA-256 of each table's values, in hex, by the table's name."""
    values = {name: numbers(found.place / shard, table) for name, (shard, table) in found.tables.items()}
    return {name: hashlib.sha256(one).hexdigest() for name, one in values.items()}


def files_of(place: Path) -> list[str]:
    """Relative paths of the files below a folder, hidden top-level ones left out."""
    found = (path.relative_to(place) for path in place.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.parts[0].startswith("."))
