"""How is a model asked?   A client for servers with OpenAI's API; a local model (local.py) has the same methods."""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

JSON = dict[str, Any]
TRIES = 4
LATER = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # statuses that are tried again
OFF: JSON = {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}


class AskError(Exception):
    """A model that gives no answer, after all tries; says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion. `cut`: it ended at the token limit. Numbers of tokens are 0 where the server gives none."""

    text: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """The negative log-likelihood (nats) of a text's tokens after the first, and their number."""

    nats: float
    tokens: int


class Model(Protocol):
    """The model under evaluation. Both methods raise AskError."""

    def answer(self, prompt: str, tokens: int) -> Answer: ...
    def score(self, text: str) -> Score: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server with OpenAI's API at `url` (…/v1). `extra` overrides fields of a chat request's body; `pause`: seconds
    before the second try, doubled for each later one."""

    url: str
    model: str
    key: str | None = None
    timeout: float = 600.0
    pause: float = 1.0
    extra: JSON = field(default_factory=dict)

    def answer(self, prompt: str, tokens: int) -> Answer:
        """The answer to a single user message, greedy unless `extra` says otherwise."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        started = time.perf_counter()
        told = self._post("/chat/completions", {**body, "temperature": 0, **self.extra})
        seconds = time.perf_counter() - started
        try:
            choice, usage = told["choices"][0], told.get("usage") or {}
            text, cut = choice["message"].get("content") or "", choice.get("finish_reason") == "length"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise AskError(f"{self.url}: not a chat completion ({error!r})") from None
        return Answer(text, cut, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, seconds)

    def score(self, text: str) -> Score:
        """The text's likelihood, from `prompt_logprobs` (vLLM), or else from `echo` with `logprobs`."""
        body = {"model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0}
        told = self._post("/completions", {**body, "prompt_logprobs": 0})
        if _prompt_logprobs(told) is None:
            told = self._post("/completions", {**body, "echo": True, "logprobs": 0})
        found = _prompt_logprobs(told) or _echoed(told)
        if not found or not all(map(math.isfinite, found)):
            raise AskError(f"{self.url} gives no log-probabilities of a prompt")
        return Score(-sum(found), len(found))

    def _post(self, path: str, body: JSON) -> JSON:
        """The server's JSON answer. Raises AskError when it refuses, or does not answer in any of the tries."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        asked = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)  # noqa: S310  (the operator's)
        why = ""
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(asked, timeout=self.timeout) as answer:  # noqa: S310
                    told: JSON = json.load(answer)
                    return told
            except urllib.error.HTTPError as error:
                why = f"{error.code} {_said(error)}"
                if error.code not in LATER:
                    break
                wait = _seconds(error.headers.get("retry-after"), self.pause * 2**attempt)
            except (OSError, http.client.HTTPException, ValueError) as error:
                why, wait = str(error) or type(error).__name__, self.pause * 2**attempt
            if attempt < TRIES - 1:
                time.sleep(wait)
        raise AskError(f"{self.url}{path}: {why}")


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of an error's body, which is closed; empty for one that breaks off."""
    try:
        with error:
            return error.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def _seconds(told: str | None, otherwise: float) -> float:
    """Seconds in a Retry-After header, at most 60; `otherwise` without one."""
    return min(float(told), 60.0) if told and told.replace(".", "", 1).isdigit() else otherwise


def _prompt_logprobs(told: JSON) -> Sequence[float] | None:
    """Log-probabilities in vLLM's form: for each token after the first {id: {"logprob": ...}}, its own id first. None
    without them."""
    found = (told.get("choices") or [{}])[0].get("prompt_logprobs")
    return [next(iter(one.values()))["logprob"] for one in found if one] if found else None


def _echoed(told: JSON) -> Sequence[float]:
    """Log-probabilities of the prompt from OpenAI's form, in which those of the answer follow."""
    choice, count = (told.get("choices") or [{}])[0], (told.get("usage") or {}).get("prompt_tokens") or 0
    values = (choice.get("logprobs") or {}).get("token_logprobs") or []
    return [value for value in values[:count] if value is not None]
