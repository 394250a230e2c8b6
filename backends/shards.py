"""What is in a shard, a safetensors file?   The header's length in 8 bytes, a JSON header, tensors without gaps.

https://github.com/huggingface/safetensors#format. Read here, as the format is smaller than a dependency.
"""

import json
import os
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
CODES = {"I32": "i", "I64": "q", "F32": "f"}  # dtypes that `numbers` reads, with array's codes; little-endian, as files
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
STEP, BLOCK = 1 << 28, 4096  # bytes copied at a time; the block size of reflinks


class ShardError(ValueError):
    """A file that is no valid safetensors file, or a tensor of an unexpected dtype or shape; says which."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a file: `start` and `end` are offsets from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors by name in the order of their offsets, its metadata, and the offset of the first tensor."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    start: int


def header(path: Path) -> Header:
    """A file's header. Raises ShardError unless its tensors fill the file without gaps, OSError."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if not 8 < start <= LARGEST_HEADER:
            raise ShardError(f"{path}: not a safetensors file")
        try:
            told = json.loads(file.read(start - 8))
            metadata = dict(told.pop("__metadata__", {}))
            tensors = {name: _tensor(one, start) for name, one in told.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"{path}: a header that cannot be read ({error})") from None
    tensors = dict(sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].end)))
    end = start
    for name, tensor in tensors.items():
        if tensor.start != end or tensor.end - tensor.start != _size(tensor):
            raise ShardError(f"{path}: the bytes of {name} are not where they should be")
        end = tensor.end
    if path.stat().st_size != end:
        raise ShardError(f"{path}: {path.stat().st_size} bytes, its header speaks of {end}")
    return Header(tensors, metadata, start)


def _tensor(told: object, start: int) -> Tensor:
    match told:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in BITS:
            if all(isinstance(length, int) and length >= 0 for length in shape):
                return Tensor(dtype, tuple(shape), start + begin, start + end)
    raise ValueError(f"not a tensor: {told}")


def _size(tensor: Tensor) -> int:
    """A tensor's size in bytes, from dtype and shape."""
    bits = BITS[tensor.dtype]
    for length in tensor.shape:
        bits *= length
    return bits // 8


def numbers(path: Path, tensor: Tensor) -> "array[int] | array[float]":
    """The tensor's values, flat. Raises ShardError for a dtype that is not I32, I64 or F32."""
    if tensor.dtype not in CODES:
        raise ShardError(f"{path}: {tensor.dtype} where one of {', '.join(CODES)} was expected")
    with path.open("rb") as file:
        file.seek(tensor.start)
        return array(CODES[tensor.dtype], file.read(tensor.end - tensor.start))


def write(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str]) -> None:
    """Writes a new file of tensors (dtype, shape, bytes), synced to disk. Raises FileExistsError, OSError."""
    with path.open("xb") as file:
        placed, at = {}, 0
        for name, (dtype, shape, values) in tensors.items():
            placed[name] = Tensor(dtype, shape, at, at + len(values))
            at += len(values)
        file.write(_head(placed, metadata))
        file.writelines(values for _, _, values in tensors.values())
        settled(file)


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], least: int = 0) -> bytes:
    """Length and header of a file, padded to at least `least` bytes; the tensors' offsets count from its end."""
    told: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, one in tensors.items():
        told[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [one.start, one.end]}
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode().ljust(least - 8)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def without(source: Path, target: Path, dropped: Collection[str]) -> None:
    """Copies a file without some of its tensors, synced to disk. Raises ShardError, OSError.

    Where the dropped sizes allow it, bytes keep their offset within a block, so that the file system can share blocks.
    """
    found = header(source)
    placed, at = {}, 0
    for name, tensor in found.tensors.items():
        if name not in dropped:
            placed[name] = Tensor(tensor.dtype, tensor.shape, at, at := at + tensor.end - tensor.start)
    with source.open("rb") as old, target.open("xb") as new:
        new.write(_head(placed, found.metadata, found.start))
        new.flush()
        for keep, run in groupby(found.tensors.items(), key=lambda pair: pair[0] not in dropped):
            spans = [tensor for _, tensor in run]
            if keep:
                _copy(old, new, spans[0].start, spans[-1].end)
        settled(new)


def _copy(old: BinaryIO, new: BinaryIO, start: int, end: int) -> None:
    """Appends the bytes from `start` to `end` of `old`, copied in the kernel; whole blocks apart from the edges."""
    while start < end:
        wanted = min(-start % BLOCK or STEP, end - start)
        try:
            copied = os.copy_file_range(old.fileno(), new.fileno(), wanted, start)
        except OSError:  # between file systems of different kinds
            copied = os.sendfile(new.fileno(), old.fileno(), start, wanted)
        if not copied:
            raise ShardError(f"{old.name}: it became shorter while it was copied")
        start += copied


def settled(file: BinaryIO) -> None:
    """Flushes and syncs a file to disk."""
    file.flush()
    os.fsync(file.fileno())
