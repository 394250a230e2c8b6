"""Is every shipped kernel the machine code it should be?"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed: the kernels are not tested")


@pytest.mark.parametrize(
    ("device", "tokens", "programs", "instruction"),
    [
        ("nvidia-h200", "1,16,64,256", 75, "wgmma"),
        ("nvidia-a100-sxm4-80gb", "1", 30, "mma"),  # one number of tokens each, as compiling takes its time
        ("nvidia-b200", "256", 30, "tcgen05.mma"),
    ],
)
def test_every_shipped_kernel_compiles_without_spills(
    device: str, tokens: str, programs: int, instruction: str
) -> None:
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "backends.flashmoe.kernels.machine_code", device, "--tokens", tokens]
    run = subprocess.run(command, env=compiling, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert lines[-1] == f"{len(lines) - 1} programs, 0 not as they should be"
    assert len(lines) > programs
    assert any(f" {instruction}:" in line for line in lines)
