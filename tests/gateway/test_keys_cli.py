import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.callers import Keys, identify
from gateway.cli.keys import keys
from gateway.errors import Unauthorized
from gateway.policy.model import Callers, DefaultCaller, Plan
from gateway.store import open_store
from gateway.types import Caller

CALLERS = Callers(default=DefaultCaller(plan="silver"), plans={"silver": Plan(), "gold": Plan()})


@pytest.fixture
def url(valkey: str) -> str:
    return valkey


def run(*arguments: str, url: str | None = None) -> Result:
    return CliRunner().invoke(keys, arguments, env={"GATEWAY_REDIS_URL": url})


def caller(url: str, key: str) -> Caller:
    async def ask() -> Caller:
        store = open_store(url)
        try:
            return await identify(f"Bearer {key}", Keys(store), CALLERS)
        finally:
            await store.close()

    return asyncio.run(ask())


def test_a_created_key_is_printed_alone_and_works(url: str) -> None:
    made = run("create", "ann", "--plan", "gold", url=url)
    assert (made.exit_code, made.stderr) == (0, "")
    assert made.stdout.count("\n") == 1
    found = caller(url, made.stdout.strip())
    assert (found.name, found.plan) == ("ann", "gold")


def test_the_address_may_be_an_option(url: str) -> None:
    assert run("create", "ann", "--redis", url).exit_code == 0


def test_create_may_answer_in_json(url: str) -> None:
    made = json.loads(run("create", "ann", "--json", url=url).stdout)
    own = {"expires", "requests_per_minute", "tokens_per_minute", "usd", "may"}
    assert set(made) == {"key", "id", "name", "plan", "created", "revoked"} | own
    assert caller(url, made["key"]).id == made["id"]


def test_if_none_makes_the_first_key_and_is_silent_afterwards(url: str) -> None:
    first, second = run("create", "ann", "--if-none", url=url), run("create", "ann", "--if-none", url=url)
    assert caller(url, first.stdout.strip()).name == "ann"
    assert (second.exit_code, second.output) == (0, "")


def test_list_shows_all_but_secrets_and_hashes(url: str) -> None:
    made = [json.loads(run("create", name, "--json", url=url).stdout) for name in ("ann", "bob")]
    text, listed = run("list", url=url).stdout, run("list", "--json", url=url).stdout
    assert [key["name"] for key in json.loads(listed)] == ["ann", "bob"]
    assert [line.split()[0] for line in text.splitlines()] == [key["id"] for key in made]
    for key in made:
        assert key["key"].rpartition("-")[2] not in text + listed
    assert "hash" not in listed


def test_a_revoked_key_is_refused_and_listed_as_revoked(url: str) -> None:
    made = json.loads(run("create", "ann", "--json", url=url).stdout)
    assert run("revoke", made["id"], url=url).exit_code == 0
    with pytest.raises(Unauthorized):
        caller(url, made["key"])
    assert "revoked" in run("list", url=url).stdout


def test_revoking_an_unknown_id_fails(url: str) -> None:
    done = run("revoke", "000000000000", url=url)
    assert done.exit_code == 1
    assert "000000000000" in done.stderr


def test_without_an_address_it_says_what_to_give() -> None:
    done = run("list")
    assert done.exit_code == 1
    assert "--redis" in done.stderr
    assert "GATEWAY_REDIS_URL" in done.stderr


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "redis://:secret@127.0.0.1:1"])
def test_an_address_that_is_no_store_is_a_message_without_its_password(address: str) -> None:
    done = run("create", "ann", url=address)
    assert done.exit_code == 1
    assert done.stderr.startswith("tiergate keys: ")
    assert "secret" not in done.stderr
    assert done.stdout == ""


def test_a_key_may_expire_and_have_limits_of_its_own_checked_against_a_policy(url: str) -> None:
    policy = str(Path(__file__).parents[2] / "policies" / "default.yaml")
    words = (
        "--expires",
        "30d",
        "--requests-per-minute",
        "5",
        "--tokens-per-minute",
        "700",
        "--usd",
        "1.5",
        "--may",
        "pro",
    )
    made = json.loads(run("create", "ann", *words, "--policy", policy, "--json", url=url).stdout)
    assert made["expires"] - made["created"] == pytest.approx(30 * 86_400, abs=5)
    assert (made["requests_per_minute"], made["tokens_per_minute"], made["usd"]) == (5, 700, 1.5)
    assert made["may"] == ["pro"]
    assert "expires 2" in run("list", url=url).stdout
    for wrong in (("--may", "gold"), ("--plan", "platinum"), ("--expires", "soon")):
        refused = run("create", "bob", *wrong, "--policy", policy, url=url)
        assert refused.exit_code == 1
