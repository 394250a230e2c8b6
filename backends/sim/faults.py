"""Which faults are injected into a request's answer?"""

import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]
Count = Annotated[int, Meta(ge=0)]
VerdictFault = Literal["garbage", "truncated", "wrong_label", "fenced", "reasoning", "null", "stall", "status"]

Weakness = Literal["unsure", "loop", "refusal", "filter", "sorry", "empty"]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The faults of one request; the defaults are none. Seconds are wall time, not scaled by `speed`."""

    only: Literal["all", "triage", "answer"] = "all"
    count: Count | None = None  # hits the next so many requests, then none
    error_rate: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None  # share of requests answered with `status`
    status: Annotated[int, Meta(ge=400, le=599)] | None = None  # without `error_rate`: every request
    retry_after: Seconds | None = None  # the Retry-After header of that error
    stall_first: Seconds = 0.0  # before the first byte, headers included
    stall_after: Count | None = None  # after so many events nothing comes for `stall`
    stall: Seconds = 3600.0
    drip: Seconds = 0.0  # pause between pieces of `drip_bytes`
    drip_bytes: Annotated[int, Meta(ge=1)] = 1
    cut_after: Count | None = None  # after so many events the connection ends; a JSON body ends at half
    cut_by: Literal["reset", "close"] = "reset"
    no_done: bool = False  # a stream without [DONE]
    no_finish: bool = False  # a stream without finish_reason
    bad_json: Literal["garbage", "truncated"] | None = None  # a non-streamed body
    malformed_sse: bool = False  # every third event is not JSON
    html: bool = False  # status 200 with text/html in place of JSON
    verdict: VerdictFault | None = None  # a bad verdict; triage requests only
    weak: Weakness | None = None  # a bad answer; not for triage requests
    weak_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0  # the share of answers that `weak` hits
    ignore_response_format: bool = False
    no_logprobs: bool = False


NONE = Fault()
_STATUS_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}


def error_type(status: int) -> str:
    """vLLM's error type for a status."""
    return _STATUS_TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")


def read(values: Mapping[str, Any], base: Fault = NONE) -> Fault:
    """`base` overridden by `values`. Raises msgspec.ValidationError on an unknown key or a wrong value."""
    return msgspec.convert({**msgspec.to_builtins(base), **values}, Fault)


def from_header(text: str) -> Fault:
    """A fault from `x-sim-fault`: a JSON object, or `key=value;key=value`. Raises msgspec.ValidationError."""
    if text.lstrip().startswith("{"):
        return msgspec.json.decode(text, type=Fault)
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return read({key.strip(): _scalar(value.strip()) for key, _, value in pairs})


def _scalar(text: str) -> Any:
    """A number, a truth value ("" is true), or the text itself."""
    if text in ("", "true", "false"):
        return text != "false"
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


class Faults:
    """The faults that are set for the server, and which requests they hit."""

    def __init__(self, failure_injection_rate: float, seed: int) -> None:
        self._start = Fault(error_rate=failure_injection_rate / 100.0, status=500) if failure_injection_rate else NONE
        self._random = random.Random(seed)
        self.current = self._start

    def reset(self) -> None:
        """Back to the faults of the command line."""
        self.current = self._start

    def update(self, values: Mapping[str, Any]) -> None:
        """Override single values of what is set. Raises msgspec.ValidationError."""
        self.current = read(values, self.current)

    def take(self, triage: bool, own: Fault | None) -> Fault:
        """The fault for one request: its `own` (from a header) if it has one, else the server's. Decrements `count`."""
        fault = own or self.current
        if fault.only == ("answer" if triage else "triage") or (own is None and fault.count == 0):
            return NONE
        if fault.weak and (triage or self._random.random() >= fault.weak_share):
            fault = msgspec.structs.replace(fault, weak=None)
        if fault.error_rate is not None and self._random.random() >= fault.error_rate:
            return msgspec.structs.replace(fault, status=None)
        if own is None and fault.count is not None:
            self.current = msgspec.structs.replace(self.current, count=fault.count - 1)
        if fault.error_rate is not None and fault.status is None:
            return msgspec.structs.replace(fault, status=500)
        return fault
