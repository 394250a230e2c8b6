"""Two simulated tiers, a Valkey and a cluster, started once, without faults and empty at the start of each test."""

import asyncio
import gc
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest
from valkey import Valkey

from loadtest.clusters import Nodes, cluster
from loadtest.servers import Sim, sim
from loadtest.servers import valkey as embedded_valkey

PATIENCE = "?socket_timeout=10"  # seconds: the machine may have more work than cores, and that is no outage

for name in [name for name in os.environ if name.startswith(("GATEWAY_", "OTEL_")) or name in {"FLASH_URL", "PRO_URL"}]:
    del os.environ[name]  # of the shell, where a gateway of the reader's own may be set up

os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"  # looking for any reads about every package, in each process of the tests
gc.disable()  # modules and tests stay: looking through them for garbage would be half of the time to collect the tests


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000)  # what must be no garbage is looked for where it matters
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs in a loop of its own, or by its fixture `run`."""
    test = pyfuncitem.obj
    given: dict[str, Any] = pyfuncitem.funcargs
    if not inspect.iscoroutinefunction(test):
        return None
    run = given.get("run", asyncio.run)
    run(test(**{name: given[name] for name in inspect.signature(test).parameters}))
    return True


@pytest.fixture(scope="session")
def flash_server() -> Iterator[Sim]:
    with sim("flash", "--speed", "0", "--record-bodies", model="flash-model") as server:
        yield server


@pytest.fixture(scope="session")
def pro_server() -> Iterator[Sim]:
    with sim("pro", "--speed", "0", "--record-bodies", model="pro-model") as server:
        yield server


@pytest.fixture
def flash(flash_server: Sim) -> Sim:
    flash_server.reset()
    return flash_server


@pytest.fixture
def pro(pro_server: Sim) -> Sim:
    pro_server.reset()
    return pro_server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    with embedded_valkey() as url:
        yield url + PATIENCE


@pytest.fixture
def valkey(valkey_server: str) -> str:
    """The URL of an empty store."""
    with Valkey.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture(scope="session")
def cluster_nodes() -> Iterator[Nodes]:
    with cluster() as nodes:
        yield nodes


@pytest.fixture
def valkey_cluster(cluster_nodes: Nodes) -> str:
    """The URL of an empty store on six nodes."""
    cluster_nodes.flush()
    return cluster_nodes.url + PATIENCE


@pytest.fixture(scope="module", params=["fast", "asgi"])
def each_front(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests of the module once without ASGI in between, and once by it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GATEWAY_HTTP", request.param)
        yield
