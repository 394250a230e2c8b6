"""How long does a layer's experts take, case by case?   One shape, all of its formats, batches, masks and ways."""

from dataclasses import dataclass, field
from functools import partial

import torch

from backends.flashmoe.kernels.launch import Format
from backends.flashmoe.policy import SKIPPED
from loadtest.kernels.clock import Call, timed
from loadtest.kernels.layers import Draw, Layer, draws, error, launched, layer, ours
from loadtest.kernels.parts import Book
from loadtest.kernels.plan import DRAWS, OURS, Case, cases, expert_bytes, shape_of
from loadtest.kernels.rivals import Rivals
from loadtest.kernels.vllm import Unfit

LAUNCHED = 4  # routings of what is launched from Python: it is slow, and no cache is what makes it so
AGREE = 0.02  # of the norm: how far a rival's answer may be from ours and still be the same work


@dataclass(slots=True)
class Bench:
    """Layers of a shape, made when they are first asked for."""

    name: str
    count: int
    rivals: Rivals
    layers: dict[Format, Layer] = field(default_factory=dict)

    def layer(self, form: Format) -> Layer:
        if form not in self.layers:
            self.layers[form] = layer(self.name, shape_of(self.name), form)
        return self.layers[form]

    def calls(self, case: Case, some: list[Draw]) -> list[Call]:
        """Raises Unfit for a rival that is not there or not to be compared."""
        one = self.layer(case.form)
        launch = launched(one.shape, one.form, case.batch)
        if case.way == OURS:
            return [partial(ours, one, draw, launch) for draw in some]
        prepare = self.rivals.of(case.way, one, case.batch)
        made = [prepare(draw) for draw in some]
        off = error(made[0](), ours(one, some[0], launch).float())
        if off > AGREE:
            raise Unfit(f"says something else than our kernels: {off:.3f} of the norm")
        return made


def measure(book: Book, name: str, tiny: bool, rivals: Rivals) -> None:
    """Writes a row for each case there is time for, and why for each that has none."""
    bench = Bench(name, 2 if tiny else DRAWS, rivals)
    for case in book.within(list(cases(name)), lambda case: case.name):
        with book.figure(case.name):
            try:
                _row(book, bench, case)
            except Unfit as reason:
                book.write("left", name=case.name, why=str(reason))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                book.write("left", name=case.name, why="not enough memory")


def _row(book: Book, bench: Bench, case: Case) -> None:
    shape, graphed = shape_of(case.shape), case.way == OURS or bench.rivals.graphed(case.way)
    count = bench.count if graphed else min(bench.count, LAUNCHED)
    some = draws(shape, case.batch, case.mask, case.routing, count)
    timing = timed(bench.calls(case, some), graphed)
    distinct = sum(draw.distinct for draw in some) / len(some)
    kept = sum(int((draw.ids != SKIPPED).sum()) for draw in some) / len(some) / case.batch
    book.write(
        "row",
        shape=case.shape,
        format=case.form,
        batch=case.batch,
        mask=case.mask.name,
        routing=case.routing,
        way=case.way,
        seconds=timing.seconds,
        noise=round(timing.noise, 4),
        runs=timing.runs,
        distinct=distinct,
        kept=kept,
        bytes=distinct * expert_bytes(shape, case.form),
    )
