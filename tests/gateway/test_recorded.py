"""Decisions as lines, and the outcomes that came later."""

import gc
import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.recorded import Recorded, RecordError, gather, phases
from gateway.types import Facts

FACTS = {"model": "auto", "caller": "ann", "plan": "gold", "signals": ["sql"], "headers": {"x-a": "b"}}
DECISION: dict[str, Any] = {"v": 1, "id": "r1", "caller": "k1", "facts": FACTS, "route": {"tier": "flash", "p": 0.9}}
OUTCOME: dict[str, Any] = {"v": 1, "id": "r1", "caller": "k1", "at": 2.0, "outcome": {"quality": 0.25}}


def read(files: list[Path], heard: Callable[[bytes], None] | None = None) -> list[Recorded]:
    """All of each decision."""
    return gather(files, lambda one: one, heard)


def held(file: Path, keep: Callable[[Recorded], Recorded]) -> int:
    """Bytes of memory that what is kept of a file's decisions takes."""
    tracemalloc.start()
    found = gather([file], keep)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size if found else 0


def written(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("overhead", "decide", "parts"),
    [
        (None, 3.0, ()),
        (8.0, 3.0, (1.0, 3.0, 4.0)),
        (8.0, None, (1.0, 7.0, 0.0)),
        (8.0, 9.0, (1.0, 7.0, 0.0)),
        (0.5, 3.0, (1.0, 0.0, 0.0)),
    ],
)
def test_what_follows_on_reading_is_deciding_until_a_server_is_asked_and_relaying_then(
    overhead: float | None, decide: float | None, parts: tuple[float, ...]
) -> None:
    assert phases(overhead, 1.0, decide) == parts


def test_the_least_line_is_a_decision(tmp_path: Path) -> None:
    (one,) = read([written(tmp_path / "a", DECISION, b"\n")])
    assert (one.id, one.route.tier, one.route.p, one.verdict, one.outcome) == ("r1", "flash", 0.9, None, None)
    assert one.conversation == ""
    facts = one.read_facts()
    assert facts == Facts("auto", "ann", "gold", signals=frozenset({"sql"}), headers={"x-a": "b"})


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    files = [written(tmp_path / name, DECISION, OUTCOME) for name in "ab"]
    told: list[bytes] = []
    read(files, told.append)
    assert (len(told), b"".join(told)) == (4, b"".join(file.read_bytes() for file in files))


def test_an_outcome_joins_its_decision_from_any_file_and_the_last_one_counts(tmp_path: Path) -> None:
    late = written(tmp_path / "late", OUTCOME, OUTCOME | {"outcome": {"quality": 1.0, "tiers": {"pro": 0.5}}})
    (one,) = read([late, written(tmp_path / "a", DECISION)])
    assert one.outcome
    assert (one.outcome.quality, one.outcome.source, one.outcome.tiers) == (1.0, "caller", {"pro": 0.5})


def test_another_callers_outcome_is_not_taken(tmp_path: Path) -> None:
    (one,) = read([written(tmp_path / "a", DECISION, OUTCOME | {"caller": "k2"})])
    assert one.outcome is None


def test_of_two_decisions_with_one_id_the_later_counts(tmp_path: Path) -> None:
    (one,) = read([written(tmp_path / "a", DECISION, DECISION | {"route": {"tier": "pro"}})])
    assert one.route.tier == "pro"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (DECISION | {"v": 2}, "a:2: version 2; this program reads 1"),
        (b"[1]\n", "a:2: Expected `object`"),
        (b"{\n", "a:2: "),
        (b'{"v":1,"\xff":1}\n', "a:2: "),
        (b"[" * 100_000 + b"\n", "a:2: "),
        (DECISION | {"route": {"tier": "pro", "p": 0}}, "route.p"),
        (DECISION | {"facts": None}, "facts"),
        (DECISION | {"at": 1_700_000_000_000}, "a:2: .* < 100000000000.0 - at `.\\.at`"),
        (OUTCOME | {"outcome": {"quality": 1.1}}, "quality"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: Any, told: str) -> None:
    with pytest.raises(RecordError, match=told):
        read([written(tmp_path / "a", DECISION, line)])


def test_the_line_that_a_gateway_is_writing_is_left_for_later(tmp_path: Path) -> None:
    whole = msgspec.json.encode(DECISION | {"id": "r2"})
    for end in range(1, len(whole) + 1):
        found = read([written(tmp_path / "a", DECISION, whole[:end])])
        assert [one.id for one in found] == ["r1", "r2"][: 1 + (end == len(whole))]


def test_a_file_that_gzip_packed_is_read_and_named_where_it_breaks_off(tmp_path: Path) -> None:
    packed = gzip.compress(written(tmp_path / "a", DECISION, OUTCOME).read_bytes())
    (one,) = read([written(tmp_path / "a.gz", packed)])
    assert one.outcome
    assert one.outcome.quality == 0.25
    for broken in (packed[:-9], packed[:12] + b"\xff" * 40, packed[:2] + b"\0" * 9):
        with pytest.raises(RecordError, match=rf"^{tmp_path}/b: gzip: "):
            read([written(tmp_path / "b", broken)])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="none: No such file"):
        read([tmp_path / "none"])


def test_facts_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    (one,) = read([written(tmp_path / "a", DECISION | {"facts": FACTS | {"mood": 1}})])
    assert msgspec.to_builtins(one.read_facts())["plan"] == "gold"
