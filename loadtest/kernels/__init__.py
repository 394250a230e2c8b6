"""What do the kernels that skip experts take on a GPU, and save?   Three commands, each of nine minutes at most.

    python -m loadtest.kernels grid --out OUT         ceilings, correctness, times: shapes x formats x batches x masks
    python -m loadtest.kernels quality --out OUT      a model of 70 M parameters is trained, all policies tried on it
    python -m loadtest.kernels serve --out OUT        TTFT and TPOT of whole models of random weights, in transformers
    python -m loadtest.kernels table OUT              one page of all results: each goal met, missed or not measured

It was written for one H200 with torch 2.11, Triton 3.6 and transformers 5.17; nothing is downloaded. Each command
writes NAME.json, NAME.md and NAME.log to OUT and ends in time: its parts are processes of their own, so what breaks or
hangs costs its own figures, and what did not fit is listed. `--minutes` gives a command less. `grid.json` is what
`tiergate backends estimate --kernels` takes.

With `--tiny` the same code runs without a GPU, in Triton's interpreter, for a minute each; its pages say that no figure
counts.

`grid` holds our kernels against reading alone, against themselves without a skip, against transformers' eager loop,
grouped_mm and batched_mm, and against vLLM's Triton kernel: installed, or `--rivals DIR` with its `fused_moe.py` (and
`configs/`) in a folder that git ignores. triton_kernels has no place in it yet.
"""
