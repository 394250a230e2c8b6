"""The experts of one MoE layer as Triton kernels in four launches: route, gate_up, down, sum. The weights of a skipped
expert are not read."""
