"""Do the kernels become the machine code they should? Says so without a GPU.

    python -m backends.flashmoe.kernels.machine_code [90 80 100]

Every shipped launch is compiled by the ptxas that comes with Triton and read back as instructions. Prints a line for
each program; the exit status is 1 if one spills, outgrows its machine or misses the instructions it was written for.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backends.flashmoe.kernels import align, down, gate_up, route
from backends.flashmoe.kernels.gate_up import GPT_OSS, SWIGLU, V4, Activation
from backends.flashmoe.kernels.launch import RESIDENT, SHAPES, Format, Launch, Shape, Tile, choose
from backends.flashmoe.kernels.route import Rule
from backends.flashmoe.kernels.weights import Weights

TOKENS = (1, 16, 64, 256)  # what launches are compiled for; those that are the same are compiled once
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of a multiprocessor that its programs may share
REGISTERS = 65536  # of a multiprocessor
WARP = 32
FP8_FROM = 89  # the first capability with instructions that read e4m3
ASYNC = {"LDGSTS", "UTMALDG", "UBLKCP"}  # copies to shared memory that nobody waits for
TENSOR = {"HMMA", "HGMMA", "UTCHMMA", "QGMMA"}
ACTIVATIONS = {"v4-flash": V4, "gpt-oss-20b": GPT_OSS}
RULES = {
    "v4-flash": Rule(6, "sqrtsoftplus", 1.5, piggyback=True),
    "qwen3-30b": Rule(8, piggyback=True),
    "mixtral": Rule(2, share=0.8),
    "gpt-oss-20b": Rule(4, piggyback=True),
}
TYPES = {  # of arguments, where they are not 32-bit integers
    "hidden": "*bf16", "inner": "*bf16", "out": "*bf16", "logits": "*fp32", "bias": "*fp32", "trunk": "*fp32",
    "weights": "*fp32", "parts": "*fp32", "share": "*fp32", "tokens": "i32", "pairs": "i32",
    **{f"{kind}{layer}": "*fp32" for kind in "wb" for layer in (1, 2, 3)},
}  # fmt: skip
DATA = {Format.BF16: ("*bf16", "*fp32"), Format.FP8: ("*fp8e4nv", "*fp32"), Format.MXFP4: ("*u8", "*u8")}


@dataclass(frozen=True)
class Program:
    """A kernel with all that it is compiled for."""

    name: str
    kernel: Any
    constants: dict[str, object]
    warps: int
    stages: int = 1
    form: Format | None = None  # of a matrix kernel


@dataclass(frozen=True)
class Code:
    """What a program became."""

    registers: int  # of a thread
    stack: int  # bytes of a thread
    shared: int  # bytes of a program
    instructions: Counter[str]  # by their first word


def shipped() -> list[Program]:
    """Every program that a shape of SHAPES needs for up to 256 tokens, each once."""
    found = (program for name, shape in SHAPES.items() for program in (*_matrices(name, shape), *_routes(name, shape)))
    first: dict[tuple[object, ...], Program] = {}
    for program in found:
        first.setdefault((program.kernel, str(program.constants), program.warps, program.stages), program)
    return list(first.values())


def compiled(program: Program, capability: int) -> Code:
    """The program for a GPU of that compute capability, times ten."""
    names = program.kernel.arg_names
    types = dict(TYPES)
    if program.form:
        types["data"], types["scales"] = DATA[program.form]
    signature = {name: "constexpr" if name in program.constants else types.get(name, "*i32") for name in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name].startswith("*")}
    options = {"num_warps": program.warps, "num_stages": program.stages}
    source = ASTSource(program.kernel, signature, program.constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=options)
    usage, listing = _read(made.asm["cubin"])
    registers, stack = (int(found) for found in re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    words = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)", listing)
    return Code(registers, stack, made.metadata.shared, Counter(words))


def faults(program: Program, code: Code, capability: int) -> list[str]:
    """What is wrong with the code, in words."""
    threads = program.warps * WARP
    resident = RESIDENT if program.form else 1
    wanted = []
    if program.form:
        wanted = [("tensor core", TENSOR), ("asynchronous copy", ASYNC)]
        if capability == 90 and program.constants["ROWS"] == 64:
            wanted.append(("warp group's product", {"HGMMA"}))
    found = [f"no {what}" for what, words in wanted if not words & code.instructions.keys()]
    if code.stack or {"STL", "LDL"} & code.instructions.keys():
        found.append("spills")
    if resident * code.registers * threads > REGISTERS:
        found.append(f"{code.registers} registers")
    if resident * code.shared > SHARED[capability]:
        found.append(f"{code.shared} bytes shared")
    return found


def verdict(at: int, capability: int) -> tuple[str, bool]:
    """The line on one of the shipped programs, and whether it is as it should be."""
    program = shipped()[at]
    if program.form is Format.FP8 and capability < FP8_FROM:
        return "", True
    code = compiled(program, capability)
    found = Counter({word: count for word, count in code.instructions.items() if word in TENSOR | ASYNC})
    words = " ".join(f"{word}:{count}" for word, count in sorted(found.items()))
    wrong = ", ".join(faults(program, code, capability))
    return f"sm_{capability} {program.name:32} {code.registers:3} regs {code.shared:6} B {words} {wrong}", not wrong


def main(capabilities: list[int]) -> int:
    """Compiles all for each GPU and prints what came of it."""
    jobs = list(product(range(len(shipped())), capabilities))
    with ProcessPoolExecutor() as pool:
        verdicts = list(pool.map(verdict, *zip(*jobs, strict=True)))
    print("\n".join(line for line, _ in verdicts if line))
    wrong = sum(not right for _, right in verdicts)
    print(f"{sum(bool(line) for line, _ in verdicts)} programs, {wrong} not as they should be")
    return 1 if wrong else 0


def _matrices(name: str, shape: Shape) -> Iterator[Program]:
    act = ACTIVATIONS.get(name, SWIGLU)
    whole = shape.hidden % 128 == shape.inner % 128 == 0
    for form, tokens in product([form for form in Format if whole or form is not Format.FP8], TOKENS):
        yield from _layer(f"{name} {form} {tokens}", shape, form, act, choose(shape, form, tokens))


def _layer(name: str, shape: Shape, form: Format, act: Activation, launch: Launch) -> Iterator[Program]:
    first = _shaped(shape.experts, 2 * shape.inner, shape.hidden, form, act is GPT_OSS)
    last = _shaped(shape.experts, shape.hidden, shape.inner, form, act is GPT_OSS)
    into = gate_up.constants(first, shape.top, act, launch.gate_up, launch.programs)
    back = down.constants(last, launch.down, launch.programs)
    yield _matrix(f"{name} gate_up", gate_up.kernel, into, launch.gate_up, form)
    yield _matrix(f"{name} down", down.kernel, back, launch.down, form)
    yield Program(f"{name} sum", down.sum_kernel, down.sum_constants(last, shape.top, launch.down), warps=4)


def _matrix(name: str, kernel: Any, constants: dict[str, object], tile: Tile, form: Format) -> Program:
    return Program(name, kernel, {**constants, "WIDE": False}, tile.warps, tile.stages, form)


def _routes(name: str, shape: Shape) -> Iterator[Program]:
    for form, tokens in product((Format.BF16, Format.MXFP4), TOKENS):
        rows = choose(shape, form, tokens).down.rows
        for head in (False, True):
            constants = route.constants(RULES[name], shape.experts, tokens, rows, head)
            yield Program(f"{name} {tokens} route{' head' * head}", route.kernel, constants, align.WARPS)
        aligned = align.constants(shape.experts, shape.top, tokens, rows)
        yield Program(f"{name} {tokens} align", align.align_kernel, aligned, align.WARPS)


def _shaped(experts: int, rows: int, columns: int, form: Format, bias: bool) -> Weights:
    """Weights without values."""
    with torch.device("meta"):
        half = 2 if form is Format.MXFP4 else 1
        scales = {Format.BF16: (0,), Format.FP8: (experts, rows // 128, columns // 128)}
        return Weights(
            form,
            torch.empty(experts, rows, columns // half, dtype=torch.uint8),
            torch.empty(scales.get(form, (experts, rows, columns // 32)), dtype=torch.uint8),
            torch.empty(experts, rows) if bias else None,
        )


def _read(cubin: bytes) -> tuple[str, str]:
    """What cuobjdump, which comes with Triton, says of resources and instructions."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, listing = (
            subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return usage, listing


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or [90]))
