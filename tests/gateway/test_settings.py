import pytest
from pydantic import ValidationError

from gateway.settings import Settings


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
    monkeypatch.setenv("GATEWAY_API_KEY", "canary")
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://:canary@h")
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
