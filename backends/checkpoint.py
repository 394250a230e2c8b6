"""How is a V4 checkpoint with a smaller top_k made?   python -m backends.checkpoint convert|revert

Written are only the files that depend on top_k: the configuration, the index, and a shard of the `tid2eid` tables of
the hash-routed layers (backends/tid2eid.py). All other files are symbolic links; a `model.safetensors` gets another
name, as loaders prefer that name to an index.

transformers takes a tensor from the last shard that has it, so links to the old shards are enough for it. vLLM and
SGLang load every tensor of every shard and fail at a table of the old width: `--shards own` copies the shards that hold
one, without it (on a file system with reflinks most of their bytes are shared).
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.shards import ShardError, settled, without, write
from backends.tid2eid import Choice, cut, ids_of, ranked, scores_of
from backends.v4 import INDEX, JSON, SINGLE, Checkpoint, CheckpointError, digests, files_of, homes_of, json_of, read

MANIFEST = "tid2eid_manifest.json"
RENAMED = "model_rest.safetensors"  # the link to `model.safetensors`
COUNTS = {"config.json": "num_experts_per_tok", "inference/config.json": "n_activated_experts"}


@dataclass(frozen=True, slots=True)
class Wish:
    """The requested variant. `calibration`: the file of scores, for "calibrated" only."""

    top_k: int
    tid2eid: Choice = "first"
    calibration: Path | None = None
    shards: Literal["link", "own"] = "link"


@dataclass(frozen=True, slots=True)
class Variant:
    """The files of a variant: a `shard` of cut tables (dtype, shape, bytes), `texts` by path; paths in the source of
    shards to copy without their tables, and of files to link."""

    shard: str
    tables: dict[str, tuple[str, tuple[int, ...], bytes]]
    texts: dict[str, bytes]
    copied: tuple[str, ...]
    linked: tuple[str, ...]

    @property
    def written(self) -> int:
        """Bytes to write, those of copied shards left out."""
        return sum(map(len, self.texts.values())) + sum(len(values) for _, _, values in self.tables.values())


def variant(found: Checkpoint, wish: Wish) -> Variant:
    """The files of the requested variant. Raises CheckpointError or ShardError when it cannot be made, OSError."""
    if not 1 <= wish.top_k < found.top_k:
        raise CheckpointError(f"top_k {wish.top_k} is not from 1 to {found.top_k - 1}")
    shard, holders = f"model_top{wish.top_k}.safetensors", {shard for shard, _ in found.tables.values()}
    spent = {one for one in holders if found.headers[one].tensors.keys() <= found.tables.keys()}
    last = max(map(_named, found.headers.keys() - spent), default="")
    if shard < last:
        raise CheckpointError(f"{last} would be read after {shard} and bring the old tables back")
    tables = {name: _narrowed(found, name, wish) for name in found.tables}
    files = files_of(found.place)
    configs = {name: json_of(found.place / name) for name in COUNTS if name in files}
    texts = {name: _text(told | {COUNTS[name]: wish.top_k}) for name, told in configs.items() if COUNTS[name] in told}
    homes = {name: _named(home) for name, home in found.index["weight_map"].items()} | dict.fromkeys(tables, shard)
    texts[INDEX] = _text({**found.index, "weight_map": homes})
    texts[MANIFEST] = _text(_manifest(found, wish, shard))
    own = tuple(sorted(holders - spent)) if wish.shards == "own" else ()
    linked = (name for name in files if name not in {*texts, *own, *spent})
    return Variant(shard, tables, texts, own, tuple(linked))


def _named(shard: str) -> str:
    """The name of a file of the source in the variant."""
    return RENAMED if shard == SINGLE else shard


def _narrowed(found: Checkpoint, name: str, wish: Wish) -> tuple[str, tuple[int, ...], bytes]:
    shard, table = found.tables[name]
    ids = ids_of(found.place / shard, name, table, found.experts)
    if wish.tid2eid == "calibrated":
        if wish.calibration is None:
            raise CheckpointError("`calibrated` needs a file of scores")
        ids = ranked(ids, scores_of(wish.calibration, name, table), found.top_k)
    return "I32", (table.shape[0], wish.top_k), cut(ids, found.top_k, wish.top_k).tobytes()


def _manifest(found: Checkpoint, wish: Wish, shard: str) -> JSON:
    """What `revert` needs: shards and digests of the original tables, and the original configuration files."""
    texts = {name: (found.place / name).read_text("utf-8") for name in COUNTS if (found.place / name).exists()}
    return {"source": str(found.place.resolve()), "top_k": {"was": found.top_k, "is": wish.top_k},
            "tid2eid": wish.tid2eid, "shards": wish.shards, "shard": shard, "texts": texts,
            "homes": {name: home for name, (home, _) in found.tables.items()}, "sha256": digests(found)}  # fmt: skip


def _text(told: JSON) -> bytes:
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode()


def convert(source: Path, target: Path, wish: Wish) -> Variant:
    """Makes the variant in the folder `target`. Raises CheckpointError, ShardError, OSError, leaving nothing."""
    made = variant(read(source), wish)
    with _whole(target, source) as place:
        for name in made.linked:
            _link(source / name, place / _named(name))
        for name in made.copied:
            without(source / name, place / _named(name), made.tables.keys())
        write(place / made.shard, made.tables, {"format": "pt"})
        for name in sorted(made.texts, key=lambda name: name in COUNTS):  # the configuration last: no server loads less
            _put(place / name, made.texts[name])
        read(place)
    return made


def revert(source: Path, target: Path) -> None:
    """Makes the checkpoint that `source` was converted from, of links. Raises as `convert` does."""
    told = json_of(source / MANIFEST)
    try:
        origin, homes, was = Path(told["source"]), homes_of(told["homes"], source / MANIFEST), told["sha256"]
        texts = {name: text.encode() for name, text in told["texts"].items() if name in COUNTS}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source / MANIFEST} is not such a manifest ({error!r})") from None
    origins = {name: origin / name for name in (*homes.values(), INDEX, SINGLE) if (origin / name).exists()}
    known = {RENAMED, *origins} if SINGLE in origins else origins.keys()
    origins |= {name: source / name for name in files_of(source) if (source / name).is_symlink() and name not in known}
    with _whole(target, source, origin) as place:
        for name, real in origins.items():
            _link(real, place / name)
        for name, text in texts.items():
            _put(place / name, text)
        if digests(read(place)) != was:
            raise CheckpointError(f"the tables in {origin} have changed since")


@contextmanager
def _whole(target: Path, *others: Path) -> Iterator[Path]:
    """A temporary folder beside the target; renamed to it at the end, removed on an error. Raises CheckpointError,
    OSError."""
    place = _beside(target, *others)
    place.mkdir(parents=True)
    try:
        yield place
        place.rename(target)
    except BaseException:
        shutil.rmtree(place)
        raise


def _beside(target: Path, *others: Path) -> Path:
    """The temporary folder's path. Raises CheckpointError when target and other folders contain one another, or the
    target exists."""
    place, real = target.parent / f".{target.name}.partial", target.resolve()
    for other in (one.resolve() for one in others):
        if real.is_relative_to(other) or other.is_relative_to(real):
            raise CheckpointError(f"{target} and {other} lie in each other")
    for one in (target, place):
        if one.exists():
            raise CheckpointError(f"{one} exists; remove it first")
    return place


def _link(real: Path, name: Path) -> None:
    """Makes `name` a relative symbolic link to the resolved file, valid wherever both folders are mounted together."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.symlink_to(os.path.relpath(real.resolve(), name.parent.resolve()))


