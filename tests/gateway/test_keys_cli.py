import asyncio
import json
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.admin import Guard
from gateway.cli.keyfile import KeyFileStore
from gateway.cli.keys import keys
from gateway.errors import Refusal, Unauthorized
from gateway.key_records import new_key
from gateway.keys import Keys, identify
from gateway.policy.plans import Callers, DefaultCaller, Plan
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


def administers(url: str, key: str) -> bool:
    async def ask() -> bool:
        store = open_store(url)
        try:
            await Guard(Keys(store), None).check(f"Bearer {key}", "test")
        except Refusal:
            return False
        finally:
            await store.close()
        return True

    return asyncio.run(ask())


def test_who_has_no_store_is_told_that_a_file_will_do() -> None:
    done = run("create", "ann")
    assert (done.exit_code, "--redis URL" in done.stderr, "--file FILE" in done.stderr) == (1, True, True)


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
    own = {"expires", "requests_per_minute", "tokens_per_minute", "usd", "window", "may", "explain", "old_until"}
    assert set(made) == {"key", "id", "name", "plan", "created", "revoked"} | own
    assert caller(url, made["key"]).id == made["id"]


def test_first_makes_a_callers_key_and_an_admin_key_and_is_silent_afterwards(url: str) -> None:
    made, again = run("first", url=url), run("first", url=url)
    keys = dict(line.split(": ") for line in made.stdout.splitlines())
    assert caller(url, keys["API key"]).name == "first"
    assert administers(url, keys["admin key"])
    assert (again.exit_code, again.output) == (0, "")


def test_first_makes_the_admin_key_alone_where_callers_have_theirs(url: str) -> None:
    run("create", "ann", url=url)
    made = run("first", url=url).stdout
    assert made.count("\n") == 1
    assert administers(url, made.removeprefix("admin key: ").strip())


def test_an_admin_key_opens_admin_and_nothing_else_and_takes_the_place_of_the_one_before(url: str) -> None:
    first, second = (run("admin", url=url).stdout.strip() for _ in range(2))
    assert [administers(url, key) for key in (first, second)] == [False, True]
    with pytest.raises(Unauthorized):
        caller(url, second)
    assert run("revoke", "admin", url=url).exit_code == 0
    assert not administers(url, second)


def test_first_may_answer_in_json_with_null_for_what_there_was(url: str) -> None:
    made, again = (json.loads(run("first", "--json", url=url).stdout) for _ in range(2))
    assert caller(url, made["key"]).name == "first"
    assert administers(url, made["admin_key"])
    assert again == {"key": None, "admin_key": None}


def test_list_tells_plan_and_state_of_each_key_and_what_it_has_of_its_own(tmp_path: Path) -> None:
    file, hour = KeyFileStore(tmp_path / "keys.json"), 3600

    async def fill() -> None:
        secret, now = await file.secret(), time.time()
        for name, plan, own in (
            ("ann", "gold", {"usd": 5.0, "window": "month"} | {"may": ("flash", "pro"), "explain": False}),
            ("bob", None, {"expires": now + hour, "requests_per_minute": 7, "old_until": now + hour}),
            ("cid", None, {"expires": now - hour, "old_until": now - hour}),
            ("dan", None, {"expires": now + hour, "revoked": 1.0}),
            ("eve\rann\n\x1b[A", None, {"revoked": 1.0}),  # such as nobody can create, but a file or a store may hold
        ):
            await file.put_key(new_key(secret, name, plan, **own)[1])

    asyncio.run(fill())
    listed = run("list", "--file", str(tmp_path / "keys.json")).stdout.splitlines()
    told = [re.sub(r" +20\S+Z", "", line).split("  ")[1:] for line in listed]
    assert told == [
        ["ann", "gold", "active", "usd 5.0", "window month", "may flash,pro", "explain False"],
        ["bob", "(default plan)", "expires", "requests_per_minute 7", "the one before until"],
        ["cid", "(default plan)", "expired"],
        ["dan", "(default plan)", "revoked 1970-01-01T00:00:01Z"],
        ["eve\\rann\\n\\x1b[A", "(default plan)", "revoked 1970-01-01T00:00:01Z"],
    ]


def test_list_shows_all_but_secrets_and_hashes(url: str) -> None:
    made = [json.loads(run("create", name, "--json", url=url).stdout) for name in ("ann", "bob")]
    text, listed = run("list", url=url).stdout, run("list", "--json", url=url).stdout
    assert [key["name"] for key in json.loads(listed)] == ["ann", "bob"]
    assert [line.split()[0] for line in text.splitlines()] == [key["id"] for key in made]
    for key in made:
        secret = key["key"].partition(key["id"] + "-")[2]
        assert len(secret) == 43
        assert secret not in text + listed
    assert "hash" not in listed


