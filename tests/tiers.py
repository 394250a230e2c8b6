"""The two simulated tiers that tests talk to, and policies that name them."""

import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.policy import Policy, load_policy

JSON = dict[str, Any]
OFF: JSON = {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}


@dataclass(frozen=True)
class Sim:
    """A simulated server in a process of its own."""

    url: str
    model: str

    def config(self, **faults: Any) -> None:
        """Lay these faults over what is set (see `backends/sim/faults.py`)."""
        self._call("POST", "/admin/config", faults)

    def state(self) -> JSON:
        """What it has seen since the last reset: `counters` and `requests`, oldest first."""
        seen: JSON = self._call("GET", "/admin/state")
        return seen

    def seen(self, kind: str = "answer") -> list[JSON]:
        """The requests of one kind, triage or answer."""
        return [entry for entry in self.state()["requests"] if entry["kind"] == kind]

    def reset(self) -> None:
        """No faults, and nothing seen."""
        self._call("DELETE", "/admin/config")
        self._call("DELETE", "/admin/state")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read() or b"null")


def policy_for(flash: Sim, pro: Sim, env: Mapping[str, str] | None = None, **changes: Any) -> Policy:
    """A policy over the two: everything is triaged, drafts always start. `changes` are top-level keys of the file;
    mappings are merged into it, all else replaces what it says, None removes it. `env` fills its
    variables.
    """
    limits = {"requests_per_minute": 100_000, "concurrency": 10_000, "may": ["pro"]}
    written: JSON = {
        "schema": 1,
        "name": "test",
        "revision": "r1",
        "tiers": {
            "flash": {"model": flash.model, "replicas": [flash.url], "set": OFF},
            "pro": {"model": pro.model, "replicas": [pro.url], "set": OFF},
        },
        "triage": {"tier": "flash", "timeout": "5s", "speculate": "always"},
        "rules": [{"id": "triaged", "route": {"simple": "flash", "complex": "pro"}}],
        "failover": {"tiers": {"flash": ["pro"], "pro": ["flash"]}},
        "callers": {"default": {"plan": "usual"}, "plans": {"usual": limits}},
    }
    return load_policy(json.dumps(merged(written, changes)), env or {})


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> JSON:
    found = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return {key: value for key, value in found.items() if value is not None}


def until(true: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait until `true()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
