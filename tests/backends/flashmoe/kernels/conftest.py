"""Kernels run by Triton's interpreter, which is chosen when they are defined: before anything imports them."""

import os

os.environ["TRITON_INTERPRET"] = "1"
