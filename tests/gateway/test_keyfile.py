import asyncio
import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.cli.keyfile import KeyFileStore
from gateway.keyfile import SETTLE, KeyFile, read_keys
from gateway.policy import PolicyError, load_policy
from gateway.store import KeyRecord, open_store
from loadtest.servers import Sim, free_port, program
from tests.gateway.serving import PATIENCE, Port, gateway
from tests.tiers import JSON, policy_text

NOWHERE = Sim("http://127.0.0.1:1", "a-model")
SECRET = "0f" * 32
ODD = st.sampled_from("{}[]:,\"'\n -#&*!|0.eantruefls$\ud800\x85")
ANN: JSON = {"id": "5d0c63ab12f9", "hash": "91be" * 16, "name": "ann", "created": 1772323200.0}


def text(*keys: Any, **top: Any) -> str:
    return json.dumps({"schema": 1, "secret": SECRET, "keys": list(keys), **top}, indent=1)


def keys(*words: str) -> Result:
    return CliRunner().invoke(app, ["keys", *words])


def test_yaml_and_json_hold_records_with_all_that_the_store_keeps() -> None:
    every: JSON = {**ANN, "plan": "gold", "revoked": 1.0, "expires": 2.0, "requests_per_minute": 3}
    every |= {"usd": 0.5, "window": "7d"}
    every |= {"tokens_per_minute": 4, "may": ["pro"], "explain": False, "old_hash": "0f" * 32, "old_until": 5.0}
    assert every.keys() == set(KeyRecord.__dataclass_fields__)
    held = read_keys(text(every), "keys.json")
    assert held.records == {ANN["id"]: KeyRecord(**{**every, "may": ("pro",)})}
    assert held.secret == bytes.fromhex(SECRET)
    yaml = f"schema: 1\nsecret: ${{PEPPER}}  # not here\nkeys:\n  - {{id: a, hash: {ANN['hash']}, name: a, created: 1}}"
    held = read_keys(yaml, "keys.yaml", {"PEPPER": SECRET})
    assert (held.secret, held.records["a"].name) == (bytes.fromhex(SECRET), "a")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (text({**ANN, "revokd": 1.0}), r'k:10:4: keys.0.revokd: unknown key; did you mean "revoked"\?'),
        (text({**ANN, "name": 7}), r"k:8:12: keys.0.name: Expected `str`, got `int`"),
        (text({"id": "a"}), r"k:5:3: keys.0: .*missing required field"),
        (text({**ANN, "hash": "x"}), r"k:7:12: keys.0.hash: expected 64 hex"),
        (text({**ANN, "old_hash": "x"}), r"k:10:16: keys.0.old_hash: expected 64 hex"),
        (text({**ANN, "requests_per_minute": 0}), r"k:10:27: .*requests_per_minute: expected more than 0"),
        (text({**ANN, "window": "day"}), r"k:10:14: keys.0.window: .* or month"),
        (text(ANN, ANN), r"k:12:10: keys.1.id: given twice"),
        (text("ann"), r"keys.0: expected a mapping"),
        (text(secret="short"), r"secret: expected 64 hex"),
        (text(secret=[SECRET]), r"secret: expected 64 hex"),
        (text(keys=None), r"keys: expected a list"),
        (text(schema=2), r"schema: expected 1"),
        (text(keyz=[]), r'keyz: unknown key; did you mean "keys"'),
        ("[]", "expected a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_told_by_line_and_column(wrong: str, told: str) -> None:
    with pytest.raises(PolicyError, match=told) as error:
        read_keys(wrong, "k", {})
    assert SECRET not in str(error.value)


@settings(max_examples=150)
@given(st.integers(0, 400), st.integers(0, 9), st.text(ODD, max_size=6))
def test_a_file_with_anything_in_it_is_read_or_refused_and_nothing_else(at: int, cut: int, put: str) -> None:
    written = text({**ANN, "may": ["pro"], "usd": 1.5})
    with contextlib.suppress(PolicyError):
        read_keys(written[:at] + put + written[at + cut :], "k", {})


def test_a_file_is_taken_over_when_it_changed_and_kept_as_it_was_while_it_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text(ANN))
    file = KeyFile(path)

    def then(change: Callable[[], object]) -> tuple[bool, bool]:
        """Whether ann's key is known and active, and whether the file is right, after two looks."""
        change()
        file.look()
        file.look()
        held = file.find(ANN["id"])
        return held is not None and held[0].revoked is None, file.problem is None

    with caplog.at_level(logging.WARNING, "gateway"):
        assert then(lambda: path.write_text(text(ANN)[:-9])) == (True, False)
        assert then(path.unlink) == (True, False)
        assert then(lambda: path.write_text(text({**ANN, "revoked": 1.0}))) == (False, True)
        assert then(lambda: path.write_text(text(ANN))) == (True, True)
        assert then(path.unlink) == (True, False)
        assert then(lambda: path.write_text(text(ANN))) == (True, True), "as it was before it was missing"
        assert then(lambda: path.write_text(text())) == (False, True)
    assert [record.getMessage().count("stay in force") for record in caplog.records] == [1, 1, 0, 1, 0]


def test_a_file_that_is_still_being_written_loses_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    first, second = (json.dumps({**ANN, "id": f"{n:012x}"}) for n in range(2))
    half = f"schema: 1\nsecret: {SECRET}\nkeys:\n- {first}\n"  # which is right in itself
    path.write_text(f"{half}- {second}\n")
    file = KeyFile(path)
    path.write_text(half)
    rest = threading.Timer(SETTLE / 2, path.write_text, [f"{half}- {second}\n# written anew\n"])
    rest.start()
    file.look()
    rest.join()
    assert len(file.records()) == 2
    path.write_text(half)
    file.look()
    assert (len(file.records()), file.problem) == (1, None)


