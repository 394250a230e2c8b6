"""Policies that name the two simulated tiers of the tests."""

import json
from collections.abc import Mapping
from typing import Any

from gateway.policy import Policy, load_policy
from loadtest.servers import Sim

JSON = dict[str, Any]
OFF: JSON = {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}


def policy_for(flash: Sim, pro: Sim, env: Mapping[str, str] | None = None, **changes: Any) -> Policy:
    """The policy of `policy_text`; `env` fills its variables."""
    return load_policy(policy_text(flash, pro, **changes), env or {})


def policy_text(flash: Sim, pro: Sim, **changes: Any) -> str:
    """A policy over the two: everything is triaged, drafts always start. `changes` are top-level keys of the file;
    mappings are merged into it, all else replaces what it says, None removes it.
    """
    limits = {"requests_per_minute": 100_000, "concurrency": 10_000, "may": ["pro"]}
    written: JSON = {
        "schema": 1,
        "name": "test",
        "revision": "r1",
        "tiers": {
            "flash": {"model": flash.model, "replicas": [flash.url], "set": OFF},
            "pro": {"model": pro.model, "replicas": [pro.url], "set": OFF, "can": {"context": 200_000}},
        },
        "triage": {"tier": "flash", "timeout": "5s", "speculate": "always", "strategy": "json_logprobs"},
        "rules": [{"id": "triaged", "route": {"simple": "flash", "complex": "pro"}}],
        "failover": {"tiers": {"flash": ["pro"], "pro": ["flash"]}},
        "callers": {"default": {"plan": "usual"}, "plans": {"usual": limits}},
    }
    return json.dumps(merged(written, changes))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> JSON:
    found = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return {key: value for key, value in found.items() if value is not None}
