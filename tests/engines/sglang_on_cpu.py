"""How does SGLang start on a CPU?   Names stand in for kernels that PyPI has for CUDA alone, and none is called.

It imports names of `sgl_kernel` (CUDA alone), and goes on in torch where a CPU has no AMX. torchvision of PyPI beside a
torch without CUDA cannot load its operators, and declares their shapes nevertheless. Imported at the start of each of
its processes, by a `sitecustomize`.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

OPERATORS = ("nms", "qnms")


class Names(ModuleType):
    """A module with every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f"{self.__name__}.{name}")

        return called


class StandIn(MetaPathFinder, Loader):
    kept: Any = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision" and self.kept is None:
            self.kept = declared()
        ours = name == "sgl_kernel" or (name.startswith("sgl_kernel.") and name != "sgl_kernel.scalar_type")
        return ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Names(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__version__"] = "0.4.10"  # the oldest that SGLang 0.5.23 takes


def declared() -> Any:
    """torchvision's operators, without what they do, as long as it is held."""
    import torch  # noqa: PLC0415

    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


sys.meta_path.insert(0, StandIn())
