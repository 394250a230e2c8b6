"""What does one replica run on?   `h200x8`: eight H200; `ram128`: a machine without a GPU; `mac192`: unified memory."""

import re
from dataclasses import dataclass

from backends.recipes.models import GIB


class Impossible(ValueError):
    """A recipe that cannot work; the message says why."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """`gib`: memory as the driver reports it, GiB. `node`: GPUs of a host. `rate`: published memory bandwidth, bytes a
    second; 0: unknown."""

    gib: float
    node: int
    family: str
    rate: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware of one replica. `count`: GPUs; 0: none, `gpu.gib` is main memory."""

    name: str
    gpu: Gpu
    count: int

    @property
    def nodes(self) -> int:
        return max(1, -(-self.count // self.gpu.node))

    @property
    def per_node(self) -> int:
        return self.count // self.nodes


GPUS = {
    "h200": Gpu(140.4, 8, "hopper", 4.8e12),
    "b200": Gpu(179.1, 8, "blackwell", 8.0e12),
    "b300": Gpu(268.0, 8, "blackwell", 8.0e12),
    "gb200": Gpu(185.0, 4, "blackwell", 8.0e12, "NVL4: a tray of four"),
    "gb300": Gpu(268.0, 4, "blackwell", 8.0e12, "NVL4: a tray of four"),
    "mi355": Gpu(288.0, 8, "amd", 8.0e12),
    "rtx6000": Gpu(95.6, 8, "small", 1.79e12, "RTX PRO 6000; published for Flash"),
    "spark": Gpu(119.0, 1, "small", 273e9, "DGX Spark, unified memory; published with a community image"),
    "station": Gpu(252e9 / GIB, 1, "station", 7.1e12, "DGX Station GB300"),
}


def hardware(name: str) -> Hardware:
    """The hardware of a name. Raises Impossible for an unknown one, and a count that is no whole number of hosts."""
    if found := re.fullmatch(r"(ram|mac)(\d{1,4})", name):
        return Hardware(name, Gpu(float(found[2]), 1, found[1]), 0)
    found = re.fullmatch(r"([a-z]+\d*)x(\d{1,3})", name)
    if found is None or found[1] not in GPUS:
        raise Impossible(
            f"no hardware is named {name}: a GPU and how many ({', '.join(GPUS)}), as h200x8; ram128; mac192"
        )
    gpu, count = GPUS[found[1]], int(found[2])
    if not count or (count > gpu.node and count % gpu.node):
        raise Impossible(f"{name}: hosts have {gpu.node} of them each; {count} are no number of whole hosts")
    return Hardware(name, gpu, count)