def test_a_revoked_key_is_refused_and_listed_as_revoked(url: str) -> None:
    made = json.loads(run("create", "ann", "--json", url=url).stdout)
    assert run("revoke", made["id"], url=url).exit_code == 0
    with pytest.raises(Unauthorized):
        caller(url, made["key"])
    assert "revoked" in run("list", url=url).stdout


def test_who_has_a_key_that_leaked_revokes_it_by_the_key_which_is_not_repeated(url: str) -> None:
    made = json.loads(run("create", "ann", "--json", url=url).stdout)
    done = run("revoke", made["key"], url=url)
    assert (done.exit_code, done.stdout) == (0, f"revoked {made['id']}\n")
    unknown = made["key"].replace(made["id"], "0" * 12)
    assert unknown not in run("revoke", unknown, url=url).stderr


def test_revoking_an_unknown_id_fails(url: str) -> None:
    done = run("revoke", "000000000000", url=url)
    assert done.exit_code == 1
    assert "000000000000" in done.stderr


@pytest.mark.parametrize("words", [("change", "x", "--name", "y"), ("rotate", "x"), ("revoke", "x"), ("list",)])
def test_only_who_makes_a_key_makes_a_file(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(*words, "--file", str(tmp_path / "kyes.json"))
    assert (done.exit_code, [*tmp_path.iterdir()]) == (1, [])
    assert done.stderr.endswith("kyes.json:1:1: cannot be read: No such file or directory\n")


def test_a_changed_key_is_the_same_key_with_what_is_given_or_unset(url: str) -> None:
    made = json.loads(run("create", "ann", "--usd", "5", "--may", "pro", "--expires", "30d", "--json", url=url).stdout)
    words = "--name eve --plan gold --usd 20 --window month --unset expires --unset may"
    done = run("change", made["id"], *words.split(), url=url)
    assert (done.exit_code, done.stdout) == (0, f"changed {made['id']}\n")
    told = json.loads(run("list", "--json", url=url).stdout)
    assert told == [
        {name: value for name, value in made.items() if name != "key"}
        | {"name": "eve", "plan": "gold", "usd": 20.0, "window": "month", "expires": None, "may": None}
    ]
    found = caller(url, made["key"])
    assert (found.id, found.name, found.plan) == (made["id"], "eve", "gold")
    assert (found.own.usd, found.own.window) == (20.0, "month")
    again = run("change", made["key"], "--unset", "requests_per_minute", "--tokens-per-minute", "7", "--json", url=url)
    assert json.loads(again.stdout) == told[0] | {"tokens_per_minute": 7}


def test_a_rotated_key_is_another_one_for_the_same_caller(url: str) -> None:
    made = json.loads(run("create", "ann", "--usd", "5", "--json", url=url).stdout)
    second = run("rotate", made["id"], "--keep", "1d", url=url).stdout.strip()
    assert caller(url, second) == caller(url, made["key"])
    third = json.loads(run("rotate", second, "--json", url=url).stdout)
    assert caller(url, third["key"]).own.usd == 5.0
    assert third == made | {"key": third["key"], "old_until": None}
    for key in (made["key"], second):
        with pytest.raises(Unauthorized):
            caller(url, key)


def test_a_change_that_cannot_be_made_is_told_and_changes_nothing(url: str) -> None:
    policy = str(Path(__file__).parents[2] / "policies" / "default.yaml")
    made, gone = (json.loads(run("create", name, "--json", url=url).stdout)["id"] for name in ("ann", "bob"))
    run("revoke", gone, url=url)
    run("admin", url=url)
    before = run("list", "--json", url=url).stdout
    for told, words in (
        ("000000000000", ("change", "000000000000", "--usd", "1")),
        ("000000000000", ("rotate", "000000000000")),
        ("nothing is given", ("change", made)),
        ("platinum", ("change", made, "--plan", "platinum", "--policy", policy)),
        ("printable", ("change", made, "--name", "")),
        ("at least 1ms", ("change", made, "--expires", "0s")),
        ("duration", ("rotate", made, "--keep", "soon")),
        ("no active key", ("change", gone, "--usd", "1")),
        ("no active key", ("rotate", gone)),
        ("no active key", ("rotate", "admin")),
    ):
        done = run(*words, url=url)
        assert (done.exit_code, done.stdout) == (1, ""), words
        assert told in done.stderr, words
    assert run("list", "--json", url=url).stdout == before


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
    for wrong in ("--may gold", "--plan platinum", "--expires soon", "--expires 0d", "--window day"):
        refused = run("create", "bob", *wrong.split(), "--policy", policy, url=url)
        assert refused.exit_code == 1
