"""The experts of one layer in four launches of Triton: route, gate and up, down, sum. A skipped expert is not read."""
