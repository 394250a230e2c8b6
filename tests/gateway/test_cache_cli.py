"""`tiergate cache purge` on a real Valkey, without touching what is no entry."""

import json

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.store import Store
from tests.stores import on


def run(*arguments: str, url: str | None) -> Result:
    return CliRunner().invoke(app, ["cache", *arguments], env={"GATEWAY_REDIS_URL": url})


async def filled(store: Store) -> None:
    for caller in ("ann", "bob"):
        for n in range(3):
            await store.remember(caller, b"%d" % n, b"x", 60.0)


def test_purging_one_caller_and_then_all(valkey: str) -> None:
    on(valkey, filled)
    done = run("purge", "--caller", "ann", "--json", url=valkey)
    assert json.loads(done.stdout) == {"caller": "ann", "purged": 3}
    assert on(valkey, lambda store: store.recall("bob", b"1")) == b"x"
    told = run("purge", url=valkey)
    assert told.stdout == "purged 3\n"
    assert told.stderr == "", "progress is for terminals"
    assert run("purge", url=valkey).stdout == "purged 0\n"


def test_without_a_store_it_says_what_to_give_and_nothing_of_what_a_gateway_would_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "redis://:secret@127.0.0.1:1", "redis://127.0.0.1:1?password=secret"
    for url, told in ((None, "--redis"), *((url, "127.0.0.1:1 cannot be used: [Errno") for url in secret)):
        done = run("purge", url=url)
        assert done.exit_code == 1
        assert done.stderr.startswith("tiergate cache: ")
        assert caplog.records == []
        assert told in done.stderr
        assert "secret" not in done.stderr
