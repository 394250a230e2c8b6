"""How do the metrics of several processes add up?   Pure: Prometheus' text in, Prometheus' text out."""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

LEAST = ("_up", "_created", "_timestamp_seconds")  # gauges whose lowest value counts
SAME = ("_info",)  # gauges that are 1 in every process


class Family(NamedTuple):
    """One metric: its lines of help and type, its kind, and its samples by name and labels, in order."""

    head: list[str]
    kind: str
    samples: dict[str, float]


def total(texts: Iterable[bytes]) -> bytes:
    """One text for all: counters, histograms and gauges are summed, save for LEAST and SAME."""
    summed: dict[str, Family] = {}
    for name, family in itertools.chain.from_iterable(read(text).items() for text in texts):
        into, join = summed.setdefault(name, Family(family.head, family.kind, {})).samples, _rule(name, family.kind)
        for sample, value in family.samples.items():
            into[sample] = join((into[sample], value)) if sample in into else value
    return write(summed)


def counts(text: bytes) -> bytes:
    """The metrics without gauges: what still counts of a worker that has ended."""
    return write({name: family for name, family in read(text).items() if family.kind != "gauge"})


def read(text: bytes) -> dict[str, Family]:
    """Parses Prometheus' text: the families by name."""
    found: dict[str, Family] = {}
    family = Family([], "untyped", {})
    for line in filter(None, text.decode().split("\n")):
        if not line.startswith("# "):
            sample, _, value = line.rpartition(" ")
            family.samples[sample] = float(value)
            continue
        _, word, name, said = line.split(" ", 3)
        if word == "HELP":
            found[name] = family = Family([line], "untyped", {})
        else:
            found[name] = family = Family([*found[name].head, line], said, {})
    return found


def write(families: dict[str, Family]) -> bytes:
    lines = [
        line
        for family in families.values()
        for line in (*family.head, *(f"{sample} {value!r}" for sample, value in family.samples.items()))
    ]
    return "\n".join([*lines, ""]).encode()


def _rule(name: str, kind: str) -> Callable[[tuple[float, float]], float]:
    if kind == "gauge" and name.endswith(LEAST):
        return min
    return max if kind == "gauge" and name.endswith(SAME) else sum