def _put(path: Path, text: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(text)
        settled(file)


def told(made: Variant, source: Path, wish: Wish, done: bool) -> Iterator[str]:
    """The summary for the command line; `done` False: of a dry run."""
    copied = sum((source / name).stat().st_size for name in made.copied)
    verb = "written" if done else "would write"
    yield f"{verb}: {made.written / 1e6:.1f} MB: {made.shard} and {', '.join(sorted(made.texts))}"
    yield f"linked: {len(made.linked)} files"
    if made.copied:
        yield f"copied without their tables: {', '.join(made.copied)} ({copied / 1e9:.1f} GB, shared where it can be)"
    else:
        yield "loads in transformers; vLLM and SGLang stop at the old tables in linked shards (--shards own drops them)"
    yield f"top_k {wish.top_k} is not what the model was trained with: compare both (python -m backends.evals compare)"


def main() -> None:
    said = argparse.ArgumentParser(
        "tiergate backends", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = said.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("convert", help="make a variant with fewer experts a token")
    made.add_argument("source", type=Path)
    made.add_argument("target", type=Path)
    made.add_argument("--top-k", type=int, required=True)
    made.add_argument("--tid2eid", choices=("first", "calibrated"), default="first", help="which experts a token keeps")
    made.add_argument("--calibration", type=Path, help="measured scores, for `calibrated`")
    made.add_argument("--shards", choices=("link", "own"), default="link", help="what becomes of shards with a table")
    made.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    undone = verbs.add_parser("revert", help="make the original again, of links")
    undone.add_argument("source", type=Path)
    undone.add_argument("target", type=Path)
    asked = said.parse_args()
    try:
        _run(asked)
    except (CheckpointError, ShardError, OSError) as error:
        sys.exit(f"{asked.verb}: {error}")


def _run(asked: argparse.Namespace) -> None:
    if asked.verb == "revert":
        revert(asked.source, asked.target)
        return
    wish = Wish(asked.top_k, asked.tid2eid, asked.calibration, asked.shards)
    if asked.dry_run:
        _beside(asked.target, asked.source)
    made = variant(read(asked.source), wish) if asked.dry_run else convert(asked.source, asked.target, wish)
    print("\n".join(told(made, asked.source, wish, not asked.dry_run)))


if __name__ == "__main__":
    main()
