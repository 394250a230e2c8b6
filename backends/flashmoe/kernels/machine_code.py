"""Do the kernels compile to the machine code they should?   Needs no GPU.

    python -m backends.flashmoe.kernels.machine_code [nvidia-h200 ...] [--tokens 1,64]

Compiles every launch of each device with a file in `configs/`, by Triton and its ptxas, which reports registers and
spills. Prints a line for each program. The exit status is 1 if one spills, takes more registers or shared memory than
the device has, or lacks tensor core instructions or asynchronous copies.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from backends.flashmoe.kernels import align, down, gate_up, route
from backends.flashmoe.kernels.devices import CONFIGS, Device, known
from backends.flashmoe.kernels.gate_up import GPT_OSS, SWIGLU, V4
from backends.flashmoe.kernels.launch import RESIDENT, SHAPES, Format, Shape, Tile
from backends.flashmoe.kernels.route import Rule
from backends.flashmoe.kernels.weights import Weights

TOKENS = (1, 16, 64, 256)  # what launches are compiled for; those that are the same are compiled once
RESERVED = 1024  # bytes of shared memory that CUDA reserves for each program
REGISTERS = 65536  # of a multiprocessor
WARP = 32
FP8_FROM = 89  # the first capability with instructions for e4m3
ASYNC = "cp.async"  # asynchronous copies to shared memory
WARP_GROUP = "wgmma"
TENSOR = {"mma", WARP_GROUP, "tcgen05.mma"}
INSTRUCTION = re.compile(
    r"^\s+(?:@!?%p\d+ )?(cp\.async(?=\.cg|\.ca)|wgmma(?=\.mma)|mma(?=\.sync)|tcgen05\.mma)", re.MULTILINE
)
ACTIVATIONS = {"v4-flash": V4, "v4-pro": V4, "gpt-oss-20b": GPT_OSS}
RULES = {
    **dict.fromkeys(("v4-flash", "v4-pro"), Rule(6, "sqrtsoftplus", 1.5, piggyback=True)),
    "qwen3-30b": Rule(8, piggyback=True),
    "mixtral": Rule(2, share=0.8),
    "gpt-oss-20b": Rule(4, piggyback=True),
}
TYPES = {  # of arguments, where they are not 32-bit integers
    "hidden": "*bf16", "inner": "*bf16", "out": "*bf16", "logits": "*fp32", "trunk": "*fp32",
    "weights": "*fp32", "parts": "*fp32", "share": "*fp32", "tokens": "i32", "pairs": "i32",
    **{f"{kind}{layer}": "*fp32" for kind in "wb" for layer in (1, 2, 3)},
}  # fmt: skip
DATA = {Format.BF16: ("*bf16", "*fp32"), Format.FP8: ("*fp8e4nv", "*fp32"), Format.MXFP4: ("*u8", "*u8")}


@dataclass(frozen=True)
class Program:
    """A kernel with its constexpr arguments and compiler options."""

    name: str
    kernel: Any
    constants: dict[str, object]
    options: dict[str, int]  # of the compiler
    form: Format | None = None  # of a matrix kernel


@dataclass(frozen=True)
class Code:
    """What the compiler reports of a program."""

    registers: int  # of a thread
    spilled: int  # bytes of spill stores and loads of a thread
    shared: int  # bytes of a program
    instructions: Counter[str]  # those of TENSOR and ASYNC


def shipped(device: Device, tokens: Sequence[int]) -> list[Program]:
    """Every program that the device needs for its measured launches and for SHAPES at these tokens, each once."""
    routes = (_routes(name, shape, device, count) for (name, shape), count in product(SHAPES.items(), tokens))
    cases = [*device.measured, *product(SHAPES.values(), Format, tokens)]
    matrices = (_layer(shape, form, count, device) for shape, form, count in cases if _has(shape, form, device))
    first: dict[tuple[object, ...], Program] = {}
    for program in chain(*matrices, *routes):
        first.setdefault((program.kernel, str(program.constants), str(program.options)), program)
    return list(first.values())


def compiled(program: Program, capability: int) -> Code:
    """Compiles the program; `capability`: compute capability, times ten."""
    names = program.kernel.arg_names
    types = TYPES | {"bias": "*fp32" if program.kernel is route.kernel else "*bf16"}
    if program.form:
        types["data"], types["scales"] = DATA[program.form]
    signature = {name: "constexpr" if name in program.constants else types.get(name, "*i32") for name in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(program.kernel, signature, program.constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=program.options)
    told = _ptxas(made.asm["ptx"], capability)
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill", told))
    registers = int(re.findall(r"Used (\d+) registers", told)[0])
    return Code(registers, spilled, made.metadata.shared, Counter(INSTRUCTION.findall(made.asm["ptx"])))


def faults(program: Program, code: Code, device: Device) -> list[str]:
    """What is wrong with the code, a phrase each."""
    threads = program.options["num_warps"] * WARP
    resident = RESIDENT if program.form else 1
    grouped = device.capability == 90 and program.constants["ROWS"] == 64 if program.form else False
    wrong = {
        "no tensor core": program.form and not TENSOR & code.instructions.keys(),
        "no warp group's product": grouped and WARP_GROUP not in code.instructions,
        "no asynchronous copy": program.form and ASYNC not in code.instructions,
        f"{code.spilled} bytes spilled": code.spilled,
        f"{code.registers} registers": resident * code.registers * threads > REGISTERS,
        f"{code.shared} bytes shared": resident * (code.shared + RESERVED) > device.shared,
    }
    return [what for what, found in wrong.items() if found]


def verdict(device: Device, program: Program) -> tuple[str, bool]:
    """The line to print on a program, and whether it has no faults."""
    code = compiled(program, device.capability)
    words = " ".join(f"{word}:{count}" for word, count in sorted(code.instructions.items()))
    wrong = ", ".join(faults(program, code, device))
    size = f"{code.registers:3} regs {code.shared:6} B"
    return f"sm_{device.capability} {program.name:32} {size} {words} {wrong}", not wrong


def main(names: list[str], tokens: list[int]) -> int:
    """Compiles all programs of the devices and prints the lines; returns the exit status."""
    jobs = [(name, at, tokens) for name in names for at in range(len(shipped(_device(name), tokens)))]
    with ProcessPoolExecutor() as pool:
        verdicts = list(pool.map(_job, jobs))
    print("\n".join(line for line, _ in verdicts))
    wrong = sum(not right for _, right in verdicts)
    print(f"{len(verdicts)} programs, {wrong} not as they should be")
    return 1 if wrong else 0


def _job(job: tuple[str, int, list[int]]) -> tuple[str, bool]:
    name, at, tokens = job  # an index, as a program cannot be pickled
    device = _device(name)
    return verdict(device, shipped(device, tokens)[at])


def _device(name: str) -> Device:
    device = known(name)
    if device is None:
        raise SystemExit(f"{name} has no file in {CONFIGS}")
    return device


def _has(shape: Shape, form: Format, device: Device) -> bool:
    whole = shape.hidden % 128 == shape.inner % 128 == 0
    return form is not Format.FP8 or (whole and device.capability >= FP8_FROM)


def _layer(shape: Shape, form: Format, tokens: int, device: Device) -> Iterator[Program]:
    known_as = next((name for name, each in SHAPES.items() if each == shape), str(shape))
    act, launch, name = (
        ACTIVATIONS.get(known_as, SWIGLU),
        device.launch(shape, form, tokens),
        f"{known_as} {form} {tokens}",
    )
    first = _shaped(shape.experts, 2 * shape.inner, shape.hidden, form, act is GPT_OSS)
    last = _shaped(shape.experts, shape.hidden, shape.inner, form, act is GPT_OSS)
    into = gate_up.constants(first, shape.top, act, launch.gate_up, launch.programs)
    back = down.constants(last, launch.down, launch.programs)
    yield _matrix(f"{name} gate_up", gate_up.kernel, into, launch.gate_up, form)
    yield _matrix(f"{name} down", down.kernel, back, launch.down, form)
    yield Program(f"{name} sum", down.sum_kernel, down.sum_constants(last, shape.top, launch.down), down.SUMMING)


def _matrix(name: str, kernel: Any, constants: dict[str, object], tile: Tile, form: Format) -> Program:
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return Program(name, kernel, {**constants, "WIDE": False}, options, form)


def _routes(name: str, shape: Shape, device: Device, tokens: int) -> Iterator[Program]:
    for form in (Format.BF16, Format.MXFP4):
        rows = device.launch(shape, form, tokens).down.rows
        for head in (False, True) if shape.experts <= route.HEADED else (False,):
            constants = route.constants(RULES[name], shape.experts, rows, head)
            yield Program(f"{name} {tokens} route{' head' * head}", route.kernel, constants, align.ALONE)
        aligned = align.constants(shape.experts, shape.top, rows)
        yield Program(f"{name} {tokens} align", align.align_kernel, aligned, align.ALONE)


def _shaped(experts: int, rows: int, columns: int, form: Format, bias: bool) -> Weights:
    """Weights on the meta device: shapes without values."""
    with torch.device("meta"):
        half = 2 if form is Format.MXFP4 else 1
        scales = {Format.BF16: (0,), Format.FP8: (experts, rows // 128, columns // 128)}
        return Weights(
            form,
            torch.empty(experts, rows, columns // half, dtype=torch.uint8),
            torch.empty(scales.get(form, (experts, rows, columns // 32)), dtype=torch.uint8),
            torch.empty(experts, rows) if bias else None,
        )


def _ptxas(ptx: str, capability: int) -> str:
    """The output of ptxas --verbose."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        to = ["--gpu-name", sm_arch_from_capability(capability), "--output-file", str(source.with_suffix(".cubin"))]
        command = [get_ptxas(capability).path, "--verbose", *to, str(source)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _arguments() -> tuple[list[str], list[int]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="*", default=sorted(path.stem for path in CONFIGS.glob("*.json")))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), help="of which launches are taken")
    given = parser.parse_args()
    return given.devices, [int(count) for count in given.tokens.split(",")]


if __name__ == "__main__":
    sys.exit(main(*_arguments()))
