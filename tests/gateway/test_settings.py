import secrets

import pytest
from pydantic import ValidationError

from gateway.settings import Settings

KEY = "5d0c63ab12f94e7791be0f3ac2d85617"


def test_settings_come_from_the_environment_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://there")
    monkeypatch.setenv("GATEWAY_LOG_EXCHANGES", "false")
    monkeypatch.setenv("GATEWAY_SOMETHING_ELSE", "1")
    assert (Settings().port, Settings().redis_url, Settings().log_exchanges) == (9000, "redis://there", False)
    assert Settings(port=9001).port == 9001


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "REDIS_URL", "POLICY", "HOST", "PORT"):
        monkeypatch.setenv(f"GATEWAY_{name}", "")
    found = Settings()
    assert (found.api_key, found.redis_url, found.policy, found.host, found.port) == (
        None,
        None,
        None,
        "127.0.0.1",
        8080,
    )


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "canary-4f0b7d1a9c2e8356a1f4c7d2")
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://:canary@h")
    monkeypatch.setenv("GATEWAY_ADMIN_KEY", "canary-4f0b7d1a9c2e8356a1f4c7d2e9b0")
    assert "canary" not in repr(Settings())
    with pytest.raises(ValidationError) as error:
        Settings(port=-1)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("port", 70_000), ("max_body", 10), ("request_timeout", 0), ("port", "x")])
def test_a_wrong_setting_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("LocalHost", True), ("0.0.0.0", False), ("::", False),
     ("", False), ("10.0.0.1", False), ("gateway.example", False), ("127.0.0.1.evil", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_loopback(host: str, loopback: bool) -> None:
    assert Settings(host=host).loopback is loopback


def test_lists_are_divided_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_HOSTS", "a.example, b.example,")
    assert Settings().hosts == ("a.example", "b.example")
    assert Settings(hosts=("c",)).hosts == ("c",)


@pytest.mark.parametrize(
    ("key", "told"),
    [("3f9c", "4 characters"), ("a" * 64, "1 different"), ("abcABC" * 11, "6 different"), ("0f3a9c71" * 4, "repeats"),
     ("0123456789abcdef" * 2, "repeats"), ("Change-Me-9f3a0c71d2e84b56a7f1c3", "placeholder"),
     ("my_super_secret_admin_key_for_gateway", "placeholder"), ("abcdefghijklmnopqrstuvwxyz0123456789", "placeholder"),
     ("9f3a0c71 d2e84b56a7f1c39f3a0c71d2e8", "visible"), ("9f3a0c71ü2e84b56a7f1c39f3a0c71d2e84b", "visible")],
)  # fmt: skip
def test_a_weak_admin_key_is_refused_and_not_repeated_but_said_how_to_make_one(key: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as error:
        Settings(admin_key=key)
    assert "openssl rand -hex 32" in str(error.value)
    assert key not in str(error.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}ü", f"{KEY}\t{KEY}"])
def test_a_caller_key_that_no_request_can_carry_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValidationError, match="no request can carry it") as error:
        Settings(api_key=key)
    assert KEY not in str(error.value)
    assert Settings(api_key=f"{KEY} and {KEY}").api_key == f"{KEY} and {KEY}"


def test_a_short_caller_key_is_refused_and_not_repeated_but_said_how_to_make_one() -> None:
    with pytest.raises(ValidationError, match="it has 23 characters; at least 24 are needed") as error:
        Settings(api_key="x" * 23)
    assert "openssl rand -hex 32" in str(error.value)
    assert "x" * 23 not in str(error.value)


def test_random_admin_keys_are_taken() -> None:
    for _ in range(100):
        for key in (secrets.token_hex(16), secrets.token_hex(32), secrets.token_urlsafe(32)):
            assert Settings(admin_key=key).admin_key == key


def test_one_key_is_not_for_a_caller_and_for_operators() -> None:
    key = secrets.token_hex(32)
    with pytest.raises(ValidationError, match="GATEWAY_API_KEY"):
        Settings(api_key=key, admin_key=key)


@pytest.mark.parametrize("name", ["::1", "gw.example:80", "[::1]:80", "https://gw.example", "*.gw.example", "*"])
def test_a_host_that_no_request_can_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="is no name"):
        Settings(hosts=("gw.example", name))
    assert Settings(hosts=("gw-1.Example", "[2001:DB8::1]", "10.0.0.1", "a_b")).hosts


def test_where_it_listens_is_written_as_in_a_url() -> None:
    told = {host: Settings(host=host, port=80).authority for host in ("127.0.0.1", "::1", "::", "gw.example")}
    assert told == {"127.0.0.1": "127.0.0.1:80", "::1": "[::1]:80", "::": "[::]:80", "gw.example": "gw.example:80"}


@pytest.mark.parametrize("origin", ["https://app.example/", "app.example", "https://App.example", "https://*/x"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        Settings(cors_origins=("https://app.example", origin))
    assert Settings(cors_origins=("*", "null", "http://localhost:3000", "http://[::1]:80", "chrome-extension://abc"))
