"""Do the kernels agree with torch on this device, also when one CUDA graph is replayed with other masks?"""

from dataclasses import replace
from itertools import product
from typing import Any

import torch

from backends.flashmoe.kernels.launch import Format
from loadtest.kernels.clock import device, recorded
from loadtest.kernels.layers import Draw, Layer, draws, error, launched, layer, ours, truth
from loadtest.kernels.parts import Book
from loadtest.kernels.plan import BY_NAME, FULL, MASKS, RIDING, shape_of

MOST = 0.01  # of the norm: bf16 inner values and outputs


def measure(book: Book, name: str, which: str, tiny: bool) -> None:
    """Writes a line for each batch and mask of a shape in a format, or in `all`; then for replays of one graph."""
    batches, masks = ((3,), (RIDING,)) if tiny else ((1, 16, 64), MASKS)
    for form in book.within(list(Format) if which == "all" else [Format(which)]):
        one = _few(name, form)
        for batch, mask in product(batches, masks):
            (draw,) = draws(one.shape, batch, mask, "uniform", 1)
            launch = launched(shape_of(name), form, batch)
            _poison(one, draw, launch.down.splits)
            off = error(ours(one, draw, launch), truth(one, draw))
            book.write("correct", format=form, shape=name, batch=batch, mask=mask.name, error=off, held=off <= MOST)
        _replays(book, name, one, batches[-1])


def _few(name: str, form: Format) -> Layer:
    """A layer with few experts, so that torch can dequantise them; its launch is that of the full layer."""
    whole = shape_of(name)
    return layer(name, replace(whole, experts=2 * whole.top), form, seed=1)


def _poison(one: Layer, draw: Draw, splits: int) -> None:
    """Fills the allocator's free memory with NaN, so that a read of uninitialised memory shows."""
    for size in (one.shape.inner, one.shape.hidden * 2 * splits):
        torch.full((draw.ids.numel() * size,), float("nan"), dtype=torch.bfloat16, device=draw.hidden.device)


def _replays(book: Book, name: str, one: Layer, batch: int) -> None:
    """One captured CUDA graph, replayed with the routings of other masks: a launch must not depend on the mask."""
    (draw,) = draws(one.shape, batch, FULL, "uniform", 1)
    launch = launched(shape_of(name), one.form, batch)
    said: list[Any] = []

    def go() -> None:
        said[:] = [ours(one, draw, launch)]

    replay = recorded([go]).replay if device().type == "cuda" else go
    for mask in (BY_NAME["1/2"], RIDING, FULL):
        (other,) = draws(one.shape, batch, mask, "zipf", 1)
        for into, new in ((draw.hidden, other.hidden), (draw.ids, other.ids), (draw.share, other.share)):
            into.copy_(new)
        replay()
        off = error(said[0], truth(one, other))
        told = {"format": one.form, "shape": name, "batch": batch, "mask": f"replayed: {mask.name}"}
        book.write("correct", **told, error=off, held=off <= MOST)
