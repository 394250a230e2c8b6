"""Two simulated tiers, started once, without faults at the start of each test."""

from collections.abc import Iterator

import pytest

from loadtest.servers import Sim, sim


@pytest.fixture(scope="session")
def flash_server() -> Iterator[Sim]:
    with sim("flash", "--speed", "0", "--record-bodies", model="flash-model") as server:
        yield server


@pytest.fixture(scope="session")
def pro_server() -> Iterator[Sim]:
    with sim("pro", "--speed", "0", "--record-bodies", model="pro-model") as server:
        yield server


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
