"""Does the plug-in that skips experts know DeepSeek-V4's layers?   One of three routes by a table of token ids."""

import contextlib
import time
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.servers import Sim, free_port
from tests.engines.conftest import (
    DEEPSEEK_V4,
    ROOT,
    START,
    Architecture,
    Engines,
    engine,
    entry_points,
    fit,
    wait,
)
from tests.engines.test_plugin import COUNTED, PROMPTS
from tests.engines.test_v4 import post
from tests.engines.tiny_v4 import HASHED, RATIOS, TOP_K

ARCHITECTURES = [DEEPSEEK_V4]
KEPT, OTHERS = 2, len(RATIOS) - HASHED
MODES = {"exact": "mode=off,log_s=1", "skips": f"mode=top-k,k={KEPT},hash_layers=exact,log_s=1"}
Plugged = dict[str, tuple[Sim, Path]]


@pytest.fixture(scope="module")
def plugged(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugged]:
    """Servers of Pro's model, and what they log, one for each of MODES."""
    fit(architecture)
    place = tmp_path_factory.mktemp("plugged-v4")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    paths = [entry_points(place / "tiergate", "tiergate", points),
             entry_points(place / "shim", "shim", {"vllm.general_plugins": architecture.points}), ROOT]  # fmt: skip
    arguments = [*architecture.serve, "--model", str(architecture.pair(place)[1]), "--served-model-name", "pro-model"]
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", ":".join(map(str, paths)))
        servers = {}
        for name, mode in MODES.items():
            environment.setenv("FLASHMOE_VLLM", mode)
            servers[name] = stack.enter_context(engine(arguments, free_port(), place / f"{name}.log"))
        environment.undo()
        wait(list(servers.values()), START)
        yield {name: (Sim(url, "pro-model"), log) for name, (url, _, log) in servers.items()}


def said(server: Sim, prompt: str, tokens: int = 24) -> str:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    text: str = post(server, "/v1/completions", body)["choices"][0]["text"]
    return text


def settled(log: Path) -> tuple[int, int]:
    """Read and asked, once three seconds brought no other line; the server writes one a second while they change."""
    deadline, seen, since = time.monotonic() + 60, (0, 0), time.monotonic()
    while time.monotonic() < deadline:
        lines = COUNTED.findall(log.read_text())
        now = (int(lines[-1][0]), int(lines[-1][1])) if lines else (0, 0)
        if now == seen and time.monotonic() > since + 3:
            return now
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.2)
    pytest.fail(f"the counts go on:\n{log.read_text()[-3000:]}")


def test_with_mode_off_the_text_is_that_of_a_server_without_the_plug_in(engines: Engines, plugged: Plugged) -> None:
    texts = [said(engines.pro, prompt) for prompt in PROMPTS]
    assert [said(plugged["exact"][0], prompt) for prompt in PROMPTS] == texts
    assert [said(plugged["skips"][0], prompt) for prompt in PROMPTS] != texts


@pytest.mark.parametrize(("mode", "read"), [("exact", len(RATIOS) * TOP_K), ("skips", HASHED * TOP_K + OTHERS * KEPT)])
def test_a_token_asks_all_and_reads_what_is_left_of_the_layers_without_a_table(
    plugged: Plugged, mode: str, read: int
) -> None:
    server, log = plugged[mode]
    counts = [settled(log)]
    for tokens in (1, 11):
        said(server, PROMPTS[0], tokens)
        counts.append(settled(log))
    one, eleven = ([now - then for now, then in zip(after, before, strict=True)] for before, after in pairwise(counts))
    assert [more - less for more, less in zip(eleven, one, strict=True)] == [10 * read, 10 * len(RATIOS) * TOP_K]
