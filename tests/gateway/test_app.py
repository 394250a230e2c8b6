import re
import secrets
from pathlib import Path

import pytest
from typer.testing import CliRunner
from valkey import Valkey

from gateway.app import NoKeys, open_to_everyone
from gateway.cli import app
from gateway.cli.keyfile import KeyFileStore
from gateway.cli.serve import permitted
from gateway.key_records import as_revoked, new_admin_key, new_key
from gateway.keyfile import KeyFile
from gateway.settings import Settings
from gateway.store import MemoryStore, open_store
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, body, gateway
from tests.tiers import policy_for

KEY = "a-key-that-is-long-enough"


async def test_others_are_served_only_with_a_callers_key_and_an_admin_key(tmp_path: Path) -> None:
    store, here, everywhere = MemoryStore(), Settings(host="127.0.0.1"), Settings(host="0.0.0.0")
    assert await open_to_everyone(here, store)
    with pytest.raises(NoKeys, match=r"no API key .* listen on 0\.0\.0\.0"):
        await open_to_everyone(everywhere, store)
    with pytest.raises(NoKeys, match=r"no admin key .* listen on 0\.0\.0\.0"):
        await open_to_everyone(Settings(host="0.0.0.0", api_key=KEY), store)
    assert not await open_to_everyone(Settings(host="0.0.0.0", api_key=KEY, admin_key=secrets.token_hex(32)), store)
    await store.put_key(new_admin_key(b"")[1])
    assert await open_to_everyone(here, store), "the admin key is nobody's who calls"
    with pytest.raises(NoKeys, match="no API key"):
        await open_to_everyone(everywhere, store)
    await store.put_key(new_key(b"", "ann")[1])
    assert not await open_to_everyone(everywhere, store)
    file = tmp_path / "keys.json"
    await KeyFileStore(file).secret()
    assert not await open_to_everyone(here, MemoryStore(), KeyFile(file)), "a file without keys serves nobody"
    with pytest.raises(NoKeys, match="no admin key"):
        await open_to_everyone(everywhere, MemoryStore(), KeyFile(file))
    await KeyFileStore(file).put_key(new_admin_key(b"")[1])
    assert not await open_to_everyone(everywhere, MemoryStore(), KeyFile(file))
    await store.change_key("admin", as_revoked)
    with pytest.raises(NoKeys, match="no admin key"):
        await open_to_everyone(everywhere, store)


async def test_pages_of_listed_origins_only_may_ask_and_read_the_headers(flash: Sim, pro: Sim) -> None:
    asks = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization,x-stainless-os",
    }
    async with gateway(policy_for(flash, pro), cors_origins="https://app.example") as gate:
        allowed = await gate.get(CHAT, "OPTIONS", origin="https://app.example", **asks)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        answer = await gate.ask(body(), origin="https://app.example")
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        for foreign in (
            await gate.get(CHAT, "OPTIONS", origin="https://evil.example", **asks),
            await gate.ask(body(), origin="https://evil.example"),
        ):
            assert "access-control-allow-origin" not in foreign.headers
    async with gateway(policy_for(flash, pro)) as gate:
        refused = await gate.get(CHAT, "OPTIONS", origin="https://app.example", **asks)
        assert (refused.status, "access-control-allow-origin" in refused.headers) == (405, False)


async def test_who_gives_a_file_of_keys_asks_everyone_for_one_though_the_store_has_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    await KeyFileStore(file).secret()
    for settings, everyone in ((Settings(), True), (Settings(keys_file=file), False)):
        _, keys = await permitted(settings, MemoryStore())
        assert keys.everyone is everyone


async def test_files_of_keys_and_records_that_cannot_be_used_are_told_in_metrics_until_they_can(
    flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    keys, folder = tmp_path / "keys.json", tmp_path / "folder"
    await KeyFileStore(keys).secret()
    file = KeyFile(keys)
    async with gateway(policy_for(flash, pro), file=file, api_key=KEY, records=folder / "records") as gate:

        async def told() -> list[str]:
            assert (await gate.ask(body(), authorization=f"Bearer {KEY}")).status == 200
            await gate.front.doors.records.close()
            found = (await gate.get("/metrics")).data.decode()
            return re.findall(r"^gateway_file_broken{file=(.*)$", found, re.MULTILINE)

        text = keys.read_text()
        keys.write_text("{")
        file.look()
        assert await told() == ['"policy"} 0.0', '"keys"} 1.0', '"records"} 1.0']
        keys.write_text(text)
        file.look()
        folder.mkdir()
        assert await told() == ['"policy"} 0.0', '"keys"} 0.0', '"records"} 0.0']


async def test_a_store_that_is_busy_at_the_start_has_time_to_answer(valkey: str) -> None:
    quick = Settings(redis_url=valkey.partition("?")[0])  # whose replies have 0.1 s
    store = open_store(quick.redis_url)
    with Valkey.from_url(valkey) as server:
        server.client_pause(700)
    _, keys = await permitted(quick, store)
    assert keys.everyone
    await store.close()


@pytest.mark.parametrize(
    ("flags", "env", "told"),
    [
        ([], {"GATEWAY_ADMIN_KEY": "changeme"}, "GATEWAY_ADMIN_KEY: "),
        (["--host", "0.0.0.0"], {"GATEWAY_API_KEY": KEY}, "no admin key is configured"),
        (["--host", "0.0.0.0"], {"GATEWAY_ADMIN_KEY": "0123abcd" * 8}, "GATEWAY_ADMIN_KEY: "),
    ],
)
def test_serve_refuses_to_start_without_a_strong_admin_key(flags: list[str], env: dict[str, str], told: str) -> None:
    done = CliRunner().invoke(app, ["serve", *flags], env=env)
    assert done.exit_code == 1
    assert told in done.stderr
    assert "openssl rand -hex 32" in done.stderr
    assert not any(key in done.stderr for key in env.values())


@pytest.mark.parametrize(
    ("flags", "env", "told"),
    [
        ((), {"TLS_CERT": "a.pem"}, "GATEWAY_TLS_CERT and GATEWAY_TLS_KEY belong together"),
        ((), {"TLS_KEY": "a.pem"}, "GATEWAY_TLS_CERT and GATEWAY_TLS_KEY belong together"),
        ((), {"TLS_CERT": "a.pem", "TLS_KEY": "b.pem"}, "cannot use the certificate a.pem with the key b.pem: No such"),
        (("--policy", "none.yaml"), {}, "none.yaml:1:1: cannot be read: No such file or directory"),
        (("--keys", "none.json"), {}, "none.json:1:1: cannot be read: No such file or directory"),
        (("--workers", "2", "--redis", "redis://host"), {"RECORDS": "r"}, "GATEWAY_RECORDS is a file of one process"),
    ],
)
def test_serve_says_why_it_does_not_start(flags: tuple[str, ...], env: dict[str, str], told: str) -> None:
    named = {f"GATEWAY_{name}": value for name, value in env.items()}
    done = CliRunner().invoke(app, ["serve", "--port", "0", *flags], env=named)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1
