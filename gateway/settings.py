"""Where am I?   Settings come from the environment (GATEWAY_*) and the flags of `tiergate serve`."""

import ipaddress
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """An empty variable counts as unset. `policy` None: the policy that ships with the program.

    `redis_url` None: memory, one process. `api_key`: one caller key beside those in the store. `max_body` in bytes,
    `body_timeout` in seconds: what a request may take until it is complete. `log_exchanges`: a JSON line each.
    """

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    policy: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    redis_url: str | None = Field(default=None, repr=False)
    api_key: str | None = Field(default=None, repr=False)
    max_body: int = Field(default=32 * 1024 * 1024, ge=1024)
    body_timeout: float = Field(default=60.0, gt=0.0)
    log_exchanges: bool = True

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the listener."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
