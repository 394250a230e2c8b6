"""One fast server for each test module."""

from collections.abc import Iterator

import pytest

from tests.backends.sim.servers import served


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A Flash server that waits for nothing, with small cache blocks."""
    with served("--speed", "0", "--block-size", "16", "--record-bodies") as base:
        yield base
