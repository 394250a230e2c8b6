"""Two simulated tiers, started once, without faults at the start of each test."""

from collections.abc import Iterator

import pytest

from loadtest.servers import sim
from tests.tiers import Sim


@pytest.fixture(scope="session")
def flash_server() -> Iterator[Sim]:
    with sim("flash", "flash-model", "--speed", "0", "--record-bodies") as url:
        yield Sim(url, "flash-model")


@pytest.fixture(scope="session")
def pro_server() -> Iterator[Sim]:
    with sim("pro", "pro-model", "--speed", "0", "--record-bodies") as url:
        yield Sim(url, "pro-model")


@pytest.fixture
def flash(flash_server: Sim) -> Iterator[Sim]:
    flash_server.reset()
    yield flash_server
    flash_server.reset()


@pytest.fixture
def pro(pro_server: Sim) -> Iterator[Sim]:
    pro_server.reset()
    yield pro_server
    pro_server.reset()
