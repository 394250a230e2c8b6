"""What the tests of the gateway share."""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

# An example has as long as it takes: on a machine with more work than cores, slow is no defect.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(params=["memory", "valkey", "valkey_cluster"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Each kind of store, by its URL; None: in memory."""
    return None if request.param == "memory" else request.getfixturevalue(request.param)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage collector during the test: what is in a reference cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
