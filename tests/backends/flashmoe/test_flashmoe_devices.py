"""Is a measured launch taken where there is one, a computed one elsewhere, and a bad file refused in words?"""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from backends.flashmoe.kernels.devices import CONFIGS, Device, known, parse
from backends.flashmoe.kernels.launch import SHAPES, Format, Launch, choose, fault

SHAPE = SHAPES["qwen3-30b"]
COMPUTED = choose(SHAPE, Format.BF16, 16, processors=100)
MEASURED = replace(COMPUTED, down=replace(COMPUTED.down, columns=32), programs=400)


def entry(tokens: int, launch: Launch = MEASURED) -> dict[str, Any]:
    return {"shape": asdict(SHAPE), "format": "bf16", "tokens": tokens, "launch": asdict(launch)}


def written(*measured: dict[str, Any], **facts: Any) -> str:
    return json.dumps({"capability": 90, "processors": 100, "shared": 233472, "measured": list(measured), **facts})


def test_a_measured_launch_is_taken_near_the_tokens_it_was_measured_at() -> None:
    device = parse(written(entry(16), entry(64, COMPUTED)), "a.json")
    assert [device.launch(SHAPE, Format.BF16, tokens) == MEASURED for tokens in (7, 8, 16, 32, 41, 129)] == [
        *(False, True, True, True, False, False)
    ]
    assert device.launch(SHAPE, Format.MXFP4, 16) == choose(SHAPE, Format.MXFP4, 16, 100)
    assert device.launch(SHAPES["mixtral"], Format.BF16, 16) == choose(SHAPES["mixtral"], Format.BF16, 16, 100)


def test_a_device_without_measurements_computes() -> None:
    assert Device(90, 100, 233472, {}).launch(SHAPE, Format.BF16, 16) == COMPUTED


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_file_is_found_by_the_name_that_cuda_tells(path: Any) -> None:
    device = known(path.stem.upper().replace("-", " "))
    assert device is not None
    assert device == known(path.stem)
    assert device.shared > 100_000


def test_a_device_without_a_file_is_not_known() -> None:
    assert known("NVIDIA GeForce 256") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "a.json: no JSON"),
        ("[]", "a.json: wants capability, measured, processors, shared"),
        (written(speed=9), "a.json: wants capability, measured, processors, shared and nothing else"),
        (written(processors=0), "a.json: processors: 0 is no count above 0"),
        (written(shared=True), "a.json: shared: True is no count"),
        (written(measured=7), r"measured\[0\]: wants format, launch, shape, tokens"),
        (written({**entry(1), "format": "int4"}), r"measured\[0\].format: 'int4' is none of bf16, fp8, mxfp4"),
        (written({**entry(1), "tokens": "many"}), r"measured\[0\].tokens: 'many' is no count"),
        (written(entry(1), {**entry(2), "shape": {}}), r"measured\[1\].shape: wants experts, hidden, inner, top"),
        (written({**entry(1), "launch": {**asdict(MEASURED), "down": 3}}), r"\[0\].launch.down: wants columns"),
        (
            written(entry(1, replace(MEASURED, down=replace(MEASURED.down, splits=5)))),
            "sizes that are no powers of two",
        ),
        (written(entry(1, replace(MEASURED, down=replace(MEASURED.down, splits=64)))), "a down that does not divide"),
    ],
)
def test_a_bad_file_is_refused_at_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text, "a.json")


@pytest.mark.parametrize("tokens", [1, 16, 64, 4096])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", [Format.BF16, Format.MXFP4])
def test_no_computed_launch_is_at_fault(shape: Any, form: Format, tokens: int) -> None:
    launch = choose(shape, form, tokens)
    assert not fault(shape, form, launch)
    assert "more than 32 rows" in fault(shape, Format.MXFP4, choose(shape, Format.BF16, 4096))
    assert "rows that differ" in fault(shape, form, replace(launch, down=replace(launch.down, rows=128)))
