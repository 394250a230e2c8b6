"""The tiny model, its predictor and text it never saw."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from backends.flashmoe import measure, predictor
from backends.flashmoe.measure import Quality
from backends.flashmoe.predictor import Predictor

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(measure.TINY, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def trained() -> Predictor:
    return predictor.load(measure.TINY / "predictor.safetensors")


@pytest.fixture(scope="session")
def text() -> Tensor:
    return measure.held_out(32)


@pytest.fixture(scope="session")
def exact(model: Any, text: Tensor) -> Quality:
    return measure.quality(model, text)
