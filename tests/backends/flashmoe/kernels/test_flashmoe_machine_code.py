"""Is every shipped kernel the machine code it should be?"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed: the kernels are not tested")


def test_every_shipped_kernel_compiles_for_hopper_without_spills() -> None:
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "backends.flashmoe.kernels.machine_code", "90"]
    run = subprocess.run(command, env=compiling, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert lines[-1] == f"{len(lines) - 1} programs, 0 not as they should be"
    assert len(lines) > 90
    assert any("HGMMA" in line for line in lines)
