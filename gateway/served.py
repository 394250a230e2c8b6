"""Do the model servers have the models that the policy names, as it says?   They are asked at the start and twice a
minute."""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec

from gateway.errors import UNREADABLE
from gateway.http1 import Client, Limits, Origin, TransportError, fetch
from gateway.policy import Policy, Tier

EVERY = 30.0  # seconds
LIMITS = Limits(connect=1.0, first_byte=2.0, idle=2.0, total=3.0)
NO_KEY = (401, 403)
MOST = 10_000  # models of a server, which lists its adapters, too
ONCE = "connection: close"  # a kept one would let the question that takes it overtake the draft beside it
Have = Literal["ok", "missing", "short", "no_key"]
_COUNT = re.compile(rb"[0-9]{1,9}").fullmatch
log = logging.getLogger("gateway")


class Served:
    """Asks the vLLM servers of each tier for their models; other engines list what they like, and are not asked."""

    def __init__(self, client: Client, policy: Callable[[], Policy]) -> None:
        self._client, self._policy = client, policy
        self._found: dict[tuple[str, str, str], Have] = {}  # by tier, its model, and URL

    def told(self) -> dict[str, list[Have | None]]:
        """For /ready: what each replica said last, in the policy's order; None where none did."""
        tiers = self._policy().tiers
        return {
            name: [self._found.get((name, tier.model, url)) for url in tier.replicas] for name, tier in tiers.items()
        }

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Asks each server once; of one that tells nothing, what it told before stays."""
        tiers = self._policy().tiers
        asked = [(name, tier, url) for name, tier in tiers.items() if tier.engine != "openai" for url in tier.replicas]
        replies = await asyncio.gather(*(self._ask(url, tier) for _, tier, url in asked))
        before, keys = self._found, [(name, tier.model, url) for name, tier, url in asked]
        known = [(key, reply or before.get(key)) for key, reply in zip(keys, replies, strict=True)]
        self._found = {key: have for key, have in known if have}
        for (name, model, url), have in self._found.items():
            if have != before.get((name, model, url), "ok"):
                log.warning(SAID[have], name, Origin.parse(url).authority, model)

    async def _ask(self, url: str, tier: Tier) -> Have | None:
        lines = [*key_lines(tier, os.environ), ONCE]
        try:
            reply = await fetch(self._client, Origin.parse(url), "GET /v1/models", LIMITS, *lines)
        except TransportError:
            return None
        if reply.status in NO_KEY:
            return "no_key"
        listed = models(reply.body) if reply.status == 200 else {}
        return have(tier, listed) if listed else None


SAID: Mapping[Have, str] = {
    "ok": "tier %s: %s has %s as the policy says",
    "missing": "tier %s: %s does not have %s, and answers each request with a 404: see `model`, --served-model-name",
    "short": "tier %s: %s has %s with a shorter context than the policy says, and answers longer prompts with a 400: "
    "see can.context, --max-model-len; tiergate doctor has both numbers",
    "no_key": "tier %s: %s refuses its key and tells nobody whether it has %s: see api_key_env",
}


def have(tier: Tier, listed: Mapping[str, int | None]) -> Have:
    """What the tier has of its model, by what a server lists."""
    if tier.model not in listed:
        return "missing"
    longest = listed[tier.model]
    return "ok" if longest is None or longest >= tier.can.context else "short"


class _Model(msgspec.Struct):
    id: str
    max_model_len: msgspec.Raw = msgspec.Raw()


class _Models(msgspec.Struct):
    data: Annotated[list[_Model], msgspec.Meta(max_length=MOST)]


_MODELS = msgspec.json.Decoder(_Models)


def models(body: bytes) -> Mapping[str, int | None]:
    """Of a list of models each with its longest context in tokens (None: not told); none where this is no such list,
    or one so long that reading it would hold up all others."""
    try:
        listed = _MODELS.decode(body).data
    except UNREADABLE:
        return {}
    return {one.id: int(one.max_model_len) if _COUNT(one.max_model_len) else None for one in listed}


def key_lines(tier: Tier, env: Mapping[str, str]) -> list[str]:
    """The header that shows a tier's servers our key, where they want one."""
    key = env.get(tier.api_key_env or "", "").strip()
    return [f"authorization: Bearer {key}"] if key else []