def test_a_swapped_link_is_seen(tmp_path: Path) -> None:
    for folder, found in (("one", [ANN]), ("two", [{**ANN, "revoked": 1.0}])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys.json").write_text(text(*found))
    link = tmp_path / "..data"
    link.symlink_to("one")
    file = KeyFile(tmp_path / "..data" / "keys.json")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    file.look()
    held = file.find(ANN["id"])
    assert held
    assert held[0].revoked == 1.0


def test_the_commands_make_and_change_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    words = ("--expires", "30d", "--usd", "1.5", "--may", "pro", "--json", "--file", str(path))
    made = json.loads(keys("create", "${ann}", *words).stdout)
    assert path.stat().st_mode & 0o777 == 0o600
    assert made["key"] not in path.read_text()
    admin = keys("admin", "--file", str(path)).stdout.strip()
    again = keys("admin", "--file", str(path)).stdout.strip()
    assert admin != again
    listed = json.loads(keys("list", "--json", "--file", str(path)).stdout)
    assert [(key["name"], key["usd"], key["may"]) for key in listed] == [
        ("${ann}", 1.5, ["pro"]),
        ("admin", None, None),
    ]
    its = (made["id"], "--file", str(path))
    changed = json.loads(keys("change", *its, "--unset", "usd", "--plan", "${x}", "--json").stdout)
    assert changed == {**listed[0], "usd": None, "plan": "${x}"}
    assert keys("rotate", *its, "--keep", "1d").stdout.startswith(f"sk-tg-{made['id']}-")
    kept = json.loads(path.read_text())["keys"][0]
    assert (kept["name"], kept["plan"], "usd" in kept) == ("$${ann}", "$${x}", False)
    assert kept["hash"] != kept["old_hash"]
    assert keys("revoke", made["id"], "--file", str(path)).exit_code == 0
    assert keys("revoke", "000000000000", "--file", str(path)).exit_code == 1
    assert "revoked" in keys("list", "--file", str(path)).stdout
    assert keys("first", "--file", str(path)).output == ""
    assert keys("first", "--file", str(tmp_path / "other.json")).stdout.count("sk-tg-") == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["keys.json", "other.json"]


def test_the_secret_may_stay_in_the_environment_and_yaml_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEPPER", secrets.token_hex(32))
    path = tmp_path / "keys.json"
    eve = {**ANN, "name": "${PEPPER}"}
    path.write_text(text(eve, secret="${PEPPER}"))
    assert keys("create", "ann", "--file", str(path)).exit_code == 0
    assert keys("change", str(ANN["id"]), "--usd", "2", "--file", str(path)).exit_code == 0
    told = json.loads(path.read_text())
    assert (told["secret"], told["keys"][0]) == ("${PEPPER}", eve | {"usd": 2.0})
    path.write_text(before := f"schema: 1 # ours\nsecret: {SECRET}\nkeys: []\n")
    done = keys("create", "ann", "--file", str(path))
    assert (done.exit_code, path.read_text()) == (1, before)
    assert "YAML" in done.stderr
    assert keys("list", "--file", str(tmp_path / "none" / "keys.json")).exit_code == 1


def test_changes_at_the_same_time_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def create(n: int) -> None:
        asyncio.run(KeyFileStore(path).put_key(KeyRecord(f"id-{n}", str(ANN["hash"]), "ann", None, float(n))))

    asyncio.run(KeyFileStore(path).secret())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(24)))
    assert len(KeyFile(path).records()) == 24


async def status(gate: Port, key: str) -> int:
    return (await gate.get("/v1/models", authorization=f"Bearer {key}")).status


async def file_of(gate: Port) -> str:
    """What /ready says of the file of keys."""
    return str((await gate.get("/ready")).json()["keys_file"])


def test_a_key_revoked_in_the_file_or_in_the_store_is_refused_by_all_gateways(tmp_path: Path, valkey: str) -> None:
    path, rules = tmp_path / "keys.json", tmp_path / "policy.yaml"
    rules.write_text(text := policy_text(NOWHERE, NOWHERE))
    made = {place: json.loads(keys("create", "ann", "--json", *place).stdout)
            for place in (("--file", str(path)), ("--redis", valkey))}  # fmt: skip

    async def main(there: Port) -> None:
        async with gateway(load_policy(text), open_store(valkey), everyone=False, file=KeyFile(path)) as here:

            async def answers() -> set[int]:
                return {await status(gate, key["key"]) for gate in (here, there) for key in made.values()}

            assert await answers() == {200}
            assert {await status(gate, "sk-tg-000000000000-x") for gate in (here, there)} == {401}
            before = path.read_text()
            path.write_text(before[:-9])
            async with asyncio.timeout(PATIENCE):
                while {await file_of(gate) for gate in (here, there)} != {"broken"}:  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.02)
            assert await answers() == {200}
            path.write_text(before)
            for place, key in made.items():
                assert (await asyncio.to_thread(keys, "revoke", key["id"], *place)).exit_code == 0
            async with asyncio.timeout(PATIENCE):
                while await answers() != {401}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert await file_of(there) == "ok"

    command = ["-m", "gateway", "serve", "--policy", str(rules), "--redis", valkey, "--keys", str(path), "--port"]
    with program([*command, str(port := free_port())], port):
        asyncio.run(main(Port(port)))
