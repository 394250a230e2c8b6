"""What are the device's limits?   Memory bandwidth, bf16 throughput, launch overhead; and the time of routing."""

from typing import Any

import torch
import triton
import triton.language as tl

from backends.flashmoe.kernels import align, route
from backends.flashmoe.kernels.route import Rule
from backends.flashmoe.predictor import Head
from loadtest.kernels.clock import Timing, device, timed
from loadtest.kernels.layers import FEW
from loadtest.kernels.parts import Book
from loadtest.kernels.plan import shape_of

BLOCK = 4096  # numbers that a program reads at once
TILES = ((2, 8), (4, 8), (8, 8), (16, 4))  # programs a multiprocessor, warps of each: the fastest counts

ROUTED = (("v4-flash", 16), ("qwen3-30b", 16), ("v4-flash", 1), ("v4-flash", 64))  # shapes and tokens


@triton.jit
def read_kernel(data, out, blocks, BLOCK: tl.constexpr):
    """Sums int32 numbers: every program takes blocks in turn."""
    item = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.int32)
    while item < blocks:
        total += tl.load(data + item.to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
        item += tl.num_programs(0)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def idle_kernel(out):
    """An empty kernel but for one store, to time a launch."""
    tl.store(out + tl.program_id(0), 0)


def measure(book: Book, tiny: bool) -> None:
    """Writes a ceiling for each: bytes, operations or launches; seconds of routing."""
    for name, probe in {"memory": memory, "product": product, "launches": launches, "routing": routing}.items():
        if book.left() <= 0:
            book.write("left", name=f"ceiling {name}", why="no time")
            continue
        with book.figure(f"ceiling {name}"):
            probe(book, tiny)


def memory(book: Book, tiny: bool) -> None:
    """Bytes a second: read by a kernel that does nothing else, and copied (read and written)."""
    where, blocks = device(), 8 if tiny else 2**31 // BLOCK
    data = torch.randint(0, 100, (blocks * BLOCK,), dtype=torch.int32, device=where)
    many = torch.cuda.get_device_properties(0).multi_processor_count if where.type == "cuda" else FEW
    rates = []
    for programs, warps in TILES[:1] if tiny else TILES:
        out = torch.zeros(programs * many, dtype=torch.int32, device=where)

        def go(out: Any = out, warps: int = warps) -> None:
            read_kernel[(len(out),)](data, out, blocks, BLOCK=BLOCK, num_warps=warps)

        rates.append(data.nbytes / timed([go]).seconds)
        if int(out.sum(dtype=torch.int64)) != int(data.sum(dtype=torch.int64)):
            raise ArithmeticError("the kernel that measures reading did not read everything")
    other = torch.empty_like(data)
    copied = 2 * data.nbytes / timed([lambda: other.copy_(data)]).seconds
    book.write("ceiling", name="copy", value=copied)
    book.write("ceiling", name="read", value=max(*rates, copied))  # no lower, or a share of it would flatter


def product(book: Book, tiny: bool) -> None:
    """Operations a second of a large bf16 matrix product of random numbers."""
    size = 64 if tiny else 8192
    a, b = (torch.randn(size, size, device=device()).bfloat16() for _ in range(2))
    book.write("ceiling", name="bf16", value=2 * size**3 / timed([lambda: a @ b]).seconds)


def launches(book: Book, tiny: bool) -> None:
    """Seconds of an empty kernel: in a CUDA graph, and launched from Python."""
    out = torch.zeros(1, dtype=torch.int32, device=device())
    calls = [lambda: idle_kernel[(1,)](out)] * (2 if tiny else 100)
    book.write("ceiling", name="launch, graph", value=timed(calls).seconds)
    book.write("ceiling", name="launch, python", value=timed(calls, graphed=False).seconds)


def routing(book: Book, tiny: bool) -> None:
    """Seconds from logits to blocks, without and with a predictor's head, and from given ids."""
    for name, tokens in [("tiny", 2)] if tiny else ROUTED:
        for way, timing in routes(name, tokens).items():
            book.write("ceiling", name=f"{way} {name} B={tokens}", value=timing.seconds)


def routes(name: str, tokens: int) -> dict[str, Timing]:
    """Of each way to come by blocks."""
    shape, where = shape_of(name), device()
    rule = Rule(shape.top, "sqrtsoftplus", 1.5, piggyback=True)
    logits, bias = torch.randn(tokens, shape.experts, device=where), torch.zeros(shape.experts, device=where)
    budget = torch.full((tokens,), max(1, shape.top // 2), dtype=torch.int32, device=where)
    head = Head(shape.hidden, shape.experts).to(where).requires_grad_(False)
    estimate = route.Estimate.of(head, head.trunk(torch.randn(tokens, shape.hidden, device=where)))
    ids = logits.topk(shape.top).indices.int().contiguous()
    calls = {
        "route": lambda: route.route(logits, bias, budget, rule, 16),
        "route, head": lambda: route.route(logits, bias, budget, rule, 16, estimate),
        "align": lambda: align.align(ids, shape.experts, 16),
    }
    return {way: timed([call]) for way, call in calls.items()}
