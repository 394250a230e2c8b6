"""Where does this process run?   Settings come from the environment (GATEWAY_*) and the flags of `tiergate serve`."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

DRAIN_WAIT = 5.0  # seconds


def _names(value: Any) -> Any:
    return [name for part in value.split(",") if (name := part.strip())] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]  # in the environment divided by commas

HOSTNAME = re.compile(r"\w[\w.-]*|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE)
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")  # as browsers write one
SHORTEST_KEY, SHORTEST_ADMIN_KEY = 24, 32  # characters
FEWEST = 8  # different characters in an admin key; of 32 random hex digits one key in 10^7 has fewer
SENDABLE = re.compile("[!-~]([ -~]*[!-~])?")  # blanks at the ends of a header are no part of it
MAKE = "make one with: openssl rand -hex 32"
PLACEHOLDERS = re.compile(
    "changeme|changethis|password|passwort|placeholder|replaceme|yourkey|youradminkey|insert|example|secret|letmein|"
    "qwerty|abcdefgh|12345678"
)


class Settings(BaseModel):
    """What is not given comes from the environment, where an empty variable counts as unset.

    `policy` None: the policy that ships with the program.
    `redis_url` None: memory, one process. `workers`: processes on the port. `api_key`: one caller key beside those in
    the store. `admin_key`: opens /admin; None: the one that `tiergate keys admin` made, if it did. `keys_file`: keys
    that are asked before those in the store. `log_exchanges`: a JSON line each. `max_body` in bytes, `bodies` of all
    exchanges of one process (None: a sixth of the memory, that of all workers together). `connections` of callers to
    one process at most (None: half of the files that it may open, as each may need one to a server, or what a third of
    the memory holds). `hosts`: the names that a request's Host may have; none: any, without keys those of this machine.
    `cors_origins`: whose pages browsers let ask us, `*`: all; none: nobody's. `tls_cert`, `tls_key`: PEM files; with
    them the listener speaks TLS only. `http`: "fast" serves completions without ASGI in between, save for other
    origins. `records`: a file that decisions are written to, of this process alone.

    Times in seconds. `request_timeout`: what a request may take, and more for a body that keeps to 16 KiB/s;
    `idle_timeout`: how long a connection may be without a request. `keepalive`: how long a stream may be silent before
    a comment says that it lives (0: never). `stall_timeout`: how long a caller may leave what is written to it.
    `drain_wait`: from SIGTERM, when /ready begins to say no, until nobody new is let in (None: 5, none on loopback);
    `drain`: from then until open answers are ended.

    `trace_ratio`: the part of the exchanges that is traced (0: none), save where a caller's traceparent says; where the
    spans go is told by OTEL_EXPORTER_OTLP_ENDPOINT and the other variables of OpenTelemetry's exporter.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    policy: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    redis_url: str | None = Field(default=None, repr=False)
    api_key: str | None = Field(default=None, repr=False)
    admin_key: str | None = Field(default=None, repr=False)
    keys_file: Path | None = None
    max_body: int = Field(default=32 * 1024 * 1024, ge=1024)
    bodies: int | None = Field(default=None, ge=1024)
    connections: int | None = Field(default=None, ge=1)
    hosts: Names = ()
    cors_origins: Names = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    request_timeout: float = Field(default=10.0, gt=0.0)
    keepalive: float = Field(default=15.0, ge=0.0)
    idle_timeout: float = Field(default=75.0, gt=0.0)
    stall_timeout: float = Field(default=30.0, gt=0.0)
    drain_wait: float | None = Field(default=None, ge=0.0)
    drain: float = Field(default=600.0, ge=0.0)
    log_exchanges: bool = True
    http: Literal["fast", "asgi"] = "fast"
    records: Path | None = None
    trace_ratio: float = Field(default=0.0, ge=0.0, le=1.0)

    @property
    def pause(self) -> float:
        """Seconds between SIGTERM and the end of new connections, in which load balancers notice; none on loopback,
        where there are no balancers."""
        return self.drain_wait if self.drain_wait is not None else 0.0 if self.loopback else DRAIN_WAIT

    @property
    def authority(self) -> str:
        """Where it listens, as a URL has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the listener."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """A name that no Host can be would shut out everyone."""
        if wrong := next((name for name in names if not HOSTNAME.fullmatch(name)), None):
            raise ValueError(f"{wrong!r} is no name: neither port nor * belong to it, and an IPv6 address has brackets")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := next((origin for origin in origins if not ORIGIN.fullmatch(origin)), None):
            raise ValueError(f"{wrong!r} is no origin: https://name or https://name:port, in lower case and no more")
        return origins

    @field_validator("api_key")
    @classmethod
    def _usable(cls, key: str | None) -> str | None:
        if key is not None and len(key) < SHORTEST_KEY:
            raise ValueError(f"it has {len(key)} characters; at least {SHORTEST_KEY} are needed; {MAKE}")
        if key is not None and not SENDABLE.fullmatch(key):
            raise ValueError(f"no request can carry it: it has a blank at an end, a line's end, or no ASCII; {MAKE}")
        return key

    @model_validator(mode="before")
    @classmethod
    def _found(cls, given: dict[str, Any]) -> dict[str, Any]:
        names = {f"GATEWAY_{name.upper()}": name for name in cls.model_fields}
        return {
            names[key.upper()]: value for key, value in os.environ.items() if value and key.upper() in names
        } | given

    @field_validator("admin_key")
    @classmethod
    def _strong(cls, key: str | None, others: ValidationInfo) -> str | None:
        if key is None:
            return None
        if why := "it is GATEWAY_API_KEY, too" if key == others.data.get("api_key") else weakness(key):
            raise ValueError(f"{why}; {MAKE}")
        return key


def weakness(key: str, shortest: int = SHORTEST_ADMIN_KEY) -> str | None:
    """Why the key can be guessed; None when no reason is found."""
    if len(key) < shortest:
        return f"it has {len(key)} characters; at least {shortest} are needed"
    if not re.fullmatch("[!-~]+", key):
        return "it has characters other than ASCII's visible ones"
    if len(set(key)) < FEWEST:
        return f"it has {len(set(key))} different characters; at least {FEWEST} are needed"
    if any(key == (key[:size] * len(key))[: len(key)] for size in range(1, len(key) // 2 + 1)):
        return "it repeats itself"
    if PLACEHOLDERS.search(re.sub("[^a-z0-9]", "", key.lower())):
        return "it looks like a placeholder"
    return None
